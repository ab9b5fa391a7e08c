import type * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as References from "effect/References"
import * as Scheduler from "effect/Scheduler"
import type * as Concurrency from "../Concurrency.ts"
import { isLimit, make as makeLimit } from "../Concurrency.ts"
import * as Telemetry from "../Telemetry.ts"
import type { Delivery, Demand, Subscription, Transport } from "../Transport.ts"
import type { TransportError } from "../TransportError.ts"
import { type Attempt, type Shared, Watch } from "./attempt.ts"
import { Batcher } from "./batcher.ts"
import { DeadLetterWriter } from "./deadLetterWriter.ts"
import { Deadlines } from "./deadlines.ts"
import { demandOf, type Holdings, refillAt } from "./demand.ts"
import { Dispatcher } from "./dispatcher.ts"
import { loggable, plainText } from "./errorDetail.ts"
import { Handler } from "./handler.ts"
import { Intake, isFor } from "./intake.ts"
import type { Isolation } from "./isolation.ts"
import { Outcomes } from "./outcome.ts"
import { Ownership } from "./ownership.ts"
import { Permits } from "./permit.ts"
import { Prefetch } from "./prefetch.ts"
import { preparation } from "./prepare.ts"
import type { Program } from "./program.ts"
import { publishStep } from "./publish.ts"
import { Reader } from "./reader.ts"
import { RetryWatch } from "./retryWatch.ts"
import { settleBackoff, Settler } from "./settler.ts"
import { Sight } from "./sight.ts"
import { compile } from "./steps.ts"
import { batchSize } from "./validate.ts"

/**
 * One running pipeline: the only room that knows all others, and wires them.
 *
 * A delivery goes from the reader, past the keys, into the dispatcher's buffer; the dispatcher gives it a permit and
 * begins it; the handler runs its steps; its outcome is decided and goes to the settler.
 */
export class Run {
  readonly program: Program
  readonly limit: Concurrency.Limit
  readonly outcomes: Outcomes
  readonly settler: Settler<Attempt>
  readonly reader: Reader
  readonly ownership: Ownership
  readonly sight: Sight
  /** Ends only when the pipeline can no longer run. */
  readonly failure = Deferred.makeUnsafe<never, TransportError>()
  /** When the pipeline could no longer run. Milliseconds since the epoch. */
  stoppedAt: number | undefined
  stoppedBecause: string | undefined
  readonly run: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
  /** Set by drain: nothing that is buffered begins any more. */
  isDraining = false
  /** The drain's deadline has passed: handlers are being interrupted. */
  isInterrupting = false
  private readonly clock: Clock.Clock
  private readonly subscription: Subscription
  private readonly shared: Shared
  private readonly permits: Permits
  private readonly perPermit: number
  private readonly dispatcher: Dispatcher
  private readonly handler: Handler
  private readonly batchers: Array<Batcher> = []
  private readonly deadlines: ReadonlyMap<number, Deadlines<Attempt>>
  private readonly intake: Intake
  private readonly retries: RetryWatch
  private readonly prefetch: Prefetch
  /** Something wants to know how long handlers take. */
  private readonly isTimed: boolean
  /** Begun and not left. */
  private inFlight = 0
  /** Settlements in the settler's list: still owned as far as the broker knows. */
  private settling = 0
  private isVerifying = false
  private openAt = 0
  private cancelRest: (() => void) | undefined
  private readonly idle = new Set<() => void>()

