import { durationOf } from "@millrace/core/TransportAuthor"
import { invalidOption } from "@millrace/core/TransportError"
import type * as Duration from "effect/Duration"

/** Reads a duration. Throws for one that is none: as zero, it would decide whether the test passes. */
export const durationFrom = (option: string, input: Duration.Input): Duration.Duration => {
  const { duration, invalid } = durationOf(option, input)
  if (invalid !== undefined) throw invalidOption("testing", option, input, invalid.remedy)
  return duration
}

/** Reads a number. Throws for one that is out of its bounds: with it, a test would look at nothing. */
export const numberFrom = (option: string, n: number, is: (n: number) => boolean, remedy: string): number => {
  if (typeof n !== "number" || !is(n)) throw invalidOption("testing", option, n, remedy)
  return n
}

/** Reads a whole number of at least `least`. */
export const countFrom = (option: string, n: number, least: number): number =>
  numberFrom(option, n, (n) => Number.isInteger(n) && n >= least, `give a whole number of at least ${least}`)

/** Reads a whole number of at least 1, or `Infinity` for no bound. */
export const boundFrom = (option: string, n: number): number => n === Infinity ? n : countFrom(option, n, 1)
