/** The server's clock, as far as it is known: what is compared with its times must not depend on this machine's. */
export class ServerClock {
  private ahead = 0

  /** Milliseconds since the epoch. */
  now(): number {
    return Date.now() + this.ahead
  }

  set(now: number): void {
    if (Number.isFinite(now)) this.ahead = now - Date.now()
  }
}
