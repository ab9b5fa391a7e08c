import type * as Clock from "effect/Clock"

/** A moment in milliseconds. The wall clock can be set back; the monotonic clock stops while the machine sleeps. */
export interface Instant {
  readonly wall: number
  readonly monotonic: number
}

export const instant = (clock: Clock.Clock): Instant => ({
  wall: clock.currentTimeMillisUnsafe(),
  monotonic: Number(clock.monotonicTimeNanosUnsafe()) / 1e6
})

/** How much time has passed since, by the clock that saw more of it. */
export const elapsed = (since: Instant, now: Instant): number =>
  Math.max(now.wall - since.wall, now.monotonic - since.monotonic)

/** Notices that this process stood still (a stopped process, a blocked event loop, a sleeping machine). */
export class PauseDetector {
  private readonly clock: Clock.Clock
  private readonly threshold: number
  private last: Instant
  private suspectUntil = -Infinity

  /** `threshold`: milliseconds without a call that count as a pause. */
  constructor(clock: Clock.Clock, threshold: number) {
    this.clock = clock
    this.threshold = threshold
    this.last = instant(clock)
  }

  /**
   * Call it regularly. `true` for a second after a pause: deliveries that arrive then may have waited in a socket
   * meanwhile, and their leases may have ended.
   */
  hasPaused(): boolean {
    const now = instant(this.clock)
    if (elapsed(this.last, now) > this.threshold) this.suspectUntil = now.monotonic + 1000
    this.last = now
    return now.monotonic < this.suspectUntil
  }
}
