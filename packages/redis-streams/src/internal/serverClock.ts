/**
 * The server's clock, as far as it is known: what is compared with its times must not depend on this machine's. A reply
 * takes a while to arrive, so this clock is never ahead of the server's by more than their drift.
 */
export class ServerClock {
  private ahead = Date.now() - performance.now()

  /** Milliseconds since the epoch. */
  now(): number {
    return performance.now() + this.ahead
  }

  set(now: number): void {
    if (Number.isFinite(now)) this.ahead = now - performance.now()
  }
}
