import * as Arr from "effect/Array"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Result from "effect/Result"
import type * as Scheduler from "effect/Scheduler"
import type { Outgoing, Transport } from "../Transport.ts"
import type { Attempt } from "./attempt.ts"
import { exitOf } from "./exit.ts"
import { checkedOf } from "./outgoing.ts"
import type { Source, Step } from "./program.ts"
import { isUnanswered, publishAgain, publishUntilAnswered } from "./publish.ts"
import type { PublishError } from "./publishError.ts"
import { send } from "./send.ts"
import { isTraced } from "./traced.ts"

type Resume = (exit: Exit.Exit<unknown, unknown>) => void

/** An output that waits for its turn, or for its confirmation. */
interface Waiting {
  readonly outgoing: Outgoing
  readonly resume: Resume
  again: Fiber.Fiber<unknown, unknown> | undefined
  isStopped: boolean
}

/**
 * The step `to`. Outputs of several messages are published together, in one or more batches, by one fiber each. Where
 * each output needs a span, or its encoding an Effect, each is published by the fiber of its message.
 *
 * An id derives from the origin and id of the source message and from the step's place in the pipeline, so that a retry
 * publishes under the same id.
 */
export class Outputs {
  private readonly options: {
    readonly transport: Transport["Service"]
    readonly source: Source
    readonly step: Extract<Step, { _tag: "To" }>
    /** The step's place in the pipeline. */
    readonly path: string
    readonly context: Context.Context<never>
    readonly scheduler: Scheduler.SchedulerDispatcher
  }
  private readonly isEachAlone: boolean
  private waiting: Array<Waiting> = []
  /** How many outputs were sent and have no answer yet. */
  private unanswered = 0

  constructor(options: Outputs["options"]) {
    this.options = options
    this.isEachAlone = options.step.transport !== undefined || isTraced(options.context)
  }

  /** Publishes what the step was given; an array of its function's is published in order. */
  publish(given: unknown, attempt: Attempt): Effect.Effect<unknown, PublishError> {
    const { step, transport } = this.options
    return Effect.withFiber(({ context }) => {
      const one = (value: unknown, id: string): Effect.Effect<unknown, PublishError> =>
        Effect.flatMapEager(checkedOf(step.topic, value, { id }, context), (outgoing) =>
          step.transport === undefined
            ? publishUntilAnswered(transport, outgoing, send)
            : Effect.flatMap(step.transport, (target) => publishUntilAnswered(target, outgoing, send)))
      const id = this.idOf(attempt)
      return this.isSeveral(given)
        ? Effect.forEach(given, (value, i) => one(value, `${id}/${i}`), { discard: true })
        : one(given, id)
    })
  }

  /** What `add` publishes; `undefined` where `publish` has to. */
  outgoing(
    given: unknown,
    attempt: Attempt,
    context: Context.Context<never>
  ): Exit.Exit<Outgoing, PublishError> | undefined {
    try {
      if (this.isEachAlone || this.isSeveral(given)) return undefined
      const outgoing = checkedOf(this.options.step.topic, given, { id: this.idOf(attempt) }, context)
      const exit = exitOf(outgoing)
      if (exit !== undefined) return exit
      const fiber = Effect.runForkWith(context)(outgoing)
      const ended = fiber.pollUnsafe()
      if (ended !== undefined && Exit.isSuccess(ended)) return ended
      fiber.interruptUnsafe()
      return undefined
    } catch (error) {
      return Exit.die(error)
    }
  }

  /** Publishes with whatever else is added in this turn. Gives a function that takes the output away, unless it was sent. */
  add(outgoing: Outgoing, resume: Resume): (then: () => void) => void {
    const waiting: Waiting = { outgoing, resume, again: undefined, isStopped: false }
    if (this.waiting.push(waiting) === 1) this.options.scheduler.scheduleTask(this.flush, 0)
    return (then) => {
      waiting.isStopped = true
      waiting.again?.interruptUnsafe()
      then()
    }
  }

  private readonly flush = (): void => {
    const all = this.waiting.filter(({ isStopped }) => !isStopped)
    // At most half of the outputs: the broker stores one half while this process works on the other one.
    const half = Math.max(minTogether, Math.ceil((all.length + this.unanswered) / 2))
    const waiting = all.slice(0, half)
    this.waiting = all.slice(half)
    if (!Arr.isArrayNonEmpty(waiting)) return
    if (this.waiting.length > 0) this.options.scheduler.scheduleTask(this.flush, 0)
    this.unanswered += waiting.length
    this.run(send(this.options.transport, Arr.map(waiting, ({ outgoing }) => outgoing))).addObserver((exit) => {
      this.unanswered -= waiting.length
      waiting.forEach((one, i) => {
        if (Exit.isFailure(exit)) return one.resume(exit)
        const result = exit.value[i]!
        if (Result.isFailure(result) && isUnanswered(result.failure)) return this.again(one)
        one.resume(Result.isSuccess(result) ? Exit.succeed(result.success) : Exit.fail(result.failure))
      })
    })
  }

  private again(waiting: Waiting): void {
    if (waiting.isStopped) return
    const again = waiting.again = this.run(publishAgain(this.options.transport, waiting.outgoing, send))
    again.addObserver(waiting.resume)
  }

  private run<A, E>(effect: Effect.Effect<A, E>): Fiber.Fiber<A, E> {
    return Effect.runForkWith(this.options.context)(effect)
  }

  private isSeveral(given: unknown): given is ReadonlyArray<unknown> {
    return this.options.step.f !== undefined && Array.isArray(given)
  }

  private idOf({ delivery, message }: Attempt): string {
    return `${delivery.origin}/${message!.topic}/${this.options.source.group}/${message!.id}/${this.options.path}`
  }
}

/** A batch of fewer outputs is not split. */
const minTogether = 16
