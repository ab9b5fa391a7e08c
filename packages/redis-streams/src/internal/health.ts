import type { Health } from "@millrace/core/Transport"

/** Remembers since when the health is what it is. */
export class HealthRecord {
  private current: Health = { state: "consuming", since: Date.now() }

  /** Gives the health that `state` and `reason` make. */
  note(state: Health["state"], reason: string | undefined, now: number): Health {
    if (state !== this.current.state || reason !== this.current.reason) {
      const since = state === this.current.state ? this.current.since : now
      this.current = state === "consuming" ? { state, since } : { state, since, reason }
    }
    return this.current
  }
}

/** What the server refuses at the moment, by operation. */
export class Refusals {
  private readonly reasons = new Map<string, string>()

  /** Gives whether that is news. */
  add(operation: string, reason: string): boolean {
    const isNews = !this.reasons.has(operation)
    this.reasons.set(operation, reason)
    return isNews
  }

  /** Gives whether it was refused before. */
  clear(operation: string): boolean {
    return this.reasons.delete(operation)
  }

  get reason(): string | undefined {
    return this.reasons.values().next().value
  }
}
