import * as Effect from "effect/Effect"

/** How long closing subscriptions wait for a server that is away: those that close together wait together. */
export class Closing {
  private readonly isUp: () => boolean
  private readonly now: () => number
  /** When the first of those that wait together began. */
  private since = -Infinity
  /** When one of them last began or ended. */
  private waitedAt = -Infinity

  /** `now`: monotonic, in milliseconds. */
  constructor(isUp: () => boolean, now: () => number = () => performance.now()) {
    this.isUp = isUp
    this.now = now
  }

  /** Waits for the end of an effect, no longer than `millis`. */
  within(effect: Effect.Effect<void>, millis: number): Effect.Effect<unknown> {
    return Effect.suspend(() => Effect.timeoutOption(effect, this.left(millis))).pipe(
      Effect.ensuring(Effect.sync(() => this.ended()))
    )
  }

  /** How many of `millis` a closing subscription may still wait. */
  left(millis: number): number {
    if (this.isUp()) return millis
    const now = this.now()
    if (now - this.waitedAt > apart || now - this.since > together) this.since = now
    this.waitedAt = now
    return Math.max(0, millis - (now - this.since))
  }

  ended(): void {
    this.waitedAt = this.now()
  }
}

/**
 * In milliseconds. Pipelines of one scope close one right after the other; a subscription that closes later than that
 * after the last one has a program of its own to end, and waits anew.
 */
const apart = 1_000

/** In milliseconds. After so long a series of subscriptions has waited enough for those that follow to wait anew. */
const together = 10_000
