/**
 * What the demo shows while it runs.
 */
import type { Pipeline } from "@millrace/core"
import { styleText } from "node:util"
import { bar, percent, settled, type View } from "../progress.ts"

export const count = (n: number): string => Math.round(n).toLocaleString("en-US")

/** Makes the function that turns counts into a view; it remembers how fast things went. */
export const make = (total: number) => {
  const rates: Array<number> = []
  let last = { at: 0, settled: 0 }
  return (counts: Pipeline.Counts, inFlight: number, elapsed: number): View => {
    const done = settled(counts)
    if (elapsed - last.at >= 200) {
      rates.push((done - last.settled) * 1000 / (elapsed - last.at))
      last = { at: elapsed, settled: done }
    }
    const row = (color: "green" | "yellow" | "red" | "cyan", name: string, n: number) =>
      `  ${name.padEnd(14)}${count(n).padStart(7)}  ${styleText(color, bar(n / total, 40).replaceAll("░", ""))}`
    return {
      lines: [
        `  ${bar(done / total, 50)} ${percent(done / total)}`,
        "",
        row("green", "handled", counts.handled),
        row("yellow", "retried", counts.retried),
        row("red", "dead-lettered", counts.deadLettered),
        row("cyan", "in flight", inFlight),
        `  per second    ${count(rates.at(-1) ?? 0).padStart(7)}  ${styleText("dim", sparkline(rates.slice(-40)))}`
      ],
      plain: `${count(counts.handled)} handled, ${count(counts.retried)} retried, ` +
        `${count(counts.deadLettered)} dead-lettered`
    }
  }
}

const sparkline = (values: ReadonlyArray<number>): string => {
  const most = Math.max(...values, 1)
  return values.map((value) => "▁▂▃▄▅▆▇█"[Math.min(7, Math.floor(value / most * 8))]).join("")
}
