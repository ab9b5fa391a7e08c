import * as Cause from "effect/Cause"
import type * as Context from "effect/Context"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"

const consumed = Metric.counter("messaging.client.consumed.messages", {
  description: "Messages delivered to handlers, redeliveries again",
  incremental: true
})

const duration = Metric.histogram("messaging.process.duration", {
  description: "Seconds from the beginning of a handler to its end",
  boundaries: [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]
})

const outcomes = Metric.counter("millrace.outcomes", {
  description: "What became of attempts",
  incremental: true
})

/** One pipeline's metrics, bound once: each distinct set of attributes is a series of its own. */
export class Meter {
  private readonly context: Context.Context<never>
  private readonly attributes: Readonly<Record<string, string>>
  private readonly consumed: typeof consumed
  private readonly outcomes = new Map<string, typeof outcomes>()
  private readonly durations = new Map<string, typeof duration>()

  constructor(context: Context.Context<never>, system: string, topic: string, group: string) {
    this.context = context
    this.attributes = {
      "messaging.system": system,
      "messaging.destination.name": topic,
      "messaging.consumer.group.name": group
    }
    this.consumed = Metric.withAttributes(consumed, { ...this.attributes, "messaging.operation.name": "process" })
  }

  ended(outcome: string, millis: number, cause: Cause.Cause<unknown> | undefined): void {
    this.consumed.updateUnsafe(1, this.context)
    this.series(this.outcomes, outcomes, "millrace.outcome", outcome).updateUnsafe(1, this.context)
    const error = cause === undefined ? "" : errorType(cause)
    this.series(this.durations, duration, "error.type", error).updateUnsafe(millis / 1000, this.context)
  }

  private series<M extends typeof outcomes | typeof duration>(
    known: Map<string, M>,
    metric: M,
    attribute: string,
    value: string
  ): M {
    let series = known.get(value)
    if (series === undefined) {
      // Errors name themselves: their number is bounded, so that a metric cannot grow with the messages.
      if (known.size >= mostSeries && value !== other) return this.series(known, metric, attribute, other)
      series = Metric.withAttributes(metric as any, {
        ...this.attributes,
        "messaging.operation.name": "process",
        ...(value === "" ? {} : { [attribute]: value })
      }) as unknown as M
      known.set(value, series)
    }
    return series
  }
}

const mostSeries = 50
const other = "_OTHER"

const errorType = (cause: Cause.Cause<unknown>): string => {
  const error = Option.getOrUndefined(Cause.findErrorOption(cause))
  if (Predicate.hasProperty(error, "_tag")) return String(error._tag)
  return error instanceof Error ? error.name : "defect"
}
