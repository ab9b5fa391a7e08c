import { monotonic, type Order } from "./order.ts"
import { type Latency, type Spec, stepsOf } from "./spec.ts"
import { median, percentile } from "./statistics.ts"

/** Counts messages that are handled, and finds those that come twice. */
export class Tally {
  /** All have come. */
  readonly done: Promise<void>
  received = 0
  twice = 0
  /** Called by the first message. */
  onFirst = () => {}
  private readonly seen: Uint8Array
  private readonly latencies: Float64Array | undefined
  private resolve!: () => void

  constructor(expected: number, isOpen: boolean) {
    this.seen = new Uint8Array(expected)
    this.latencies = isOpen ? new Float64Array(expected) : undefined
    this.done = new Promise((resolve) => this.resolve = resolve)
  }

  readonly handle = (order: Order): void => {
    if (this.seen[order.amount]! > 0) {
      this.twice++
      return
    }
    this.seen[order.amount] = 1
    if (this.latencies !== undefined) this.latencies[order.amount] = monotonic() - order.at
    if (++this.received === 1) this.onFirst()
    if (this.received === this.seen.length) this.resolve()
  }

  /** The first fifth of an open loop finds everything cold. */
  get latency(): Latency | undefined {
    if (this.latencies === undefined) return undefined
    const sorted = this.latencies.slice(Math.floor(this.latencies.length / 5)).sort()
    return {
      p50: percentile(sorted, 0.5),
      p99: percentile(sorted, 0.99),
      p999: percentile(sorted, 0.999),
      max: sorted[sorted.length - 1]!
    }
  }

  /** The median latency of each step of a ramp. */
  steps({ ramp, rate }: Spec): ReadonlyArray<number> | undefined {
    const { latencies } = this
    if (ramp === undefined || latencies === undefined) return undefined
    let first = 0
    return stepsOf(rate!, ramp).map((count) => median([...latencies.subarray(first, first += count)]))
  }
}
