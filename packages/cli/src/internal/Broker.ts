import type * as Transport from "@millrace/core/Transport"
import type { TransportError } from "@millrace/core/TransportError"
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { Finding, Given } from "./findings.ts"

/** A topic as the server stores it. Times are milliseconds since the epoch. */
export interface Stored {
  readonly topic: string
  readonly messages: number
  /** Ever added; `undefined` where the server does not count. */
  readonly added: number | undefined
  /** On JetStream of the whole stream, which may hold other topics. */
  readonly bytes: number | undefined
  readonly first: number | undefined
  readonly last: number | undefined
  /** What bounds it or deletes from it, in the server's words; empty: nothing. */
  readonly bounds: ReadonlyArray<string>
}

/** A message that a consumer has not settled. */
export interface Held {
  readonly id: string
  /** `undefined`: its process has released it, and any other one may take it. */
  readonly consumer: string | undefined
  /** When it was delivered last, or its lease was renewed; `undefined` for one that was released. */
  readonly since: number | undefined
  readonly attempts: number
}

/** What only the broker's own commands tell. */
export class Broker extends Context.Service<Broker, {
  readonly name: "redis" | "nats" | "memory"
  /** Product and version: `Redis 8.6.3`. */
  readonly server: string
  readonly transport: Transport.Transport["Service"]
  readonly topics: Effect.Effect<ReadonlyArray<string>, TransportError>
  /** `undefined`: there is no such topic. */
  readonly stored: (topic: string) => Effect.Effect<Stored | undefined, TransportError>
  /** Oldest first, or only the message with this id; `undefined` where the server does not tell which those are. */
  readonly held: (
    topic: string,
    group: string,
    limit: number,
    id?: string
  ) => Effect.Effect<ReadonlyArray<Held> | undefined, TransportError>
  /** Retries that wait for their time; `undefined` where the server does not tell. */
  readonly retries: (topic: string, group: string) => Effect.Effect<number | undefined, TransportError>
  readonly examine: (given: Given) => Effect.Effect<ReadonlyArray<Finding>, TransportError>
}>()("@millrace/cli/internal/Broker") {}
