import type { Measured, Spec } from "./spec.ts"
import { type Estimate, estimate, median } from "./statistics.ts"

/** One pass of one arm. */
export interface Result {
  readonly spec: Spec
  /** Passes of one round were measured after one another. */
  readonly round: number
  readonly measured: Measured
}

export type Results = ReadonlyArray<Result>

/** Ratios of the passes of one round: a ratio of means would mix rounds that had different neighbours. */
export const paired = (
  results: Results,
  arm: string,
  base: string,
  of: (measured: Measured) => number
): Estimate | undefined => {
  const rounds = new Map(
    results.filter(({ spec }) => spec.arm === base).map(({ measured, round }) => [round, of(measured)])
  )
  const ratios = results.flatMap(({ measured, round, spec }) =>
    spec.arm === arm && rounds.has(round) ? [of(measured) / rounds.get(round)!] : []
  )
  return ratios.length === 0 ? undefined : estimate(ratios)
}

export const rateRatio = (results: Results, arm: string, base: string): Estimate | undefined =>
  paired(results, arm, base, ({ rate }) => rate)

export const cpuRatio = (results: Results, arm: string, base: string): Estimate | undefined =>
  paired(results, arm, base, ({ cpu }) => cpu)

export const valuesOf = (results: Results, arm: string, of: (measured: Measured) => number): ReadonlyArray<number> =>
  results.flatMap(({ measured, spec }) => spec.arm === arm ? [of(measured)] : [])

export const medianOf = (results: Results, arm: string, of: (measured: Measured) => number): number =>
  median(valuesOf(results, arm, of))

/** The loops that are compared with, fastest first where there are several. */
const raw = ["tuned", "callback", "publish"]

/** The fastest of the raw loops. */
export const baseOf = (results: Results): string => {
  const found = raw.filter((arm) => results.some(({ spec }) => spec.arm === arm))
  return found.reduce((best, arm) =>
    medianOf(results, arm, ({ rate }) => rate) > medianOf(results, best, ({ rate }) => rate) ? arm : best
  )
}

export const armsOf = (results: Results): ReadonlyArray<string> => [...new Set(results.map(({ spec }) => spec.arm))]
