import type * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import * as Scheduler from "effect/Scheduler"
import type * as Scope from "effect/Scope"
import type * as Concurrency from "../Concurrency.ts"
import { isLimit, makeUnsafe } from "../Concurrency.ts"
import * as DeadLetter from "../DeadLetter.ts"
import type * as Message from "../Message.ts"
import type { Counts, Running } from "../Pipeline.ts"
import * as Settlement from "../Settlement.ts"
import * as Telemetry from "../Telemetry.ts"
import * as Topic from "../Topic.ts"
import type { Delivery, Subscription, Transport } from "../Transport.ts"
import { invalidOption, type TransportError } from "../TransportError.ts"
import { Attempt } from "./attempt.ts"
import { Deadlines } from "./deadlines.ts"
import { drain } from "./drain.ts"
import { defaultRetry, judge } from "./failure.ts"
import { Prefetch } from "./prefetch.ts"
import type { Program, Retry, Step } from "./program.ts"
import { publishUntilAnswered, publishStep } from "./publish.ts"
import { Settler } from "./settler.ts"

/**
 * One running pipeline: a reader, a pump that starts handlers within the limit, a settler.
 *
 * The pump is plain code. It owns `buffer` (taken, not begun) and starts attempts while both limits have a permit; it
 * gives way to the event loop after a millisecond, and nothing else may pump until it goes on.
 */
export class Engine {
  readonly program: Program
  readonly transport: Transport["Service"]
  readonly subscription: Subscription
  readonly context: Context.Context<never>
  readonly clock: Clock.Clock
  readonly settler: Settler
  readonly limit: Concurrency.Limit
  /** One timer for each `timeout` step, by its index. */
  readonly deadlines: ReadonlyMap<number, Deadlines<Attempt>>
  /** Adds to a message what its source promises beside the common fields. */
  readonly prepare: ((message: Message.Any, delivery: Delivery) => Exit.Exit<unknown, unknown>) | undefined
  /** Attempts that wait for something; one that ends at once is never in it. */
  readonly running = new Set<Attempt>()
  readonly counts: { -readonly [K in keyof Counts]: Counts[K] } = {
    handled: 0,
    filtered: 0,
    retried: 0,
    deadLettered: 0,
    discarded: 0,
    released: 0,
    failedAfterSettle: 0,
    lost: 0,
    resettled: 0
  }
  readonly failure = Deferred.makeUnsafe<never, TransportError>()
  readonly run: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
  paused = false
  draining = false

  private readonly dispatcher: Scheduler.SchedulerDispatcher
  private readonly observer: ((outcome: Telemetry.Outcome) => void) | undefined
  private readonly prefetch: Prefetch
  private readonly retry: Retry
  private buffer: Array<Delivery> = []
  private head = 0
  private started = 0
  /** Settlements in the settler's list: still owned as far as the broker knows. */
  private ending = 0
  private pumping = false
  private cancelWait: (() => void) | undefined
  private wakeReader: (() => void) | undefined
  private readonly idle = new Set<() => void>()

  constructor(
    program: Program,
    transport: Transport["Service"],
    subscription: Subscription,
    context: Context.Context<never>
  ) {
    this.program = program
    this.transport = transport
    this.subscription = subscription
    this.context = context
    this.clock = Context.get(context, Clock.Clock)
    this.observer = Context.get(context, Telemetry.Observer)
    this.run = Effect.runForkWith(context)
    this.dispatcher = Context.get(context, Scheduler.Scheduler).makeDispatcher()
    const { concurrency, retry } = program.policies
    this.limit = isLimit(concurrency) ? concurrency : makeUnsafe(concurrency)
    this.retry = retry ?? defaultRetry
    this.prefetch = new Prefetch(program.source.prefetch)
    this.prepare = preparation(program)
    this.deadlines = new Map(
      program.steps.flatMap((step, index) =>
        step._tag === "Timeout"
          ? [[index, new Deadlines<Attempt>(step.duration, this.clock, context, (attempt) => attempt.timedOut(index))]]
          : []
      )
    )
    this.settler = new Settler({
      subscription,
      clock: this.clock,
      context,
      dispatcher: this.dispatcher,
      onHandedOver: () => {
        this.ending = this.settler.pending.length
        if (this.owned === 0) this.prefetch.ended(this.clock.currentTimeMillisUnsafe())
        this.demandChanged()
      },
      onResend: (size) => {
        this.counts.resettled += size
      }
    })
  }

