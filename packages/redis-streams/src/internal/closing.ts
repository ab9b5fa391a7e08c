/** How long closing subscriptions wait for a server that is away: all of them together, not one after the other. */
export class Closing {
  private readonly isUp: () => boolean
  private since = -Infinity

  constructor(isUp: () => boolean) {
    this.isUp = isUp
  }

  /** What is left of so many milliseconds. */
  left(millis: number): number {
    if (this.isUp()) return millis
    const now = performance.now()
    if (now - this.since > together) this.since = now
    return Math.max(0, millis - (now - this.since))
  }
}

/** Those that close later wait anew. Milliseconds. */
const together = 10_000
