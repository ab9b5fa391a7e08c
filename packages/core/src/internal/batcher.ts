import * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import type { Attempt } from "./attempt.ts"
import type { Engine } from "./engine.ts"
import type { Step } from "./program.ts"

type BatchStep = Extract<Step, { _tag: "Batch" }>

/** Messages that are handled together, under one permit, and settled each alone. */
export class Batch {
  readonly attempts: Array<{ readonly attempt: Attempt; readonly value: unknown; readonly epoch: number }> = []
  fiber: Fiber.Fiber<unknown, unknown> | undefined
  private readonly engine: Engine
  private holding = 0
  constructor(engine: Engine) {
    this.engine = engine
  }

  /** Those that have not been taken away meanwhile (timeout, lost). */
  get current() {
    return this.attempts.filter(({ attempt, epoch }) => attempt.isAt(epoch))
  }

  holdPermitFor(attempts: ReadonlyArray<{ readonly attempt: Attempt }>): void {
    this.holding = attempts.length
    for (const { attempt } of attempts) {
      attempt.batch = this
      attempt.permit = "held"
    }
  }

  /** One of them has ended: the last one gives the permit back. */
  leave(): void {
    if (--this.holding === 0) this.engine.releasePermit()
  }

  /**
   * One of them was taken away while the handler runs: it goes on for the others, and is stopped with the last of them.
   * While the pipeline stops all of them are being taken away, and each waits for the handler's end.
   */
  left(attempt: Attempt): void {
    if (this.current.length === 0) this.fiber?.interruptUnsafe()
    else if (!this.engine.interrupting) attempt.stopped()
  }
}

/**
 * Collects the messages that reach one `batch` step. A message that waits for its batch holds no permit; a full batch, or
 * one whose time has come, takes one for all of it, before any new message does.
 */
export class Batcher {
  private readonly engine: Engine
  private readonly step: BatchStep
  private readonly index: number
  private open: Batch | undefined
  private timer: Fiber.Fiber<void> | undefined

  constructor(engine: Engine, step: BatchStep, index: number) {
    this.engine = engine
    this.step = step
    this.index = index
  }

  add(attempt: Attempt, value: unknown, epoch: number): void {
    if (this.open === undefined) {
      this.open = new Batch(this.engine)
      const timer = this.timer = this.engine.run(Effect.sleep(this.step.within))
      timer.addObserver((exit) => {
        if (Exit.isSuccess(exit)) this.flush()
      })
    }
    this.open.attempts.push({ attempt, value, epoch })
    // One that runs alone waits for nobody.
    const isComplete = this.open.attempts.length >= this.step.size || this.engine.draining ||
      this.engine.isSolo(attempt)
    if (isComplete) this.flush()
  }

  /** Hands the open batch over, full or not. */
  flush(): void {
    const batch = this.open
    if (batch === undefined) return
    this.open = undefined
    this.timer?.interruptUnsafe()
    this.engine.batchReady(() => this.run(batch))
  }

  /** Called with a permit taken. */
  private run(batch: Batch): void {
    const current = batch.current
    if (!Arr.isArrayNonEmpty(current)) return this.engine.releasePermit()
    batch.holdPermitFor(current)
    const scope = Scope.makeUnsafe()
    const effect = Effect.suspend(() =>
      this.step.f(
        Arr.map(current, ({ value }) => value),
        Arr.map(current, ({ attempt }) => attempt.message!)
      )
    ).pipe(Effect.onExit((exit) => Scope.close(scope, exit)))
    const fiber = batch.fiber = Effect.runForkWith(Context.add(this.engine.context, Scope.Scope, scope))(effect)
    fiber.addObserver((exit) => {
      batch.fiber = undefined
      const results = this.results(exit, current.length)
      current.forEach(({ attempt, epoch, value }, i) => {
        const result = results(i)
        if (!attempt.isAt(epoch)) attempt.stopped()
        else if (Exit.isFailure(result)) attempt.recover(this.index + 1, result.cause)
        else attempt.advance(this.index + 1, this.step.each ? result.value : value)
      })
    })
  }

  private results(exit: Exit.Exit<unknown, unknown>, size: number): (index: number) => Exit.Exit<unknown, unknown> {
    if (Exit.isFailure(exit) || !this.step.each) return () => exit
    const items = exit.value
    if (!Array.isArray(items) || items.length !== size) {
      const wrong = new TypeError(
        `a function given to Pipeline.batchEach gave ${
          Array.isArray(items) ? items.length : "no"
        } results for ${size} messages`
      )
      return () => Exit.die(wrong)
    }
    return (index) => {
      const result: unknown = items[index]
      if (!Result.isResult(result)) {
        return Exit.die(new TypeError("a function given to Pipeline.batchEach gave something that is no Result"))
      }
      return Result.isSuccess(result) ? Exit.succeed(result.success) : Exit.failCause(Cause.fail(result.failure))
    }
  }
}