  /** Taken and not begun. */
  get waiting(): number {
    return this.buffer.length - this.head
  }

  /** Begun and not ended. */
  get inUse(): number {
    return this.started
  }

  get owned(): number {
    return this.waiting + this.started + this.ending
  }

  // --- taking

  /** How many more to ask for: 0 until the buffer is half empty. */
  demand(): number {
    if (this.settler.unconfirmed > mostUnconfirmed) return 0
    const prefetch = this.prefetch.current(this.clock.currentTimeMillisUnsafe())
    if (this.waiting > prefetch / 2) return 0
    return this.limit.max + prefetch - this.owned
  }

  /** Suspends until there is demand. */
  readonly awaitDemand: Effect.Effect<number> = Effect.callback<number>((resume) => {
    const answer = () => {
      const demand = this.demand()
      if (demand <= 0) return
      this.wakeReader = undefined
      resume(Effect.succeed(demand))
    }
    this.wakeReader = answer
    answer()
    return Effect.sync(() => {
      this.wakeReader = undefined
    })
  })

  private demandChanged(): void {
    if (this.wakeReader !== undefined && !this.pumping) this.wakeReader()
  }

  readonly read: Effect.Effect<never, TransportError> = Effect.suspend(() => this.awaitDemand).pipe(
    Effect.flatMap((demand) => this.subscription.pull(demand)),
    Effect.flatMap((deliveries) => Effect.sync(() => this.take(deliveries))),
    Effect.forever({ disableYield: true })
  )

  private take(deliveries: Arr.NonEmptyReadonlyArray<Delivery>): void {
    if (this.owned === 0) this.prefetch.began(this.clock.currentTimeMillisUnsafe())
    if (this.waiting === 0) {
      this.buffer = deliveries.slice()
      this.head = 0
    } else {
      this.buffer = this.buffer.slice(this.head).concat(deliveries)
      this.head = 0
    }
    this.pump()
  }

  // --- starting

  private readonly pump = (): void => {
    if (this.pumping) return
    this.pumping = true
    if (this.start()) {
      this.dispatcher.scheduleTask(() => {
        this.pumping = false
        this.pump()
      }, 0)
      return
    }
    this.pumping = false
    this.demandChanged()
  }

  /** Starts what may start; `true` when there is more and the event loop must have its turn first. */
  private start(): boolean {
    const since = this.clock.currentTimeMillisUnsafe()
    for (let n = 1; this.head < this.buffer.length; n++) {
      if (this.draining || !this.takePermit()) return false
      this.started++
      const attempt = new Attempt(this, this.buffer[this.head]!)
      this.buffer[this.head++] = undefined as never
      attempt.begin()
      if ((n & 15) === 0 && this.clock.currentTimeMillisUnsafe() - since >= 1) return true
    }
    return false
  }

  private takePermit(): boolean {
    if (!this.limit.tryTake()) {
      this.waitFor(this.limit)
      return false
    }
    if (!this.transport.limit.tryTake()) {
      this.limit.release()
      this.waitFor(this.transport.limit)
      return false
    }
    return true
  }

  private waitFor(limit: Concurrency.Limit): void {
    this.cancelWait?.()
    this.cancelWait = limit.onFree(() => {
      this.cancelWait = undefined
      this.pump()
    })
  }

  // --- what an attempt reports

  succeeded(attempt: Attempt, value: unknown): void {
    if (attempt.lost) return this.end(attempt)
    this.counts.handled++
    this.report(attempt, { _tag: "Handled", value })
    this.finish(attempt, Settlement.ack)
  }

  filtered(attempt: Attempt): void {
    this.counts.filtered++
    this.report(attempt, { _tag: "Filtered" })
    this.finish(attempt, Settlement.ack)
  }

  undecodable(attempt: Attempt, cause: Cause.Cause<unknown>): void {
    this.running.add(attempt)
    this.run(this.bury(attempt, cause, "undecodable"))
  }

