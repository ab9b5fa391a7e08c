import type * as Transport from "@millrace/core/Transport"
import * as TransportAuthor from "@millrace/core/TransportAuthor"
import type * as TransportError from "@millrace/core/TransportError"
import { type ApiError, JetStreamApiError, type StreamInfo } from "@nats-io/jetstream"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { isCode, noMessage } from "./comparison.ts"
import { ask, type Connection, interrupted, unexpected } from "./connection.ts"
import { getBatch, type Stored } from "./directGet.ts"
import { headersIn } from "./headers.ts"
import { idOf, isEarlier, type Life, sequenceIn } from "./life.ts"
import { atLeast } from "./server.ts"
import { findStream } from "./streams.ts"

/** The most messages that one request asks for. */
const maxBatch = 512

/** One stream, and the topic in it that is read. */
interface Source {
  readonly connection: Connection
  readonly stream: string
  readonly topic: string
  /** The stream holds nothing but the topic. */
  readonly isOnlyTopic: boolean
  /** The server answers with many messages at once. */
  isBatched: boolean
}

const sourceOf = (connection: Connection, info: StreamInfo, topic: string): Source => ({
  connection,
  stream: info.config.name,
  topic,
  isOnlyTopic: info.config.subjects?.length === 1 && info.config.subjects[0] === topic,
  isBatched: info.config.allow_direct && atLeast(connection.nc.info?.version, 2, 11)
})

/**
 * Reads stored messages in batches. An ordered consumer would be faster, and a work queue refuses it.
 */
export const browse = (
  connection: Connection,
  topic: string,
  options: Transport.BrowseOptions = {}
): Stream.Stream<Transport.Delivery, TransportError.TransportError> =>
  Stream.unwrap(Effect.map(findStream(connection, topic), (info) => {
    if (info === undefined) return Stream.empty
    const life = connection.lives.note(info)
    const source = sourceOf(connection, info, topic)
    const after = bound(life, options.after, 0)
    const before = bound(life, options.before, Infinity)
    const first = Math.max(after + 1, info.state.first_seq)
    const last = Math.min(before - 1, info.state.last_seq)
    const limit = options.limit ?? Infinity
    if (first > last || limit <= 0) return Stream.empty
    const pages = options.reverse === true ? backward(source, first, last, limit) : forward(source, first, last, limit)
    return Stream.map(Stream.take(pages, limit), (message) => toDelivery(life, message))
  }))

/** An id of an earlier life of the stream is before everything, one of a later life behind it. */
const bound = (life: Life, id: string | undefined, absent: number): number =>
  id === undefined ? absent : sequenceIn(life, id) ?? (isEarlier(life, id) ? 0 : Infinity)

const forward = (source: Source, first: number, last: number, limit: number) =>
  Stream.paginate(
    { from: first, left: limit },
    ({ from, left }) =>
      Effect.map(range(source, from, last, Math.min(left, maxBatch)), ({ messages, next }) => {
        const rest = left - messages.length
        return [
          messages,
          next === undefined || rest <= 0 ? Option.none() : Option.some({ from: next, left: rest })
        ] as const
      })
  )

/** The server reads forward only: windows that end where the last one began, larger while they hold too little. */
const backward = (source: Source, first: number, last: number, limit: number) =>
  Stream.paginate({ to: last, width: Math.min(limit, maxBatch), left: limit }, ({ left, to, width }) => {
    const from = Math.max(first, to - width + 1)
    return Effect.map(whole(source, from, to), (found) => {
      const messages = found.reverse()
      const rest = left - messages.length
      const isSparse = messages.length < width / 4
      return [
        messages,
        from <= first || rest <= 0
          ? Option.none()
          : Option.some({ to: from - 1, left: rest, width: isSparse ? width * 4 : Math.min(width, maxBatch) })
      ] as const
    })
  })

const whole = Effect.fnUntraced(function*(source: Source, from: number, to: number) {
  const all: Array<Stored> = []
  let next: number | undefined = from
  while (next !== undefined) {
    const page: Page = yield* range(source, next, to, maxBatch)
    all.push(...page.messages)
    next = page.next
  }
  return all
})

interface Page {
  readonly messages: Array<Stored>
  /** Where to go on; absent at the end of the range. */
  readonly next: number | undefined
}

/** At most `most` messages of the topic from `from` to `to`. */
const range = (
  source: Source,
  from: number,
  to: number,
  most: number
): Effect.Effect<Page, TransportError.TransportError> => {
  if (from > to) return Effect.succeed({ messages: [], next: undefined })
  return source.isBatched
    ? Effect.catch(batched(source, from, to, most), () => {
      // A user without the permission for batches reads message by message.
      source.isBatched = false
      return range(source, from, to, most)
    })
    : source.isOnlyTopic
    ? bySequence(source, from, Math.min(to, from + most - 1), to)
    : Effect.map(following(source, from), (message) =>
      message === undefined || message.seq > to
        ? { messages: [], next: undefined }
        : { messages: [message], next: message.seq + 1 })
}

