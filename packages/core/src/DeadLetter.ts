/**
 * Messages that will not be tried again, stored with everything needed to understand and replay them.
 *
 * A dead letter is the original message, bytes and headers untouched, with one header more: the {@link Record}.
 *
 * @since 0.1.0
 */
import * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { dual } from "effect/Function"
import type * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { publishUntilAnswered } from "./internal/publish.ts"
import type * as Message from "./Message.ts"
import type { PublishError } from "./Publisher.ts"
import type * as Topic from "./Topic.ts"
import { type Delivery, type Outgoing, Transport } from "./Transport.ts"
import type { TransportError } from "./TransportError.ts"

/**
 * The header that holds the {@link Record}, as JSON.
 *
 * @category constants
 * @since 0.1.0
 */
export const header = "millrace-dead-letter"

/**
 * Why it will not be tried again.
 *
 * - `exhausted`: the last allowed attempt failed
 * - `rejected`: the retry policy's `while` rejected the failure
 * - `terminated`: the handler asked for no further attempt
 * - `undecodable`: the bytes do not fit the topic's codec
 * - `crashed`: every allowed attempt ended without a settlement; its process may have crashed because of it
 *
 * @category models
 * @since 0.1.0
 */
export const Reason = Schema.Literals(["exhausted", "rejected", "terminated", "undecodable", "crashed"])

/**
 * Why it will not be tried again.
 *
 * @category models
 * @since 0.1.0
 */
export type Reason = typeof Reason.Type

/**
 * A failure that an earlier redrive was meant to end.
 *
 * @category models
 * @since 0.1.0
 */
export class Failure extends Schema.Class<Failure>("@millrace/core/DeadLetter/Failure")({
  id: Schema.String,
  reason: Reason,
  attempts: Schema.Int,
  failedAt: Schema.Number,
  error: Schema.String
}) {}

/**
 * What is known about a dead letter beside the message itself. Times are milliseconds since the epoch.
 *
 * - `id`: of the message that failed; after a redrive a new one, `history` has the earlier ones
 * - `firstFailedAt`: absent when a later attempt ended with its process, or, on Redis, was handed back
 * - `history`: how it failed before each redrive, oldest first
 *
 * @category models
 * @since 0.1.0
 */
export class Record extends Schema.Class<Record>("@millrace/core/DeadLetter/Record")({
  version: Schema.Literal(1),
  sdk: Schema.String,
  topic: Schema.String,
  id: Schema.String,
  group: Schema.String,
  pipeline: Schema.String,
  reason: Reason,
  attempts: Schema.Int,
  publishedAt: Schema.Number,
  firstFailedAt: Schema.optionalKey(Schema.Number),
  failedAt: Schema.Number,
  error: Schema.Struct({
    tag: Schema.String,
    message: Schema.String,
    stack: Schema.optionalKey(Schema.String),
    causes: Schema.Array(Schema.String)
  }),
  history: Schema.Array(Failure)
}) {}

/**
 * A dead letter where it is stored.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeadLetter {
  /** Its id in the dead-letter topic. */
  readonly id: string
  /** The ids of all that it consists of there: a message close to the broker's limit is stored in two pieces. */
  readonly ids: Arr.NonEmptyReadonlyArray<string>
  readonly record: Record
  /** The message as it was: bytes, fields, headers, key. */
  readonly message: Delivery
}

const RecordJson = Schema.fromJsonString(Schema.toCodecJson(Record))
const decodeRecord = Schema.decodeUnknownExit(RecordJson)
const encodeRecord = Schema.encodeSync(RecordJson)
const HistoryJson = Schema.fromJsonString(Schema.toCodecJson(Schema.Array(Failure)))
const decodeHistory = Schema.decodeUnknownExit(HistoryJson)
const encodeHistory = Schema.encodeSync(HistoryJson)

/**
 * Reads the record of a dead letter; fails with a `SchemaError` when the message is none.
 *
 * @category decoding
 * @since 0.1.0
 */
export const fromHeaders = (headers: Message.Headers): Exit.Exit<Record, Schema.SchemaError> =>
  decodeRecord(headers[header])

/**
 * Decodes the original message of a dead letter as its topic would.
 *
 * @category decoding
 * @since 0.1.0
 */
export const decode: {
  <A, RD, RE>(
    topic: Topic.Topic<A, RD, RE>
  ): (self: DeadLetter) => Effect.Effect<A, Schema.SchemaError, RD>
  <A, RD, RE>(self: DeadLetter, topic: Topic.Topic<A, RD, RE>): Effect.Effect<A, Schema.SchemaError, RD>
} = dual(
  2,
  <A, RD, RE>(self: DeadLetter, topic: Topic.Topic<A, RD, RE>): Effect.Effect<A, Schema.SchemaError, RD> =>
    topic.codec.decode(self.message)
)

// --- looking after them

/**
 * Lists the dead letters of a dead-letter topic, oldest first. What is no dead letter is passed over.
 *
 * @category operations
 * @since 0.1.0
 */
