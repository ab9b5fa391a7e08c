import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import type * as Message from "../Message.ts"
import * as Settlement from "../Settlement.ts"
import type { Delivery } from "../Transport.ts"
import type { Batch } from "./batcher.ts"
import { apply, isFiltered } from "./composed.ts"
import type { Engine } from "./engine.ts"
import { exitOf } from "./exit.ts"
import { InFlight } from "./inFlight.ts"
import type { Step } from "./program.ts"
import { isThenable, mapReturnedPromise, rejection } from "./promise.ts"
import type { Entry } from "./settler.ts"

/** What a handler sees: everything but the value is read from the delivery when asked for. */
class MessageImpl implements Message.Message<unknown> {
  readonly value: unknown
  readonly [InFlight]: Attempt
  constructor(value: unknown, attempt: Attempt) {
    this.value = value
    this[InFlight] = attempt
  }
  get id(): string {
    return this[InFlight].delivery.id
  }
  get topic(): string {
    return this[InFlight].delivery.topic
  }
  get key(): string | undefined {
    return this[InFlight].delivery.key
  }
  get headers(): Message.Headers {
    return this[InFlight].delivery.headers
  }
  get attempt(): number {
    return this[InFlight].delivery.attempt
  }
  get redelivered(): boolean {
    return this[InFlight].delivery.redelivered
  }
  get publishedAt(): DateTime.Utc {
    return DateTime.makeUnsafe(this[InFlight].delivery.publishedAt)
  }
  get signal(): AbortSignal {
    return this[InFlight].signal
  }
  toJSON(): unknown {
    const { attempt, headers, id, key, topic, value } = this
    return { id, topic, key, headers, attempt, value }
  }
}

/**
 * One attempt at one message, from the moment the process owns it until it is settled.
 *
 * Steps that are plain functions are called in a loop; a fiber is started only for a step whose Effect is not already
 * an `Exit`. `epoch` goes up whenever the attempt is taken away from a step (timeout, interruption), so that a late
 * promise or fiber finds that nobody waits for it.
 */
export class Attempt implements Entry, Message.Received {
  readonly engine: Engine
  readonly delivery: Delivery
  settlement: Settlement.Settlement = Settlement.ack
  /** The first settlement is final. */
  isSettled = false
  /** Monotonic, in milliseconds; kept only where something wants to know. */
  startedAt = 0
  message: MessageImpl | undefined
  /** What its handler failed with. */
  failure: Cause.Cause<unknown> | undefined
  /** Another consumer has it: nothing may be said about it any more. */
  lost = false
  /** Its handler has ended, or never will begin. */
  isOver = false
  /** Its key, where keys are kept in order. */
  lane: string | undefined
  /** The batch that holds the permit for it, where it does not hold its own. */
  batch: Batch | undefined
  permit: "held" | "none" = "none"
  /** Where it stands among those that run, and under the timeouts. */
  slot = -1
  readonly places: Array<number>
  private decoding: Exit.Exit<unknown, unknown> | Effect.Effect<unknown, unknown> | undefined
  private epoch = 0
  private controller: AbortController | undefined
  private aborted: Error | undefined
  private fiber: Fiber.Fiber<unknown, unknown> | undefined
  private conclusion: Fiber.Fiber<void> | undefined
  private onStopped: (() => void) | undefined
  private context: Context.Context<never> | undefined
  private scope: Scope.Closeable | undefined
  private onSettled: ((owned: boolean) => void) | undefined
  private byHand: Deferred.Deferred<boolean> | undefined

  constructor(engine: Engine, delivery: Delivery) {
    this.engine = engine
    this.delivery = delivery
    this.places = engine.deadlines.size === 0 ? none : []
  }

  get group(): string {
    return this.engine.program.source.group
  }

  get transport() {
    return this.engine.transport
  }

  get signal(): AbortSignal {
    if (this.controller === undefined) {
      this.controller = new AbortController()
      if (this.aborted !== undefined) this.controller.abort(this.aborted)
    }
    return this.controller.signal
  }

  abort(reason: Error): void {
    this.aborted = reason
    this.controller?.abort(reason)
  }