  constructor(
    program: Program,
    transport: Transport["Service"],
    subscription: Subscription,
    context: Context.Context<never>
  ) {
    this.program = program
    this.subscription = subscription
    // Not for handlers: what they log is theirs.
    const isQuiet = Context.get(context, Telemetry.Logs) === false
    const own = isQuiet ? Context.add(context, References.MinimumLogLevel, "None") : context
    this.run = Effect.runForkWith(own)
    const clock = this.clock = Context.get(context, Clock.Clock)
    const scheduler = Context.get(context, Scheduler.Scheduler).makeDispatcher()
    const { policies, source } = program
    const lease = subscription.lease === undefined ? undefined : Duration.toMillis(subscription.lease)

    this.sight = new Sight(program, transport, subscription, context, {
      now: () => this.now(),
      run: this.run,
      concurrency: () => this.limit.max,
      buffered: () => this.buffered,
      running: () => this.begun,
      waiting: () => this.handler.waiting.all(),
      isPulling: () => this.reader.isAskingForFresh,
      unconfirmed: () => this.settler.unconfirmed,
      counts: () => ({ ...this.outcomes.counts })
    })
    this.outcomes = new Outcomes({
      program,
      deadLetters: DeadLetterWriter.of(program, transport, clock, Context.get(context, Telemetry.ErrorDetails)),
      run: this.run,
      settle: (attempt) => this.settle(attempt),
      left: (attempt) => this.left(attempt),
      postpone: (attempt, millis) => this.intake.postpone(attempt, millis, this.isDraining),
      rest: (millis) => this.rest(millis),
      awaiting: (attempt) => this.awaiting(attempt),
      report: this.sight.outcome,
      refused: this.sight.deadLetterRefused
    })
    this.shared = {
      source: source.topic.name,
      group: source.group,
      clientId: subscription.clientId,
      transport,
      watch: Context.get(context, Watch),
      settle: this.outcomes.settle
    }
    this.limit = isLimit(policies.concurrency) ? policies.concurrency : makeLimit(policies.concurrency)
    this.permits = new Permits(this.limit, transport.limit, {
      onFree: () => this.dispatcher.pump(),
      onResize: () => this.resized()
    })
    this.perPermit = batchSize(program)
    this.prefetch = new Prefetch(source.prefetch)
    this.settler = new Settler<Attempt>({
      subscription,
      clock,
      context: own,
      dispatcher: scheduler,
      onHandedOver: () => this.handedOver(),
      onSettled: (attempt, owned) => this.settled(attempt, owned),
      onConfirmed: (millis) => this.sight.settled(millis),
      onResend: (size, cause) => {
        this.outcomes.counts.resettled += size
        this.sight.resent(size, cause)
      }
    })

    this.intake = new Intake({
      shared: this.shared,
      limit: this.outcomes.limit,
      key: policies.key,
      decode: (attempt) => this.handler.decode(attempt),
      wallNow: () => clock.currentTimeMillisUnsafe(),
      now: () => this.now(),
      after: (millis, f) => this.after(millis, f),
      release: (attempt) => this.outcomes.releaseUnbegun(attempt),
      onReady: () => this.dispatcher.pump(),
      onAlone: () => this.becomeAlone()
    })

    this.dispatcher = new Dispatcher({
      clock,
      buffer: this.intake.buffer,
      scheduler,
      gates: {
        isResting: () => !this.isDraining && this.isResting,
        isShut: (now) => this.isShut(now),
        admits: (attempt) => this.admits(attempt)
      },
      takePermit: () => this.permits.take(),
      begin: (attempt) => this.begin(attempt),
      onBegun: () => this.demandChanged(),
      onPumped: () => {
        this.settler.hurry()
        this.demandChanged()
      }
    })

    const operations = compile(program.steps, {
      publish: (step, path) => publishStep(transport, source, step, path),
      batch: (step) => {
        const batcher = new Batcher(step, {
          context,
          permit: this.permits,
          ready: this.dispatcher.batchReady,
          joined: (attempt) => this.intake.keys?.joined(attempt),
          closed: (key) => this.intake.keys?.closed(key),
          now: () => this.isTimed ? this.now() : 0,
          isHurried: () => this.isDraining || this.isolation.current !== undefined,
          isInterrupting: () => this.isInterrupting
        })
        this.batchers.push(batcher)
        return batcher.join
      }
    })
    this.deadlines = new Map(
      operations.flatMap(({ timeout }, index) => timeout === undefined ? [] : [[index, timeout] as const]).map(
        ([index, { duration }], number) => {
          const expire = (attempt: Attempt) => this.handler.timedOut(attempt, index)
          return [index, new Deadlines(number, duration, context, () => this.now(), expire)]
        }
      )
    )
    this.isTimed = this.sight.isMetered || this.limit.sampleUnsafe !== undefined || this.deadlines.size > 0
    this.handler = new Handler({
      operations,
      codec: source.topic.codec,
      prepare: preparation(program),
      context,
      deadlines: this.deadlines,
      ended: this.sight.isMetered
        ? (attempt, end, payload) => {
          if (end !== "interrupted" && end !== "undecodable") {
            this.sight.handled(attempt, end === "failed" ? payload as Cause.Cause<unknown> : undefined)
          }
          this.outcomes.ended(attempt, end, payload)
        }
        : this.outcomes.ended
    })
    this.ownership = new Ownership({
      name: program.name,
      clock,
      subscription,
      held: () => this.held(),
      onLost: (attempt) => this.lost(attempt),
      // Answered at once, the pump that asked is still running.
      onSure: () => this.dispatcher.isIdle ? this.dispatcher.pump() : this.dispatcher.pumpLater()
    })
    this.reader = new Reader({
      subscription,
      demand: () => this.demand(),
      take: (deliveries) => this.take(deliveries),
      now: () => this.now(),
      run: this.run,
      onFailure: (cause) => this.fail(cause)
    })
    this.retries = new RetryWatch({
      now: () => this.now(),
      after: (millis, f) => this.after(millis, f),
      giveUpAfter: lease === undefined ? giveUpWithoutLease : lease + 1000,
      couldCome: (millis) => this.retryCouldCome(millis),
      onChange: () => this.demandChanged(),
      run: this.run
    })
  }