  failed(attempt: Attempt, cause: Cause.Cause<unknown>): void {
    if (attempt.lost) return this.end(attempt)
    if (attempt.isSettled) {
      this.counts.failedAfterSettle++
      this.report(attempt, { _tag: "FailedAfterSettle", cause })
      return this.end(attempt)
    }
    this.running.add(attempt)
    // A `while` or a schedule of the user's may throw: then the message is retried as if there were no policy of theirs.
    const verdict = Effect.suspend(() => judge(this.retry, cause, attempt.delivery.attempt, attempt.message)).pipe(
      Effect.catchCause((defect) =>
        Effect.andThen(
          Effect.logError(`${this.program.name}: the retry policy failed, the default one decides`, defect),
          judge(defaultRetry, cause, attempt.delivery.attempt, undefined)
        )
      )
    )
    this.run(Effect.flatMap(verdict, (verdict) => {
      if (verdict._tag === "End") return this.bury(attempt, cause, verdict.reason)
      this.counts.retried++
      this.report(attempt, { _tag: "Retried", delay: Duration.toMillis(verdict.delay), cause })
      this.finish(attempt, Settlement.retry(verdict.delay))
      return Effect.void
    }))
  }

  /** Drain's deadline passed, or a peer has it. */
  interrupted(attempt: Attempt): void {
    if (attempt.lost || attempt.isSettled) return this.end(attempt)
    this.released(attempt.delivery, attempt.message)
    this.finish(attempt, Settlement.release)
  }

  /** The broker has answered. */
  settled(attempt: Attempt, owned: boolean): void {
    if (owned) return
    this.counts.lost++
    this.report(attempt, { _tag: "Lost" })
  }

  /** A message that was redriven for one group is not for the others. */
  isFor(delivery: Delivery): boolean {
    const group = delivery.headers["millrace-group"]
    return group === undefined || group === this.program.source.group
  }

  publish(step: Extract<Step, { _tag: "To" }>, index: number, value: unknown, attempt: Attempt) {
    return publishStep(this.transport, this.program.source, step, index, value, attempt.message!)
  }

  /** Stores it, and only then says that it will not be tried again. */
  private bury(attempt: Attempt, cause: Cause.Cause<unknown>, reason: DeadLetter.Reason): Effect.Effect<void> {
    const topic = deadLetterTopic(this.program)
    if (topic === undefined) {
      this.counts.discarded++
      this.report(attempt, { _tag: "Discarded", cause })
      this.finish(attempt, Settlement.terminate(reason))
      return Effect.void
    }
    const { delivery } = attempt
    const record = new DeadLetter.Record({
      version: 1,
      topic: delivery.topic,
      id: delivery.id,
      group: attempt.group,
      pipeline: this.program.name,
      reason,
      attempts: delivery.attempt,
      publishedAt: delivery.publishedAt,
      failedAt: this.clock.currentTimeMillisUnsafe(),
      error: DeadLetter.describe(cause)
    })
    return publishUntilAnswered(this.transport, DeadLetter.outgoing(topic, delivery, record)).pipe(
      Effect.matchCauseEffect({
        onSuccess: () =>
          Effect.sync(() => {
            this.counts.deadLettered++
            this.report(attempt, { _tag: "DeadLettered", cause })
            this.finish(attempt, Settlement.terminate(reason))
          }),
        onFailure: (failure) =>
          Effect.andThen(
            Effect.logError(
              `${this.program.name}: the dead letter of ${delivery.id} cannot be written; it stays unsettled`,
              failure
            ),
            Effect.sync(() => this.end(attempt))
          )
      })
    )
  }

  released(delivery: Delivery, message: Message.Any | undefined): void {
    this.counts.released++
    this.observer?.({ pipeline: this.program.name, delivery, message, _tag: "Released" })
  }

  private report(attempt: Attempt, outcome: Telemetry.OutcomeKind): void {
    if (this.observer === undefined) return
    this.observer({ pipeline: this.program.name, delivery: attempt.delivery, message: attempt.message, ...outcome })
  }

  private finish(attempt: Attempt, settlement: Settlement.Settlement): void {
    if (attempt.claim()) {
      attempt.settlement = settlement
      this.settler.add(attempt)
      this.ending++
    }
    this.end(attempt)
  }

