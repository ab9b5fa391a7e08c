/**
 * The answer to the broker about one delivery.
 *
 * A delivery is settled exactly once or it is redelivered; the first settlement is final.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import type { Hints } from "./internal/hint.ts"
import { delayOf, type Invalid, toError, unknownOption } from "./internal/invalid.ts"
import { shownError } from "./internal/shownError.ts"
import { invalidOption } from "./TransportError.ts"

const RequestedTypeId = "~@millrace/core/SettlementRequested"

/**
 * Done: the broker need not deliver this message to this group again.
 *
 * @category models
 * @since 0.1.0
 */
export interface Ack {
  readonly _tag: "Ack"
}

/**
 * Returned to the broker untouched, without counting an attempt, so that a peer may take it at once.
 *
 * @category models
 * @since 0.1.0
 */
export interface Release {
  readonly _tag: "Release"
}

/**
 * Try again, not before `after` has passed; counts an attempt.
 *
 * @category models
 * @since 0.1.0
 */
export interface Retry {
  readonly _tag: "Retry"
  /** `undefined`: at once, or when the pipeline's schedule says. Never negative. */
  readonly after: Duration.Duration | undefined
  /** Why, in one sentence: for logs, and for the dead letter if attempts run out. Absent: no reason was given. */
  readonly reason?: string | undefined
  /** Whether this retry is an attempt. Absent: it is. The engine settles uncounted ones itself, no transport sees them. */
  readonly countsAttempt?: boolean | undefined
  /** Whether the pipeline begins no other message in this process until `after` has passed. Absent: it goes on. */
  readonly pausesPipeline?: boolean | undefined
}

/**
 * Never again.
 *
 * @category models
 * @since 0.1.0
 */
export interface Terminate {
  readonly _tag: "Terminate"
  readonly reason: string
}

/**
 * The answers that every broker takes. A new member does not compile until every transport handles it.
 *
 * @category models
 * @since 0.1.0
 */
export type Settlement = Ack | Release | Retry | Terminate

const RetrySchema = Schema.Struct({
  _tag: Schema.tag("Retry"),
  after: Schema.UndefinedOr(Schema.Duration),
  reason: Schema.optional(Schema.String),
  countsAttempt: Schema.optional(Schema.Boolean),
  pausesPipeline: Schema.optional(Schema.Boolean)
})
const TerminateSchema = Schema.Struct({ _tag: Schema.tag("Terminate"), reason: Schema.String })

/**
 * A settlement that a handler asks for by failing with it: `yield* Settlement.retry("5 seconds")`, or
 * `throw Settlement.terminate("no such customer")` in any function. The pipeline's limit and dead letters apply.
 *
 * @category errors
 * @since 0.1.0
 */
export class SettlementRequested extends Schema.Error<SettlementRequested>("@millrace/core/SettlementRequested")({
  _tag: Schema.tag("SettlementRequested"),
  settlement: Schema.Union([RetrySchema, TerminateSchema])
}) {
  readonly [RequestedTypeId] = RequestedTypeId
  override get message(): string {
    const { settlement } = this
    if (settlement._tag === "Terminate") return settlement.reason
    const when = settlement.after === undefined ? "" : ` after ${Duration.format(settlement.after)}`
    return `retry requested${when}${settlement.reason === undefined ? "" : `: ${settlement.reason}`}`
  }
}

/**
 * Says that a settlement did not reach the broker; the message will be settled by the pipeline's policies instead, or
 * redelivered.
 *
 * @category errors
 * @since 0.1.0
 */
export class SettleError extends Schema.Error<SettleError>("@millrace/core/SettleError")({
  _tag: Schema.tag("SettleError"),
  id: Schema.String,
  cause: Schema.optional(Schema.Defect())
}) {
  override get message(): string {
    return `the settlement of message ${this.id} did not reach the broker`
  }
  override toJSON(): unknown {
    return shownError(this)
  }
}

/**
 * Acknowledges a message.
 *
 * @category constructors
 * @since 0.1.0
 */
export const ack: Ack = { _tag: "Ack" }

/**
 * Hands a message back without counting an attempt.
 *
 * @category constructors
 * @since 0.1.0
 */
export const release: Release = { _tag: "Release" }

/**
 * Options of {@link retry}.
 *
 * @category models
 * @since 0.1.0
 */
