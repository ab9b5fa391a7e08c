import { OperationFailed, TransportError } from "@millrace/core/TransportError"
import type { JetStreamManager } from "@nats-io/jetstream"
import type { NatsConnection } from "@nats-io/nats-core"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type { Finding, Given } from "../findings.ts"
import { programChecks } from "../programChecks.ts"
import { consumerChecks } from "./consumerChecks.ts"
import { facts } from "./facts.ts"
import { serverChecks } from "./serverChecks.ts"
import { streamChecks } from "./streamChecks.ts"

/** Everything about a server, its account, streams and consumers. */
export const examine = Effect.fnUntraced(
  function*(
    client: NatsConnection,
    jsm: JetStreamManager,
    given: Given
  ): Effect.fn.Return<ReadonlyArray<Finding>, TransportError> {
    const found = yield* Effect.tryPromise({
      try: () => facts(client, jsm, given),
      catch: (cause) =>
        new TransportError({
          transport: "nats",
          reason: new OperationFailed({ operation: "examining the server", cause })
        })
    })
    const now = yield* Clock.currentTimeMillis
    return [
      ...serverChecks(found, given),
      ...programChecks("nats", given, undefined),
      ...found.streams.flatMap((stream) => [
        ...streamChecks(stream, found, given),
        ...stream.consumers.flatMap((info) => consumerChecks(info, given, now))
      ])
    ]
  }
)
