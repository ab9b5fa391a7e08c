import type { Estimate } from "./statistics.ts"

/** One line of the table of budgets. */
export interface Row {
  readonly what: string
  readonly side: "≥" | "≤"
  readonly bound: number
  readonly unit: string
  /** `undefined`: not measured in this run. */
  readonly estimate: Estimate | undefined
}

export type Verdict = "met" | "not met" | "unsure" | "not measured"

/** Met or not only where the whole interval is on one side. */
export const verdict = ({ bound, estimate, side }: Row): Verdict => {
  if (estimate === undefined) return "not measured"
  const { high, low } = estimate
  if (side === "≥" ? low >= bound : high <= bound) return "met"
  return (side === "≥" ? high < bound : low > bound) ? "not met" : "unsure"
}

export const atLeast = (what: string, bound: number, unit: string, estimate: Estimate | undefined): Row => ({
  what,
  side: "≥",
  bound,
  unit,
  estimate
})
export const atMost = (what: string, bound: number, unit: string, estimate: Estimate | undefined): Row => ({
  what,
  side: "≤",
  bound,
  unit,
  estimate
})
