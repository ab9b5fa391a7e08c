import type { Row } from "./compare.ts"
import * as compare from "./compare.ts"
import type { Result } from "./rounds.ts"
import type { Estimate } from "./statistics.ts"

export const markdown = (head: ReadonlyArray<string>, body: ReadonlyArray<ReadonlyArray<string>>): string => {
  const widths = head.map((cell, i) => Math.max(3, cell.length, ...body.map((row) => row[i]!.length)))
  const line = (row: ReadonlyArray<string>) => `| ${row.map((cell, i) => cell.padEnd(widths[i]!)).join(" | ")} |`
  return [line(head), `| ${widths.map((width) => "-".repeat(width)).join(" | ")} |`, ...body.map(line)].join("\n")
}

export const interval = (estimate: Estimate): string =>
  `${estimate.median.toFixed(2)} (${estimate.low.toFixed(2)} – ${estimate.high.toFixed(2)})`

const names: Record<string, string> = {
  tuned: "raw, tuned",
  callback: "raw, client's callback",
  naive: "raw, naive",
  bare: "Millrace, failures discarded",
  plain: "Millrace, function",
  promise: "Millrace, promise",
  effect: "Millrace, Effect",
  armed: "+ retry and dead letters",
  metered: "+ metrics",
  traced: "+ metrics and spans",
  timed: "+ timeout",
  keyed: "+ by key",
  failing: "+ 1 % fail once",
  bullmq: "BullMQ"
}

export const nameOf = (arm: string): string => names[arm] ?? arm

const thousands = (rate: number): string =>
  rate >= 10_000
    ? `${(rate / 1000).toFixed(0)} k/s`
    : rate >= 1000
    ? `${(rate / 1000).toFixed(1)} k/s`
    : `${rate.toFixed(0)} /s`

const circumstances = ({ spec }: Result): ReadonlyArray<string> => [
  spec.broker,
  String(spec.concurrency),
  spec.size < 1024 ? `${spec.size} B` : `${Math.round(spec.size / 1024)} KB`,
  spec.delay === 0 ? "nothing" : `${spec.delay} ms`
]

/** Rate tables: one line an arm of a cell. */
export const rates = (cells: ReadonlyArray<ReadonlyArray<Result>>): string =>
  markdown(
    [
      "broker",
      "limit",
      "size",
      "handler",
      "arm",
      "of raw (95 %)",
      "rate",
      "CPU µs",
      "CPU of raw",
      "commands",
      "writes",
      "RSS MB"
    ],
    cells.flatMap((results) =>
      compare.rows(results).map((row) => [
        ...circumstances(results[0]!),
        nameOf(row.arm),
        interval(row.ratio),
        thousands(row.rate),
        row.cpu.toFixed(2),
        row.cpuRatio.median.toFixed(2),
        row.commands === undefined ? "" : row.commands.toFixed(3),
        row.writes.toFixed(3),
        (row.rss / 1e6).toFixed(0)
      ])
    )
  )

/** Latency tables, of open loops. */
export const latencies = (
  cells: ReadonlyArray<{ readonly share: number; readonly results: ReadonlyArray<Result> }>
): string =>
  markdown(
    ["broker", "load", "arm", "p99 of raw (95 %)", "p50 ms", "p99 ms", "p99.9 ms", "CPU µs"],
    cells.flatMap(({ results, share }) =>
      compare.rows(results).map((row: Row) => [
        results[0]!.spec.broker,
        `${Math.round(share * 100)} %, ${thousands(results[0]!.spec.rate!)}`,
        nameOf(row.arm),
        interval(row.p99Ratio!),
        row.latency!.p50.toFixed(2),
        row.latency!.p99.toFixed(2),
        row.latency!.p999.toFixed(2),
        row.cpu.toFixed(2)
      ])
    )
  )