const batched = ({ connection, stream, topic, ...rest }: Source, from: number, to: number, most: number) =>
  Effect.flatMap(
    ask(
      connection,
      `reading ${topic}`,
      () => getBatch(connection, stream, { seq: from, batch: most, next_by_subj: topic })
    ),
    (found) => {
      const messages = found.filter(({ seq }) => seq <= to)
      if (messages.length < found.length) return Effect.succeed({ messages, next: undefined })
      if (found.length === most) return Effect.succeed({ messages, next: found.at(-1)!.seq + 1 })
      // A replica that lags behind may have answered: the leader knows whether there is more.
      const behind = (found.at(-1)?.seq ?? from - 1) + 1
      if (behind > to) return Effect.succeed({ messages, next: undefined })
      return Effect.map(
        following({ connection, stream, topic, ...rest }, behind),
        (more) =>
          more === undefined || more.seq > to
            ? { messages, next: undefined }
            : { messages: [...messages, more], next: more.seq + 1 }
      )
    }
  )

const bySequence = (source: Source, from: number, until: number, to: number) =>
  Effect.map(
    Effect.forEach(Arr.range(from, until), (seq) => stored(source, { seq }), { concurrency: 64 }),
    (messages): Page => ({
      messages: messages.filter((message) => message !== undefined),
      next: until < to ? until + 1 : undefined
    })
  )

const following = (source: Source, seq: number) => stored(source, { seq, next_by_subj: source.topic })

/** What the server answers to `STREAM.MSG.GET`; the client's own call cannot ask for the next of a subject. */
interface Answer {
  readonly message?: {
    readonly subject: string
    readonly seq: number
    readonly time: string
    readonly data?: string
    readonly hdrs?: string
  }
  readonly error?: ApiError
}

/** Reads one message, or the next of a subject; `undefined`: there is none. */
export const stored = (
  { connection, stream, topic }: Pick<Source, "connection" | "stream" | "topic">,
  query: { readonly seq: number; readonly next_by_subj?: string }
): Effect.Effect<Stored | undefined, TransportError.TransportError> =>
  Effect.flatMap(
    ask(connection, `reading ${topic}`, () => {
      const subject = `${connection.apiPrefix}.STREAM.MSG.GET.${stream}`
      return connection.nc.request(subject, JSON.stringify(query), { timeout: 5000 }).then((msg) => msg.json<Answer>())
    }),
    ({ error, message }) => {
      if (error !== undefined && error.err_code !== noMessage) {
        return Effect.fail(interrupted(`reading ${topic}`, new JetStreamApiError(error)))
      }
      if (message === undefined) return Effect.succeed(undefined)
      const { data, hdrs, seq, subject, time } = message
      return Effect.succeed({
        subject,
        seq,
        time,
        body: Buffer.from(data ?? "", "base64"),
        headers: headersIn(Buffer.from(hdrs ?? "", "base64"))
      })
    }
  )

const toDelivery = (life: Life, { body, headers, seq, subject, time }: Stored): Transport.Delivery => ({
  id: idOf(life, seq),
  origin: life.origin,
  topic: subject,
  body,
  headers,
  key: TransportAuthor.keyOf(headers),
  attempt: 1,
  redelivered: false,
  suspect: false,
  publishedAt: Date.parse(time)
})

/** Reads one message by its id. */
export const get = (
  connection: Connection,
  topic: string,
  id: string
): Effect.Effect<Option.Option<Transport.Delivery>, TransportError.TransportError> =>
  Effect.flatMap(findStream(connection, topic), (info) => {
    if (info === undefined) return Effect.succeed(Option.none())
    const life = connection.lives.note(info)
    const seq = sequenceIn(life, id)
    if (seq === undefined) return Effect.succeed(Option.none())
    return Effect.map(
      stored({ connection, stream: info.config.name, topic }, { seq }),
      (message) =>
        message === undefined || message.subject !== topic ? Option.none() : Option.some(toDelivery(life, message))
    )
  })

/** Reads the first message of some subjects from a sequence on: how long a group has been behind. */
export const firstFrom = (connection: Connection, stream: string, subject: string, seq: number) =>
  Effect.map(
    stored({ connection, stream, topic: subject }, { seq, next_by_subj: subject }),
    (message) => message === undefined ? undefined : Date.parse(message.time)
  )

/** Deletes messages by their ids; those of an earlier life of the stream are gone. */
export const remove = Effect.fnUntraced(function*(
  connection: Connection,
  topic: string,
  ids: ReadonlyArray<string>
): Effect.fn.Return<number, TransportError.TransportError> {
  const info = yield* findStream(connection, topic)
  if (info === undefined) return 0
  const life = connection.lives.note(info)
  const sequences = ids.flatMap((id) => sequenceIn(life, id) ?? [])
  const removed = yield* Effect.forEach(
    sequences,
    (sequence) =>
      connection.call(`deleting from ${topic}`, (jsm) => jsm.streams.deleteMessage(info.config.name, sequence, false))
        .pipe(
          Effect.catch((error) =>
            // 10043 as 2.9 says it, 10057: there is no such message.
            isCode(error, noMessage, 10043, 10057)
              ? Effect.succeed(false)
              : Effect.fail(unexpected(`deleting from ${topic}`)(error))
          )
        ),
    { concurrency: 64 }
  )
  return removed.filter((done) => done).length
})
