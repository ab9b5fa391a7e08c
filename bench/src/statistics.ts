export const median = (values: ReadonlyArray<number>): number => {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

/** Of sorted values. */
export const percentile = (sorted: ArrayLike<number>, share: number): number =>
  sorted[Math.min(sorted.length - 1, Math.ceil(sorted.length * share) - 1)]!

/** A value with its 95 % interval. */
export interface Estimate {
  readonly value: number
  readonly low: number
  readonly high: number
}

/** Student's t at 97.5 %, by degrees of freedom from 1. */
const students = [
  [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228],
  [2.201, 2.179, 2.16, 2.145, 2.131, 2.12, 2.11, 2.101, 2.093, 2.086],
  [2.08, 2.074, 2.069, 2.064, 2.06, 2.056, 2.052, 2.048, 2.045, 2.042]
].flat()

/**
 * The geometric mean of positive values, with its 95 % interval by Student's t over their logarithms. One value alone
 * has an interval without bounds.
 */
export const estimate = (values: ReadonlyArray<number>): Estimate => {
  const logs = values.map(Math.log)
  const mean = logs.reduce((sum, log) => sum + log, 0) / logs.length
  const freedom = logs.length - 1
  if (freedom === 0) return { value: Math.exp(mean), low: 0, high: Infinity }
  const variance = logs.reduce((sum, log) => sum + (log - mean) ** 2, 0) / freedom
  const half = (students[freedom - 1] ?? 1.96) * Math.sqrt(variance / logs.length)
  return { value: Math.exp(mean), low: Math.exp(mean - half), high: Math.exp(mean + half) }
}

/** A count: it has no spread. */
export const exactly = (value: number): Estimate => ({ value, low: value, high: value })