  private end(attempt: Attempt): void {
    this.running.delete(attempt)
    for (const deadline of this.deadlines.values()) deadline.delete(attempt)
    this.prefetch.done()
    this.started--
    this.transport.limit.release()
    this.limit.release()
    if (this.idle.size > 0 && this.started === 0) {
      const waiters = [...this.idle]
      this.idle.clear()
      for (const wake of waiters) wake()
    }
    if (this.head < this.buffer.length) this.pump()
    else this.demandChanged()
  }

  // --- keeping

  /** Tells the broker that what is owned is still being worked on. */
  readonly extend: Effect.Effect<void> = Effect.suspend(() => {
    const attempts = new Map<Delivery, Attempt | undefined>()
    for (let i = this.head; i < this.buffer.length; i++) attempts.set(this.buffer[i]!, undefined)
    for (const attempt of this.running) if (!attempt.isSettled) attempts.set(attempt.delivery, attempt)
    const [first, ...rest] = attempts.keys()
    if (first === undefined) return Effect.void
    return this.subscription.extend([first, ...rest]).pipe(
      Effect.map((lost) => {
        for (const delivery of lost) {
          const attempt = attempts.get(delivery)
          if (attempt === undefined) this.forget(delivery)
          else this.lose(attempt)
        }
      }),
      Effect.catch((error) => Effect.logWarning(`${this.program.name}: what it works on could not be kept`, error))
    )
  })

  private lose(attempt: Attempt): void {
    if (attempt.lost || attempt.isSettled) return
    this.settled(attempt, false)
    attempt.lose()
  }

  private forget(delivery: Delivery): void {
    const index = this.buffer.indexOf(delivery, this.head)
    if (index < 0) return
    this.buffer.splice(index, 1)
    this.counts.lost++
    this.observer?.({ pipeline: this.program.name, delivery, message: undefined, _tag: "Lost" })
  }

  // --- stopping: the order is in drain.ts

  /** Hands back what was taken and not begun. */
  releaseWaiting(): void {
    for (; this.head < this.buffer.length; this.head++) {
      const delivery = this.buffer[this.head]!
      this.released(delivery, undefined)
      this.settler.add({ delivery, settlement: Settlement.release, settled: () => {} })
      this.ending++
    }
    this.cancelWait?.()
  }

  /** Resolves when no handler runs. */
  readonly awaitHandlers: Effect.Effect<void> = Effect.callback<void>((resume) => {
    if (this.started === 0) return resume(Effect.void)
    const wake = () => resume(Effect.void)
    this.idle.add(wake)
    return Effect.sync(() => this.idle.delete(wake))
  })

  readonly interruptHandlers: Effect.Effect<void> = Effect.sync(() => {
    for (const attempt of [...this.running]) attempt.interrupt()
  })

  close(): void {
    for (const deadline of this.deadlines.values()) deadline.close()
  }
}

/** Settlements on their way; beyond it pulling stops. */
const mostUnconfirmed = 4096

const deadLetterTopic = (program: Program): string | undefined => {
  const { deadLetter } = program.policies
  return deadLetter === false ? undefined : deadLetter ?? `${program.source.topic.name}.dead`
}

const preparation = (program: Program): Engine["prepare"] => {
  const { extend, topic } = program.source
  const schema = "headers" in topic ? topic.headers as Schema.ConstraintCodec<unknown, Message.Headers> | undefined : undefined
  if (schema === undefined && extend === undefined) return undefined
  const decode = schema === undefined ? undefined : Schema.decodeUnknownExit(schema)
  return (message, delivery) => {
    if (decode !== undefined) {
      const exit = decode(delivery.headers)
      if (Exit.isFailure(exit)) return exit
      Object.assign(message, { typedHeaders: exit.value })
    }
    if (extend !== undefined) extend(message, delivery)
    return Exit.void
  }
}

