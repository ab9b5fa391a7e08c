/**
 * How many handlers run at once.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { Hints } from "./internal/hint.ts"
import {
  durationOf,
  type Invalid,
  InvalidId,
  invalidMax,
  invalidNumber,
  invalidOf,
  toError,
  unknownOption
} from "./internal/invalid.ts"
import { answered } from "./internal/promise.ts"
import * as LimitAlgorithm from "./LimitAlgorithm.ts"
import type { TransportError } from "./TransportError.ts"

/**
 * Marks limits.
 *
 * @category type ids
 * @since 0.1.0
 */
export const TypeId = "~@millrace/core/Concurrency/Limit"

/**
 * Marks limits.
 *
 * @category type ids
 * @since 0.1.0
 */
export type TypeId = typeof TypeId

/**
 * A counting semaphore that several pipelines may share. Its maximum may change while it is in use: running handlers
 * are never interrupted by that.
 *
 * **Details**
 *
 * Effect's `Semaphore` looks at every waiter on each release, and takes and releases inside fibers; the engine takes
 * and releases for plain functions too, so this one is plain code with at most one waiter per pipeline.
 *
 * @category models
 * @since 0.1.0
 */
export interface Limit {
  readonly [TypeId]: TypeId
  /** How many handlers may run at once now. */
  readonly max: number
  /** The most that `max` may become by itself. */
  readonly ceiling: number
  /** Handlers running now. */
  readonly inUse: number
  /**
   * Changes the maximum; `Infinity` for no bound. Running handlers are not interrupted. Fails with `InvalidOption`, and
   * changes nothing, when `max` is no whole number of at least 1.
   */
  readonly resize: (max: number) => Effect.Effect<void, TransportError>
  /** As `resize`, at once and outside of Effect: throws the error of `resize`. */
  readonly resizeUnsafe: (max: number) => void
  /** Takes a permit if one is free. For the engine. */
  readonly tryTakeUnsafe: () => boolean
  /** Gives a permit back and wakes the waiter that has waited longest. For the engine. */
  readonly releaseUnsafe: () => void
  /** Calls `wake` once, when a permit has become free. Gives a function that stops waiting. For the engine. */
  readonly onFreeUnsafe: (wake: () => void) => () => void
  /** Calls `listener` after every change of the maximum. Gives a function that stops it. For the engine. */
  readonly onResizeUnsafe: (listener: () => void) => () => void
  /** Told of each handler that has ended, where the limit learns from it. For the engine. */
  readonly sampleUnsafe: ((sample: Sample) => void) | undefined
}

/**
 * One handler that has ended.
 *
 * @category models
 * @since 0.1.0
 */
export interface Sample {
  /** Milliseconds since the epoch. */
  readonly endedAt: number
  /** How long the handler took, in milliseconds. */
  readonly latency: number
  /** Whether the handler failed or timed out. */
  readonly failed: boolean
}

class LimitImpl implements Limit {
  readonly [TypeId]: TypeId = TypeId
  readonly [InvalidId]: Invalid | undefined
  max: number
  inUse = 0
  readonly sampleUnsafe: ((sample: Sample) => void) | undefined = undefined
  private readonly waiters = new Set<() => void>()
  private readonly listeners = new Set<() => void>()
  constructor(max: number, invalid = invalidMax("concurrency", max)) {
    this.max = max
    this[InvalidId] = invalid
  }
  get ceiling(): number {
    return this.max
  }
  resize(max: number): Effect.Effect<void, TransportError> {
    return Effect.try({ try: () => this.resizeUnsafe(max), catch: (error) => error as TransportError })
  }
  resizeUnsafe(max: number): void {
    const invalid = invalidMax("limit.resize", max)
    if (invalid !== undefined) throw toError("core", invalid)
    this.max = max
    this.wake()
    for (const listener of this.listeners) listener()
  }
  tryTakeUnsafe(): boolean {
    if (this.inUse >= this.max) return false
    this.inUse++
    return true
  }
  releaseUnsafe(): void {
    this.inUse--
    if (this.waiters.size > 0) this.wake()
  }
  onFreeUnsafe(wake: () => void): () => void {
    this.waiters.add(wake)
    return () => this.waiters.delete(wake)
  }
  onResizeUnsafe(listener: () => void): () => void {
    this.listeners.add(listener)
    return () => this.listeners.delete(listener)
  }
  private wake(): void {
    for (const waiter of this.waiters) {
      if (this.inUse >= this.max) return
      this.waiters.delete(waiter)
      waiter()
    }
  }
}

/**
 * Makes a limit of `max` handlers (`Infinity`: none). All pipelines that name it share it.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (max: number): Limit => new LimitImpl(max)

/**
 * Options of {@link makeAdaptive}.
 *
 * @category models
 * @since 0.1.0
 */