  /** Monotonic, in milliseconds. */
  private now(): number {
    return Number(this.clock.monotonicTimeNanosUnsafe()) / 1e6
  }

  private after(millis: number, f: () => void): () => void {
    const fiber = this.run(Effect.sleep(millis))
    fiber.addObserver((exit) => {
      if (Exit.isSuccess(exit)) f()
    })
    return () => fiber.interruptUnsafe()
  }

  private fail(cause: Cause.Cause<TransportError>): void {
    this.stoppedAt = this.clock.currentTimeMillisUnsafe()
    this.stoppedBecause = plainText(Cause.squash(cause))
    this.sight.became("stopped")
    Deferred.doneUnsafe(this.failure, Exit.failCause(cause))
    const text = `${this.program.name} can no longer run: ${this.stoppedBecause}`
    this.run(Cause.hasDies(cause) ? Effect.logError(text, loggable(cause)) : Effect.logError(text))
  }

  // --- what this process holds

  /** Owned and not begun. */
  get buffered(): number {
    return this.intake.size
  }

  /** Begun and not left; without those that are handled and wait for the user to settle them. */
  get begun(): number {
    return this.inFlight - this.outcomes.awaitingCount
  }

  private get owned(): number {
    return this.buffered + this.inFlight + this.settling
  }

  private get holdings(): Holdings {
    const { source } = this.program
    const { intake } = this
    return {
      permits: this.permits.max,
      perPermit: this.perPermit,
      prefetch: this.prefetch.current(this.now()),
      prefetchBytes: source.prefetchBytes,
      averageBytes: this.prefetch.averageBytes,
      buffered: intake.buffer.size,
      blocked: intake.blocked + intake.earlyCount,
      maxBlocked: source.maxBlocked,
      owned: this.owned,
      delayed: this.retries.size + intake.earlyCount,
      due: this.retries.due,
      maxDelayed: source.waiting,
      unconfirmed: this.settler.unconfirmed,
      suspects: intake.suspects(this.now()),
      isIsolating: this.isolation.current !== undefined
    }
  }

