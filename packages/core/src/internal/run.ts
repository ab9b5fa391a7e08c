import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as References from "effect/References"
import * as Scheduler from "effect/Scheduler"
import type * as Concurrency from "../Concurrency.ts"
import { isLimit, make as makeLimit } from "../Concurrency.ts"
import * as Telemetry from "../Telemetry.ts"
import type { Subscription, Transport } from "../Transport.ts"
import type { TransportError } from "../TransportError.ts"
import { type Attempt, type Shared, Watch } from "./attempt.ts"
import { Batcher } from "./batcher.ts"
import { Beginning } from "./beginning.ts"
import { DeadLetterWriter } from "./deadLetterWriter.ts"
import { Deliveries } from "./deliveries.ts"
import { Dispatcher } from "./dispatcher.ts"
import { loggable, plainText } from "./errorDetail.ts"
import { Handler } from "./handler.ts"
import { Holding } from "./holding.ts"
import { Intake } from "./intake.ts"
import { monotonicMillis } from "./monotonic.ts"
import { type Neighbour, Neighbours } from "./neighbours.ts"
import { Outcomes } from "./outcome.ts"
import { Outputs } from "./outputs.ts"
import { Ownership } from "./ownership.ts"
import { Permits } from "./permit.ts"
import { Prefetch } from "./prefetch.ts"
import { preparation } from "./prepare.ts"
import type { Program } from "./program.ts"
import { Reader } from "./reader.ts"
import { Rest } from "./rest.ts"
import { RetryWatch } from "./retryWatch.ts"
import { Settlements } from "./settlements.ts"
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
  readonly settlements: Settlements
  readonly reader: Reader
  readonly ownership: Ownership
  readonly sight: Sight
  readonly holding: Holding
  readonly intake: Intake
  readonly handler: Handler
  readonly dispatcher: Dispatcher
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
  private readonly permits: Permits
  private readonly deliveries: Deliveries
  private readonly beginning: Beginning
  private readonly batchers: Array<Batcher> = []
  private readonly retries: RetryWatch
  private readonly prefetch: Prefetch
  private readonly neighbours: Neighbours
  private readonly neighbour: Neighbour = {
    now: () => this.now(),
    after: (millis, f) => this.after(millis, f),
    isQuiet: () => this.handler.waiting.all().every(({ permit }) => permit === undefined),
    pump: () => this.dispatcher.pumpLater(),
    rest: (millis) => this.intake.restFor(millis)
  }
  /** A handler has paused the pipeline: nothing begins and nothing is asked for. */
  readonly rest: Rest
  private restsSince = 0
  /** Something wants to know how long handlers take. */
  private readonly isTimed: boolean
  /** When the last handler ended, while nothing but the engine has run since: the next one begins then. */
  private endedAt = 0
  /** Monotonic, in milliseconds. */
  private readonly now: () => number

  constructor(
    program: Program,
    transport: Transport["Service"],
    subscription: Subscription,
    context: Context.Context<never>
  ) {
    this.program = program
    // Not for handlers: what they log is theirs.
    const isQuiet = Context.get(context, Telemetry.Logs) === false
    const own = isQuiet ? Context.add(context, References.MinimumLogLevel, "None") : context
    this.run = Effect.runForkWith(own)
    const clock = this.clock = Context.get(context, Clock.Clock)
    const scheduler = Context.get(context, Scheduler.Scheduler).makeDispatcher()
    const { policies, source } = program
    const { group, topic } = source
    this.neighbours = Neighbours.of(transport)
    this.neighbours.add(this.neighbour)
    const now = this.now = monotonicMillis(clock)
    const after = (millis: number, f: () => void) => this.after(millis, f)

    const deadLetters = DeadLetterWriter.of({
      program,
      transport,
      clock,
      errors: Context.get(context, Telemetry.ErrorDetails)
    })
    this.sight = new Sight(program, transport, subscription, context, {
      now,
      run: this.run,
      concurrency: () => this.limit.max,
      buffered: () => this.holding.buffered,
      running: () => this.holding.begun,
      waiting: () => this.handler.waiting.all(),
      isPulling: () => this.reader.isAskingForFresh,
      paused: () => this.paused,
      unconfirmed: () => this.settlements.settler.unconfirmed,
      refusal: () => deadLetters?.refusal,
      counts: () => ({ ...this.outcomes.report.counts })
    })
    this.outcomes = new Outcomes({
      program,
      deadLetters,
      run: this.run,
      settle: (attempt, settlement) => this.settlements.settle(attempt, settlement),
      left: (attempt) => this.left(attempt),
      postpone: (attempt, millis) => this.intake.postpone(attempt, millis, this.isDraining),
      rest: (millis) => {
        if (this.rest.isOver) this.restsSince = this.clock.currentTimeMillisUnsafe()
        if (this.rest.begin(millis)) this.reader.withdraw()
      },
      awaiting: (attempt) => this.awaiting(attempt),
      report: this.sight.outcome,
      refused: this.sight.deadLetterRefused
    })
    const shared: Shared = {
      source: topic.name,
      group,
      clientId: subscription.clientId,
      transport,
      watch: Context.get(context, Watch),
      settle: this.outcomes.byHand.settle,
      settled: this.outcomes.byHand.settledInTime
    }
    this.limit = isLimit(policies.concurrency) ? policies.concurrency : makeLimit(policies.concurrency)
    this.permits = new Permits(this.limit, transport.limit, {
      onFree: () => this.dispatcher.pump(),
      onResize: () => this.resized(),
      onFailure: (cause) =>
        this.run(Effect.logError(`${program.name}: the algorithm of its limit failed`, loggable(cause)))
    })
    this.prefetch = new Prefetch(source.prefetch)
    this.rest = new Rest({
      now,
      after,
      onEnd: () => {
        this.dispatcher.pump()
        this.demandChanged()
      }
    })
    this.intake = new Intake({
      shared,
      limit: this.outcomes.limit,
      key: policies.key,
      decode: (attempt) => this.handler.decode(attempt),
      wallNow: () => clock.currentTimeMillisUnsafe(),
      now,
      after,
      release: (attempt) => this.outcomes.releaseUnbegun(attempt),
      onReady: () => this.dispatcher.pump(),
      onAlone: (suspect) => this.becomeAlone(suspect),
      onAloneEnded: (rest) => this.neighbours.leave(this.neighbour, rest),
      onRoom: () => this.demandChanged()
    })
    this.retries = new RetryWatch({
      now,
      after,
      subscription,
      wasOpen: (millis) => this.reader.wasOpen(millis),
      onChange: () => this.demandChanged(),
      run: this.run
    })
    const { intake, outcomes, permits, prefetch, retries, sight } = this
    this.settlements = new Settlements({
      subscription,
      clock,
      context: own,
      dispatcher: scheduler,
      intake,
      outcomes,
      retries,
      sight,
      onHandedOver: () => this.handedOver(),
      onLost: (attempt) => this.deliveries.lost(attempt)
    })
    const { settler } = this.settlements
    this.dispatcher = new Dispatcher({
      clock,
      buffer: this.intake.buffer,
      scheduler,
      gates: {
        isResting: () => !this.isDraining && (!this.rest.isOver || this.neighbours.holdUp(this.neighbour)),
        isShut: (now) => this.isDraining || !this.ownership.isSure(now),
        admits: (attempt) => this.admits(attempt)
      },
      takePermit: () => this.permits.take(),
      onTurn: () => {
        this.endedAt = 0
      },
      begin: (attempt) => this.begin(attempt),
      onBegun: () => this.demandChanged(),
      onPumped: () => {
        settler.hurry()
        this.demandChanged()
      }
    })

    const operations = compile(program.steps, {
      publish: (step, path) => new Outputs({ transport, source, step, path, context, scheduler }),
      batch: (step) => {
        const batcher = new Batcher(step, {
          context,
          permit: this.permits,
          ready: this.dispatcher.batchReady,
          joined: (attempt) => this.intake.keys?.joined(attempt),
          parted: (attempt) => this.intake.keys?.parted(attempt),
          now: () => this.isTimed ? this.now() : 0,
          isHurried: () => this.isDraining || this.intake.alone !== undefined,
          isInterrupting: () => this.isInterrupting
        })
        this.batchers.push(batcher)
        return batcher.join
      }
    })
    this.handler = new Handler({
      operations,
      codec: topic.codec,
      prepare: preparation(program),
      context,
      now,
      ended: this.sight.isMetered
        ? (attempt, end, payload) => {
          if (end !== "interrupted" && end !== "undecodable") {
            const endedAt = this.now()
            this.sight.handled(attempt, endedAt, end === "failed" ? payload as Cause.Cause<unknown> : undefined)
            // What follows a failure, and an observer, may take a while.
            if (end === "succeeded" && !this.sight.isObserved) this.endedAt = endedAt
          }
          this.outcomes.ended(attempt, end, payload)
        }
        : this.outcomes.ended
    })
    this.isTimed = this.sight.isMetered || this.limit.sampleUnsafe !== undefined || this.handler.isTimed
    this.ownership = new Ownership({
      name: program.name,
      clock,
      subscription,
      held: () => this.holding.unsettled(),
      run: this.run,
      onLost: (attempt) => this.deliveries.lost(attempt),
      // Answered at once, the pump that asked is still running.
      onSure: () => this.dispatcher.isIdle ? this.dispatcher.pump() : this.dispatcher.pumpLater()
    })
    this.reader = new Reader({
      subscription,
      demand: () => this.isDraining || !this.rest.isOver ? undefined : this.holding.demand(),
      take: (deliveries) => this.deliveries.take(deliveries),
      now,
      run: this.run,
      onWithdrawn: () => this.dispatcher.pump(),
      onFailure: (cause) => this.fail(cause)
    })
    const { handler } = this
    const perPermit = batchSize(program)
    this.holding = new Holding({
      now,
      source,
      perPermit,
      permits,
      prefetch,
      intake,
      handler,
      outcomes,
      settler,
      retries
    })
    this.beginning = new Beginning({
      group,
      acksFirst: policies.ackPolicy === "on-receive",
      subscription,
      intake,
      outcomes,
      handler,
      now,
      goodFor: this.ownership.goodFor,
      run: this.run,
      onLost: (attempt) => this.deliveries.lost(attempt)
    })
    this.deliveries = new Deliveries({
      now,
      sight,
      holding: this.holding,
      prefetch,
      ownership: this.ownership,
      retries,
      intake,
      outcomes,
      handler,
      pump: this.dispatcher.pump
    })
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

  /** A handler has paused the pipeline: since when, and until when. Milliseconds since the epoch. */
  get paused(): { readonly since: number; readonly until: number } | undefined {
    const { left } = this.rest
    return left > 0 ? { since: this.restsSince, until: this.clock.currentTimeMillisUnsafe() + left } : undefined
  }

  private demandChanged(): void {
    if (this.holding.isLow) this.reader.demandChanged()
  }

  /** A limit was raised or lowered while it is in use. */
  private resized(): void {
    this.dispatcher.pump()
    this.reader.replace()
  }

  // --- isolation

  /** A suspect runs alone once no pull is open, nothing runs, and all settlements are confirmed. */
  private becomeAlone({ delivery }: Attempt): void {
    if (this.intake.isolation.isLast(delivery)) this.neighbours.enter(this.neighbour)
    this.flushBatches()
    this.reader.withdraw()
  }

  private admits(next: Attempt): boolean {
    const { alone } = this.intake
    if (alone === undefined) return true
    return next === alone && this.holding.inFlight === 0 && !this.reader.isOpen && this.settlements.settler.isIdle &&
      this.neighbours.admits(this.neighbour)
  }

  // --- beginning

  /** Called with a permit taken. */
  private begin(attempt: Attempt): void {
    this.holding.add()
    attempt.permit = this.permits
    if (this.isTimed) {
      attempt.startedAt = this.endedAt > 0 ? this.endedAt : this.now()
      this.endedAt = 0
      this.sight.begun(attempt)
    }
    this.beginning.begin(attempt)
  }

  // --- settling and leaving

  private handedOver(): void {
    if (this.holding.owned === 0) this.prefetch.ended(this.now())
    if (this.intake.alone === undefined) this.demandChanged()
    else this.dispatcher.pump()
  }

  /** Handled, for the user to settle: its permit and its key are free, and it need not be alone any more. */
  private awaiting(attempt: Attempt): void {
    attempt.releasePermit()
    this.intake.leftIsolation(attempt)
    this.intake.keys?.left(attempt)
    attempt.key = undefined
    this.progressed()
  }

  private left(attempt: Attempt): void {
    this.handler.waiting.delete(attempt)
    this.holding.delete()
    attempt.releasePermit()
    this.intake.leftIsolation(attempt)
    this.intake.keys?.left(attempt)
    if (this.limit.sampleUnsafe !== undefined && attempt.startedAt > 0) this.permits.sample(attempt, this.now())
    this.progressed()
  }

  private progressed(): void {
    this.holding.idle.check()
    this.neighbours.ended(this.neighbour)
    // A permit that became free has pumped already.
    if (this.dispatcher.hasWork && !this.permits.isWaiting) this.dispatcher.pump()
    else this.demandChanged()
  }

  // --- stopping: the order is in drain.ts

  flushBatches(): void {
    for (const batcher of this.batchers) batcher.flushAll()
  }

  close(): void {
    this.neighbours.delete(this.neighbour)
    this.sight.close()
    this.permits.close()
    this.handler.close()
    this.intake.close()
    this.retries.close()
    this.rest.close()
    this.settlements.settler.close()
  }
}
