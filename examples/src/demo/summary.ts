/**
 * The table at the end of the demo.
 */
import type { DeadLetter, Pipeline } from "@millrace/core"
import { count } from "./view.ts"

/** What was measured while the pipeline ran. Times are milliseconds. */
export interface Measured {
  readonly published: number
  readonly counts: Pipeline.Counts
  /** Paid at attempt 2 or later. */
  readonly paidByRetry: number
  /** From publish to paid, one number an order. */
  readonly latencies: ReadonlyArray<number>
  readonly elapsed: number
}

const percentile = (sorted: ReadonlyArray<number>, p: number) =>
  sorted.length === 0 ? "-" : `${count(sorted[Math.ceil(sorted.length * p) - 1]!)} ms`

export const table = (measured: Measured, letters: ReadonlyArray<DeadLetter.DeadLetter>): string => {
  const { counts, elapsed, latencies, paidByRetry, published } = measured
  const sorted = latencies.toSorted((a, b) => a - b)
  const because = (reason: DeadLetter.DeadLetterReason) =>
    letters.filter(({ record }) => record.reason === reason).length
  const rows: ReadonlyArray<readonly [name: string, value: string, remark: string]> = [
    ["published", count(published), ""],
    ["handled", count(counts.handled), `${count(paidByRetry)} of them by a retry`],
    [
      "dead-lettered",
      count(counts.deadLettered),
      `${count(because("undecodable"))} malformed, ${count(because("exhausted"))} failed at every attempt`
    ],
    ["retried", count(counts.retried), "attempts that failed and were made again"],
    ["throughput", `${count(counts.handled * 1000 / elapsed)}/s`, `over ${(elapsed / 1000).toFixed(1)} s`],
    ["latency p50", percentile(sorted, 0.5), "from publish to handled"],
    ["latency p95", percentile(sorted, 0.95), ""],
    ["latency p99", percentile(sorted, 0.99), "retries included"]
  ]
  return rows.map(([name, value, remark]) => `  ${name.padEnd(14)}${value.padStart(9)}   ${remark}`.trimEnd()).join(
    "\n"
  )
}

export const letter = ({ message, record }: DeadLetter.DeadLetter): string =>
  [
    ["message", new TextDecoder().decode(message.body)],
    ["from", `${record.topic}, id ${record.id}, group ${record.group}`],
    ["why", `${record.reason} after ${record.attempts} attempts`],
    ["error", `${record.error.tag}: ${record.error.message}`],
    ["failed at", new Date(record.failedAt).toISOString()]
  ].map(([name, value]) => `  ${name!.padEnd(12)}${value!.replaceAll(/\s+/g, " ")}`).join("\n")