export interface RetryOptions {
  /** Why, in one sentence: for logs, and for the dead letter if attempts run out. */
  readonly reason?: string | undefined
  /**
   * Whether this retry is an attempt. Default `true`. `false` is for a service that says when to come back (429 with
   * `Retry-After`): the message waits `after` (1 second unless given) and runs again as the same attempt. One attempt may do so
   * `uncounted` times
   * (`Pipeline.retry`, default 100); then one counts. `Message.settle` always counts.
   */
  readonly countsAttempt?: boolean | undefined
  /**
   * Whether the pipeline begins no other message in this process until `after` has passed: for a limit that concerns all
   * messages, not this one. Default `false`. Handlers that run go on.
   */
  readonly pausesPipeline?: boolean | undefined
}

/**
 * Requests another attempt, after `after` or when the pipeline's schedule says. A negative duration means now.
 *
 * **Gotchas**
 *
 * Input that is no duration, is without end, or is an unknown option throws a `TransportError` that names it. Inside a
 * handler that is a failure of the message like any other.
 *
 * **Example** (A service that is overloaded)
 *
 * ```ts
 * import { Pipeline, Settlement, Topic } from "@millrace/core"
 * import { Schema } from "effect"
 *
 * const Prompts = Topic.make("prompts", { schema: Schema.Struct({ text: Schema.String }) })
 * export const answering = Pipeline.from(Prompts, { group: "answers" }).pipe(
 *   Pipeline.mapPromise(async ({ text }, { signal }) => {
 *     const response = await fetch("https://model.example/v1", { method: "POST", body: text, signal })
 *     if (response.status === 429) {
 *       const seconds = Number(response.headers.get("retry-after") ?? 10)
 *       throw Settlement.retry(`${seconds} seconds`, { reason: "429", countsAttempt: false, pausesPipeline: true })
 *     }
 *     return await response.text()
 *   })
 * )
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const retry = (after?: Duration.Input | Hints["duration"], options?: RetryOptions): SettlementRequested => {
  const invalid = options === undefined ? undefined : invalidRetry(options)
  if (invalid !== undefined) throw toError("core", invalid)
  const duration = after === undefined ? undefined : delayOf(after)
  if (duration === undefined && after !== undefined) {
    const remedy = "write a duration as \"5 seconds\" or as a number of milliseconds, neither NaN nor Infinity"
    throw invalidOption("core", "after of Settlement.retry", after, remedy)
  }
  return new SettlementRequested({ settlement: { _tag: "Retry", after: duration, ...options } })
}

/**
 * Copies a settlement; `undefined` for any other value: JavaScript has no types, and reading a field may throw.
 *
 * @internal
 */
export const read = (u: unknown): Settlement | undefined => {
  try {
    const given = isRequested(u) ? u.settlement : u as Settlement
    switch (given._tag) {
      case "Ack":
        return ack
      case "Release":
        return release
      case "Retry": {
        const copy = { ...given }
        const after = copy.after === undefined ? undefined : delayOf(copy.after)
        return after === undefined && copy.after !== undefined ? undefined : { ...copy, after }
      }
      case "Terminate": {
        const copy = { ...given }
        return typeof copy.reason === "string" ? copy : undefined
      }
    }
  } catch {
    return undefined
  }
}

const invalidRetry = (options: RetryOptions): Invalid | undefined => {
  const of = "Settlement.retry"
  const unknown = unknownOption(of, options, ["reason", "countsAttempt", "pausesPipeline"])
  if (unknown !== undefined) return unknown
  const { countsAttempt, pausesPipeline, reason } = options
  if (reason !== undefined && typeof reason !== "string") {
    return { option: `${of}.reason`, value: reason, remedy: "give a text" }
  }
  for (const [name, value] of Object.entries({ countsAttempt, pausesPipeline })) {
    if (value !== undefined && typeof value !== "boolean") {
      return { option: `${of}.${name}`, value, remedy: "write true or false" }
    }
  }
  return undefined
}

/**
 * Requests that the message is dead-lettered now, whatever attempts are left; `reason` is stored with the dead letter.
 *
 * @category constructors
 * @since 0.1.0
 */
export const terminate = (reason: string): SettlementRequested => {
  if (typeof reason !== "string") {
    throw invalidOption(
      "core",
      "reason of Settlement.terminate",
      reason,
      "give a text, such as the message of an error"
    )
  }
  return new SettlementRequested({ settlement: { _tag: "Terminate", reason } })
}

/**
 * Tells whether a failure is a settlement that a handler requested. Never throws, whatever it is given.
 *
 * @category guards
 * @since 0.1.0
 */
export const isRequested = (u: unknown): u is SettlementRequested => {
  try {
    return Predicate.hasProperty(u, RequestedTypeId)
  } catch {
    return false
  }
}
