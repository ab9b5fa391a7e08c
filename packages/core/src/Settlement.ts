/**
 * What is said to the broker about one delivery.
 *
 * A delivery is settled exactly once or it is redelivered; the first settlement is final.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Predicate from "effect/Predicate"

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
 * Handed back untouched, without counting an attempt, so that a peer may take it at once.
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
 * **When to use**
 *
 * Use as a handler's failure (`yield* Settlement.retry("5 seconds")`, or `throw` it in a promise) to choose the delay
 * of this one retry. Without a delay the pipeline's own schedule decides.
 *
 * @category errors
 * @since 0.1.0
 */
export class Retry extends Data.TaggedError("@millrace/Retry")<{ readonly after: Duration.Duration | undefined }> {
  override get message(): string {
    return this.after === undefined ? "retry asked for" : `retry asked for after ${Duration.format(this.after)}`
  }
}

/**
 * Never again. As a handler's failure the message is dead-lettered at once, whatever attempts are left.
 *
 * @category errors
 * @since 0.1.0
 */
export class Terminate extends Data.TaggedError("@millrace/Terminate")<{ readonly reason: string }> {
  override get message(): string {
    return this.reason
  }
}

/**
 * One of the things that can be said about a delivery on every broker.
 *
 * @category models
 * @since 0.1.0
 */
export type Settlement = Ack | Release | Retry | Terminate

/**
 * The settlements that a handler may also fail with.
 *
 * @category models
 * @since 0.1.0
 */
export type Signal = Retry | Terminate

/**
 * Says that a settlement did not reach the broker; the message will be settled by the pipeline's policies instead, or
 * redelivered.
 *
 * @category errors
 * @since 0.1.0
 */
export class SettleError extends Data.TaggedError("SettleError")<{ readonly id: string; readonly cause?: unknown }> {
  override get message(): string {
    return `the settlement of message ${this.id} did not reach the broker`
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
 * Asks for another attempt, after `after` or when the pipeline's schedule says.
 *
 * @category constructors
 * @since 0.1.0
 */
export const retry = (after?: Duration.Input): Retry =>
  new Retry({ after: after === undefined ? undefined : Duration.fromInputUnsafe(after) })

/**
 * Asks for no further attempt; `reason` is stored with the dead letter.
 *
 * @category constructors
 * @since 0.1.0
 */
export const terminate = (reason: string): Terminate => new Terminate({ reason })

/**
 * Tells whether a failure is a settlement that a handler asked for.
 *
 * @category guards
 * @since 0.1.0
 */
export const isSignal = (u: unknown): u is Signal =>
  Predicate.isTagged(u, "@millrace/Retry") || Predicate.isTagged(u, "@millrace/Terminate")
