import type { PublishError } from "@millrace/core/Publisher"
import type { Transport } from "@millrace/core/Transport"
import { showAs } from "@millrace/core/TransportAuthor"
import type { NatsConnection } from "@nats-io/nats-core"
import type * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Result from "effect/Result"
import type { Confirmed } from "./confirmation.ts"
import type { Connection } from "./connection.ts"
import type { PendingMessage } from "./encoding.ts"
import type { Declaring } from "./streams.ts"

/**
 * A connection to JetStream.
 *
 * `client` is the connection of `@nats-io/nats-core`, for what Millrace leaves alone: core NATS, key-value and object
 * stores.
 *
 * @category services
 * @since 0.1.0
 */
export class JetStream extends Context.Service<JetStream, {
  readonly transport: Transport["Service"]
  readonly client: NatsConnection
}>()("@millrace/nats-jetstream/JetStream") {}

export interface Parts {
  readonly connection: Connection
  readonly declaring: Declaring
  readonly send: (
    messages: Arr.NonEmptyReadonlyArray<PendingMessage>
  ) => Effect.Effect<ReadonlyArray<Result.Result<Confirmed, PublishError>>>
  /** Topics that have been declared since the layer was built. */
  readonly declared: Map<string, "output" | "deadLetter">
}

/** What the functions of this package need and users should not see. */
const parts = new WeakMap<object, Parts>()

export const partsOf: Effect.Effect<Parts, never, JetStream> = JetStream.use((service) => {
  const found = parts.get(service)
  return found === undefined
    ? Effect.die(
      new Error("this JetStream service was not made by JetStream.layer, layerConfig or layerFromConnection")
    )
    : Effect.succeed(found)
})

/** Makes the service. The client, which holds passwords, is shown by no inspection of it. */
export const makeService = (
  transport: Transport["Service"],
  client: NatsConnection,
  own: Parts
): JetStream["Service"] => {
  const { address, name } = transport
  const service: JetStream["Service"] = showAs({ transport, client }, "JetStream", { transport: name, address })
  parts.set(service, own)
  return service
}
