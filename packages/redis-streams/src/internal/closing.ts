/** How long closing subscriptions wait for a server that is away: all of them together, not one after the other. */
export class Closing {
  private readonly isUp: () => boolean
  private since = -Infinity

  constructor(isUp: () => boolean) {
    this.isUp = isUp
  }

  /** How many of `millis` a closing subscription may still wait. */
  left(millis: number): number {
    if (this.isUp()) return millis
    const now = performance.now()
    if (now - this.since > together) this.since = now
    return Math.max(0, millis - (now - this.since))
  }
}

/** In milliseconds. A subscription that closes later than that after the first one waits anew. */
const together = 10_000
