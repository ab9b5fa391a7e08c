import * as Publisher from "@millrace/core/Publisher"
import type * as Transport from "@millrace/core/Transport"
import type * as TransportError from "@millrace/core/TransportError"
import { type ApiError, JetStreamApiError } from "@nats-io/jetstream"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { type Connection, interrupted, unexpected } from "./connection.ts"
import { headersIn } from "./headers.ts"
import { findStream } from "./resources.ts"

/**
 * Reads a stream message by message. An ordered consumer would be faster, and a work queue refuses it.
 */
export const browse = (
  connection: Connection,
  topic: string
): Stream.Stream<Transport.Delivery, TransportError.TransportError> =>
  Stream.unwrap(Effect.map(findStream(connection, topic), (info) => {
    if (info === undefined) return Stream.empty
    const stream = info.config.name
    const last = info.state.last_seq
    return Stream.paginate(
      1,
      (seq) =>
        Effect.map(next(connection, stream, topic, seq), (message) =>
          message === undefined || message.seq > last
            ? [[], Option.none()] as const
            : [[toDelivery(message)], Option.some(message.seq + 1)] as const)
    )
  }))

/** What the server answers to `STREAM.MSG.GET`; the client's own call cannot ask for the next of a subject. */
interface Answer {
  readonly message?: Stored
  readonly error?: ApiError
}

interface Stored {
  readonly subject: string
  readonly seq: number
  readonly time: string
  readonly data?: string
  readonly hdrs?: string
}

const next = (connection: Connection, stream: string, subject: string, seq: number) =>
  connection.call(`reading ${subject}`, () =>
    connection.nc.request(
      `${connection.apiPrefix}.STREAM.MSG.GET.${stream}`,
      JSON.stringify({ seq, next_by_subj: subject }),
      { timeout: 5000 }
    ).then((msg) => msg.json<Answer>())).pipe(
      Effect.mapError(unexpected(`reading ${subject}`)),
      Effect.flatMap(({ error, message }) =>
        error === undefined || error.err_code === noMessage
          ? Effect.succeed(message)
          : Effect.fail(interrupted(`reading ${subject}`, new JetStreamApiError(error)))
      )
    )

const noMessage = 10037

const toDelivery = (message: Stored): Transport.Delivery => {
  const headers = headersIn(Buffer.from(message.hdrs ?? "", "base64"))
  return {
    id: String(message.seq),
    topic: message.subject,
    body: Buffer.from(message.data ?? "", "base64"),
    headers,
    key: Publisher.keyOf(headers),
    attempt: 1,
    redelivered: false,
    suspect: false,
    publishedAt: Date.parse(message.time)
  }
}

/** Deletes messages by their numbers. */
export const remove = Effect.fnUntraced(function*(
  connection: Connection,
  topic: string,
  ids: ReadonlyArray<string>
): Effect.fn.Return<number, TransportError.TransportError> {
  const info = yield* findStream(connection, topic)
  if (info === undefined) return 0
  const removed = yield* Effect.forEach(
    ids,
    (id) =>
      connection.call(`deleting from ${topic}`, (jsm) => jsm.streams.deleteMessage(info.config.name, Number(id), false))
        .pipe(
          Effect.catch((error) =>
            // 10043 as 2.9 says it, 10057: there is no such message.
            error instanceof JetStreamApiError &&
              (error.code === noMessage || error.code === 10043 || error.code === 10057)
              ? Effect.succeed(false)
              : Effect.fail(unexpected(`deleting from ${topic}`)(error))
          )
        ),
    { concurrency: 64 }
  )
  return removed.filter((done) => done).length
})
