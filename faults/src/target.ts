/** The brokers that faults are done to. */
import type * as Transport from "@millrace/core/Transport"
import type { TransportError } from "@millrace/core/TransportError"
import * as JetStream from "@millrace/nats-jetstream/JetStream"
import * as RedisStreams from "@millrace/redis-streams/RedisStreams"
import * as Brokers from "@millrace/testing/Brokers"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"

export type Kind = "redis" | "nats"

/** A broker that has on disk what it confirmed. */
export interface Target {
  readonly kind: Kind
  readonly server: "redis" | "valkey" | "nats"
  readonly broker: Effect.Effect<Brokers.Broker, Brokers.BrokersError, Scope.Scope>
}

const redis = (version: string): Target => ({
  kind: "redis",
  server: "redis",
  broker: Brokers.redis({ version, persistence: "always" })
})

export const newestRedis = redis("newest")
export const oldestRedis = redis("oldest")
export const newestValkey: Target = {
  kind: "redis",
  server: "valkey",
  broker: Brokers.valkey({ version: "newest", persistence: "always" })
}
export const newestNats: Target = { kind: "nats", server: "nats", broker: Brokers.nats({ sync: "always" }) }

/** What nobody has kept for so long goes to a peer: short, so that runs are. */
const claimTime = "2 seconds"

/** How long the broker knows an id again: longer than any fault, or what a step publishes through it is there twice. */
const knownFor = "10 minutes"

/** How many messages a group has still to settle. */
export class Unsettled extends Context.Service<
  Unsettled,
  (topic: string, group: string) => Effect.Effect<number, TransportError>
>()("@millrace/faults/Unsettled") {}

const unsettledOnRedis = Layer.effect(
  Unsettled,
  Effect.map(
    Effect.context<RedisStreams.RedisStreams>(),
    (context) => (topic: string, group: string) =>
      RedisStreams.groupInfo(topic, group).pipe(
        Effect.map((info) => info.pending + (info.lag ?? 0)),
        Effect.catchReason("TransportError", "Mismatch", () => Effect.succeed(Infinity)),
        Effect.provide(context)
      )
  )
)

const unsettledOnNats = Layer.effect(
  Unsettled,
  Effect.map(
    Effect.context<JetStream.JetStream>(),
    (context) => (topic: string, group: string) =>
      JetStream.consumerInfo(topic, group).pipe(Effect.map(({ lag }) => lag), Effect.provide(context))
  )
)

export const layer = (kind: Kind, url: string): Layer.Layer<Transport.Transport | Unsettled, TransportError> =>
  kind === "redis"
    ? Layer.provideMerge(
      unsettledOnRedis,
      RedisStreams.layer({ url, claim: { minIdle: claimTime }, answerTimeout: "2 seconds", deduplicateFor: knownFor })
    )
    : Layer.provideMerge(
      unsettledOnNats,
      JetStream.layer({ url, ackWait: claimTime, stream: { duplicateWindow: knownFor } })
    )