export const list = (topic: string): Stream.Stream<DeadLetter, TransportError, Transport> =>
  Stream.unwrap(Transport.useSync((transport) => transport.browse(topic))).pipe(
    Stream.mapAccum(() => new Map<string, Array<Delivery>>(), (rests, delivery) => {
      const restOf = delivery.headers[restHeader]
      if (restOf !== undefined) rests.set(restOf, [...(rests.get(restOf) ?? []), delivery])
      const record = fromHeaders(delivery.headers)
      if (Exit.isFailure(record)) return [rests, []] as const
      const id = letterId(record.value)
      const letter = whole(delivery, record.value, rests.get(id) ?? [])
      rests.delete(id)
      return [rests, letter === undefined ? [] : [letter]] as const
    })
  )

/** Puts a letter together that was too large to be stored in one piece. */
const whole = (delivery: Delivery, record: Record, rest: ReadonlyArray<Delivery>): DeadLetter | undefined => {
  const parts = { id: delivery.id, ids: [delivery.id, ...rest.map(({ id }) => id)] as const, record }
  if (delivery.headers[splitHeader] === undefined) return { ...parts, message: delivery }
  const [second] = rest
  if (second === undefined) return undefined
  const { [splitHeader]: _, ...headers } = delivery.headers
  const body = new Uint8Array(delivery.body.byteLength + second.body.byteLength)
  body.set(delivery.body)
  body.set(second.body, delivery.body.byteLength)
  return { ...parts, message: { ...plain(delivery), body, headers } }
}

/** A delivery whose fields may be getters, as a plain object. */
const plain = (delivery: Delivery): Delivery => ({
  id: delivery.id,
  origin: delivery.origin,
  topic: delivery.topic,
  key: delivery.key,
  headers: delivery.headers,
  body: delivery.body,
  fields: delivery.fields,
  attempt: delivery.attempt,
  redelivered: delivery.redelivered,
  suspect: delivery.suspect,
  publishedAt: delivery.publishedAt
})

/**
 * Finds one dead letter by its id in the dead-letter topic.
 *
 * @category operations
 * @since 0.1.0
 */
export const inspect = (
  topic: string,
  id: string
): Effect.Effect<Option.Option<DeadLetter>, TransportError, Transport> =>
  Stream.runHead(Stream.filter(list(topic), (letter) => letter.id === id))

/**
 * Which dead letters an operation concerns.
 *
 * - `filter`: default all
 * - `limit`: at most so many; default all
 * - `dryRun`: says what would be done and does nothing; default `false`
 *
 * @category models
 * @since 0.1.0
 */
export interface SelectOptions {
  readonly filter?: ((letter: DeadLetter) => boolean) | undefined
  readonly limit?: number | undefined
  readonly dryRun?: boolean | undefined
}

/**
 * Options of {@link redrive}.
 *
 * - `rate`: messages a second; default as fast as the broker takes them
 * - `cap`: how often one message may be redriven; default 3. Those beyond it stay where they are
 *
 * @category models
 * @since 0.1.0
 */
export interface RedriveOptions extends SelectOptions {
  readonly rate?: number | undefined
  readonly cap?: number | undefined
}

/**
 * What {@link redrive} did, or, as a dry run, would do.
 *
 * @category models
 * @since 0.1.0
 */
export interface Redriven {
  readonly redriven: number
  /** Redriven `cap` times already. */
  readonly capped: number
}

/**
 * Publishes dead letters to the topic they came from, for the group they failed in: pipelines of other groups
 * acknowledge them unseen. Each is deleted from the dead-letter topic once the broker has it again.
 *
 * **Details**
 *
 * The id of what is published derives from the dead letter, so that a redrive that was cut short can be repeated; where
 * the broker no longer knows the id, a repeat delivers the message once more. Attempts begin anew; how it failed before
 * is kept in the record's `history` if it fails again.
 *
 * @category operations
 * @since 0.1.0
 */
export const redrive = Effect.fnUntraced(function*(
  topic: string,
  options?: RedriveOptions
): Effect.fn.Return<Redriven, TransportError | PublishError, Transport> {
  const transport = yield* Transport
  const cap = options?.cap ?? 3
  let redriven = 0
  let capped = 0
  const letters = select(topic, options, (letter) => {
    if (letter.record.history.length < cap) return true
    capped++
    return false
  })
  const paced = options?.rate === undefined || options.dryRun === true
    ? letters
    : Stream.throttle(Stream.rechunk(letters, 1), {
      cost: (letters) => letters.length,
      units: options.rate,
      duration: "1 second",
      strategy: "shape"
    })
  yield* Stream.runForEach(paced, (letter) =>
    Effect.gen(function*() {
      redriven++
      if (options?.dryRun === true) return
      yield* publishUntilAnswered(transport, redrivenMessage(letter))
      yield* transport.remove(topic, letter.ids)
    }))
  return { redriven, capped }
})

/**
 * Deletes dead letters for good; returns how many, or, as a dry run, how many it would delete.
 *
 * @category operations
 * @since 0.1.0
 */
