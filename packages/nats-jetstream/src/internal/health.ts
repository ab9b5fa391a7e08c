import type { Health } from "@millrace/core/Transport"

/** Remembers since when a subscription is in its present state. */
export class Condition {
  private readonly date: () => number
  private current: Health
  /** Set by the subscription: the broker refuses something. */
  private impairment: string | undefined

  constructor(date: () => number) {
    this.date = date
    this.current = { state: "consuming", since: date() }
  }

  get health(): Health {
    return this.current
  }

  impair(reason: string): Health {
    this.impairment = reason
    return this.enter("impaired", reason)
  }

  clear(): void {
    if (this.impairment === undefined) return
    this.impairment = undefined
    this.enter("consuming", undefined)
  }

  reconnecting(reason: string): Health {
    return this.enter("reconnecting", reason)
  }

  connected(): Health {
    return this.impairment === undefined
      ? this.enter("consuming", undefined)
      : this.enter("impaired", this.impairment)
  }

  private enter(state: Health["state"], reason: string | undefined): Health {
    const { since } = this.current.state === state ? this.current : { since: this.date() }
    return this.current = { state, since, ...reason === undefined ? {} : { reason } }
  }
}
