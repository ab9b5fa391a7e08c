import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import type * as Codec from "../Codec.ts"
import type * as Message from "../Message.ts"
import type { Delivery } from "../Transport.ts"
import { type Attempt, MessageImpl } from "./attempt.ts"
import { Deadlines } from "./deadlines.ts"
import { exitOf } from "./exit.ts"
import { isPending, type Pending } from "./pending.ts"
import { effectOfCodec, misresolved, settledAs } from "./promise.ts"
import { Slots } from "./slots.ts"
import * as Steps from "./steps.ts"
import { Carried, carriesTrace, unsampled } from "./traceContext.ts"

/** How a handler ends. */
export type End =
  | "succeeded"
  | "filtered"
  | "failed"
  | "undecodable"
  /** Stopped by the drain's deadline or by lost ownership. */
  | "interrupted"

/**
 * Runs the steps of a pipeline for one attempt at a time.
 *
 * Steps that are plain functions are called in a loop; a fiber is started only for a step whose Effect is not already
 * an `Exit`.
 */
export class Handler {
  /** Attempts that wait for something; one that ends at once is never in it. */
  readonly waiting = new Slots<Attempt>()
  private readonly operations: ReadonlyArray<Steps.Operation>
  private readonly codec: Codec.Codec<unknown>
  private readonly prepare: ((message: Message.Any, delivery: Delivery) => Exit.Exit<unknown, unknown>) | undefined
  private readonly context: Context.Context<never>
  /** By the index of their `timeout` step. */
  private readonly deadlines = new Map<number, Deadlines<Attempt>>()
  private readonly ended: (attempt: Attempt, end: End, payload: unknown) => void

  constructor(options: {
    readonly operations: ReadonlyArray<Steps.Operation>
    readonly codec: Codec.Codec<unknown>
    readonly prepare: ((message: Message.Any, delivery: Delivery) => Exit.Exit<unknown, unknown>) | undefined
    readonly context: Context.Context<never>
    /** Monotonic milliseconds. */
    readonly now: () => number
    /** `payload`: the value, or the cause. */
    readonly ended: (attempt: Attempt, end: End, payload: unknown) => void
  }) {
    this.operations = options.operations
    this.codec = options.codec
    this.prepare = options.prepare
    this.context = options.context
    this.ended = options.ended
    options.operations.forEach(({ timeout }, index) => {
      if (timeout === undefined) return
      const expire = (attempt: Attempt) => this.timedOut(attempt, index)
      const { context, now } = options
      this.deadlines.set(index, new Deadlines(this.deadlines.size, timeout.duration, context, now, expire))
    })
  }

  /** Attempts need to know when they started. */
  get isTimed(): boolean {
    return this.deadlines.size > 0
  }

  close(): void {
    for (const deadline of this.deadlines.values()) deadline.close()
  }

  // --- decoding

  /** Decodes; `undefined` when that takes an Effect, which then runs inside the attempt. */
  decode(attempt: Attempt): Exit.Exit<unknown, unknown> | undefined {
    if (attempt.message !== undefined) return Exit.succeed(attempt.message.value)
    const decoding = this.decoding(attempt)
    const exit = exitOf(decoding)
    return exit === undefined ? undefined : this.prepared(attempt, exit)
  }

  private decoding(attempt: Attempt): Effect.Effect<unknown, unknown> {
    try {
      return effectOfCodec("decode", this.codec.decode(attempt.delivery))
    } catch (error) {
      return Exit.failCause(Steps.thrown(error))
    }
  }

  /** Makes the message of a decoded value, with all that its source promises. */
  private prepared(attempt: Attempt, exit: Exit.Exit<unknown, unknown>): Exit.Exit<unknown, unknown> {
    if (Exit.isFailure(exit)) return exit
    const message = new MessageImpl(exit.value, attempt)
    const prepared = this.prepare?.(message, attempt.delivery)
    if (prepared !== undefined && Exit.isFailure(prepared)) return prepared
    attempt.message = message
    return exit
  }

  // --- running

  begin(attempt: Attempt): void {
    attempt.to("running")
    if (this.deadlines.size > 0) {
      attempt.places = []
      for (const deadline of this.deadlines.values()) deadline.add(attempt)
    }
    if (attempt.message !== undefined) return this.advance(attempt, 0, attempt.message.value)
    const effect = this.decoding(attempt)
    const exit = exitOf(effect)
    if (exit !== undefined) return this.decoded(attempt, this.prepared(attempt, exit))
    this.fork(attempt, effect, decoding, false, undefined)
  }