export const discard = Effect.fnUntraced(function*(
  topic: string,
  options?: SelectOptions
): Effect.fn.Return<number, TransportError, Transport> {
  const transport = yield* Transport
  return yield* Stream.runFoldEffect(Stream.grouped(select(topic, options), 100), () => 0, (sum, letters) => {
    const counted = Effect.succeed(sum + letters.length)
    return options?.dryRun === true
      ? counted
      : Effect.andThen(transport.remove(topic, Arr.flatMap(letters, (letter) => letter.ids)), counted)
  })
})

const select = (
  topic: string,
  options: SelectOptions | undefined,
  may: (letter: DeadLetter) => boolean = () => true
): Stream.Stream<DeadLetter, TransportError, Transport> => {
  const letters = Stream.filter(list(topic), (letter) => (options?.filter?.(letter) ?? true) && may(letter))
  return options?.limit === undefined ? letters : Stream.take(letters, options.limit)
}

const redrivenMessage = ({ message, record }: DeadLetter): Outgoing => {
  const { [header]: _, ...headers } = message.headers
  const failure = new Failure({
    id: record.id,
    reason: record.reason,
    attempts: record.attempts,
    failedAt: record.failedAt,
    error: `${record.error.tag}: ${record.error.message}`.slice(0, 300)
  })
  return {
    topic: record.topic,
    body: message.body,
    fields: message.fields,
    headers: {
      ...headers,
      "millrace-group": record.group,
      "millrace-history": oneLine(encodeHistory([...record.history, failure]))
    },
    key: message.key,
    id: `redrive/${record.topic}/${record.group}/${record.id}`,
    delay: undefined
  }
}

// --- writing one

/**
 * Makes the dead letter of a delivery. Its id makes the write idempotent by topic, group and source id.
 *
 * @category constructors
 * @since 0.1.0
 */
export const outgoing = (topic: string, delivery: Delivery, record: Record): Outgoing => ({
  topic,
  body: delivery.body,
  fields: delivery.fields,
  headers: { ...delivery.headers, [header]: oneLine(encodeRecord(record)) },
  key: delivery.key,
  id: letterId(record),
  delay: undefined
})

/**
 * The same letter in two pieces, for one that is too large with its record beside it. The second half is written first:
 * whoever finds the record finds all of it.
 *
 * @category encoding
 * @since 0.1.0
 */
export const split = (letter: Outgoing): readonly [rest: Outgoing, head: Outgoing] => {
  const half = Math.floor(letter.body.byteLength / 2)
  return [
    { ...letter, body: letter.body.subarray(half), headers: { [restHeader]: letter.id! }, id: `${letter.id}/rest` },
    { ...letter, body: letter.body.subarray(0, half), headers: { ...letter.headers, [splitHeader]: "2" } }
  ]
}

const letterId = (record: Record): string => `${record.topic}/${record.group}/${record.id}`

const splitHeader = "millrace-split"
const restHeader = "millrace-rest-of"

/**
 * Reads how a redriven message failed before.
 *
 * @category accessors
 * @since 0.1.0
 */
export const historyOf = (headers: Message.Headers): ReadonlyArray<Failure> => {
  const text = headers["millrace-history"]
  if (text === undefined) return []
  const exit = decodeHistory(text)
  return Exit.isSuccess(exit) ? exit.value : []
}

/**
 * Describes a cause within bounds: a header has to hold it.
 *
 * @category constructors
 * @since 0.1.0
 */
export const describe = (cause: Cause.Cause<unknown>): Record["error"] => {
  const error = Cause.squash(cause)
  try {
    const stack = error instanceof Error && typeof error.stack === "string" ? { stack: error.stack.slice(0, 2000) } : {}
    return { ...name(error), ...stack, causes: chain(error) }
  } catch {
    // A getter of the error's own throws.
    return { tag: "unknown", message: "an error that cannot be shown", causes: [] }
  }
}

const name = (error: unknown): { readonly tag: string; readonly message: string } => {
  const tag = Predicate.hasProperty(error, "_tag") ? error._tag : error instanceof Error ? error.name : typeof error
  const message = error instanceof Error ? error.message : error
  return { tag: show(tag).slice(0, 200), message: show(message).slice(0, 1000) }
}

const chain = (error: unknown): Array<string> => {
  const causes: Array<string> = []
  for (let next = causeOf(error); next !== undefined && causes.length < 5; next = causeOf(next)) {
    const { message, tag } = name(next)
    causes.push(`${tag}: ${message}`.slice(0, 500))
  }
  return causes
}

const causeOf = (error: unknown): unknown => error instanceof Error ? error.cause : undefined

/** Whatever was thrown can be shown. */
const show = (u: unknown): string => {
  if (typeof u === "string") return u
  try {
    return JSON.stringify(u) ?? String(u)
  } catch {
    return Object.prototype.toString.call(u)
  }
}

// A header is one line of printable ASCII on the strictest broker.
const oneLine = (json: string): string =>
  json.replace(/[^\x20-\x7e]/g, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`)
