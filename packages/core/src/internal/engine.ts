import type * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Scheduler from "effect/Scheduler"
import type * as Concurrency from "../Concurrency.ts"
import { isLimit, shared } from "../Concurrency.ts"
import type * as DeadLetter from "../DeadLetter.ts"
import type * as Message from "../Message.ts"
import type { Counts } from "../Pipeline.ts"
import * as Settlement from "../Settlement.ts"
import * as Telemetry from "../Telemetry.ts"
import type { Delivery, Demand, Subscription, Transport } from "../Transport.ts"
import type { TransportError } from "../TransportError.ts"
import { Attempt } from "./attempt.ts"
import { Batcher } from "./batcher.ts"
import { Deadlines } from "./deadlines.ts"
import { defaultRetry, judge } from "./failure.ts"
import { Lanes } from "./lanes.ts"
import { Letters } from "./letters.ts"
import { Meter } from "./meter.ts"
import { Prefetch } from "./prefetch.ts"
import { preparation } from "./prepare.ts"
import type { Program, Retry, Step } from "./program.ts"
import { publishStep } from "./publish.ts"
import { Settler } from "./settler.ts"
import { Slots } from "./slots.ts"
import { batchSize } from "./validate.ts"

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
  /** Something wants to know how long handlers take. */
  readonly timed: boolean
  readonly batchers: ReadonlyMap<number, Batcher>
  /** Adds to a message what its source promises beside the common fields. */
  readonly prepare: ((message: Message.Any, delivery: Delivery) => Exit.Exit<unknown, unknown>) | undefined
  /** Attempts that wait for something; one that ends at once is never in it. */
  readonly running = new Slots<Attempt>()
  readonly counts: { -readonly [K in keyof Counts]: Counts[K] } = {
    handled: 0,
    filtered: 0,
    retried: 0,
    deadLettered: 0,
    discarded: 0,
    released: 0,
    failedAfterSettle: 0,
    lost: 0,
    resettled: 0,
    unsettled: 0
  }
  readonly failure = Deferred.makeUnsafe<never, TransportError>()
  readonly run: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
  readonly maxOwned: number
  draining = false
  /** Takes back what has been asked for; whoever reads says how. */
  takeBack: Effect.Effect<void> = Effect.void
  /** The drain's deadline has passed: handlers are being interrupted. */
  interrupting = false

  private readonly dispatcher: Scheduler.SchedulerDispatcher
  private readonly observer: ((outcome: Telemetry.Outcome) => void) | undefined
  private readonly meter: Meter | undefined
  private readonly prefetch: Prefetch
  private readonly retry: Retry
  private readonly lanes: Lanes | undefined
  /** How many messages one permit can stand for. */
  private readonly perPermit: number
  private buffer: Array<Attempt> = []
  private head = 0
  private started = 0
  /** Settlements in the settler's list: still owned as far as the broker knows. */
  private ending = 0
  /** Full batches that wait for a permit: before any message that has not begun. */
  private readonly batches: Array<() => void> = []
  /** `undefined` where what will not be tried again is discarded. */
  private readonly letters: Letters | undefined
  /** Handled, and left for the user to settle. */
  private readonly unsettled = new Map<Attempt, Fiber.Fiber<void>>()
  /** The suspect that is to run alone, or does. */
  private solo: Attempt | undefined
  /**
   * When what is buffered was last surely ours, and for how long that is good. Milliseconds, of two clocks: one may be
   * set back, the other stands still while the machine sleeps.
   */
  private keptAt = { wall: 0, monotonic: 0 }
  private readonly keptFor: number
  private lookedAt = NaN
  private isStale = false
  /** When it was last seen that this process does not stand still. */
  private awakeAt: Engine["keptAt"]
  /** What comes until then may have waited in a socket while this process stood still. */
  private doubtUntil = 0
  private doubtedAt = 0
  private readonly patience: number
  private isMakingSure = false
  /** The last that was taken held a suspect: one at a time, until there is none. */
  private cautious = false
  /** How long a pull has been open, all in all; keys are patient with their retries for as long as they may come. */
  private asked = 0
  private askingSince: number | undefined
  private isTakingBack = false
  /** Retries that are due and have not come: their keys stand still. */
  private overdue = 0
  /** With more than this in the buffer nothing is asked for. */
  private refillAt = 0
  /** Handlers that are started between two looks at the clock. */
  private stride = 16
  private pumping = false
  private cancelWait: (() => void) | undefined
  private readonly cancelResize: () => void
  private wakeReader: (() => void) | undefined
  private readonly idle = new Set<() => void>()

  constructor(
    program: Program,
    transport: Transport["Service"],
    subscription: Subscription,
    context: Context.Context<never>,
    maxOwned: number
  ) {
    this.program = program
    this.maxOwned = maxOwned
    this.transport = transport
    this.subscription = subscription
    this.context = context
    this.clock = Context.get(context, Clock.Clock)
    this.awakeAt = this.instant()
    this.observer = Context.get(context, Telemetry.Observer)
    const { group, topic } = program.source
    this.meter = Context.get(context, Telemetry.Metrics)
      ? new Meter(context, transport.name, topic.name, group)
      : undefined
    this.run = Effect.runForkWith(context)
    this.dispatcher = Context.get(context, Scheduler.Scheduler).makeDispatcher()
    const { concurrency, key, retry } = program.policies
    this.limit = isLimit(concurrency) ? concurrency : shared(concurrency)
    this.cancelResize = this.limit.onResizeUnsafe(() => this.pump())
    this.retry = retry ?? defaultRetry
    this.letters = Letters.of(program, transport, this.clock)
    this.prefetch = new Prefetch(program.source.prefetch)
    this.prepare = preparation(program)
    this.perPermit = batchSize(program)
    // Whatever became of it: after the claim time it would have come.
    const lease = subscription.lease === undefined ? undefined : Duration.toMillis(subscription.lease)
    this.patience = lease === undefined ? patienceWithoutClaims : lease + 1000
    this.keptFor = lease === undefined ? Infinity : 2 / 3 * lease
    this.lanes = key === undefined ? undefined : new Lanes({
      key,
      whenPatienceEnds: (delay, f) => this.whenPatienceEnds(delay, f),
      onReady: (attempt) => {
        this.buffer.push(attempt)
        this.pump()
      }
    })
    this.timed = this.meter !== undefined || this.limit.sampleUnsafe !== undefined ||
      program.steps.some((step) => step._tag === "Timeout")
    const timeouts = program.steps.flatMap((step, index) => step._tag === "Timeout" ? [{ step, index }] : [])
    this.deadlines = new Map(timeouts.map(({ index, step }, number) => {
      const expire = (attempt: Attempt) => attempt.timedOut(index)
      return [index, new Deadlines(number, step.duration, context, () => this.now(), expire)]
    }))
    this.batchers = new Map(
      program.steps.flatMap((step, index) => step._tag === "Batch" ? [[index, new Batcher(this, step, index)]] : [])
    )
    this.settler = new Settler({
      subscription,
      clock: this.clock,
      context,
      dispatcher: this.dispatcher,
      onHandedOver: () => {
        this.ending = this.settler.pending.length
        if (this.owned === 0) this.prefetch.ended(this.now())
        if (this.solo === undefined) this.demandChanged()
        else this.pump()
      },
      onResend: (size) => {
        this.counts.resettled += size
      }
    })
  }

  /** Taken and not begun. */
  get waiting(): number {
    return this.buffer.length - this.head + (this.lanes?.parked ?? 0)
  }

  /** Begun and not ended. */
  get inUse(): number {
    return this.started
  }

  /** All that the broker counts as ours. */
  get owned(): number {
    return this.waiting + this.started + this.ending + this.unsettled.size
  }

  /** Monotonic, in milliseconds. */
  now(): number {
    return Number(this.clock.monotonicTimeNanosUnsafe()) / 1e6
  }

  private after(millis: number, f: () => void): () => void {
    const fiber = this.run(Effect.sleep(millis))
    fiber.addObserver((exit) => {
      if (Exit.isSuccess(exit)) f()
    })
    return () => fiber.interruptUnsafe()
  }

  /**
   * Calls `f` when a retry that was due after `delay` does not come here any more: after the claim time in which a pull
   * was open and the broker could have answered it. An outage, or slots that are all taken, do not count.
   */
  private whenPatienceEnds(delay: number, f: () => void): () => void {
    const askedFor = () => this.asked + (this.askingSince === undefined ? 0 : this.now() - this.askingSince)
    const step = this.patience / patienceSteps
    let left = patienceSteps
    const wait = () => {
      const before = askedFor()
      cancel = this.after(step, () =>
        this.run(this.subscription.health).addObserver((exit) => {
          const couldCome = askedFor() - before >= step / 2 || this.owned >= this.maxOwned
          const counts = Exit.isSuccess(exit) && exit.value.state === "consuming" && couldCome
          if (counts && --left === 0) f()
          else if (!this.draining) wait()
        }))
    }
    let isDue = false
    let cancel = this.after(delay, () => {
      isDue = true
      this.overdue++
      this.demandChanged()
      wait()
    })
    return () => {
      cancel()
      if (isDue) this.overdue--
      isDue = false
    }
  }

  // --- taking

  /** How many more to ask for: 0 until the buffer is half empty. */
  demand(): number {
    if (this.solo !== undefined || this.settler.unconfirmed > mostUnconfirmed) return 0
    const parked = this.lanes?.parked ?? 0
    // At the bound only a retry that is due is asked for, or what stands behind it would for ever: brokers give it first.
    if (parked > 0 && parked >= this.program.source.waiting) {
      return this.overdue > 0 ? Math.min(1, this.maxOwned - this.owned) : 0
    }
    // What stands behind another message of its key is bounded apart: it must not keep other keys from coming.
    const owned = this.owned - parked
    if (this.cautious) return owned === this.unsettled.size ? 1 : 0
    const prefetch = this.prefetch.current(this.now())
    this.refillAt = prefetch / 2
    if (this.waiting - parked > this.refillAt) return 0
    const permits = Math.min(this.limit.max, this.transport.limit.max)
    return Math.min(permits * this.perPermit + prefetch - owned, this.maxOwned - this.owned)
  }

  private demandOf(total: number): Demand {
    const parked = this.lanes?.parked ?? 0
    const fresh = parked > 0 && parked >= this.program.source.waiting ? 0 : total
    return { total, fresh, suspects: total, bytes: Infinity }
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
    if (this.wakeReader === undefined || this.pumping || this.buffer.length - this.head > this.refillAt) return
    this.wakeReader()
  }

  readonly read: Effect.Effect<never, TransportError> = Effect.uninterruptibleMask((restore) =>
    restore(this.awaitDemand).pipe(
      Effect.flatMap((demand) => {
        this.askingSince = this.now()
        return restore(this.subscription.pull(this.demandOf(demand)))
      }),
      Effect.onExit(() =>
        Effect.sync(() => {
          if (this.askingSince !== undefined) this.asked += this.now() - this.askingSince
          this.askingSince = undefined
        })
      ),
      // Not to be interrupted: what was pulled is ours now.
      Effect.map((deliveries) => this.take(deliveries)),
      Effect.forever({ disableYield: true })
    )
  )

  take(deliveries: Arr.NonEmptyReadonlyArray<Delivery>): void {
    if (this.owned === 0) this.prefetch.began(this.now())
    if (this.looksBack()) {
      this.doubtedAt = this.now()
      this.keptAt = { wall: -Infinity, monotonic: -Infinity }
      this.lookedAt = NaN
    } else if (this.waiting === 0) {
      this.kept(this.instant())
    }
    if (this.head > 0) {
      this.buffer = this.buffer.slice(this.head)
      this.head = 0
    }
    this.cautious = false
    for (const delivery of deliveries) {
      if (delivery.suspect) this.cautious = true
      const attempt = new Attempt(this, delivery)
      const keyed = this.lanes !== undefined && this.isFor(delivery)
      if (!keyed || this.lanes!.admit(attempt)) this.buffer.push(attempt)
    }
    this.pump()
  }

  // --- starting

  private readonly pump = (): void => {
    if (this.pumping) return
    this.pumping = true
    const more = this.start()
    this.settler.hurry()
    if (more) {
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
    if (since !== this.lookedAt) {
      this.lookedAt = since
      this.isStale = Math.max(since - this.keptAt.wall, this.now() - this.keptAt.monotonic) > this.keptFor
    }
    if (this.isStale && this.head < this.buffer.length) {
      this.makeSure()
      return false
    }
    for (let n = this.stride;; n--) {
      const batch = this.batches.length > 0
      if (!batch) {
        if (this.head === this.buffer.length || this.draining) return false
        const next = this.buffer[this.head]!
        if ((next.delivery.suspect || this.solo !== undefined) && !this.mayBeginAlone(next)) return false
      }
      if (!this.takePermit()) return false
      if (batch) {
        this.batches.shift()!()
      } else {
        const attempt = this.buffer[this.head]!
        this.buffer[this.head++] = undefined as never
        this.begin(attempt)
      }
      // Half empty: the next ones are asked for now, so that they come while these are handled.
      if (this.wakeReader !== undefined && this.buffer.length - this.head <= this.refillAt) this.wakeReader()
      if (n > 1) continue
      // Looking at the clock costs as much as starting a cheap handler; after slow ones it is looked at more often.
      const isLate = Math.abs(this.clock.currentTimeMillisUnsafe() - since) >= 1
      this.stride = isLate ? Math.max(1, this.stride >> 1) : Math.min(16, this.stride << 1)
      if (isLate) return true
      n = this.stride + 1
    }
  }

  private begin(attempt: Attempt): void {
    this.started++
    attempt.permit = "held"
    const { delivery } = attempt
    // A message that was redriven for one group is not for the others, readable or not.
    if (!this.isFor(delivery)) return this.filtered(attempt)
    // Without retries too it is run once more, alone: it may be a neighbour that no handler ever saw.
    if (delivery.suspect && delivery.attempt > Math.max(2, this.retry.times + 1)) {
      attempt.failure = Cause.die(new Error(killerText))
      return attempt.conclude(this.bury(attempt, attempt.failure, "killer"))
    }
    if (this.program.policies.ackPolicy !== "on-receive") return attempt.begin()
    // Acknowledged first: only when the broker has confirmed it does the handler begin.
    this.running.add(attempt)
    attempt.settleThen(Settlement.ack, (owned) => {
      if (owned && !attempt.isOver) attempt.begin()
    })
  }

  /**
   * A message that may have taken a process with it runs alone, so that it takes no other one: nothing else runs or is
   * asked for, all that was said has reached the broker, and what was not begun is handed back. `true` when it may begin.
   */
  private mayBeginAlone(next: Attempt): boolean {
    // Until it has ended, nothing else begins.
    if (this.solo !== undefined && this.solo !== next) return false
    this.solo = next
    this.flushBatches()
    if (this.started > 0) return false
    // Keys are waited for with a pull open, and what it brings would be here.
    if (this.askingSince !== undefined) {
      this.callOff()
      return false
    }
    if (this.head + 1 < this.buffer.length || (this.lanes?.parked ?? 0) > 0) {
      const others = this.buffer.slice(this.head + 1)
      this.buffer = [next]
      this.head = 0
      if (this.lanes !== undefined) others.push(...this.lanes.handBack(next))
      this.handBack(others)
    }
    return this.settler.pending.length === 0 && this.settler.unconfirmed === 0
  }

  private callOff(): void {
    if (this.isTakingBack) return
    this.isTakingBack = true
    this.run(this.takeBack).addObserver(() => {
      this.isTakingBack = false
      this.pump()
    })
  }

  isSolo(attempt: Attempt): boolean {
    return this.solo === attempt
  }

  private takePermit(): boolean {
    if (!this.limit.tryTakeUnsafe()) {
      this.waitFor(this.limit)
      return false
    }
    if (!this.transport.limit.tryTakeUnsafe()) {
      this.limit.releaseUnsafe()
      this.waitFor(this.transport.limit)
      return false
    }
    return true
  }

  private waitFor(limit: Concurrency.Limit): void {
    this.cancelWait?.()
    this.cancelWait = limit.onFreeUnsafe(() => {
      this.cancelWait = undefined
      this.pump()
    })
  }

  releasePermit(): void {
    this.transport.limit.releaseUnsafe()
    this.limit.releaseUnsafe()
    if (this.batches.length > 0) this.pump()
  }

  /** Gives back the permit it holds, alone or with its batch. It holds none while it waits for a batch. */
  releasePermitOf(attempt: Attempt): void {
    if (attempt.permit === "none") return
    if (attempt.batch === undefined) this.releasePermit()
    else attempt.batch.leave()
    attempt.batch = undefined
    attempt.permit = "none"
  }

  /** Runs a full batch as soon as there is a permit for it. */
  batchReady(run: () => void): void {
    this.batches.push(run)
    this.pump()
  }

  flushBatches(): void {
    for (const batcher of this.batchers.values()) batcher.flush()
  }

  // --- what an attempt reports

  succeeded(attempt: Attempt, value: unknown): void {
    if (attempt.lost) return this.end(attempt)
    this.counts.handled++
    this.report(attempt, { _tag: "Handled", value })
    if (this.program.policies.ackPolicy === "manual" && !attempt.isSettled) this.leaveUnsettled(attempt)
    else this.finish(attempt, Settlement.ack)
  }

  filtered(attempt: Attempt): void {
    this.counts.filtered++
    this.report(attempt, { _tag: "Filtered" })
    this.finish(attempt, Settlement.ack)
  }

  undecodable(attempt: Attempt, cause: Cause.Cause<unknown>): void {
    attempt.conclude(this.bury(attempt, cause, "undecodable"))
  }

  failed(attempt: Attempt, cause: Cause.Cause<unknown>): void {
    if (attempt.lost) return this.end(attempt)
    if (this.program.policies.ackPolicy === "on-receive") {
      return attempt.conclude(this.bury(attempt, cause, "exhausted"))
    }
    if (attempt.isSettled) {
      this.counts.failedAfterSettle++
      this.report(attempt, { _tag: "FailedAfterSettle", cause })
      return this.end(attempt)
    }
    // A `while` or a schedule of the user's may throw: then the message is retried as if there were no policy of theirs.
    const verdict = Effect.suspend(() => judge(this.retry, cause, attempt.delivery.attempt, attempt.message)).pipe(
      Effect.catchCause((defect) =>
        Effect.andThen(
          Effect.logError(`${this.program.name}: the retry policy failed, the default one decides`, defect),
          judge(defaultRetry, cause, attempt.delivery.attempt, undefined)
        )
      )
    )
    attempt.conclude(Effect.flatMap(verdict, (verdict) => {
      if (verdict._tag === "End") return this.bury(attempt, cause, verdict.reason)
      const delay = Duration.toMillis(verdict.delay)
      this.counts.retried++
      this.report(attempt, { _tag: "Retried", delay, cause })
      this.finish(attempt, { _tag: "Retry", after: verdict.delay })
      return Effect.void
    }))
  }

  /** Drain's deadline passed, or a peer has it. */
  interrupted(attempt: Attempt): void {
    if (attempt.lost || attempt.isSettled) return this.end(attempt)
    this.released(attempt.delivery, attempt.message)
    this.finish(attempt, Settlement.release)
  }

  /** What was to be done about a failure did not come to its end. */
  inconclusive(attempt: Attempt, why: Cause.Cause<unknown>): void {
    if (!Cause.hasInterruptsOnly(why)) {
      // A fault of ours: it must not be tried for ever without counting.
      this.run(Effect.logError(`${this.program.name}: what to do about ${attempt.delivery.id} failed`, why))
      return this.finish(attempt, { _tag: "Retry", after: Duration.minutes(1) })
    }
    // On-receive: it is acknowledged, and its dead letter is not written. At most once means that it is gone.
    if (attempt.isSettled && !attempt.lost && attempt.failure !== undefined) this.discarded(attempt, attempt.failure)
    this.interrupted(attempt)
  }

  private discarded(attempt: Attempt, cause: Cause.Cause<unknown>): void {
    this.counts.discarded++
    this.report(attempt, { _tag: "Discarded", cause })
  }

  /** The broker has answered. */
  settled(attempt: Attempt, owned: boolean): void {
    if (this.unsettled.size > 0) {
      this.unsettled.get(attempt)?.interruptUnsafe()
      if (this.unsettled.delete(attempt)) this.pump()
    }
    if (!owned) this.lost(attempt)
  }

  /** A message that was redriven for one group is not for the others. */
  isFor(delivery: Delivery): boolean {
    const group = delivery.headers["millrace-group"]
    return group === undefined || group === this.program.source.group
  }

  publish(step: Extract<Step, { _tag: "To" }>, path: string, value: unknown, attempt: Attempt) {
    return publishStep(this.transport, this.program.source, step, path, value, attempt.message!)
  }

  /** Stores it, and only then says that it will not be tried again. */
  private bury(attempt: Attempt, cause: Cause.Cause<unknown>, reason: DeadLetter.Reason): Effect.Effect<void> {
    if (this.letters === undefined) {
      this.discarded(attempt, cause)
      this.finish(attempt, { _tag: "Terminate", reason })
      return Effect.void
    }
    return Effect.matchCauseEffect(this.letters.write(attempt.delivery, cause, reason), {
      onSuccess: () =>
        Effect.sync(() => {
          this.counts.deadLettered++
          this.report(attempt, { _tag: "DeadLettered", cause })
          this.finish(attempt, { _tag: "Terminate", reason })
        }),
      onFailure: (failure) =>
        Effect.andThen(
          Effect.logError(
            `${this.program.name}: the dead letter of ${attempt.delivery.id} cannot be written; it stays unsettled`,
            failure
          ),
          Effect.sync(() => this.end(attempt))
        )
    })
  }

  /** With `manual` the user has some time to settle what was handled; then it is reported and left to be redelivered. */
  private leaveUnsettled(attempt: Attempt): void {
    const { settleWithin } = this.program.policies
    const report = Effect.sleep(settleWithin).pipe(
      Effect.andThen(Effect.suspend(() => {
        this.unsettled.delete(attempt)
        this.counts.unsettled++
        this.pump()
        return Effect.logError(
          `${this.program.name}: message ${attempt.delivery.id} was not settled within ` +
            `${Duration.format(settleWithin)} of being handled; it will be redelivered`
        )
      }))
    )
    this.unsettled.set(attempt, this.run(report))
    this.end(attempt)
  }

  released(delivery: Delivery, message: Message.Any | undefined): void {
    this.counts.released++
    this.observe({ pipeline: this.program.name, delivery, message, _tag: "Released" })
  }

  private report(attempt: Attempt, outcome: Telemetry.OutcomeKind): void {
    if (this.meter !== undefined && attempt.startedAt > 0) {
      const millis = this.now() - attempt.startedAt
      this.meter.ended(outcome._tag, millis, "cause" in outcome ? outcome.cause : undefined)
    }
    if (this.observer === undefined) return
    this.observe({ pipeline: this.program.name, delivery: attempt.delivery, message: attempt.message, ...outcome })
  }

  private observe(outcome: Telemetry.Outcome): void {
    try {
      this.observer?.(outcome)
    } catch (error) {
      this.run(Effect.logError(`${this.program.name}: the observer of outcomes failed`, error))
    }
  }

  private finish(attempt: Attempt, settlement: Settlement.Settlement): void {
    if (attempt.claim()) {
      attempt.settlement = settlement
      this.ending++
      this.settler.add(attempt)
    }
    this.end(attempt)
  }

  private end(attempt: Attempt): void {
    attempt.isOver = true
    this.running.delete(attempt)
    this.prefetch.done()
    this.started--
    this.releasePermitOf(attempt)
    this.left(attempt)
    if (this.timed) this.observeLimit(attempt)
    if (this.idle.size > 0 && this.started === 0) {
      const waiters = [...this.idle]
      this.idle.clear()
      for (const wake of waiters) wake()
    }
    if (this.head < this.buffer.length || this.solo !== undefined) this.pump()
    else this.demandChanged()
  }

  /** It is no longer here: the next of its key may begin, unless it comes again. */
  private left(attempt: Attempt): void {
    if (this.solo === attempt) this.solo = undefined
    if (this.lanes === undefined) return
    const { settlement } = attempt
    if (attempt.isSettled && !attempt.lost && settlement._tag === "Retry") {
      this.lanes.retried(attempt, settlement.after === undefined ? 0 : Duration.toMillis(settlement.after))
    } else {
      this.lanes.ended(attempt)
    }
  }

  private observeLimit(attempt: Attempt): void {
    if (this.limit.sampleUnsafe === undefined || attempt.startedAt === 0) return
    const endedAt = this.now()
    try {
      this.limit.sampleUnsafe({
        endedAt,
        latency: endedAt - attempt.startedAt,
        failed: attempt.failure !== undefined
      })
    } catch (error) {
      this.run(Effect.logError(`${this.program.name}: the algorithm of its limit failed`, error))
    }
  }

  // --- keeping

  private instant() {
    return { wall: this.clock.currentTimeMillisUnsafe(), monotonic: this.now() }
  }

  /** Whether this process has just stood still for longer than its heartbeats. */
  private looksBack(): boolean {
    const { monotonic, wall } = this.instant()
    const gap = Math.max(wall - this.awakeAt.wall, monotonic - this.awakeAt.monotonic)
    if (gap > this.keptFor) this.doubtUntil = monotonic + 1000
    this.awakeAt = { monotonic, wall }
    return monotonic < this.doubtUntil
  }

  private kept(at: Engine["keptAt"]): void {
    if (at.monotonic < this.doubtedAt) return
    this.keptAt = at
    this.lookedAt = NaN
  }

  /** A process that stood still for longer than its heartbeats may have lost what it has not begun: ask first. */
  private makeSure(): void {
    if (this.isMakingSure) return
    this.isMakingSure = true
    this.run(this.extend).addObserver(() => {
      this.isMakingSure = false
    })
  }

  private *keeping(): Iterable<Attempt> {
    for (let i = this.head; i < this.buffer.length; i++) yield this.buffer[i]!
    if (this.lanes !== undefined) yield* this.lanes.all()
    for (const attempt of this.running.all()) if (!attempt.isSettled) yield attempt
    yield* this.unsettled.keys()
  }

  /** Tells the broker that what is owned is still being worked on. */
  readonly extend: Effect.Effect<void> = Effect.suspend(() => {
    this.looksBack()
    const attempts = new Map<Delivery, Attempt>()
    for (const attempt of this.keeping()) attempts.set(attempt.delivery, attempt)
    const [first, ...rest] = attempts.keys()
    const asked = this.instant()
    if (first === undefined) return Effect.void
    return Effect.suspend(() => this.subscription.extend([first, ...rest])).pipe(
      Effect.map((lost) => {
        for (const delivery of lost) {
          // What was settled while this was on its way is no longer ours because it is done.
          const attempt = attempts.get(delivery)!
          if (!attempt.isSettled) this.lost(attempt)
        }
        this.kept(asked)
        // Answered before it was waited for, the pump that asked is still running.
        if (this.pumping) this.dispatcher.scheduleTask(this.pump, 0)
        else this.pump()
      }),
      Effect.catchCause((cause) => Effect.logWarning(`${this.program.name}: what it works on could not be kept`, cause))
    )
  })

  /** Another consumer has it: wherever it is here, it goes, and nothing is said about it. */
  private lost(attempt: Attempt): void {
    if (attempt.lost) return
    this.counts.lost++
    this.report(attempt, { _tag: "Lost" })
    if (attempt.slot >= 0) return attempt.lose()
    attempt.lost = true
    const index = this.buffer.indexOf(attempt, this.head)
    if (index >= 0) {
      this.buffer.splice(index, 1)
      this.left(attempt)
      this.pump()
    } else {
      this.lanes?.forget(attempt)
    }
  }

  // --- stopping: the order is in drain.ts

  /** Hands back what was taken and not begun. */
  releaseWaiting(): void {
    const waiting = this.buffer.slice(this.head)
    this.buffer = []
    this.head = 0
    if (this.lanes !== undefined) waiting.push(...this.lanes.handBack(undefined))
    this.handBack(waiting)
  }

  /** Hands back what was handled and left for the user to settle. */
  releaseUnsettled(): void {
    for (const report of this.unsettled.values()) report.interruptUnsafe()
    this.handBack([...this.unsettled.keys()])
    this.unsettled.clear()
  }

  private handBack(attempts: ReadonlyArray<Attempt>): void {
    for (const attempt of attempts) {
      attempt.isOver = true
      if (!attempt.claim()) continue
      attempt.settlement = Settlement.release
      this.released(attempt.delivery, undefined)
      this.ending++
      this.settler.add(attempt)
    }
  }

  /** Resolves when no handler runs. */
  readonly awaitHandlers: Effect.Effect<void> = Effect.callback<void>((resume) => {
    if (this.started === 0) return resume(Effect.void)
    const wake = () => resume(Effect.void)
    this.idle.add(wake)
    return Effect.sync(() => this.idle.delete(wake))
  })

  readonly interruptHandlers: Effect.Effect<void> = Effect.sync(() => {
    this.interrupting = true
    for (const attempt of this.running.all()) attempt.interrupt()
  })

  close(): void {
    this.cancelWait?.()
    this.cancelResize()
    for (const deadline of this.deadlines.values()) deadline.close()
    this.lanes?.close()
    this.settler.close()
  }
}

/** Of patience only those steps count in which a retry could have come. */
const patienceSteps = 10

/** How long a key waits for a retry that is due, where messages cannot be claimed. Milliseconds. */
const patienceWithoutClaims = 30_000

const killerText = "every allowed delivery ended without a settlement: its process may have died of it"

/** Settlements on their way; beyond it pulling stops. */
const mostUnconfirmed = 4096