  // --- settlement

  claim(): boolean {
    if (this.isSettled || this.lost) return false
    this.isSettled = true
    return true
  }

  unclaim(): void {
    this.isSettled = false
  }

  settle(settlement: Settlement.Settlement): Effect.Effect<boolean, Settlement.SettleError> {
    return Effect.suspend(() => {
      if (!this.claim()) return Effect.succeed(false)
      this.settlement = settlement
      this.byHand = Deferred.makeUnsafe<boolean>()
      this.engine.settler.add(this)
      return Deferred.await(this.byHand)
    })
  }

  /** Settles before anything else happens to it. */
  settleThen(settlement: Settlement.Settlement, then: (owned: boolean) => void): void {
    this.isSettled = true
    this.settlement = settlement
    this.onSettled = then
    this.engine.settler.add(this)
  }

  settled(owned: boolean): void {
    if (this.byHand !== undefined) Deferred.doneUnsafe(this.byHand, Exit.succeed(owned))
    this.engine.settled(this, owned)
    this.onSettled?.(owned)
  }

  // --- beginning

  /** Decodes; what ends at once needs no fiber of its own later. */
  private decode(): Exit.Exit<unknown, unknown> | Effect.Effect<unknown, unknown> {
    try {
      return this.engine.program.source.topic.codec.decode(this.delivery)
    } catch (error) {
      return Exit.die(error)
    }
  }

  /** Makes the message of a decoded value, with all that its source promises; gives what is in the way of it. */
  private prepare(value: unknown): Exit.Failure<unknown, unknown> | undefined {
    const message = new MessageImpl(value, this)
    const exit = this.engine.prepare?.(message, this.delivery)
    if (exit !== undefined && Exit.isFailure(exit)) return exit
    this.message = message
    return undefined
  }

  /**
   * The key, before it begins. What cannot be decoded is in nobody's way; what is decoded by an Effect shares one key,
   * so that no order is broken.
   */
  keyBy(key: (message: Message.Any) => string | undefined): string | undefined {
    const decoding = this.decoding = this.decode()
    const exit = exitOf(decoding)
    if (exit === undefined) return ""
    const failure = Exit.isFailure(exit) ? exit : this.prepare(exit.value)
    if (failure !== undefined) {
      this.decoding = failure
      return undefined
    }
    try {
      return key(this.message!)
    } catch (error) {
      this.decoding = Exit.die(error)
      return undefined
    }
  }

  begin(): void {
    const engine = this.engine
    if (engine.timed) this.startedAt = engine.now()
    for (const deadline of engine.deadlines.values()) deadline.add(this)
    const decoding = this.decoding ?? this.decode()
    this.decoding = undefined
    const exit = exitOf(decoding)
    if (exit === undefined) this.fork(decoding, beforeSteps, false, undefined)
    else this.decoded(exit)
  }

  /** Bytes that do not fit will never fit; a decoder that breaks is a defect like any other. */
  private decoded(exit: Exit.Exit<unknown, unknown>): void {
    const failure = Exit.isFailure(exit) ? exit : this.message === undefined ? this.prepare(exit.value) : undefined
    if (failure === undefined) return this.advance(0, this.message!.value)
    if (Cause.hasDies(failure.cause)) return this.failed(failure.cause)
    this.over()
    this.engine.undecodable(this, failure.cause)
  }