  /** With more than this in the buffer, no demand is computed. */
  private refillAt = 0

  private demand(): Demand | undefined {
    const { holdings } = this
    this.refillAt = refillAt(holdings)
    return this.isDraining || this.isResting ? undefined : demandOf(holdings)
  }

  private demandChanged(): void {
    if (this.intake.buffer.size <= this.refillAt) this.reader.demandChanged()
  }

  /** A limit was raised or lowered while it is in use. */
  private resized(): void {
    this.dispatcher.pump()
    this.reader.replace()
  }

  private *held(): Iterable<Attempt> {
    yield* this.intake.all()
    const isHeld = (attempt: Attempt) => !attempt.isSettled || this.outcomes.isDecidedByHand(attempt)
    for (const attempt of this.handler.waiting.all()) if (isHeld(attempt)) yield attempt
    for (const attempt of this.outcomes.held) if (isHeld(attempt)) yield attempt
  }

  // --- taking

  private take(deliveries: Arr.NonEmptyReadonlyArray<Delivery>): void {
    this.sight.delivered(deliveries)
    if (this.owned === 0) this.prefetch.began(this.now())
    this.ownership.pulled(this.buffered === 0)
    this.prefetch.sampled(deliveries[0].body.byteLength)
    for (const delivery of deliveries) {
      if (delivery.redelivered) this.redelivered(delivery)
      this.intake.take(delivery)
    }
    this.dispatcher.pump()
  }

  private redelivered({ id, origin }: Delivery): void {
    this.retries.seen(id)
    // The lease of an attempt that is still here has ended, and no peer has taken the message.
    for (const attempt of this.held()) {
      if (attempt.delivery.id === id && attempt.delivery.origin === origin) return this.lost(attempt)
    }
  }

  /** Nothing begins and nothing is asked for until then. Monotonic milliseconds. */
  private restUntil = -Infinity

  private get isResting(): boolean {
    return this.restUntil !== -Infinity && this.now() < this.restUntil
  }

  private rest(millis: number): void {
    const until = this.now() + millis
    if (until <= this.restUntil) return
    this.restUntil = until
    this.reader.withdraw(() => {})
    this.cancelPause?.()
    this.cancelPause = this.after(millis + 1, () => {
      this.dispatcher.pump()
      this.demandChanged()
    })
  }

  private cancelPause: (() => void) | undefined

  // --- isolation

  private get isolation(): Isolation {
    return this.intake.isolation
  }

  /** A suspect runs alone once no pull is open, nothing runs, and all settlements are confirmed. */
  private becomeAlone(): void {
    this.flushBatches()
    this.reader.withdraw(() => this.dispatcher.pump())
  }

  private admits(next: Attempt): boolean {
    if (this.isolation.current === undefined) return true
    return next === this.isolation.current && this.begun === 0 && !this.reader.isOpen &&
      this.settler.pending.length === 0 && this.settler.unconfirmed === 0
  }

  private leftIsolation(attempt: Attempt): void {
    if (this.intake.leftIsolation(attempt)) this.awaitRest()
  }

  /** A timer may fire early: the rest has ended when the clock says so. */
  private awaitRest(): void {
    const left = this.isolation.restUntil - this.now()
    if (left <= 0) return this.demandChanged()
    this.cancelRest?.()
    this.cancelRest = this.after(Math.ceil(left) + 1, () => this.awaitRest())
  }

  // --- beginning

  /** No buffered message may begin while the pipeline drains, or while it is not sure that it owns it. */
  private isShut(now: number): boolean {
    if (this.isDraining) return true
    if (this.ownership.isSure(now)) return false
    if (!this.isVerifying) {
      this.isVerifying = true
      this.run(this.ownership.extend).addObserver(() => {
        this.isVerifying = false
      })
    }
    return true
  }

