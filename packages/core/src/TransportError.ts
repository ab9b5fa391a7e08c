/**
 * What can go wrong between a pipeline and its broker.
 *
 * One outer error with a `reason`, the same on all brokers, so that `Effect.catchReason` works. No reason ever carries a
 * password: addresses are shown by {@link redactUrl}.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"

/**
 * An option that cannot work: names the option, the value and the remedy.
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidOption extends Schema.Error<InvalidOption>("@millrace/core/TransportError/InvalidOption")({
  _tag: Schema.tag("InvalidOption"),
  option: Schema.String,
  value: Schema.String,
  remedy: Schema.String
}) {
  override get message(): string {
    return `${this.option} is ${this.value}: ${this.remedy}`
  }
}

/**
 * There is no connection to the broker at `address`; `cause` says why.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unreachable extends Schema.Error<Unreachable>("@millrace/core/TransportError/Unreachable")({
  _tag: Schema.tag("Unreachable"),
  address: Schema.String,
  cause: Schema.optional(Schema.Defect())
}) {
  override get message(): string {
    const { cause } = this
    return `cannot connect to ${this.address}${cause instanceof Error ? `: ${cause.message}` : ""}`
  }
}

/**
 * The broker refused the credentials, or the user may not do `operation`.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unauthorized extends Schema.Error<Unauthorized>("@millrace/core/TransportError/Unauthorized")({
  _tag: Schema.tag("Unauthorized"),
  address: Schema.String,
  operation: Schema.String,
  detail: Schema.String
}) {
  override get message(): string {
    return `${this.address} refused ${this.operation}: ${this.detail}`
  }
}

/**
 * Something of that name exists at the broker and is not what the pipeline declares (a key of another data type, a
 * consumer with another configuration).
 *
 * @category errors
 * @since 0.1.0
 */
export class Mismatch extends Schema.Error<Mismatch>("@millrace/core/TransportError/Mismatch")({
  _tag: Schema.tag("Mismatch"),
  name: Schema.String,
  expected: Schema.String,
  found: Schema.String
}) {
  override get message(): string {
    return `${this.name} is ${this.found}, expected ${this.expected}`
  }
}

/**
 * The server, in this version or configuration, cannot do `operation`.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unsupported extends Schema.Error<Unsupported>("@millrace/core/TransportError/Unsupported")({
  _tag: Schema.tag("Unsupported"),
  operation: Schema.String,
  remedy: Schema.String
}) {
  override get message(): string {
    return `${this.operation} is not supported by this server: ${this.remedy}`
  }
}

/**
 * The connection was lost, or the broker answered with an error, during `operation`. Trying again may succeed.
 *
 * @category errors
 * @since 0.1.0
 */
export class Interrupted extends Schema.Error<Interrupted>("@millrace/core/TransportError/Interrupted")({
  _tag: Schema.tag("Interrupted"),
  operation: Schema.String,
  cause: Schema.optional(Schema.Defect())
}) {
  override get message(): string {
    const cause = this.cause
    return `${this.operation} failed${cause instanceof Error ? `: ${cause.message}` : ""}`
  }
}

/**
 * The reasons of a {@link TransportError}.
 *
 * @category errors
 * @since 0.1.0
 */
export const TransportErrorReason = Schema.Union([
  InvalidOption,
  Unreachable,
  Unauthorized,
  Mismatch,
  Unsupported,
  Interrupted
])

/**
 * The reasons of a {@link TransportError}.
 *
 * @category errors
 * @since 0.1.0
 */
export type TransportErrorReason = typeof TransportErrorReason.Type

/**
 * The former name of {@link TransportErrorReason}.
 *
 * @deprecated Use `TransportErrorReason`.
 * @category errors
 * @since 0.1.0
 */
export type Reason = TransportErrorReason

/**
 * The one error a running pipeline can end with: every handler failure ends in a settlement instead.
 *
 * @category errors
 * @since 0.1.0
 */
export class TransportError extends Schema.Error<TransportError>("@millrace/core/TransportError")({
  _tag: Schema.tag("TransportError"),
  transport: Schema.String,
  reason: TransportErrorReason
}) {
  override get message(): string {
    return `${this.transport}: ${this.reason.message}`
  }
}

/**
 * Creates the error for an option that cannot work.
 *
 * @category constructors
 * @since 0.1.0
 */
export const invalidOption = (transport: string, option: string, value: unknown, remedy: string): TransportError =>
  new TransportError({
    transport,
    reason: new InvalidOption({
      option,
      value: typeof value === "string" ? JSON.stringify(value) : String(value),
      remedy
    })
  })

/**
 * Renders an address without its user, password, path and query.
 *
 * @category formatting
 * @since 0.1.0
 */
export const redactUrl = (url: string): string => {
  try {
    const { host, protocol } = new URL(url)
    return `${protocol}//${host}`
  } catch {
    return "the given address (not a URL)"
  }
}
