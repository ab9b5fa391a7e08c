/**
 * How many handlers run at once.
 *
 * @since 0.1.0
 */
import * as LimitAlgorithm from "./LimitAlgorithm.ts"

const TypeId = "~@millrace/core/Concurrency/Limit"

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
  readonly [TypeId]: typeof TypeId
  readonly max: number
  /** The most that `max` may become by itself. */
  readonly ceiling: number
  /** Handlers running now. */
  readonly inUse: number
  /** Changes the maximum; `Infinity` for no bound. */
  readonly resize: (max: number) => void
  /** Takes a permit if one is free. */
  readonly tryTake: () => boolean
  /** Gives a permit back and wakes the waiter that has waited longest. */
  readonly release: () => void
  /** Calls `wake` once, when a permit has become free. Gives a function that stops waiting. */
  readonly onFree: (wake: () => void) => () => void
  /** Calls `listener` after every change of the maximum. Gives a function that stops it. */
  readonly onResize: (listener: () => void) => () => void
  /** Told of each handler that has ended, where the limit learns from it. */
  readonly observe: ((handler: Handler) => void) | undefined
}

/**
 * One handler that has ended: how long it took, in milliseconds, and whether it failed or timed out.
 *
 * @category models
 * @since 0.1.0
 */
export interface Handler {
  readonly endedAt: number
  readonly latency: number
  readonly failed: boolean
}

class LimitImpl implements Limit {
  readonly [TypeId]: typeof TypeId = TypeId
  max: number
  inUse = 0
  readonly observe: ((handler: Handler) => void) | undefined = undefined
  private readonly waiters = new Set<() => void>()
  private readonly listeners = new Set<() => void>()
  constructor(max: number) {
    this.max = max
  }
  get ceiling(): number {
    return this.max
  }
  resize(max: number): void {
    this.max = max
    this.wake()
    for (const listener of this.listeners) listener()
  }
  tryTake(): boolean {
    if (this.inUse >= this.max) return false
    this.inUse++
    return true
  }
  release(): void {
    this.inUse--
    if (this.waiters.size > 0) this.wake()
  }
  onFree(wake: () => void): () => void {
    this.waiters.add(wake)
    return () => this.waiters.delete(wake)
  }
  onResize(listener: () => void): () => void {
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
 * Makes a limit of `max` handlers (`Infinity`: none) to be shared by several pipelines.
 *
 * @category constructors
 * @since 0.1.0
 */
export const shared = (max: number): Limit => new LimitImpl(max)

/**
 * Makes a limit that moves between `min` and `max` with what its handlers experience.
 *
 * - `min`: default 1
 * - `algorithm`: default `LimitAlgorithm.aimd()`
 * - `window`: how long it measures before it moves, in milliseconds; default 100, and at least 10 handlers
 * - `failures`: a larger part of failed handlers than this counts as a drop; default 0.1
 * - `eventLoopDelay`: a later event loop than this counts as a drop, in milliseconds; default 50
 *
 * **Details**
 *
 * It begins at `min` and grows only while it is used. Errors and timeouts are drops, and no part of the latency: steady
 * timeouts must not be taken for a steady latency.
 *
 * @category constructors
 * @since 0.1.0
 */
export const adaptive = (options: {
  readonly min?: number | undefined
  readonly max: number
  readonly algorithm?: LimitAlgorithm.LimitAlgorithm | undefined
  readonly window?: number | undefined
  readonly failures?: number | undefined
  readonly eventLoopDelay?: number | undefined
}): Limit => new AdaptiveLimit(options)

class AdaptiveLimit extends LimitImpl {
  override readonly observe: (handler: Handler) => void
  private readonly most: number
  override get ceiling(): number {
    return this.most
  }
  constructor(options: Parameters<typeof adaptive>[0]) {
    const { algorithm = LimitAlgorithm.aimd(), eventLoopDelay = 50, failures = 0.1, max, min = 1, window = 100 } =
      options
    super(min)
    this.most = max
    let since: number | undefined
    let inFlight = 0
    let ended = 0
    let failed = 0
    let latency = 0
    let late = false
    let changedAt = -Infinity
    this.observe = (handler) => {
      // What began under the former limit says nothing about this one.
      if (handler.endedAt - handler.latency < changedAt) return
      if (since === undefined) {
        since = handler.endedAt
        whenLoopIsFree((delay) => {
          if (delay > eventLoopDelay) late = true
        })
      }
      inFlight = Math.max(inFlight, this.inUse)
      ended++
      if (handler.failed) failed++
      else latency += handler.latency
      if (handler.endedAt - since < window || ended < leastHandlers) return
      const next = algorithm.next(this.max, {
        latency: ended === failed ? undefined : latency / (ended - failed),
        inFlight,
        dropped: late || failed / ended > failures
      })
      since = undefined
      inFlight =
        ended =
        failed =
        latency =
          0
      late = false
      const bounded = Math.min(max, Math.max(min, Math.floor(next)))
      if (bounded === this.max || Number.isNaN(bounded)) return
      changedAt = handler.endedAt
      this.resize(bounded)
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