  /** Called with a permit taken. */
  private begin(attempt: Attempt): void {
    this.inFlight++
    attempt.permit = this.permits
    if (this.isTimed) {
      attempt.startedAt = this.now()
      this.sight.begun(attempt)
    }
    const { delivery } = attempt
    if (!isFor(delivery, this.shared.group)) return this.outcomes.filtered(attempt)
    if (delivery.redelivered && this.outcomes.endSpent(attempt, this.isolation.isExhausted(delivery))) return
    if (attempt.keyFailure !== undefined) return this.outcomes.keyFailed(attempt, attempt.keyFailure)
    if (this.intake.isIsolated(attempt)) {
      return this.confirm(attempt, this.recently(this.subscription.begin(delivery)))
    }
    if (this.program.policies.ackPolicy === "on-receive") return this.confirm(attempt, this.outcomes.receive(attempt))
    this.handler.begin(attempt)
  }

  /** Asks again when the answer is so old that the lease may have ended since. */
  private recently(confirmation: Effect.Effect<boolean, TransportError>): Effect.Effect<boolean, TransportError> {
    return Effect.suspend(() => {
      const askedAt = this.now()
      return Effect.flatMap(
        confirmation,
        (owned) =>
          owned && this.now() - askedAt > this.ownership.goodFor ? this.recently(confirmation) : Effect.succeed(owned)
      )
    })
  }

  /** Begins when the broker has confirmed that it may: its attempt is recorded, or it is acknowledged. */
  private confirm(attempt: Attempt, confirmation: Effect.Effect<boolean, TransportError>): void {
    attempt.to("confirming")
    this.handler.waiting.add(attempt)
    const confirmed = Effect.retry(confirmation, settleBackoff)
    this.run(confirmed).addObserver((exit) => {
      if (attempt.state !== "confirming" || Exit.isFailure(exit)) return
      if (!exit.value) return this.lost(attempt)
      if (this.program.policies.ackPolicy === "on-receive" && !attempt.isSettled) {
        return this.confirm(attempt, this.outcomes.receive(attempt))
      }
      this.handler.begin(attempt)
    })
  }

  // --- settling and leaving

  private settle(attempt: Attempt): void {
    const { settlement } = attempt
    if (settlement._tag === "Retry") {
      const { id } = attempt.delivery
      const delay = settlement.after === undefined ? 0 : Duration.toMillis(settlement.after)
      const { keys } = this.intake
      this.retries.add(id, delay, keys === undefined ? undefined : () => keys.gaveUp(id))
      // Now: settled by hand, the message may come back before its handler has ended.
      keys?.retried(attempt)
    }
    this.settling++
    this.settler.add(attempt)
  }

  private handedOver(): void {
    this.settling = this.settler.pending.length
    if (this.owned === 0) this.prefetch.ended(this.now())
    if (this.isolation.current === undefined) this.demandChanged()
    else this.dispatcher.pump()
  }

  /** The broker has answered. */
  private settled(attempt: Attempt, owned: boolean): void {
    if (!owned) {
      if (attempt.delivery.vanished === true && !attempt.isLost && isMeantToReturn(attempt)) {
        this.retries.gaveUp(attempt.delivery.id)
        this.outcomes.vanished(attempt)
      } else {
        this.lost(attempt)
      }
    }
    attempt.onSettled?.(owned)
  }

  /** The broker deleted messages that no attempt here stands for. */
  vanished(ids: ReadonlyArray<string>): void {
    for (const id of ids) this.retries.gaveUp(id)
    this.outcomes.counts.vanished += ids.length
    this.sight.vanished(ids.length)
  }

  /** Handled, for the user to settle: its permit and its key are free, and it need not be alone any more. */
  private awaiting(attempt: Attempt): void {
    attempt.releasePermit()
    this.leftIsolation(attempt)
    this.intake.keys?.left(attempt)
    attempt.key = undefined
    this.progressed()
  }

