/**
 * Failures between a pipeline and its broker.
 *
 * One outer error with a `reason`, the same on all brokers, so that `Effect.catchReason` works. No reason ever carries a
 * password: addresses are shown by {@link redactUrl}.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import { connectionDetail } from "./internal/connectionDetail.ts"
import { plainText } from "./internal/errorDetail.ts"
import { shownError } from "./internal/shownError.ts"
import { shownValue } from "./internal/shownValue.ts"

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
 * No connection to the broker at `address`. The message says why: refused, unknown host, TLS, no such database, not
 * JetStream, no such cluster, or the text of `cause`.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unreachable extends Schema.Error<Unreachable>("@millrace/core/TransportError/Unreachable")({
  _tag: Schema.tag("Unreachable"),
  address: Schema.String,
  cause: Schema.optional(Schema.Defect())
}) {
  /** Why, in a few words and without a secret; `undefined` when the cause does not say. */
  get detail(): string | undefined {
    return connectionDetail(this.cause) ?? plainText(this.cause)
  }
  override get message(): string {
    const { detail } = this
    return detail === undefined
      ? `no broker answers at ${this.address}`
      : `cannot connect to ${this.address}: ${detail}`
  }
  override toJSON(): unknown {
    return shownError(this)
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
 * Something of that name exists at the broker and differs from the pipeline's declaration (a key of another data type, a
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
export class OperationFailed extends Schema.Error<OperationFailed>("@millrace/core/TransportError/OperationFailed")({
  _tag: Schema.tag("OperationFailed"),
  operation: Schema.String,
  cause: Schema.optional(Schema.Defect())
}) {
  override get message(): string {
    const text = plainText(this.cause)
    return `${this.operation} failed${text === undefined ? "" : `: ${text}`}`
  }
  override toJSON(): unknown {
    return shownError(this)
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
  OperationFailed
])

/**
 * The reasons of a {@link TransportError}.
 *
 * @category errors
 * @since 0.1.0
 */
export type TransportErrorReason = typeof TransportErrorReason.Type

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
  override toJSON(): unknown {
    return shownError(this)
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
      value: shownValue(value),
      remedy
    })
  })

/**
 * Renders an address, or several with commas between, without user, password, path and query. An address that is not
 * surely understood is not shown at all: a user or password with `/`, `?` or `#` in it reads like a host.
 *
 * **Example** (Hiding a password)
 *
 * ```ts import.meta.vitest
 * import { TransportError } from "@millrace/core"
 *
 * TransportError.redactUrl("redis://app:secret@localhost:6379/1") // => "redis://localhost:6379"
 * ```
 *
 * @category formatting
 * @since 0.1.0
 */
export const redactUrl = (url: string): string => {
  const shown = url.split(",").map(redactOne)
  if (shown.every((address) => address !== undefined)) return shown.join(",")
  return url.includes("@")
    ? "the given address (not a URL; percent-encode special characters of user and password)"
    : "the given address (not a URL)"
}

const redactOne = (given: string): string | undefined => {
  const text = given.trim()
  if (/^([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}$/.test(text)) return text
  // Everything after the authority, where a stray part of a password would be.
  const match = /^[A-Za-z][A-Za-z0-9+.-]*:\/\/([^/?#]*)(.*)$/s.exec(text)
  if (match === null || match[2]!.includes("@") || match[1]!.split("@").length > 2) return undefined
  try {
    const { host, protocol } = new URL(text)
    return `${protocol}//${host}`
  } catch {
    return undefined
  }
}