  /** Bytes that do not fit will never fit; a decoder that breaks is a defect like any other. */
  private decoded(attempt: Attempt, exit: Exit.Exit<unknown, unknown>): void {
    if (Exit.isSuccess(exit)) return this.advance(attempt, 0, attempt.message!.value)
    const { cause } = exit
    const isDefect = Cause.hasDies(cause) && !exhaustsStack(cause)
    this.end(attempt, isDefect || Cause.hasInterruptsOnly(cause) ? "failed" : "undecodable", cause)
  }

  /** Runs steps from `index` on, until one has to be waited for. */
  private advance(attempt: Attempt, index: number, value: unknown): void {
    const { operations } = this
    for (; index < operations.length; index++) {
      const operation = operations[index]!
      if (operation.timeout !== undefined) this.deadlines.get(index)!.delete(attempt)
      const result = Steps.apply(operation, value, attempt)
      if (isPending(result)) return this.pend(attempt, index, result, value)
      value = result
    }
    this.end(attempt, "succeeded", value)
  }

  private pend(attempt: Attempt, index: number, pending: Pending, value: unknown): void {
    switch (pending._tag) {
      case "Failed":
        return this.recover(attempt, index + 1, pending.cause)
      case "Filtered":
        return this.end(attempt, "filtered", undefined)
      case "Run":
        return this.fork(attempt, pending.effect, index, pending.keep, value)
      case "Await": {
        const epoch = this.wait(attempt, undefined)
        settledAs(
          pending.promise,
          (result) => {
            if (!this.isAt(attempt, epoch)) return
            const wrong = misresolved(result)
            if (wrong === undefined) this.advance(attempt, index + 1, result)
            else this.recover(attempt, index + 1, wrong)
          },
          (error) => {
            if (this.isAt(attempt, epoch)) this.recover(attempt, index + 1, pending.onRejected(error))
          }
        )
        return
      }
      case "Join":
        return this.join(attempt, index, false, value, (resume) => pending.join(attempt, value, resume))
      case "Output": {
        const { given, outputs } = pending
        const outgoing = outputs.outgoing(given, attempt, contextOf(attempt, this.context))
        if (outgoing === undefined) return this.fork(attempt, outputs.publish(given, attempt), index, true, value)
        if (Exit.isFailure(outgoing)) return this.recover(attempt, index + 1, outgoing.cause)
        return this.join(attempt, index, true, value, (resume) => outputs.add(outgoing.value, resume))
      }
    }
  }

  /** Waits together with other attempts. `begin` gives a function that takes this one out. */
  private join(
    attempt: Attempt,
    index: number,
    keep: boolean,
    value: unknown,
    begin: (resume: (exit: Exit.Exit<unknown, unknown>) => void) => (then: () => void) => void
  ): void {
    let epoch = -1
    const stop = begin((exit) => {
      if (this.isAt(attempt, epoch)) this.resume(attempt, index, exit, keep, value)
    })
    epoch = this.wait(attempt, stop)
  }

  private fork(
    attempt: Attempt,
    effect: Effect.Effect<unknown, unknown>,
    index: number,
    keep: boolean,
    value: unknown
  ): void {
    if (attempt.context === undefined) {
      attempt.scope ??= Scope.makeUnsafe()
      attempt.context = Context.add(contextOf(attempt, this.context), Scope.Scope, attempt.scope)
    }
    const fiber: Fiber.Fiber<unknown, unknown> = Effect.runForkWith(attempt.context)(effect)
    const exit = fiber.pollUnsafe()
    if (exit !== undefined) return this.resume(attempt, index, exit, keep, value)
    let stopped: (() => void) | undefined
    const epoch = this.wait(attempt, (then) => {
      stopped = then
      fiber.interruptUnsafe()
    })
    fiber.addObserver((exit) => {
      if (this.isAt(attempt, epoch)) this.resume(attempt, index, exit, keep, value)
      else stopped?.()
    })
  }

  private resume(
    attempt: Attempt,
    index: number,
    exit: Exit.Exit<unknown, unknown>,
    keep: boolean,
    value: unknown
  ): void {
    if (index === decoding) this.decoded(attempt, this.prepared(attempt, exit))
    else if (Exit.isFailure(exit)) this.recover(attempt, index + 1, exit.cause)
    else this.advance(attempt, index + 1, keep ? value : exit.value)
  }

