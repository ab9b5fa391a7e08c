import type * as Cause from "effect/Cause"
import type * as Context from "effect/Context"
import type { OutcomeKind } from "../Telemetry.ts"
import type { Delivery, GroupInfo, Health } from "../Transport.ts"
import { typeOf } from "./errorDetail.ts"
import { instruments } from "./instruments.ts"
import { type Attributes, type Counter, type Histogram, Registry } from "./series.ts"
import { serverAttributes, texts } from "./serverAttributes.ts"

/** Where and for whom a pipeline consumes. */
export interface Consumer {
  readonly system: string
  readonly address: string
  readonly topic: string
  readonly group: string
}

/** The metrics of one running pipeline. Each distinct set of attributes is a series, bound when it is first needed. */
export class Meter {
  private readonly registry: Registry
  private readonly attributes: Attributes
  private readonly consumed: Counter
  private readonly redelivered: Counter
  private readonly waited: Histogram
  private readonly settledOf: Histogram
  private readonly processed: Histogram
  private readonly succeeded: Counter
  private readonly outcomes = new Map<string, Counter>()
  private readonly failed = new Map<string, Histogram>()
  private readonly groupGauges = new Map<keyof typeof polled, { readonly value: number; readonly remove: () => void }>()
  private readonly removals: Array<() => void> = []

  constructor(context: Context.Context<never>, consumer: Consumer) {
    this.registry = new Registry(context)
    this.attributes = {
      "messaging.system": consumer.system,
      "messaging.destination.name": consumer.topic,
      "messaging.consumer.group.name": consumer.group,
      ...texts(serverAttributes(consumer.address))
    }
    this.consumed = this.registry.counter(instruments.consumed, this.operation("receive"))
    this.redelivered = this.registry.counter(instruments.redelivered, this.attributes)
    this.waited = this.registry.histogram(instruments.wait, this.attributes)
    this.settledOf = this.registry.histogram(instruments.operation, this.operation("settle", "settle"))
    this.succeeded = this.outcomeOf("Handled")
    this.processed = this.registry.histogram(instruments.process, this.operation("process"))
  }

  /** Deliveries have arrived. */
  delivered(deliveries: ReadonlyArray<Delivery>): void {
    this.consumed.add(deliveries.length)
    let redelivered = 0
    for (const delivery of deliveries) if (delivery.redelivered) redelivered++
    if (redelivered > 0) this.redelivered.add(redelivered)
  }

  /** A message waited so long, in milliseconds, for its first attempt. */
  begun(millis: number): void {
    this.waited.record(Math.max(0, millis) / 1000)
  }

  /** A handler took so long, in milliseconds; `cause` where it failed. */
  handled(millis: number, cause: Cause.Cause<unknown> | undefined): void {
    if (cause === undefined) return this.processed.record(millis / 1000)
    const type = bounded(this.failed, typeOf(cause))
    let series = this.failed.get(type)
    if (series === undefined) {
      series = this.registry.histogram(instruments.process, { ...this.operation("process"), "error.type": type })
      this.failed.set(type, series)
    }
    series.record(millis / 1000)
  }

  ended(outcome: OutcomeKind["_tag"]): void {
    if (outcome === "Handled") return this.succeeded.add(1)
    let series = this.outcomes.get(outcome)
    if (series === undefined) this.outcomes.set(outcome, series = this.outcomeOf(outcome))
    series.add(1)
  }

  private outcomeOf(outcome: OutcomeKind["_tag"]): Counter {
    return this.registry.counter(instruments.outcomes, { ...this.attributes, "millrace.outcome": outcome })
  }

  /** The broker confirmed settlements, as one operation that took so long, in milliseconds. */
  settled(millis: number): void {
    this.settledOf.record(millis / 1000)
  }

  /** Gauges that cost nothing: read when metrics are exported. */
  observe(read: {
    readonly buffered: () => number
    readonly running: () => number
    readonly health: () => string
  }): void {
    const owned = (state: string) => ({ ...this.attributes, "millrace.state": state })
    this.removals.push(
      this.registry.gauge(instruments.owned, owned("buffered"), read.buffered),
      this.registry.gauge(instruments.owned, owned("running"), read.running),
      ...healthStates.map((state) =>
        this.registry.gauge(instruments.health, owned(state), () => read.health() === state ? 1 : 0)
      )
    )
  }

  /** What the broker says about the group; a number that it cannot know has no series. `now` in milliseconds. */
  group(info: GroupInfo | undefined, now: number): void {
    this.polled("lag", info?.lag)
    this.polled("pending", info?.pending)
    const isEmpty = info?.lag === 0 && info.pending === 0
    const oldest = info?.oldest
    this.polled("oldestAge", oldest === undefined ? isEmpty ? 0 : undefined : Math.max(0, now - oldest) / 1000)
  }

  private polled(name: keyof typeof polled, value: number | undefined): void {
    this.groupGauges.get(name)?.remove()
    this.groupGauges.delete(name)
    if (value === undefined) return
    this.groupGauges.set(name, {
      value,
      remove: this.registry.gauge(polled[name], this.attributes, () => value)
    })
  }

  close(): void {
    for (const remove of this.removals) remove()
    for (const { remove } of this.groupGauges.values()) remove()
    this.removals.length = 0
    this.groupGauges.clear()
  }

  private operation(name: string, type?: string): Attributes {
    return {
      ...this.attributes,
      "messaging.operation.name": name,
      ...(type === undefined ? {} : { "messaging.operation.type": type })
    }
  }
}

const polled = { lag: instruments.lag, pending: instruments.pending, oldestAge: instruments.oldestAge }

const healthStates: ReadonlyArray<Health["state"] | "paused" | "draining" | "stopped"> = [
  "consuming",
  "reconnecting",
  "impaired",
  "paused",
  "draining",
  "stopped"
]

/** Errors name themselves: the number of series is bounded, so that it cannot grow with the messages. */
export const bounded = (known: ReadonlyMap<string, unknown>, type: string): string =>
  known.has(type) || known.size < maxErrorTypes ? type : "_OTHER"

const maxErrorTypes = 50
