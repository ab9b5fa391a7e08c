/**
 * Messages that will not be tried again, stored with everything needed to understand and replay them.
 *
 * A dead letter is the original message, bytes and headers untouched, with one header more: the {@link Record}.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Exit from "effect/Exit"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import type * as Message from "./Message.ts"
import type { Delivery, Outgoing } from "./Transport.ts"

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
 * - `killer`: every allowed delivery ended without a settlement; its process may have died of it
 *
 * @category models
 * @since 0.1.0
 */
export const Reason = Schema.Literals(["exhausted", "rejected", "terminated", "undecodable", "killer"])

/**
 * Why it will not be tried again.
 *
 * @category models
 * @since 0.1.0
 */
export type Reason = typeof Reason.Type

/**
 * What is known about a dead letter beside the message itself. Times are milliseconds since the epoch.
 *
 * @category models
 * @since 0.1.0
 */
export class Record extends Schema.Class<Record>("@millrace/core/DeadLetter/Record")({
  version: Schema.Literal(1),
  topic: Schema.String,
  id: Schema.String,
  group: Schema.String,
  pipeline: Schema.String,
  reason: Reason,
  attempts: Schema.Int,
  publishedAt: Schema.Number,
  failedAt: Schema.Number,
  error: Schema.Struct({
    tag: Schema.String,
    message: Schema.String,
    stack: Schema.optionalKey(Schema.String),
    causes: Schema.Array(Schema.String)
  })
}) {}

const RecordJson = Schema.fromJsonString(Schema.toCodecJson(Record))
const decode = Schema.decodeUnknownExit(RecordJson)
const encode = Schema.encodeSync(RecordJson)

/**
 * Reads the record of a dead letter; fails with a `SchemaError` when the message is none.
 *
 * @category decoding
 * @since 0.1.0
 */
export const fromHeaders = (headers: Message.Headers): Exit.Exit<Record, Schema.SchemaError> => decode(headers[header])

/** The dead letter of a delivery. Its id makes the write idempotent by topic, group and source id. */
export const outgoing = (topic: string, delivery: Delivery, record: Record): Outgoing => ({
  topic,
  body: delivery.body,
  fields: delivery.fields,
  headers: { ...delivery.headers, [header]: escape(encode(record)) },
  key: delivery.key,
  id: `${record.topic}/${record.group}/${record.id}`,
  delay: undefined
})

/** Describes a cause within bounds: a header has to hold it. */
export const describe = (cause: Cause.Cause<unknown>): Record["error"] => {
  const error = Cause.squash(cause)
  const stack = error instanceof Error && error.stack !== undefined ? { stack: error.stack.slice(0, 2000) } : {}
  return { ...name(error), ...stack, causes: chain(error) }
}

const name = (error: unknown): { readonly tag: string; readonly message: string } => {
  const tag = Predicate.hasProperty(error, "_tag")
    ? String(error._tag)
    : error instanceof Error
    ? error.name
    : typeof error
  const message = error instanceof Error ? error.message : typeof error === "string" ? error : show(error)
  return { tag: tag.slice(0, 200), message: message.slice(0, 1000) }
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

const show = (u: unknown): string => {
  try {
    return JSON.stringify(u) ?? String(u)
  } catch {
    return String(u)
  }
}

// A header is one line of printable ASCII on the strictest broker.
const escape = (json: string): string =>
  json.replace(/[^\x20-\x7e]/g, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`)
