import { OperationFailed, TransportError } from "@millrace/core/TransportError"
import type { JetStreamManager } from "@nats-io/jetstream"
import type { NatsConnection } from "@nats-io/nats-core"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { bad, type Finding, type Given } from "../findings.ts"
import { programChecks } from "../programChecks.ts"
import { consumerChecks } from "./consumerChecks.ts"
import { facts, isNotEnabled } from "./facts.ts"
import { serverChecks } from "./serverChecks.ts"
import { streamChecks } from "./streamChecks.ts"

const notEnabled = bad(
  "error",
  "nats/jetstream",
  "JetStream does not answer",
  "no pipeline starts, and nothing can be published",
  "start nats-server with -js, or enable JetStream for this account; behind a leaf node give --domain"
)

/** Everything about a server, its account, streams and consumers. */
export const examine = Effect.fnUntraced(
  function*(
    client: NatsConnection,
    jsm: JetStreamManager,
    given: Given
  ): Effect.fn.Return<ReadonlyArray<Finding>, TransportError> {
    const found = yield* Effect.tryPromise({
      try: () => facts(client, jsm, given).catch((error) => isNotEnabled(error) ? undefined : Promise.reject(error)),
      catch: (cause) =>
        new TransportError({
          transport: "nats",
          reason: new OperationFailed({ operation: "examining the server", cause })
        })
    })
    if (found === undefined) return [notEnabled]
    const now = yield* Clock.currentTimeMillis
    return [
      ...serverChecks(found, given),
      ...programChecks("nats", given, undefined),
      ...found.streams.flatMap((stream) => [
        ...streamChecks(stream, found, given),
        ...stream.consumers.flatMap((info) => consumerChecks(info, given, now, found.moving.has(info)))
      ])
    ]
  }
)
