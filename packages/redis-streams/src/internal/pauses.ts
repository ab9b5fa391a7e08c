/** A time in which this process stood still, on the clock of `performance.now`. */
interface Pause {
  readonly millis: number
  readonly endedAt: number
}

/** Notices that this process stands still: stopped, swapped out, or with a blocked event loop. One timer per process. */
class Pauses {
  private beatAt = performance.now()
  private recent: Array<Pause> = []

  constructor() {
    setInterval(() => this.look(), every).unref()
  }

  /** Whether a pause of at least `millis` ended in the last `within` milliseconds. */
  hasBeen(millis: number, within: number): boolean {
    const now = this.look()
    return this.recent.some((pause) => pause.millis >= millis && now - pause.endedAt < within)
  }

  private look(): number {
    const now = performance.now()
    const gap = now - this.beatAt
    this.beatAt = now
    if (this.recent.length > 0) this.recent = this.recent.filter(({ endedAt }) => now - endedAt < kept)
    if (gap > 2 * every) this.recent.push({ millis: gap, endedAt: now })
    return now
  }
}

const every = 50

/** Longer than any question reaches back. */
const kept = 10_000

let pauses: Pauses | undefined

/** Whether this process stood still for at least `millis`, and that ended in the last `within` milliseconds. */
export const hasPaused = (millis: number, within: number): boolean => (pauses ??= new Pauses()).hasBeen(millis, within)
