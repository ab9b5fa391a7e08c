import * as Arr from "effect/Array"
import type * as Cause from "effect/Cause"
import type * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import type * as Scheduler from "effect/Scheduler"
import type { Delivery, Settling, Subscription } from "../Transport.ts"
import { exitOf } from "./exit.ts"
import { Idle } from "./idle.ts"

/**
 * Collects settlements and tells the broker once per loop turn.
 *
 * A lone settlement goes out in the next turn. When the last flush was less than a millisecond ago, flushing waits for
 * {@link gate} of them or that many turns: at full speed that makes one command of 32 messages, and a turn is too short
 * to be seen in a latency. The confirmation of one flush travels behind all that the broker has sent meanwhile, so a few
 * may be under way at a time; one that fails is sent again, after a backoff, until the pipeline closes.
 */
export class Settler<E extends Settling> {
  private readonly options: {
    readonly subscription: Subscription
    readonly clock: Clock.Clock
    readonly context: Context.Context<never>
    readonly dispatcher: Scheduler.SchedulerDispatcher
    /** Called when settlements have been handed to the transport. */
    readonly onHandedOver: () => void
    /** The broker has answered; `owned: false`: this consumer no longer owned the delivery. */
    readonly onSettled: (entry: E, owned: boolean) => void
    /** The settler is closed, and the broker has not answered. */
    readonly onUnconfirmed: (entry: E) => void
    /** Settlements were confirmed, so many milliseconds after they had been handed over. */
    readonly onConfirmed: (millis: number) => void
    /** Settlements did not reach the broker, and are sent again. */
    readonly onResend: (size: number, cause: Cause.Cause<unknown>) => void
  }
  pending: Array<E> = []
  /** Handed to the transport and not yet confirmed. */
  unconfirmed = 0
  private readonly flushing = new Map<Fiber.Fiber<ReadonlyArray<Delivery>>, ReadonlyArray<E>>()
  private isClosed = false
  private scheduled = false
  private turns = 0
  private lastFlush = 0n
  /** All settlements are confirmed. */
  readonly idle = new Idle(() => this.isIdle)

  constructor(options: Settler<E>["options"]) {
    this.options = options
  }

  get isIdle(): boolean {
    return this.pending.length === 0 && this.unconfirmed === 0
  }

  add(entry: E): void {
    if (this.isClosed) return this.options.onUnconfirmed(entry)
    this.pending.push(entry)
    this.schedule()
  }

  /** Flushes at once when many settlements are pending: the broker sends nothing more until it knows of them. */
  hurry(): void {
    if (this.pending.length >= hurryAt) this.flush()
  }

  private schedule(): void {
    if (this.scheduled || this.flushing.size === maxFlushes) return
    this.scheduled = true
    const { clock, dispatcher } = this.options
    this.turns = clock.monotonicTimeNanosUnsafe() - this.lastFlush < 1_000_000n ? gate : 0
    dispatcher.scheduleTask(this.turn, 0)
  }

  private readonly turn = (): void => {
    if (--this.turns > 0 && this.pending.length > 0 && this.pending.length < gate) {
      return this.options.dispatcher.scheduleTask(this.turn, 0)
    }
    this.scheduled = false
    this.flush()
  }

  private flush(): void {
    const batch = this.pending
    if (!Arr.isArrayNonEmpty(batch) || this.flushing.size === maxFlushes) return
    const { clock, context, onHandedOver } = this.options
    this.pending = []
    this.unconfirmed += batch.length
    this.lastFlush = clock.monotonicTimeNanosUnsafe()
    const exit = exitOf(this.settle(batch))
    // An Exit at once is how a transport that only writes to a socket answers: no fiber is started for it.
    if (exit !== undefined && Exit.isSuccess(exit)) {
      this.flushed(batch, exit.value, this.lastFlush)
    } else {
      const since = this.lastFlush
      const flush = Effect.runForkWith(context)(this.untilSettled(batch, exit))
      this.flushing.set(flush, batch)
      flush.addObserver((exit) => {
        this.flushing.delete(flush)
        if (Exit.isSuccess(exit)) this.flushed(batch, exit.value, since)
      })
    }
    onHandedOver()
  }

  private settle(batch: Arr.NonEmptyArray<E>): Effect.Effect<ReadonlyArray<Delivery>, unknown> {
    try {
      return this.options.subscription.settle(batch)
    } catch (defect) {
      return Exit.die(defect)
    }
  }

  /** Retries until confirmed, whatever the error, including a defect of the transport. */
  private untilSettled(
    batch: Arr.NonEmptyArray<E>,
    first: Exit.Exit<ReadonlyArray<Delivery>, unknown> | undefined
  ): Effect.Effect<ReadonlyArray<Delivery>> {
    return Effect.suspend(() => {
      const settle = first ?? this.settle(batch)
      first = undefined
      return settle
    }).pipe(
      Effect.sandbox,
      Effect.tapError((cause) => Effect.sync(() => this.options.onResend(batch.length, cause))),
      Effect.retry(settleBackoff),
      Effect.orDie
    )
  }

  private flushed(batch: Arr.NonEmptyArray<E>, lost: ReadonlyArray<Delivery>, since: bigint): void {
    const { clock, onConfirmed, onHandedOver, onSettled } = this.options
    this.unconfirmed -= batch.length
    onConfirmed(Number(clock.monotonicTimeNanosUnsafe() - since) / 1e6)
    const notOurs = lost.length === 0 ? undefined : new Set(lost)
    for (const entry of batch) onSettled(entry, notOurs === undefined || !notOurs.has(entry.delivery))
    if (this.pending.length > 0) this.schedule()
    else this.idle.check()
    onHandedOver()
  }

  /** Settlements that are not confirmed by now end in redelivery. */
  close(): void {
    this.isClosed = true
    const unconfirmed = [...this.flushing.values(), this.pending].flat()
    this.pending = []
    for (const flush of this.flushing.keys()) flush.interruptUnsafe()
    for (const entry of unconfirmed) this.options.onUnconfirmed(entry)
  }
}

const gate = 32

const hurryAt = 128

const maxFlushes = 4

/** A request to the broker that did not succeed is sent again; after an outage within the time that a drain gives it. */
export const settleBackoff = Schedule.min([
  Schedule.exponential(Duration.millis(50)),
  Schedule.spaced(Duration.millis(400))
]).pipe(Schedule.jittered)
