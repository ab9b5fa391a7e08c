import * as Schema from "effect/Schema"
import { InvalidOption, Unauthorized } from "../TransportError.ts"
import { shownError } from "./shownError.ts"

/**
 * The value does not fit the topic's schema.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unencodable extends Schema.Error<Unencodable>("@millrace/core/Publisher/Unencodable")({
  _tag: Schema.tag("Unencodable"),
  issue: Schema.String
}) {
  override get message(): string {
    return `the value does not fit the topic's schema: ${this.issue}`
  }
}

/**
 * The message is larger than the broker takes; `limit` in bytes.
 *
 * @category errors
 * @since 0.1.0
 */
export class TooLarge extends Schema.Error<TooLarge>("@millrace/core/Publisher/TooLarge")({
  _tag: Schema.tag("TooLarge"),
  size: Schema.Number,
  limit: Schema.Number
}) {
  override get message(): string {
    return `${this.size} bytes, more than the ${this.limit} that the broker takes`
  }
}

/**
 * The broker answered and will not take it: memory is full, a key of another type, an expectation that does not hold.
 *
 * @category errors
 * @since 0.1.0
 */
export class Refused extends Schema.Error<Refused>("@millrace/core/Publisher/Refused")({
  _tag: Schema.tag("Refused"),
  detail: Schema.String
}) {
  override get message(): string {
    return `the broker refused it: ${this.detail}`
  }
}

/**
 * It was never sent: there is no connection. Publishing again cannot duplicate.
 *
 * @category errors
 * @since 0.1.0
 */
export class NotSent extends Schema.Error<NotSent>("@millrace/core/Publisher/NotSent")({
  _tag: Schema.tag("NotSent"),
  detail: Schema.String
}) {
  override get message(): string {
    return `it was not sent: ${this.detail}`
  }
}

/**
 * It was sent and the connection was lost before the answer: the broker may have it. Publishing again may duplicate,
 * unless it has an `id` and the broker deduplicates.
 *
 * @category errors
 * @since 0.1.0
 */
export class OutcomeUnknown extends Schema.Error<OutcomeUnknown>("@millrace/core/Publisher/OutcomeUnknown")({
  _tag: Schema.tag("OutcomeUnknown"),
  detail: Schema.String
}) {
  override get message(): string {
    return `the broker may or may not have it: ${this.detail}`
  }
}

/**
 * The reasons of a {@link PublishError}.
 *
 * @category errors
 * @since 0.1.0
 */
export const PublishErrorReason = Schema.Union([
  Unencodable,
  TooLarge,
  Refused,
  NotSent,
  OutcomeUnknown,
  InvalidOption,
  Unauthorized
])

/**
 * The reasons of a {@link PublishError}.
 *
 * @category errors
 * @since 0.1.0
 */
export type PublishErrorReason = typeof PublishErrorReason.Type

/**
 * A message was not published, or may not have been.
 *
 * @category errors
 * @since 0.1.0
 */
export class PublishError extends Schema.Error<PublishError>("@millrace/core/PublishError")({
  _tag: Schema.tag("PublishError"),
  topic: Schema.String,
  reason: PublishErrorReason
}) {
  override get message(): string {
    return `publish to ${this.topic}: ${this.reason.message}`
  }
  override toJSON(): unknown {
    return shownError(this)
  }
}
