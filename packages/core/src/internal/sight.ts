import type * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as LogLevel from "effect/LogLevel"
import * as References from "effect/References"
import * as Telemetry from "../Telemetry.ts"
import type { Delivery, GroupInfo, Subscription, Transport } from "../Transport.ts"
import type { TransportError } from "../TransportError.ts"
import type { Attempt } from "./attempt.ts"
import { loggable, summarize } from "./errorDetail.ts"
import { every } from "./every.ts"
import { GroupPoll } from "./groupPoll.ts"
import { Meter } from "./meter.ts"
import { noObserver } from "./observer.ts"
import { labelOf, Outages } from "./outage.ts"
import { OutcomeLog } from "./outcomeLog.ts"
import { oneLine } from "./printable.ts"
import type { Program } from "./program.ts"
import { isThenable, settledAs } from "./promise.ts"
import type { Health } from "./running.ts"
import { deadLetterTopic } from "./validate.ts"
import { Watchdog } from "./watchdog.ts"

/** The last one that a `Date` holds: a pause may be longer. */
const lastInstant = 8.64e15

/** What of a running pipeline can be looked at. */
export interface View {
  /** Monotonic, in milliseconds. */
  readonly now: () => number
  readonly run: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
  readonly concurrency: () => number
  readonly buffered: () => number
  readonly running: () => number
  /** Attempts whose handlers wait for something. */
  readonly waiting: () => Iterable<Attempt>
  readonly isPulling: () => boolean
  /** A handler has paused the pipeline. Milliseconds since the epoch. */
  readonly paused: () => { readonly since: number; readonly until: number } | undefined
  readonly unconfirmed: () => number
  /** The broker refuses dead letters: since when, in milliseconds since the epoch, and why. */
  readonly refusal: () => { readonly since: number; readonly reason: string } | undefined
  readonly counts: () => { readonly [name: string]: number }
}

/**
 * What is seen of one running pipeline: metrics, log lines, the watchdog. The engine tells it what happens; nothing that
 * it does, and no observer of a user's, can break the engine.
 */
export class Sight {
  private readonly program: Program
  private readonly transport: Transport["Service"]
  private readonly subscription: Subscription
  private readonly view: View
  private readonly clock: Clock.Clock
  private readonly meter: Meter | undefined
  private readonly log: OutcomeLog | undefined
  private readonly watchdog: Watchdog | undefined
  private readonly observer: ((outcome: Telemetry.Outcome) => void) | undefined
  /** From monotonic milliseconds to those since the epoch. */
  private epoch = 0
  private readonly longRunning: number
  private readonly pollEvery: number
  private readonly outages: Outages
  /** When a waiting handler was first seen, and whether that was said. */
  private seen = new Map<Attempt, { readonly since: number; isLogged: boolean }>()
  private lastState: Health["state"] = "consuming"
  /** The engine has told the state. */
  private isFixed = false
  /** Where the subscription said that it consumes, and the pipeline did not. */
  private wasOtherwise = false
  private consumesSince = 0
  private hasFailed = false
  /** An observer has thrown, and that was logged. */
  private hasBroken = false
  /** The transport has had a defect, and that was logged. */
  private hasDied = false
  private unsettledBecause: string | undefined
  private readonly timers: Array<() => void> = []
  private isClosed = false

  constructor(
    program: Program,
    transport: Transport["Service"],
    subscription: Subscription,
    context: Context.Context<never>,
    view: View
  ) {
    this.program = program
    this.transport = transport
    this.subscription = subscription
    this.view = view
    this.clock = Context.get(context, Clock.Clock)
    const observer = Context.get(context, Telemetry.Observer)
    this.observer = observer === noObserver ? undefined : observer
    this.outages = Outages.of(transport)
    const { source } = program
    const metrics = Context.get(context, Telemetry.MetricsEnabled)
    const poll = Context.get(context, Telemetry.PollInterval)
    this.pollEvery = metrics && poll !== undefined ? Duration.toMillis(poll) : Infinity
    this.meter = metrics
      ? new Meter(context, {
        system: transport.name,
        address: transport.address ?? "",
        topic: source.topic.name,
        group: source.group
      })
      : undefined
    const logs = Context.get(context, Telemetry.Logs)
    this.longRunning = logs === false ? Infinity : Duration.toMillis(logs.longRunning)
    this.log = logs === false ? undefined : new OutcomeLog({
      pipeline: program.name,
      topic: source.topic.name,
      group: source.group,
      deadLetter: deadLetterTopic(program),
      perMinute: logs.perMinute,
      isDebugging: LogLevel.isGreaterThanOrEqualTo("Debug", Context.get(context, References.MinimumLogLevel)),
      errors: Context.get(context, Telemetry.ErrorDetails),
      run: view.run
    })
    const watchdog = Context.get(context, Telemetry.Watchdog)
    const silence = watchdog === false ? Infinity : Duration.toMillis(watchdog.silence)
    this.watchdog = watchdog === false ? undefined : new Watchdog({
      isPulling: view.isPulling,
      unconfirmed: view.unconfirmed,
      unconfirmedBecause: () => this.unsettledBecause,
      // Half of the silence: an answer from before it would prove nothing.
      group: this.group(silence / 2)
    }, { silence, unconfirmed: Duration.toMillis(watchdog.unconfirmed) })
    const interval = Context.get(context, Telemetry.LookInterval)
    if (interval !== undefined) this.timers.push(every(this.clock, view.run, interval, this.look))
    this.meter?.observe({ buffered: view.buffered, running: view.running, health: () => this.lastState })
  }

