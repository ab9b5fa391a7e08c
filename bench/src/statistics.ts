export const median = (values: ReadonlyArray<number>): number => {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

/** Of sorted values. */
export const percentile = (sorted: ArrayLike<number>, share: number): number =>
  sorted[Math.min(sorted.length - 1, Math.ceil(sorted.length * share) - 1)]!

/** A median with the interval that 95 % of resamplings fall into. */
export interface Estimate {
  readonly median: number
  readonly low: number
  readonly high: number
  readonly rounds: number
}

const resamplings = 2000

export const estimate = (values: ReadonlyArray<number>): Estimate => {
  // The same numbers give the same interval.
  let state = 1
  const random = () => (state = (state * 48271) % 2147483647) / 2147483647
  const medians = Array.from(
    { length: resamplings },
    () => median(values.map(() => values[Math.floor(random() * values.length)]!))
  ).sort((a, b) => a - b)
  return {
    median: median(values),
    low: percentile(medians, 0.025),
    high: percentile(medians, 0.975),
    rounds: values.length
  }
}
