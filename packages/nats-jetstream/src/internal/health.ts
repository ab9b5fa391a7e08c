import type { Health } from "@millrace/core/Transport"

/** Remembers since when a subscription is in its present state. */
export class Condition {
  private readonly date: () => number
  private current: Health
  /** What the broker refuses, by what has to be mended: until it is cleared. */
  private readonly impairments = new Map<string, string>()

  constructor(date: () => number) {
    this.date = date
    this.current = { state: "consuming", since: date() }
  }

  impair(cause: string, reason: string): Health {
    this.impairments.set(cause, reason)
    return this.connected()
  }

  clear(cause: string): void {
    if (this.impairments.delete(cause)) this.connected()
  }

  reconnecting(reason: string): Health {
    return this.enter("reconnecting", reason)
  }

  connected(): Health {
    const [reason] = this.impairments.values()
    return reason === undefined ? this.enter("consuming", undefined) : this.enter("impaired", reason)
  }

  private enter(state: Health["state"], reason: string | undefined): Health {
    const { since } = this.current.state === state ? this.current : { since: this.date() }
    return this.current = { state, since, ...reason === undefined ? {} : { reason } }
  }
}