  private left(attempt: Attempt): void {
    this.handler.waiting.delete(attempt)
    this.inFlight--
    this.prefetch.done()
    attempt.releasePermit()
    this.leftIsolation(attempt)
    this.intake.keys?.left(attempt)
    if (this.isTimed) this.observeLimit(attempt)
    this.progressed()
  }

  private progressed(): void {
    if (this.idle.size > 0 && this.begun === 0) {
      const waiters = [...this.idle]
      this.idle.clear()
      for (const wake of waiters) wake()
    }
    // A permit that became free has pumped already.
    if (this.dispatcher.hasWork && !this.permits.isWaiting) this.dispatcher.pump()
    else this.demandChanged()
  }

  private observeLimit(attempt: Attempt): void {
    if (this.limit.sampleUnsafe === undefined || attempt.startedAt === 0) return
    const endedAt = this.now()
    try {
      this.limit.sampleUnsafe({ endedAt, latency: endedAt - attempt.startedAt, failed: attempt.failure !== undefined })
    } catch (error) {
      this.run(Effect.logError(`${this.program.name}: the algorithm of its limit failed`, loggable(Cause.die(error))))
    }
  }

  /** A peer owns the message: wherever it is here, it leaves, and nothing is said about it. */
  private lost(attempt: Attempt): void {
    if (attempt.isLost) return
    this.outcomes.lost(attempt)
    switch (attempt.state) {
      case "buffered": {
        this.intake.lost(attempt)
        attempt.to("left")
        this.leftIsolation(attempt)
        return this.dispatcher.pump()
      }
      case "confirming":
        return this.outcomes.ended(attempt, "interrupted", undefined)
      case "running":
        return this.handler.interrupt(attempt, new Error("another consumer owns this message"))
    }
  }

  /** Whether, in the last `millis`, a due retry could have come. */
  private retryCouldCome(millis: number): Effect.Effect<boolean> {
    const since = this.openAt
    this.openAt = this.reader.openFor
    const wasOpen = this.openAt - since >= millis / 2 || this.reader.isOpen
    return wasOpen
      ? Effect.map(this.subscription.health, ({ state }) => state === "consuming")
      : Effect.succeed(false)
  }

  // --- stopping: the order is in drain.ts

  /** Releases everything that has not begun. */
  releaseUnbegun(): void {
    this.intake.releaseAll()
  }

  flushBatches(): void {
    for (const batcher of this.batchers) batcher.flushAll()
  }

  /** Releases messages whose batch may not begin before the rest ends. */
  releaseResting(): void {
    if (!this.isResting) return
    for (const attempt of this.handler.waiting.all()) {
      // Without a permit it waits in a batch that has not begun.
      if (attempt.permit === undefined) this.handler.interrupt(attempt, new Error("the pipeline is stopping"))
    }
  }

  /** Resolves when no handler runs. */
  readonly awaitHandlers: Effect.Effect<void> = Effect.callback<void>((resume) => {
    if (this.begun === 0) return resume(Effect.void)
    const wake = () => resume(Effect.void)
    this.idle.add(wake)
    return Effect.sync(() => this.idle.delete(wake))
  })

  readonly interruptHandlers: Effect.Effect<void> = Effect.sync(() => {
    this.isInterrupting = true
    for (const attempt of this.handler.waiting.all()) {
      if (attempt.state === "confirming") this.outcomes.ended(attempt, "interrupted", undefined)
      else this.handler.interrupt(attempt, new Error("the pipeline is stopping"))
    }
    this.outcomes.interrupt()
  })

  close(): void {
    this.sight.close()
    this.permits.close()
    for (const deadline of this.deadlines.values()) deadline.close()
    this.retries.close()
    this.cancelRest?.()
    this.cancelPause?.()
    this.settler.close()
  }
}

/** Its settlement asked for another delivery. */
const isMeantToReturn = ({ settlement }: Attempt): boolean =>
  settlement._tag === "Retry" || settlement._tag === "Release"

/** How long a key waits for a retry that is due, where ownership does not end. Milliseconds. */
const giveUpWithoutLease = 30_000