  /** Finds the `catchTag` that stands below the failure, if one does. */
  private recover(attempt: Attempt, from: number, cause: Cause.Cause<unknown>): void {
    if (Steps.isFiltered(cause)) return this.end(attempt, "filtered", undefined)
    const recovery = Steps.recover(this.operations, from, cause, attempt)
    const to = "cause" in recovery ? this.operations.length : recovery.index
    for (const [index, deadline] of this.deadlines) if (index >= from && index < to) deadline.delete(attempt)
    if ("cause" in recovery) return this.end(attempt, "failed", recovery.cause)
    if (isPending(recovery.pending)) return this.pend(attempt, recovery.index, recovery.pending, undefined)
    this.advance(attempt, recovery.index + 1, recovery.pending)
  }

  // --- waiting

  private wait(attempt: Attempt, stop: Attempt["stop"]): number {
    attempt.stop = stop
    this.waiting.add(attempt)
    return attempt.epoch
  }

  private isAt(attempt: Attempt, epoch: number): boolean {
    return attempt.state === "running" && attempt.epoch === epoch
  }

  // --- being stopped

  /** Takes the attempt from the step it waits for, and calls `then` when that step works on it no more. */
  private stop(attempt: Attempt, reason: Error, then: () => void): void {
    const { stop } = attempt
    attempt.epoch++
    attempt.stop = undefined
    attempt.to("stopping")
    attempt.abort(reason)
    if (stop === undefined) then()
    else stop(then)
  }

  private timedOut(attempt: Attempt, index: number): void {
    if (attempt.state !== "running") return
    const error = new Cause.TimeoutError("the handler took longer than its timeout")
    for (const [above, deadline] of this.deadlines) if (above < index) deadline.delete(attempt)
    this.stop(attempt, error, () => {
      // Ownership may have been lost, or the drain's deadline passed, while it was being stopped.
      if (attempt.isLost) return this.end(attempt, "interrupted", undefined)
      attempt.to("running")
      this.recover(attempt, index + 1, Cause.fail(error))
    })
  }

  /** Interrupts the handler; it ends as `interrupted`. */
  interrupt(attempt: Attempt, reason: Error): void {
    if (attempt.state !== "running") return
    this.stop(attempt, reason, () => this.end(attempt, "interrupted", undefined))
  }

  // --- ending

  /** No step of it runs any more, and no timeout concerns it. A scope that fails to close fails the attempt. */
  private end(attempt: Attempt, end: End, payload: unknown): void {
    if (this.deadlines.size > 0) { for (const deadline of this.deadlines.values()) deadline.delete(attempt) }
    attempt.to("concluding")
    const { scope } = attempt
    if (scope === undefined) return this.ended(attempt, end, payload)
    const exit = end === "failed" || end === "undecodable"
      ? Exit.failCause(payload as Cause.Cause<unknown>)
      : end === "interrupted"
      ? Exit.interrupt()
      : Exit.succeed(payload)
    // It nearly never has finalizers.
    const closing = Scope.closeUnsafe(scope, exit)
    if (closing === undefined) return this.ended(attempt, end, payload)
    // The message is kept while its finalizers run.
    this.waiting.add(attempt)
    Effect.runForkWith(this.context)(closing).addObserver((closed) => {
      if (Exit.isSuccess(closed)) return this.ended(attempt, end, payload)
      const failed = end === "failed" ? Cause.combine(payload as Cause.Cause<unknown>, closed.cause) : closed.cause
      this.ended(attempt, end === "interrupted" ? end : "failed", failed)
    })
  }
}

/** Bytes that exhaust the stack of a recursive schema do not fit it: they never will. */
const exhaustsStack = (cause: Cause.Cause<unknown>): boolean =>
  cause.reasons.some((reason) => Cause.isDieReason(reason) && Steps.isSafely(() => reason.defect instanceof RangeError))

/** The index of what comes before the first step. */
const decoding = -1

/** What an attempt's Effects find in their context: the trace that its message carries. */
const contextOf = (attempt: Attempt, context: Context.Context<never>): Context.Context<never> => {
  const { delivery: { headers }, isUnsampled } = attempt
  const carried = carriesTrace(headers) ? Context.add(context, Carried, headers) : context
  return isUnsampled ? unsampled(carried, headers) : carried
}
