import { armsOf, baseOf, cpuRatio, medianOf, paired, rateRatio, type Results } from "./results.ts"
import { type Row, verdict } from "./row.ts"
import type { Estimate } from "./statistics.ts"

export const markdown = (head: ReadonlyArray<string>, body: ReadonlyArray<ReadonlyArray<string>>): string => {
  const widths = head.map((cell, i) => Math.max(3, cell.length, ...body.map((row) => row[i]!.length)))
  const line = (row: ReadonlyArray<string>) => `| ${row.map((cell, i) => cell.padEnd(widths[i]!)).join(" | ")} |`
  return [line(head), `| ${widths.map((width) => "-".repeat(width)).join(" | ")} |`, ...body.map(line)].join("\n")
}

/** Four digits say enough about a small number, two about a ratio. */
const number = (value: number): string =>
  Number.isInteger(value)
    ? String(value)
    : value < 0.1
    ? value.toFixed(4)
    : value < 100
    ? value.toFixed(2)
    : value.toFixed(0)

export const interval = ({ high, low, value }: Estimate): string =>
  low === high
    ? number(value)
    : high === Infinity
    ? `${number(value)} (one pass)`
    : `${number(value)} (${number(low)} – ${number(high)})`

export const budgets = (rows: ReadonlyArray<Row>): string =>
  markdown(
    ["budget", "", "measured (95 %)", ""],
    rows.map((row) => [
      row.what,
      `${row.side} ${row.bound} ${row.unit}`.trim(),
      row.estimate === undefined ? "–" : interval(row.estimate),
      verdict(row)
    ])
  )

const names: Record<string, string> = {
  tuned: "raw, tuned",
  callback: "raw, client's callback",
  naive: "raw, naive",
  publish: "raw, windowed",
  rawTo: "raw, publishes under an id",
  bare: "Millrace, failures discarded",
  plain: "Millrace, function",
  promise: "Millrace, promise",
  effect: "Millrace, Effect",
  to: "Millrace, map then to",
  publishAll: "Millrace, publishAll of 1,000",
  publishEach: "Millrace, 500 fibers",
  roundTrip: "Millrace, publishAll and consume",
  armed: "+ retry and dead letters",
  metered: "+ metrics",
  traced: "+ metrics and spans",
  unsampled: "+ unsampled spans",
  timed: "+ timeout",
  keyed: "+ by key",
  failing: "+ 1 % fail once",
  bullmq: "BullMQ",
  bullmqRoundTrip: "BullMQ, addBulk and process"
}

export const nameOf = (arm: string): string => names[arm] ?? arm

export const thousands = (rate: number): string =>
  rate >= 10_000
    ? `${(rate / 1000).toFixed(0)} k/s`
    : rate >= 1000
    ? `${(rate / 1000).toFixed(1)} k/s`
    : `${rate.toFixed(0)} /s`

const circumstances = (results: Results): ReadonlyArray<string> => {
  const { broker, concurrency, delay, size } = results[0]!.spec
  return [
    broker,
    String(concurrency),
    size < 1024 ? `${size} B` : `${Math.round(size / 1024)} KB`,
    delay === 0 ? "nothing" : `${delay} ms`
  ]
}

const orDash = (estimate: Estimate | undefined): string => estimate === undefined ? "" : interval(estimate)

/** A line for each arm of a cell; `baseFor` names the arm that the others are compared with, `of` is its title. */
export const rates = (
  cells: ReadonlyArray<Results>,
  baseFor: (results: Results) => string = baseOf,
  of = "raw"
): string =>
  markdown(
    [
      "broker",
      "limit",
      "size",
      "handler",
      "arm",
      `of ${of} (95 %)`,
      "rate",
      "CPU µs",
      `CPU of ${of}`,
      "commands",
      "writes"
    ],
    cells.flatMap((results) =>
      armsOf(results).map((arm) => {
        const base = baseFor(results)
        const commands = medianOf(results, arm, ({ commands }) => commands ?? NaN)
        return [
          ...circumstances(results),
          nameOf(arm),
          orDash(rateRatio(results, arm, base)),
          thousands(medianOf(results, arm, ({ rate }) => rate)),
          medianOf(results, arm, ({ cpu }) => cpu).toFixed(2),
          orDash(cpuRatio(results, arm, base)),
          Number.isNaN(commands) ? "" : commands.toFixed(3),
          medianOf(results, arm, ({ writes }) => writes).toFixed(3)
        ]
      })
    )
  )

/** Latency tables, of open loops. */
export const latencies = (cells: ReadonlyArray<Results>): string =>
  markdown(
    ["broker", "load", "arm", "p50 of raw (95 %)", "p99 of raw (95 %)", "p50 ms", "p99 ms", "p99.9 ms", "CPU µs"],
    cells.flatMap((results) =>
      armsOf(results).map((arm) => [
        results[0]!.spec.broker,
        thousands(results[0]!.spec.rate!),
        nameOf(arm),
        orDash(paired(results, arm, "tuned", ({ latency }) => latency!.p50)),
        orDash(paired(results, arm, "tuned", ({ latency }) => latency!.p99)),
        medianOf(results, arm, ({ latency }) => latency!.p50).toFixed(2),
        medianOf(results, arm, ({ latency }) => latency!.p99).toFixed(2),
        medianOf(results, arm, ({ latency }) => latency!.p999).toFixed(2),
        medianOf(results, arm, ({ cpu }) => cpu).toFixed(2)
      ])
    )
  )
