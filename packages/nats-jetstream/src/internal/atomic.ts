import * as Publisher from "@millrace/core/Publisher"
import type { Outgoing } from "@millrace/core/Transport"
import * as TransportError from "@millrace/core/TransportError"
import { headers as makeHeaders } from "@nats-io/nats-core"
import * as Effect from "effect/Effect"
import type { PubAck } from "./confirmation.ts"
import type { Connection } from "./connection.ts"
import { encodeHeaders } from "./encoding.ts"
import { atLeast } from "./server.ts"

/** The server's own limit. */
const most = 1000

/**
 * Publishes all or none. The client's own batch drops headers and options of its messages, and takes a refusal of the
 * last one for a short count.
 */
export const publishBatch = Effect.fnUntraced(function*(
  connection: Connection,
  topic: string,
  messages: ReadonlyArray<Outgoing>
): Effect.fn.Return<{ readonly stream: string; readonly lastSequence: number }, Publisher.PublishError> {
  const { nc } = connection
  const fail = (reason: Publisher.PublishErrorReason) => new Publisher.PublishError({ topic, reason })
  const invalid = (remedy: string) =>
    fail(new TransportError.InvalidOption({ option: "batch", value: `${messages.length} messages`, remedy }))
  if (!atLeast(nc.info?.version, 2, 12)) return yield* invalid(`needs nats-server 2.12, this is ${nc.info?.version}`)
  if (messages.length > most) return yield* invalid(`the server takes ${most} at most, publish several batches`)
  const id = crypto.randomUUID()
  const encodeOne = (message: Outgoing, index: number) => {
    const block = encodeHeaders(message, undefined)
    block.add("Nats-Batch-Id", id)
    block.add("Nats-Batch-Sequence", String(index + 1))
    if (index === messages.length - 1) block.add("Nats-Batch-Commit", "1")
    const bytes = block.encode()
    // The client wants no more of headers than their bytes.
    const headers = Object.assign(makeHeaders(), { encode: () => bytes })
    return { body: message.body, headers, size: message.body.length + bytes.length }
  }
  const encoded = yield* Effect.try({
    try: () => messages.map(encodeOne),
    catch: (cause) =>
      fail(
        cause instanceof TransportError.InvalidOption ? cause : new Publisher.Refused({ detail: String(cause) })
      )
  })
  const limit = nc.info?.max_payload ?? Infinity
  for (const { size } of encoded) {
    if (size > limit) return yield* fail(new Publisher.TooLarge({ size, limit }))
  }
  if (connection.state() !== "connected") {
    return yield* fail(new Publisher.NotSent({ detail: "there is no connection" }))
  }
  const ack = yield* connection.call("publishing a batch", () => {
    const last = encoded[encoded.length - 1]!
    for (const { body, headers } of encoded.slice(0, -1)) nc.publish(topic, body, { headers })
    return nc.request(topic, last.body, { headers: last.headers, timeout: 5000 }).then((answer) =>
      answer.json<PubAck>()
    )
  }).pipe(Effect.mapError((error) =>
    fail(
      error instanceof TransportError.TransportError && error.reason._tag === "Unauthorized"
        ? error.reason
        : new Publisher.OutcomeUnknown({ detail: error.message })
    )
  ))
  if (ack.error !== undefined) {
    return yield* fail(new Publisher.Refused({ detail: `${ack.error.description} (${ack.error.err_code})` }))
  }
  return { stream: ack.stream ?? "", lastSequence: ack.seq ?? 0 }
})