  // --- told by the engine

  started(): void {
    this.log?.started(labelOf(this.transport), this.view.concurrency())
    if (this.pollEvery < Infinity) {
      this.view.run(this.poll)
      this.timers.push(every(this.clock, this.view.run, Duration.millis(this.pollEvery), this.poll))
    }
  }

  delivered(deliveries: Arr.NonEmptyReadonlyArray<Delivery>): void {
    if (this.meter !== undefined) {
      this.epoch = this.clock.currentTimeMillisUnsafe() - this.view.now()
      this.meter.delivered(deliveries)
    }
    this.watchdog?.delivered()
  }

  /** A handler begins. */
  begun({ delivery, startedAt }: Attempt): void {
    if (this.meter === undefined || delivery.redelivered) return
    this.meter.begun(this.epoch + startedAt - delivery.publishedAt)
  }

  /** A handler has ended; `cause` where it failed. */
  handled({ startedAt }: Attempt, endedAt: number, cause: Cause.Cause<unknown> | undefined): void {
    if (this.meter !== undefined && startedAt > 0) this.meter.handled(endedAt - startedAt, cause)
  }

  /** The one event of an attempt; a message that was handled costs nothing where nothing looks at it. */
  readonly outcome = ({ delivery, message }: Attempt, kind: Telemetry.OutcomeKind): void => {
    const { log, meter, observer } = this
    meter?.ended(kind._tag)
    const isLogged = log !== undefined && kind._tag !== "Handled"
    if (observer === undefined && !isLogged) return
    const outcome: Telemetry.Outcome = { pipeline: this.program.name, delivery, message, ...kind }
    if (isLogged) this.guarded(() => log.ended(outcome, this.view.now()))
    if (observer === undefined) return
    this.guarded(() => {
      // An `async` observer is given by mistake: its rejection must not end the process.
      const returned: unknown = observer(outcome)
      if (isThenable(returned)) settledAs(returned, () => {}, this.observerFailed)
    })
  }

  /** A dead letter could not be written. */
  readonly deadLetterRefused = (
    { delivery }: Attempt,
    cause: Cause.Cause<unknown>,
    after: Duration.Duration | undefined
  ): void => {
    const { log } = this
    if (log === undefined) return
    // A broker that refuses all of them is one outage, whose line tells that.
    const logged = Effect.map(
      this.health,
      ({ state }) => this.guarded(() => log.refused(delivery, cause, after, this.view.now(), state !== "consuming"))
    )
    this.view.run(Effect.catchCause(logged, (cause) => this.failed(cause)))
  }

  /** The broker deleted messages that no attempt here stands for. */
  vanished(count: number): void {
    for (let i = 0; i < count; i++) this.meter?.ended("Vanished")
  }

  private guarded(f: () => void): void {
    try {
      f()
    } catch (error) {
      this.observerFailed(error)
    }
  }

  private readonly observerFailed = (error: unknown): void => {
    if (this.hasBroken) return
    this.hasBroken = true
    this.view.run(
      Effect.logError(
        `${this.program.name}: an observer of outcomes failed; later failures are not logged`,
        loggable(Cause.die(error))
      )
    )
  }

  /** Settlements did not reach the broker. The line of the outage tells why; a defect of the transport has no other. */
  resent(size: number, cause: Cause.Cause<unknown>): void {
    this.unsettledBecause = summarize(cause)
    if (this.log === undefined) return
    const { name } = this.program
    const isNews = Cause.hasDies(cause) && !this.hasDied
    this.hasDied ||= isNews
    this.view.run(
      isNews
        ? Effect.logError(`${name}: the transport failed at settlements; they are sent again`, loggable(cause))
        : Effect.logDebug(
          `${name}: ${
            size === 1 ? "1 settlement" : `${size} settlements`
          } did not reach the broker, to be sent again: ${oneLine(summarize(cause))}`
        )
    )
  }

  /** The broker has confirmed settlements that were sent `millis` ago. */
  settled(millis: number): void {
    this.meter?.settled(millis)
    this.watchdog?.confirmed()
    this.unsettledBecause = undefined
  }