const validate = (program: Program, transport: string): TransportError | undefined => {
  const { policies: { concurrency, retry }, source: { group, prefetch, topic, waiting } } = program
  const whole = (n: number, least: number) => Number.isInteger(n) && n >= least
  const bad = Topic.validateName(transport, topic.name)
  if (bad !== undefined) return bad
  const invalid = (option: string, value: unknown, remedy: string) => invalidOption(transport, option, value, remedy)
  if (!/^[A-Za-z0-9_-]+$/.test(group)) {
    return invalid("group", group, "a group name is made of letters, digits and the signs _ -")
  }
  if (typeof concurrency === "number" && !whole(concurrency, 1)) {
    return invalid("concurrency", concurrency, "give a whole number of at least 1")
  }
  if (isLimit(concurrency) && !whole(concurrency.max, 1)) {
    return invalid("concurrency", concurrency.max, "a limit of a pipeline is a whole number of at least 1")
  }
  if (prefetch !== undefined && !whole(prefetch, 0)) {
    return invalid("prefetch", prefetch, "give a whole number, or nothing for 200 ms of work")
  }
  if (!whole(waiting, 0)) return invalid("waiting", waiting, "give a whole number of retries that may wait")
  if (retry !== undefined && !(whole(retry.times, 0) || retry.times === Infinity)) {
    return invalid("retry.times", retry.times, "give a whole number of retries, 0 for none")
  }
  const dead = deadLetterTopic(program)
  if (dead === topic.name) {
    return invalid("deadLetter", dead, "a pipeline would consume its own dead letters, give another topic")
  }
  for (const name of outputs(program)) {
    const bad = Topic.validateName(transport, name)
    if (bad !== undefined) return bad
  }
  return undefined
}

/** The topics a pipeline writes to. */
const outputs = (program: Program): ReadonlySet<string> => {
  const dead = deadLetterTopic(program)
  const names = program.steps.flatMap((step) => step._tag === "To" ? [step.topic.name] : [])
  return new Set(dead === undefined ? names : [...names, dead])
}

const timeoutOf = (program: Program): Duration.Duration | undefined =>
  program.steps.flatMap((step) => step._tag === "Timeout" ? [step.duration] : [])
    .reduce<Duration.Duration | undefined>((a, b) => a === undefined ? b : Duration.max(a, b), undefined)

export const start = Effect.fnUntraced(function*(
  program: Program
): Effect.fn.Return<Running, TransportError, Scope.Scope> {
  const { source } = program
  const transport = yield* source.transport
  const bad = validate(program, transport.name)
  if (bad !== undefined) return yield* bad
  for (const topic of outputs(program)) yield* transport.declare(topic)

  const { concurrency, settings } = program.policies
  const subscription = yield* transport.subscribe({
    topic: source.topic.name,
    group: source.group,
    startFrom: source.startFrom,
    maxOwned: (isLimit(concurrency) ? concurrency.max : concurrency) + (source.prefetch ?? Prefetch.most),
    waiting: source.waiting,
    timeout: timeoutOf(program),
    settings
  })
  const engine = new Engine(program, transport, subscription, yield* Effect.context<never>())

  let reader: Fiber.Fiber<void> | undefined
  const read = Effect.sync(() => {
    reader = engine.run(Effect.catchCause(engine.read, (cause) => {
      if (Cause.hasInterruptsOnly(cause)) return Effect.void
      Deferred.doneUnsafe(engine.failure, Exit.failCause(cause))
      return Effect.logError(`${program.name} can no longer run`, cause)
    }))
  })
  const stopReading = Effect.suspend(() => reader === undefined ? Effect.void : Fiber.interrupt(reader))
  if (subscription.extendEvery !== undefined) {
    yield* engine.extend.pipe(Effect.delay(subscription.extendEvery), Effect.forever, Effect.forkScoped)
  }
  yield* Effect.addFinalizer(() => drain(engine, stopReading, source.drainTimeout))
  yield* read

  return {
    name: program.name,
    pause: Effect.suspend(() => {
      engine.paused = true
      return stopReading
    }),
    resume: Effect.suspend(() => {
      if (!engine.paused || engine.draining) return Effect.void
      engine.paused = false
      return read
    }),
    health: Effect.suspend(() => engine.paused ? Effect.succeed("paused" as const) : subscription.health),
    limit: engine.limit,
    owned: Effect.sync(() => ({ waiting: engine.waiting, running: engine.inUse })),
    counts: Effect.sync(() => ({ ...engine.counts })),
    await: Deferred.await(engine.failure)
  }
})
