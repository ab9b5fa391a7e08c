import type * as Cause from "effect/Cause"
import type * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import type { Attempt } from "./attempt.ts"
import type { Outputs } from "./outputs.ts"

/**
 * What a step answers that is not its value: something to wait for, or an end. A plain value is returned as it is, so
 * that a step that is a plain function allocates nothing.
 */
export type Pending =
  | Await
  | Run
  | Failed
  | Filtered
  | Join
  | Output

/** Tells answers from values, which may be of any class. */
abstract class PendingBase {
  abstract readonly _tag: string
}

/** A promise. */
export class Await extends PendingBase {
  readonly _tag = "Await"
  readonly promise: Promise<unknown>
  readonly onRejected: (error: unknown) => Cause.Cause<unknown>
  constructor(promise: Promise<unknown>, onRejected: (error: unknown) => Cause.Cause<unknown>) {
    super()
    this.promise = promise
    this.onRejected = onRejected
  }
}

/** An Effect; with `keep` the value that went in goes on. */
export class Run extends PendingBase {
  readonly _tag = "Run"
  readonly effect: Effect.Effect<unknown, unknown>
  readonly keep: boolean
  constructor(effect: Effect.Effect<unknown, unknown>, keep: boolean) {
    super()
    this.effect = effect
    this.keep = keep
  }
}

export class Failed extends PendingBase {
  readonly _tag = "Failed"
  readonly cause: Cause.Cause<unknown>
  constructor(cause: Cause.Cause<unknown>) {
    super()
    this.cause = cause
  }
}

/** A filter said no. */
class Filtered extends PendingBase {
  readonly _tag = "Filtered"
}
export const filtered = new Filtered()

/** The batch of a step. */
export class Join extends PendingBase {
  readonly _tag = "Join"
  readonly join: JoinBatch
  constructor(join: JoinBatch) {
    super()
    this.join = join
  }
}

/** A value to publish; the value that went in goes on. */
export class Output extends PendingBase {
  readonly _tag = "Output"
  readonly keep = true
  readonly outputs: Outputs
  readonly given: unknown
  constructor(outputs: Outputs, given: unknown) {
    super()
    this.outputs = outputs
    this.given = given
  }
}

/**
 * Adds a message to a batch and calls `resume` with its result. Gives a function that takes the message away again:
 * `stopped` is called as soon as the batch's function no longer works on it.
 */
export type JoinBatch = (
  attempt: Attempt,
  value: unknown,
  resume: (exit: Exit.Exit<unknown, unknown>) => void
) => (stopped: () => void) => void

/** A value may be an object that cannot be looked at (a revoked Proxy). */
export const isPending = (u: unknown): u is Pending => {
  try {
    return u instanceof PendingBase
  } catch {
    return false
  }
}

/** The value that went in goes on. */
export const keeps = (pending: Pending): boolean => "keep" in pending && pending.keep