  /** Runs steps from `index` on, until one has to be waited for. */
  advance(index: number, value: unknown): void {
    const steps = this.engine.program.steps
    const message = this.message!
    // What ends the loop is acted on outside the `try`: only the user's functions may throw into it.
    let effect: Effect.Effect<unknown, unknown> | undefined
    let promise: Promise<unknown> | undefined
    let cause: Cause.Cause<unknown> | undefined
    let filtered = false
    loop: for (; index < steps.length; index++) {
      const step = steps[index]!
      try {
        switch (step._tag) {
          case "Map": {
            value = step.f(value, message)
            if (!isThenable(value)) break
            cause = Cause.die(mapReturnedPromise())
            break loop
          }
          case "Filter": {
            if (step.f(value, message)) break
            filtered = true
            break loop
          }
          case "FilterMap": {
            const result = step.f(value, message)
            if (Result.isSuccess(result)) {
              value = result.success
              break
            }
            filtered = true
            break loop
          }
          case "Promise": {
            const returned: unknown = step.f(value, message)
            if (!isThenable(returned)) {
              value = returned
              break
            }
            promise = returned instanceof Promise ? returned : Promise.resolve(returned)
            break loop
          }
          case "Effect": {
            effect = step.f(value, message)
            const exit = exitOf(effect)
            if (exit === undefined) break loop
            effect = undefined
            if (Exit.isSuccess(exit)) {
              if (!step.keep) value = exit.value
              break
            }
            cause = exit.cause
            break loop
          }
          case "To": {
            effect = this.engine.publish(step, String(index), value, this)
            break loop
          }
          case "Branch":
          case "Middleware": {
            effect = apply(step, value, this, String(index))
            const exit = exitOf(effect)
            if (exit === undefined) break loop
            effect = undefined
            if (Exit.isSuccess(exit)) {
              value = exit.value
              break
            }
            cause = exit.cause
            break loop
          }
          case "Batch": {
            this.engine.releasePermitOf(this)
            return this.engine.batchers.get(index)!.add(this, value, this.suspend())
          }
          case "Timeout": {
            this.engine.deadlines.get(index)!.delete(this)
            break
          }
        }
      } catch (error) {
        cause = Settlement.isRequested(error)
          ? Cause.fail(error)
          : step._tag === "Promise"
          ? rejection(step.catch, error)
          : Cause.die(error)
        break
      }
    }
    if (effect !== undefined) return this.fork(effect, index, keeps(steps[index]!), value)
    if (promise !== undefined) return this.await(promise, index)
    if (cause !== undefined) return this.recover(index + 1, cause)
    if (filtered) return this.filtered()
    this.succeeded(value)
  }

  private await(promise: Promise<unknown>, index: number): void {
    const epoch = this.suspend()
    promise.then(
      (value) => {
        if (this.isAt(epoch)) this.advance(index + 1, value)
      },
      (error) => {
        if (!this.isAt(epoch)) return
        const step = this.engine.program.steps[index]!
        this.recover(index + 1, step._tag === "Promise" ? rejection(step.catch, error) : Cause.die(error))
      }
    )
  }

  private fork(effect: Effect.Effect<unknown, unknown>, index: number, keep: boolean, value: unknown): void {
    if (this.context === undefined) {
      this.scope = Scope.makeUnsafe()
      this.context = Context.add(this.engine.context, Scope.Scope, this.scope)
    }
    const fiber = Effect.runForkWith(this.context)(effect)
    const exit = fiber.pollUnsafe()
    if (exit !== undefined) {
      // A decoding that needed no time is final, as one that gave an Exit is.
      return index === beforeSteps ? this.decoded(exit) : this.resume(exit, index, keep, value)
    }
    const epoch = this.suspend()
    this.fiber = fiber
    fiber.addObserver((exit) => {
      this.fiber = undefined
      if (this.isAt(epoch)) this.resume(exit, index, keep, value)
      else this.stopped()
    })
  }

  private resume(exit: Exit.Exit<unknown, unknown>, index: number, keep: boolean, value: unknown): void {
    if (Exit.isFailure(exit)) return this.recover(index + 1, exit.cause)
    if (index === beforeSteps) return this.decoded(exit)
    this.advance(index + 1, keep ? value : exit.value)
  }

  private suspend(): number {
    this.engine.running.add(this)
    return this.epoch
  }

  /** Finds the `catchTag` that stands below the failure, if one does. */
  recover(index: number, cause: Cause.Cause<unknown>): void {
    if (isFiltered(cause)) return this.filtered()
    const steps = this.engine.program.steps
    const error = Cause.findErrorOption(cause)
    if (error._tag === "Some" && this.message !== undefined) {
      for (; index < steps.length; index++) {
        const step = steps[index]!
        if (step._tag === "Timeout") this.engine.deadlines.get(index)!.delete(this)
        if (step._tag !== "Catch" || !step.matches(error.value)) continue
        // What recovers from a timeout has a signal of its own.
        this.controller = this.aborted = undefined
        let recovery: Effect.Effect<unknown, unknown>
        try {
          recovery = step.f(error.value as never, this.message)
        } catch (defect) {
          return this.recover(index + 1, Cause.die(defect))
        }
        return this.fork(recovery, index, false, undefined)
      }
    }
    this.failed(cause)
  }

