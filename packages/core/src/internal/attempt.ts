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
import { isThenable, mapReturnedPromise } from "./promise.ts"
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
  startedAt = 0
  message: MessageImpl | undefined
  /** Its handler has failed. */
  failure = false
  /** Another consumer has it: nothing may be said about it any more. */
  lost = false
  /** Its key, where keys are kept in order. */
  lane: string | undefined
  /** The batch that holds the permit for it, where it does not hold its own. */
  batch: Batch | undefined
  permit: "held" | "none" = "held"
  private decoding: Exit.Exit<unknown, unknown> | Effect.Effect<unknown, unknown> | undefined
  private epoch = 0
  private controller: AbortController | undefined
  private fiber: Fiber.Fiber<unknown, unknown> | undefined
  private context: Context.Context<never> | undefined
  private scope: Scope.Closeable | undefined
  private onSettled: ((owned: boolean) => void) | undefined
  private byHand: Deferred.Deferred<boolean> | undefined

  constructor(engine: Engine, delivery: Delivery) {
    this.engine = engine
    this.delivery = delivery
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
      if (this.lost) this.controller.abort(takenOver())
    }
    return this.controller.signal
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
    if (!owned) this.lost = true
    this.onSettled?.(owned)
    if (this.byHand !== undefined) Deferred.doneUnsafe(this.byHand, Exit.succeed(owned))
    this.engine.settled(this, owned)
  }

  // --- running

  /** Decodes, so that a key can be had; an Effect that decodes runs in the attempt. */
  private decode(): Effect.Effect<unknown, unknown> {
    try {
      return this.engine.program.source.topic.codec.decode(this.delivery)
    } catch (error) {
      return Exit.die(error)
    }
  }

  /** The key of a message that can be decoded now; what cannot be is in nobody's way, or, decoded later, in everybody's. */
  keyBy(key: (message: Message.Any) => string | undefined): string | undefined {
    this.decoding = this.decode()
    const exit = exitOf(this.decoding)
    if (exit === undefined) return ""
    if (Exit.isFailure(exit)) return undefined
    this.message = new MessageImpl(exit.value, this)
    try {
      return key(this.message)
    } catch (error) {
      this.decoding = Exit.die(error)
      return undefined
    }
  }

  begin(): void {
    const engine = this.engine
    if (engine.timed) this.startedAt = engine.clock.currentTimeMillisUnsafe()
    if (engine.deadlines.size > 0) {
      this.startedAt = engine.clock.currentTimeMillisUnsafe()
      for (const deadline of engine.deadlines.values()) deadline.add(this)
    }
    const decoding = this.decoding ?? this.decode()
    this.decoding = undefined
    const exit = exitOf(decoding)
    if (exit === undefined) return this.fork(decoding, beforeSteps, false, undefined)
    if (Exit.isSuccess(exit)) return this.decoded(exit.value)
    this.notDecoded(exit.cause)
  }

  /** Bytes that do not fit will never fit; a decoder that breaks is a defect like any other. */
  private notDecoded(cause: Cause.Cause<unknown>): void {
    if (Cause.hasDies(cause)) return this.failed(cause)
    this.engine.undecodable(this, cause)
  }

  private decoded(value: unknown): void {
    const { program } = this.engine
    const message = this.message = this.message ?? new MessageImpl(value, this)
    if (this.engine.prepare !== undefined) {
      const exit = this.engine.prepare(message, this.delivery)
      if (Exit.isFailure(exit)) return this.notDecoded(exit.cause)
    }
    if (!this.engine.isFor(this.delivery)) return this.filtered()
    if (program.steps.length === 0) return this.succeeded(value)
    this.advance(0, value)
  }

  /** Runs steps from `index` on, until one has to be waited for. */
  advance(index: number, value: unknown): void {
    const steps = this.engine.program.steps
    const message = this.message!
    // What ends the loop is acted on outside the `try`: only the user's functions may throw into it.
    let effect: Effect.Effect<unknown, unknown> | undefined
    let promise: PromiseLike<unknown> | undefined
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
            promise = returned
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
        cause = Settlement.isSignal(error)
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

  private await(promise: PromiseLike<unknown>, index: number): void {
    const epoch = this.suspend()
    promise.then(
      (value) => {
        if (this.epoch === epoch) this.advance(index + 1, value)
      },
      (error) => {
        if (this.epoch !== epoch) return
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
    if (exit !== undefined) return this.resume(exit, index, keep, value)
    const epoch = this.suspend()
    this.fiber = fiber
    fiber.addObserver((exit) => {
      this.fiber = undefined
      if (this.epoch === epoch) this.resume(exit, index, keep, value)
      else this.stopped()
    })
  }

  private resume(exit: Exit.Exit<unknown, unknown>, index: number, keep: boolean, value: unknown): void {
    if (Exit.isFailure(exit)) return this.recover(index + 1, exit.cause)
    if (index === beforeSteps) return this.decoded(exit.value)
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
        try {
          return this.fork(step.f(error.value as never, this.message), index, false, undefined)
        } catch (defect) {
          return this.recover(index + 1, Cause.die(defect))
        }
      }
    }
    this.failed(cause)
  }

  // --- being taken away

  private onceStopped: (() => void) | undefined

  /** Stops the handler where it is and calls `then` when it has stopped; a promise is told by its signal and left. */
  private stop(reason: Error, then: () => void): void {
    if (this.ended) {
      this.conclusion?.interruptUnsafe()
      return
    }
    this.epoch++
    this.abort(reason)
    if (this.fiber === undefined && this.batch?.fiber === undefined) return then()
    this.onceStopped = then
    // The others of a batch share its handler: it goes on for them unless the pipeline stops.
    if (this.fiber === undefined) return this.engine.draining ? this.batch!.fiber!.interruptUnsafe() : this.stopped()
    this.fiber.interruptUnsafe()
  }

  /** The handler that it was taken away from has ended. */
  stopped(): void {
    const then = this.onceStopped
    this.onceStopped = undefined
    then?.()
  }

  /** Whether it still waits for what it waited for then. */
  isAt(epoch: number): boolean {
    return this.epoch === epoch && !this.ended
  }

  abort(reason: Error): void {
    this.controller?.abort(reason)
  }

  timedOut(index: number): void {
    const error = new Cause.TimeoutError("the handler took longer than its timeout")
    for (const [above, deadline] of this.engine.deadlines) if (above < index) deadline.delete(this)
    this.stop(error, () => this.recover(index + 1, Cause.fail(error)))
  }

  /** The drain's deadline has passed. */
  interrupt(): void {
    this.stop(new Error("the pipeline is stopping"), () => this.interrupted())
  }

  /** A peer has it: stop working on it and say nothing about it. */
  lose(): void {
    this.lost = true
    this.stop(takenOver(), () => this.interrupted())
  }

  // --- ends

  private ended = false
  private conclusion: Fiber.Fiber<void> | undefined

  get isOver(): boolean {
    return this.ended
  }

  /** What is done about it after its handler has ended; taken away meanwhile, it is handed back. */
  conclude(effect: Effect.Effect<void>): void {
    this.ended = true
    this.engine.running.add(this)
    const fiber = this.conclusion = this.engine.run(effect)
    fiber.addObserver((exit) => {
      if (Exit.isFailure(exit)) this.engine.interrupted(this)
    })
  }

  private succeeded(value: unknown): void {
    this.ended = true
    if (this.hasFinalizers) this.close(Exit.succeed(value), () => this.engine.succeeded(this, value))
    else this.engine.succeeded(this, value)
  }

  private filtered(): void {
    this.ended = true
    if (this.hasFinalizers) this.close(Exit.void, () => this.engine.filtered(this))
    else this.engine.filtered(this)
  }

  private failed(cause: Cause.Cause<unknown>): void {
    this.ended = true
    if (this.hasFinalizers) this.close(Exit.failCause(cause), () => this.engine.failed(this, cause))
    else this.engine.failed(this, cause)
  }

  private interrupted(): void {
    this.ended = true
    if (this.hasFinalizers) this.close(Exit.interrupt(), () => this.engine.interrupted(this))
    else this.engine.interrupted(this)
  }

  private get hasFinalizers(): boolean {
    return this.scope !== undefined && this.scope.state._tag !== "Empty"
  }

  /** Runs the finalizers of this attempt's own scope, which nearly never has any. */
  private close(exit: Exit.Exit<unknown, unknown>, then: () => void): void {
    this.engine.running.add(this)
    Effect.runForkWith(this.engine.context)(Scope.close(this.scope!, exit)).addObserver(then)
  }
}

/** The index of what comes before the first step. */
const beforeSteps = -1

const keeps = (step: Step): boolean => step._tag === "To" || (step._tag === "Effect" && step.keep)

const rejection = (onRejected: (cause: unknown) => unknown, error: unknown): Cause.Cause<unknown> => {
  if (Settlement.isSignal(error)) return Cause.fail(error)
  try {
    return Cause.fail(onRejected(error))
  } catch (defect) {
    return Cause.die(defect)
  }
}

const takenOver = () => new Error("another consumer has taken this message over")