export interface AdaptiveOptions {
  /** The limit begins here and never falls below. Default 1. */
  readonly min?: number | undefined
  /** The limit never grows above. */
  readonly max: number
  /** Computes the next limit. Default `LimitAlgorithm.aimd()`. */
  readonly algorithm?: LimitAlgorithm.LimitAlgorithm | undefined
  /** How long it measures before it moves, and at least 10 handlers. Default 100 milliseconds. */
  readonly window?: Duration.Input | Hints["duration"] | undefined
  /** A larger part of failed handlers than this counts as a drop. Default 0.1. */
  readonly failures?: number | undefined
  /** An event loop that is later than this counts as a drop. Default 50 milliseconds. */
  readonly eventLoopDelay?: Duration.Input | Hints["duration"] | undefined
}

/**
 * Makes a limit that moves between `min` and `max` with the latency and the errors of its handlers.
 *
 * **Details**
 *
 * The limit begins at `min` and grows only while it is used. Errors and timeouts are drops, and no part of the latency:
 * steady timeouts must not be taken for a steady latency.
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeAdaptive = (options: AdaptiveOptions): Limit => new AdaptiveLimit(options)

class AdaptiveLimit extends LimitImpl {
  override readonly sampleUnsafe: (sample: Sample) => void
  private readonly most: number
  override get ceiling(): number {
    return this.most
  }
  constructor(options: AdaptiveOptions) {
    const { algorithm = LimitAlgorithm.aimd(), failures = 0.1, max, min = 1 } = options ?? {}
    const measured = durationOf("adaptive.window", options?.window ?? 100)
    const late = durationOf("adaptive.eventLoopDelay", options?.eventLoopDelay ?? 50)
    const window = Duration.toMillis(measured.duration)
    const eventLoopDelay = Duration.toMillis(late.duration)
    super(
      min,
      unknownOption("adaptive", options, ["algorithm", "failures", "max", "min", "window", "eventLoopDelay"]) ??
        invalidMax("adaptive.min", min) ?? invalidMax("adaptive.max", max) ?? measured.invalid ?? late.invalid ??
        (min > max ? { option: "adaptive.min", value: min, remedy: `give at most max, which is ${max}` } : undefined) ??
        (typeof algorithm?.next === "function" ? invalidOf(algorithm) : {
          option: "adaptive.algorithm",
          value: algorithm,
          remedy: "give LimitAlgorithm.aimd(), LimitAlgorithm.gradient(), or one of your own with `next`"
        }) ??
        invalidNumber("adaptive.failures", failures, 0, 1, "give a part of all handlers, from 0 to 1")
    )
    this.most = max
    let since: number | undefined
    let inFlight = 0
    let ended = 0
    let failed = 0
    let latency = 0
    let isLate = false
    let changedAt = -Infinity
    this.sampleUnsafe = (handler) => {
      // A handler that began under the former limit says nothing about this one.
      if (handler.endedAt - handler.latency < changedAt) return
      if (since === undefined) {
        since = handler.endedAt
        whenLoopIsFree((delay) => {
          if (delay > eventLoopDelay) isLate = true
        })
      }
      inFlight = Math.max(inFlight, this.inUse)
      ended++
      if (handler.failed) failed++
      else latency += handler.latency
      if (handler.endedAt - since < window || ended < leastHandlers) return
      const seen = {
        latency: ended === failed ? undefined : latency / (ended - failed),
        inFlight,
        dropped: isLate || failed / ended > failures
      }
      since = undefined
      inFlight =
        ended =
        failed =
        latency =
          0
      isLate = false
      // Last: an algorithm that throws has the next window to measure like any other.
      const next = answered("adaptive.algorithm", algorithm.next(this.max, seen))
      const bounded = Math.min(max, Math.max(min, Math.floor(next)))
      if (bounded === this.max || Number.isNaN(bounded)) return
      changedAt = handler.endedAt
      this.resizeUnsafe(bounded)
    }
  }
}

const leastHandlers = 10

/** Tells how much later than asked the event loop came round. */
const whenLoopIsFree = (tell: (delay: number) => void): void => {
  const asked = performance.now()
  setTimeout(() => tell(performance.now() - asked - 1), 1)
}

/**
 * Tells limits from numbers and options.
 *
 * @category guards
 * @since 0.1.0
 */
export const isLimit = (u: unknown): u is Limit => typeof u === "object" && u !== null && TypeId in u

/**
 * The error of a limit whose numbers cannot work: starting a pipeline fails with it. For the engine.
 *
 * @internal
 */
export const invalidIn = (limit: Limit): Invalid | undefined => invalidOf(limit)
