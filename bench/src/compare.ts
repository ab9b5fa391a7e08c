import type { Result } from "./rounds.ts"
import type { Measured } from "./spec.ts"
import { type Estimate, estimate, median } from "./statistics.ts"

/** One arm against the raw loop of the same rounds. */
export interface Row {
  readonly arm: string
  /** Of the raw loop's rate. */
  readonly ratio: Estimate
  readonly rate: number
  readonly cpu: number
  /** Of the raw loop's: steadier than rates where others use the machine. */
  readonly cpuRatio: Estimate
  readonly commands: number | undefined
  readonly writes: number
  readonly rss: number
  readonly latency: { readonly p50: number; readonly p99: number; readonly p999: number } | undefined
  /** Of the raw loop's p99. */
  readonly p99Ratio: Estimate | undefined
}

/** What the pairs of one round give; a median of medians would mix rounds that had different neighbours. */
const paired = (
  results: ReadonlyArray<Result>,
  arm: string,
  base: string,
  of: (measured: Measured) => number
): Estimate => {
  const rounds = new Map(
    results.filter(({ spec }) => spec.arm === base).map(({ measured, round }) => [round, of(measured)])
  )
  return estimate(
    results.flatMap(({ measured, round, spec }) =>
      spec.arm === arm && rounds.has(round) ? [of(measured) / rounds.get(round)!] : []
    )
  )
}

export const medianOf = (
  results: ReadonlyArray<Result>,
  arm: string,
  of: (measured: Measured) => number
): number => median(results.flatMap(({ measured, spec }) => spec.arm === arm ? [of(measured)] : []))

export const ratio = (results: ReadonlyArray<Result>, arm: string, base: string): Estimate =>
  paired(results, arm, base, ({ rate }) => rate)

export const cpuRatio = (results: ReadonlyArray<Result>, arm: string, base: string): Estimate =>
  paired(results, arm, base, ({ cpu }) => cpu)

export const p99Ratio = (results: ReadonlyArray<Result>, arm: string, base: string): Estimate =>
  paired(results, arm, base, ({ latency }) => latency!.p99)

/** The fastest of the raw loops is what is compared with. */
export const baseOf = (results: ReadonlyArray<Result>): string => {
  const raw = ["tuned", "callback"].filter((arm) => results.some(({ spec }) => spec.arm === arm))
  return raw.reduce((best, arm) =>
    medianOf(results, arm, ({ rate }) => rate) > medianOf(results, best, ({ rate }) => rate) ? arm : best
  )
}

export const rows = (results: ReadonlyArray<Result>): ReadonlyArray<Row> => {
  const base = baseOf(results)
  const isOpen = results[0]!.measured.latency !== undefined
  return [...new Set(results.map(({ spec }) => spec.arm))].map((arm): Row => {
    const of = (f: (measured: Measured) => number) => medianOf(results, arm, f)
    return {
      arm,
      ratio: ratio(results, arm, base),
      rate: of(({ rate }) => rate),
      cpu: of(({ cpu }) => cpu),
      cpuRatio: cpuRatio(results, arm, base),
      commands: results[0]!.measured.commands === undefined ? undefined : of(({ commands }) => commands ?? NaN),
      writes: of(({ writes }) => writes),
      rss: of(({ rss }) => rss),
      latency: isOpen
        ? {
          p50: of(({ latency }) => latency!.p50),
          p99: of(({ latency }) => latency!.p99),
          p999: of(({ latency }) => latency!.p999)
        }
        : undefined,
      p99Ratio: isOpen ? p99Ratio(results, arm, base) : undefined
    }
  })
}
