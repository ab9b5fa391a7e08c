import * as Context from "effect/Context"
import * as Metric from "effect/Metric"

/**
 * Series of metrics in Effect's registry that count into a field of their own and are read when metrics are exported: an
 * update costs an addition. A series belongs to its name and attributes: pipelines that share both share the series, and
 * a pipeline that is started again goes on counting.
 */

/** A metric: what all of its series have in common. */
export interface Instrument {
  readonly type: "counter" | "histogram" | "gauge"
  readonly name: string
  /** UCUM, as OTLP has it. */
  readonly unit: string
  /** What a gauge makes of several pipelines with the same attributes; default the sum. */
  readonly combine?: "sum" | "max"
  readonly description: string
}

export type Attributes = Readonly<Record<string, string>>

export class Counter {
  count = 0
  add(n: number): void {
    this.count += n
  }
  state(): Metric.CounterState<number> {
    return { count: this.count, incremental: true }
  }
}

export class Histogram {
  private readonly buckets = new Float64Array(bounds.length + 1)
  private count = 0
  private sum = 0
  private min = Number.MAX_VALUE
  private max = -Number.MAX_VALUE

  record(value: number): void {
    this.add(value, 1)
  }

  /** Records one value `times` times. */
  add(value: number, times: number): void {
    let bucket = 0
    while (bucket < bounds.length && value > bounds[bucket]!) bucket++
    this.buckets[bucket]! += times
    this.count += times
    this.sum += value * times
    if (value < this.min) this.min = value
    if (value > this.max) this.max = value
  }

  state(): Metric.HistogramState {
    let cumulated = 0
    const { count, max, min, sum } = this
    return { buckets: bounds.map((bound, i) => [bound, cumulated += this.buckets[i]!] as const), count, max, min, sum }
  }
}

/** Read when metrics are exported: the sum, or the maximum, of what its readers give. */
export class Gauge {
  readonly readers = new Set<() => number>()
  private readonly combine: "sum" | "max"
  constructor(combine: "sum" | "max") {
    this.combine = combine
  }
  state(): Metric.GaugeState<number> {
    let value = 0
    for (const read of this.readers) value = this.combine === "sum" ? value + read() : Math.max(value, read())
    return { value }
  }
}

/** Seconds; the buckets of the messaging conventions. */
const bounds = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]

type Series = Counter | Histogram | Gauge

const registries = new WeakMap<object, Map<string, { readonly series: Series; readonly remove: () => void }>>()

/** The series of one registry. */
export class Registry {
  private readonly context: Context.Context<never>
  private readonly extra: Attributes
  private readonly known: Map<string, { readonly series: Series; readonly remove: () => void }>

  /** The registry and the attributes of a context: where both are the same, the series are. */
  static identity(context: Context.Context<never>): readonly [registry: object, attributes: object] {
    return [Context.get(context, Metric.MetricRegistry), Context.get(context, Metric.CurrentMetricAttributes)]
  }

  constructor(context: Context.Context<never>) {
    this.extra = Context.get(context, Metric.CurrentMetricAttributes)
    // Attributes are given to the metric itself, see `withUnit`.
    this.context = Context.add(context, Metric.CurrentMetricAttributes, {})
    const registry = Context.get(context, Metric.MetricRegistry)
    let known = registries.get(registry)
    if (known === undefined) registries.set(registry, known = new Map())
    this.known = known
  }

  counter(instrument: Instrument, attributes: Attributes): Counter {
    return this.series(
      instrument,
      attributes,
      () => new Counter(),
      (given) => Metric.counter(instrument.name, { ...given, incremental: true })
    )
  }

  histogram(instrument: Instrument, attributes: Attributes): Histogram {
    return this.series(
      instrument,
      attributes,
      () => new Histogram(),
      (given) => Metric.histogram(instrument.name, { ...given, boundaries: bounds })
    )
  }

  /** Adds a reader to a gauge; gives a function that removes the reader, and the series with the last one. */
  gauge(instrument: Instrument, attributes: Attributes, read: () => number): () => void {
    const gauge = this.series(
      instrument,
      attributes,
      () => new Gauge(instrument.combine ?? "sum"),
      (given) => Metric.gauge(instrument.name, given)
    )
    gauge.readers.add(read)
    return () => {
      if (!gauge.readers.delete(read) || gauge.readers.size > 0) return
      const key = keyOf(instrument, { ...this.extra, ...attributes })
      this.known.get(key)?.remove()
      this.known.delete(key)
    }
  }

  private series<S extends Series>(
    instrument: Instrument,
    attributes: Attributes,
    make: () => S,
    metric: (
      given: { readonly description: string; readonly attributes: Attributes }
    ) => Metric.Metric<number, ReturnType<S["state"]>>
  ): S {
    const all = { ...this.extra, ...attributes }
    const key = keyOf(instrument, all)
    const known = this.known.get(key)
    if (known !== undefined) return known.series as S
    const series = make()
    const { remove } = Metric.registerUnsafe(
      withUnit(metric({ description: instrument.description, attributes: all }), instrument),
      this.context,
      { get: () => series.state() as ReturnType<S["state"]>, update: ignore, modify: ignore }
    )
    this.known.set(key, { series, remove })
    return series
  }
}

const keyOf = (instrument: Instrument, attributes: Attributes): string =>
  JSON.stringify([instrument.name, ...Object.entries(attributes).sort(([a], [b]) => a < b ? -1 : 1)])

const ignore = () => {}

/**
 * Effect's OTLP exporter reads the unit from an attribute, which it then writes to each point. An attribute that is not
 * enumerable gives the unit and is written nowhere.
 */
const withUnit = <M extends { readonly attributes: Attributes | undefined }>(metric: M, { unit }: Instrument): M => {
  if (metric.attributes !== undefined && Object.isExtensible(metric.attributes)) {
    Object.defineProperty(metric.attributes, "unit", { value: unit, enumerable: false })
  }
  return metric
}