  /** Handlers are measured: the engine keeps the time only where something asks for it. */
  get isMetered(): boolean {
    return this.meter !== undefined
  }

  /** A user's function is called with every outcome. */
  get isObserved(): boolean {
    return this.observer !== undefined
  }

  // --- looking now and then

  /**
   * The subscription's health, unless dead letters are refused, the watchdog found the pipeline stuck, or a handler has
   * paused it.
   */
  readonly health: Effect.Effect<Health> = Effect.suspend(() =>
    Effect.map(this.subscription.health, (health): Health => {
      if (health.state !== "consuming") return health
      const verdict = this.view.refusal() ?? this.watchdog?.verdict
      if (verdict !== undefined) {
        this.wasOtherwise = true
        return { state: "impaired", ...verdict }
      }
      const paused = this.view.paused()
      if (paused !== undefined) {
        this.wasOtherwise = true
        const until = new Date(Math.min(paused.until, lastInstant)).toISOString()
        return { state: "paused", since: paused.since, reason: `a handler has paused the pipeline until ${until}` }
      }
      if (this.wasOtherwise) {
        this.wasOtherwise = false
        this.consumesSince = this.clock.currentTimeMillisUnsafe()
      }
      return { ...health, since: Math.max(health.since, this.consumesSince) }
    })
  )

  /** The state that `Running.health` has now; the engine tells what it knows better than the subscription. */
  became(state: Extract<Health["state"], "paused" | "draining" | "stopped"> | undefined): void {
    this.isFixed = state !== undefined
    this.lastState = state ?? "consuming"
  }

  /** What the broker said about the group at most `maxAge` milliseconds ago, to any pipeline of the process. */
  private group(maxAge: number): Effect.Effect<GroupInfo | undefined, TransportError> {
    return Effect.suspend(() => {
      const { group, topic } = this.program.source
      const now = this.clock.currentTimeMillisUnsafe()
      const poll = GroupPoll.of(this.transport)
      const ask = this.subscription.group
      const groups = ask === undefined
        ? poll.answer(topic.name, this.transport.groups(topic.name), maxAge, now)
        : poll.answer(
          JSON.stringify([topic.name, group]),
          Effect.map(ask, (info) => info === undefined ? [] : [info]),
          maxAge,
          now
        )
      return Effect.map(groups, (groups) => groups.find((info) => info.group === group))
    })
  }

  private readonly look: Effect.Effect<void> = Effect.suspend(() => {
    const now = this.clock.currentTimeMillisUnsafe()
    this.log?.look(this.view.now())
    this.lookAtHandlers()
    return Effect.andThen(
      this.watchdog?.look(now) ?? Effect.void,
      Effect.flatMap(this.health, (health) => {
        if (!this.isFixed) this.lastState = health.state
        // A pipeline that can no longer run has logged that.
        return this.log === undefined || (this.isFixed && this.lastState === "stopped")
          ? Effect.void
          : this.outages.saw(this, this.program.name, health, now)
      })
    )
  }).pipe(Effect.catchCause((cause) => this.failed(cause)))

  /** A handler that waits for something is in two looks in a row: no clock is read for one that ends at once. */
  private lookAtHandlers(): void {
    if (this.log === undefined) return
    const now = this.view.now()
    const seen: typeof this.seen = new Map()
    for (const attempt of this.view.waiting()) {
      // Without a permit it waits for its batch.
      if (attempt.state !== "running" || attempt.permit === undefined) continue
      const known = this.seen.get(attempt) ??
        { since: attempt.startedAt > 0 ? attempt.startedAt : now, isLogged: false }
      seen.set(attempt, known)
      if (known.isLogged || now - known.since < this.longRunning) continue
      known.isLogged = true
      this.log.runningLong(attempt.delivery, now - known.since, now)
    }
    this.seen = seen
  }

  /** Asks the broker about the group, once in each interval for all pipelines of the topic. */
  private readonly poll: Effect.Effect<void> = Effect.suspend(() =>
    // Timers of several pipelines are not in step.
    this.group(0.9 * this.pollEvery).pipe(
      Effect.catch(() => Effect.succeed(undefined)),
      Effect.map((info) => this.isClosed || this.meter!.group(info, this.clock.currentTimeMillisUnsafe())),
      Effect.asVoid,
      Effect.catchCause((cause) => this.failed(cause))
    )
  )

  private failed(cause: Cause.Cause<unknown>): Effect.Effect<void> {
    if (this.hasFailed) return Effect.void
    this.hasFailed = true
    return Effect.logError(
      `${this.program.name}: looking after the pipeline failed; it goes on without`,
      loggable(cause)
    )
  }

  close(): void {
    this.outages.left(this)
    this.isClosed = true
    for (const stop of this.timers) stop()
    this.log?.flush()
    this.log?.stopped(this.view.counts())
    this.meter?.close()
  }
}