  // --- being taken away

  /** Whether it still waits for what it waited for then. */
  isAt(epoch: number): boolean {
    return this.epoch === epoch && !this.isOver
  }

  /**
   * Stops the handler where it is and calls `then` when it has stopped. A promise is told by its signal and left; the
   * handler of a batch goes on for the others, and is stopped with the last of them.
   */
  private stop(reason: Error, then: () => void): void {
    this.epoch++
    this.abort(reason)
    this.onStopped = then
    if (this.fiber !== undefined) this.fiber.interruptUnsafe()
    else if (this.batch?.fiber === undefined) this.stopped()
    else this.batch.left(this)
  }

  /** The handler that it was taken away from has ended. */
  stopped(): void {
    const then = this.onStopped
    this.onStopped = undefined
    then?.()
  }

  timedOut(index: number): void {
    const error = new Cause.TimeoutError("the handler took longer than its timeout")
    for (const [above, deadline] of this.engine.deadlines) if (above < index) deadline.delete(this)
    this.stop(error, () => this.recover(index + 1, Cause.fail(error)))
  }

  /** The drain's deadline has passed. */
  interrupt(): void {
    if (this.isOver) return this.conclusion?.interruptUnsafe()
    this.stop(new Error("the pipeline is stopping"), () => this.interrupted())
  }

  /** A peer has it: stop working on it and say nothing about it. */
  lose(): void {
    this.lost = true
    if (this.isOver) return this.conclusion?.interruptUnsafe()
    this.stop(new Error("another consumer has taken this message over"), () => this.interrupted())
  }

  // --- ends

  /** No step of it will run any more, and no timeout concerns it. */
  private over(): void {
    this.isOver = true
    for (const deadline of this.engine.deadlines.values()) deadline.delete(this)
  }

  private succeeded(value: unknown): void {
    this.over()
    if (this.scope === undefined) this.engine.succeeded(this, value)
    else this.close(this.scope, Exit.succeed(value), () => this.engine.succeeded(this, value))
  }

  private filtered(): void {
    this.over()
    if (this.scope === undefined) this.engine.filtered(this)
    else this.close(this.scope, Exit.void, () => this.engine.filtered(this))
  }

  private failed(cause: Cause.Cause<unknown>): void {
    this.over()
    this.failure = cause
    if (this.scope === undefined) this.engine.failed(this, cause)
    else this.close(this.scope, Exit.failCause(cause), () => this.engine.failed(this, cause))
  }

  private interrupted(): void {
    this.over()
    if (this.scope === undefined) this.engine.interrupted(this)
    else this.close(this.scope, Exit.interrupt(), () => this.engine.interrupted(this))
  }

  /** Closes this attempt's own scope, which nearly never has finalizers to be waited for. */
  private close(scope: Scope.Closeable, exit: Exit.Exit<unknown, unknown>, then: () => void): void {
    const closing = Scope.closeUnsafe(scope, exit)
    if (closing === undefined) return then()
    this.engine.running.add(this)
    Effect.runForkWith(this.engine.context)(closing).addObserver(then)
  }

  /** What is done about it after its handler has ended; taken away meanwhile, it is handed back. */
  conclude(effect: Effect.Effect<void>): void {
    this.isOver = true
    this.engine.running.add(this)
    const fiber = this.conclusion = this.engine.run(effect)
    fiber.addObserver((exit) => {
      if (Exit.isFailure(exit)) this.engine.inconclusive(this, exit.cause)
    })
  }
}

const none: Array<number> = []

/** The index of what comes before the first step. */
const beforeSteps = -1

const keeps = (step: Step): boolean => step._tag === "To" || (step._tag === "Effect" && step.keep)
