import * as Schema from "effect/Schema"

/**
 * Why it will not be tried again.
 *
 * - `exhausted`: the last allowed attempt failed
 * - `rejected`: the retry policy's `while` rejected the failure
 * - `terminated`: the handler asked for no further attempt
 * - `undecodable`: the bytes do not fit the topic's codec
 * - `crashed`: every allowed attempt ended without a settlement; its process may have crashed because of it
 * - `vanished`: the broker deleted the message (by a bound, an operator or eviction) before its next attempt
 *
 * @category models
 * @since 0.1.0
 */
export const DeadLetterReason = Schema.Literals([
  "exhausted",
  "rejected",
  "terminated",
  "undecodable",
  "crashed",
  "vanished"
])

/**
 * Why it will not be tried again.
 *
 * @category models
 * @since 0.1.0
 */
export type DeadLetterReason = typeof DeadLetterReason.Type

/**
 * A failure that an earlier redrive was meant to end.
 *
 * @category models
 * @since 0.1.0
 */
export class Failure extends Schema.Class<Failure>("@millrace/core/DeadLetter/Failure")({
  id: Schema.String,
  reason: DeadLetterReason,
  attempts: Schema.Int,
  failedAt: Schema.Number,
  error: Schema.String
}) {}

/**
 * The facts about a dead letter beside the message itself. Times are milliseconds since the epoch.
 *
 * - `id`: of the message that failed; after a redrive a new one, `history` has the earlier ones
 * - `origin`: names the stream that held the message, and its life; `origin`, `group` and `id` are unique together
 * - `firstFailedAt`: absent when a later attempt ended with its process
 * - `error`: `tag` is its `_tag` or its class, `causes` its chain of causes, `fields` its own fields as far as they are
 *   plain data
 * - `trace`: the span of the last attempt, else of the publisher, as in the header `traceparent`
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
  origin: Schema.optionalKey(Schema.String),
  group: Schema.String,
  pipeline: Schema.String,
  reason: DeadLetterReason,
  attempts: Schema.Int,
  publishedAt: Schema.Number,
  firstFailedAt: Schema.optionalKey(Schema.Number),
  failedAt: Schema.Number,
  error: Schema.Struct({
    tag: Schema.String,
    message: Schema.String,
    stack: Schema.optionalKey(Schema.String),
    causes: Schema.Array(Schema.String),
    fields: Schema.optionalKey(Schema.Record(Schema.String, Schema.Unknown))
  }),
  trace: Schema.optionalKey(Schema.String),
  history: Schema.Array(Failure)
}) {}

const RecordJson = Schema.fromJsonString(Schema.toCodecJson(Record))
export const decodeRecord = Schema.decodeUnknownExit(RecordJson)
export const encodeRecord = Schema.encodeSync(RecordJson)
const HistoryJson = Schema.fromJsonString(Schema.toCodecJson(Schema.Array(Failure)))
export const decodeHistory = Schema.decodeUnknownExit(HistoryJson)
export const encodeHistory = Schema.encodeSync(HistoryJson)
const HeadersJson = Schema.fromJsonString(Schema.Record(Schema.String, Schema.String))
export const decodeHeaders = Schema.decodeUnknownExit(HeadersJson)
export const encodeHeaders = Schema.encodeSync(HeadersJson)
