import type { NatsConnection } from "@nats-io/nats-core"
import type { JetStreamManager } from "@nats-io/jetstream"
import * as Effect from "effect/Effect"
import type { Finding, Given } from "../findings.ts"
export const examine = (_client: NatsConnection, _jsm: JetStreamManager, _given: Given): Effect.Effect<ReadonlyArray<Finding>, Error> =>
  Effect.succeed([])
