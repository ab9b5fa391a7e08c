/**
 * How many handlers run at once.
 *
 * @since 0.1.0
 */

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
}

class LimitImpl implements Limit {
  readonly [TypeId]: typeof TypeId = TypeId
  max: number
  inUse = 0
  private readonly waiters = new Set<() => void>()
  private readonly listeners = new Set<() => void>()
  constructor(max: number) {
    this.max = max
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
export const makeUnsafe = (max: number): Limit => new LimitImpl(max)

/**
 * Tells limits from numbers and options.
 *
 * @category guards
 * @since 0.1.0
 */
export const isLimit = (u: unknown): u is Limit => typeof u === "object" && u !== null && TypeId in u
