import * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import type { Attempt, Permit } from "./attempt.ts"
import type { JoinBatch } from "./pending.ts"
import type { Step } from "./program.ts"
import { notAnEffect } from "./steps.ts"

type BatchStep = Extract<Step, { _tag: "Batch" }>

interface Member {
  readonly attempt: Attempt
  readonly value: unknown
  readonly resume: (exit: Exit.Exit<unknown, unknown>) => void
  /** It was taken from the batch; called when the batch's function no longer works on it. */
  stopped: (() => void) | undefined
}

/** The rooms a batch reaches, given. */
export interface Surroundings {
  readonly context: Context.Context<never>
  /** The permit that a batch takes, and that its last message gives back. */
  readonly permit: Permit
  /** Calls `run` with a permit taken, before any new message takes one. */
  readonly ready: (run: () => void) => void
  /** The message waits in the open batch of its key, or does so no longer. */
  readonly joined: (attempt: Attempt) => void
  readonly parted: (attempt: Attempt) => void
  /** Monotonic milliseconds, 0 where no one measures. */
  readonly now: () => number
  /** Messages wait for nothing: the pipeline drains, or one runs alone. */
  readonly isHurried: () => boolean
  /** The drain's deadline has passed: every message of a batch waits for the end of its function. */
  readonly isInterrupting: () => boolean
}

/** Messages that are handled together, under one permit, and settled each alone. */
class Batch implements Permit {
  readonly key: string | undefined
  members: Array<Member> = []
  fiber: Fiber.Fiber<unknown, unknown> | undefined
  private holding = 0
  private readonly permit: Permit
  private readonly ended: () => void

  constructor(key: string | undefined, permit: Permit, ended: () => void) {
    this.key = key
    this.permit = permit
    this.ended = ended
  }

  hold(): void {
    this.holding = this.members.length
    for (const { attempt } of this.members) attempt.permit = this
  }

  /** One message has left; the last one gives the permit back. */
  release(): void {
    if (--this.holding > 0) return
    this.permit.release()
    this.ended()
  }
}

/**
 * Collects the messages that reach one `batch` step, with keys a batch for each key. A message that waits for its batch
 * holds no permit; a full batch, or one whose time has come, takes one for all of it.
 */
export class Batcher {
  private readonly step: BatchStep
  private readonly around: Surroundings
  private readonly open = new Map<string | undefined, { readonly batch: Batch; readonly timer: Fiber.Fiber<void> }>()
  /** Keys of batches that run, with those that wait for them. */
  private readonly running = new Map<string, Array<Batch>>()

  constructor(step: BatchStep, around: Surroundings) {
    this.step = step
    this.around = around
  }

  readonly join: JoinBatch = (attempt, value, resume) => {
    attempt.releasePermit()
    const { key } = attempt
    let open = this.open.get(key)
    if (open === undefined) {
      const batch: Batch = new Batch(key, this.around.permit, () => this.ended(batch))
      const timer = Effect.runForkWith(this.around.context)(Effect.sleep(this.step.within))
      timer.addObserver((exit) => {
        if (Exit.isSuccess(exit)) this.flush(batch)
      })
      this.open.set(key, open = { batch, timer })
    }
    const { batch } = open
    const member: Member = { attempt, value, resume, stopped: undefined }
    batch.members.push(member)
    if (batch.members.length >= this.step.size || this.around.isHurried()) this.flush(batch)
    else this.around.joined(attempt)
    return (stopped) => this.leave(batch, member, stopped)
  }

  /** Hands all open batches over, full or not. */
  flushAll(): void {
    for (const { batch } of Array.from(this.open.values())) this.flush(batch)
  }

  private flush(batch: Batch): void {
    const open = this.open.get(batch.key)
    if (open?.batch !== batch) return
    this.open.delete(batch.key)
    open.timer.interruptUnsafe()
    if (batch.key === undefined) return this.around.ready(() => this.run(batch))
    for (const { attempt } of batch.members) this.around.parted(attempt)
    const waiting = this.running.get(batch.key)
    if (waiting !== undefined) return void waiting.push(batch)
    this.running.set(batch.key, [])
    this.around.ready(() => this.run(batch))
  }

  private ended({ key }: Batch): void {
    if (key === undefined) return
    const next = this.running.get(key)?.shift()
    if (next === undefined) this.running.delete(key)
    else this.around.ready(() => this.run(next))
  }

  /**
   * Takes a message from its batch (timeout, lost, drain). A function that runs goes on for the others, and is
   * interrupted with the last of them. While the pipeline stops, all of them are taken away, and each waits for its end.
   */
  private leave(batch: Batch, member: Member, stopped: () => void): void {
    if (batch.fiber === undefined) {
      batch.members = batch.members.filter((other) => other !== member)
      const { attempt } = member
      this.around.parted(attempt)
      if (attempt.isLost || this.around.isHurried()) return stopped()
      // It may recover from its timeout and run on.
      return this.around.ready(() => {
        attempt.permit = this.around.permit
        stopped()
      })
    }
    member.stopped = stopped
    const isLast = batch.members.every((other) => other.stopped !== undefined)
    if (isLast) return batch.fiber.interruptUnsafe()
    if (this.around.isInterrupting()) return
    member.stopped = () => {}
    stopped()
  }

  /** Called with a permit taken. */
  private run(batch: Batch): void {
    const { members } = batch
    if (!Arr.isArrayNonEmpty(members)) {
      this.around.permit.release()
      return this.ended(batch)
    }
    batch.hold()
    // The handler of a batched message is the batch's function: it did not run while the message waited.
    const now = this.around.now()
    for (const { attempt } of members) attempt.startedAt = now
    const scope = Scope.makeUnsafe()
    const effect = Effect.suspend(() => {
      const handled = this.step.f(
        Arr.map(members, ({ value }) => value),
        Arr.map(members, ({ attempt }) => attempt.message!)
      )
      return Effect.isEffect(handled)
        ? handled
        : Exit.failCause(notAnEffect(this.step.each ? "batchEach" : "batch", handled))
    }).pipe(Effect.onExit((exit) => Scope.close(scope, exit)))
    const fiber = batch.fiber = Effect.runForkWith(Context.add(this.around.context, Scope.Scope, scope))(effect)
    fiber.addObserver((exit) => {
      members.forEach(({ resume, stopped, value }, index) => {
        if (stopped !== undefined) return stopped()
        const result = exitOfItem(() => this.result(exit, index, members.length))
        resume(Exit.isSuccess(result) && !this.step.each ? Exit.succeed(value) : result)
      })
    })
  }

  private result(exit: Exit.Exit<unknown, unknown>, index: number, size: number): Exit.Exit<unknown, unknown> {
    if (Exit.isFailure(exit) || !this.step.each) return exit
    const items = exit.value
    if (!Array.isArray(items) || items.length !== size) {
      const given = Array.isArray(items) ? items.length : "no"
      return Exit.die(
        new TypeError(`a function given to Pipeline.batchEach gave ${given} results for ${size} messages`)
      )
    }
    const result: unknown = items[index]
    if (!Result.isResult(result)) {
      return Exit.die(new TypeError("a function given to Pipeline.batchEach gave something that is no Result"))
    }
    return Result.isSuccess(result) ? Exit.succeed(result.success) : Exit.failCause(Cause.fail(result.failure))
  }
}

/** A result may be an object that cannot be looked at. */
const exitOfItem = (read: () => Exit.Exit<unknown, unknown>): Exit.Exit<unknown, unknown> => {
  try {
    return read()
  } catch (error) {
    return Exit.die(error)
  }
}
