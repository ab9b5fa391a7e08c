/**
 * How a limit of handlers follows what the handlers experience. Algorithms only compute; `Concurrency.adaptive` measures
 * and enforces.
 *
 * All of them treat errors, timeouts and a late event loop as a drop, never grow a limit that is not used, and stay
 * within `min` and `max`: a limit that ignores one of these runs away.
 *
 * @since 0.1.0
 */

/**
 * What handlers experienced in one window of time.
 *
 * - `latency`: the mean of those that succeeded, in milliseconds; `undefined` when none did
 * - `inFlight`: the most that ran at once
 * - `dropped`: too many failed or timed out, or the event loop was late
 *
 * @category models
 * @since 0.1.0
 */
export interface Window {
  readonly latency: number | undefined
  readonly inFlight: number
  readonly dropped: boolean
}

/**
 * Computes the next limit from the present one. An instance has memory and belongs to one limit.
 *
 * @category models
 * @since 0.1.0
 */
export interface LimitAlgorithm {
  readonly next: (limit: number, window: Window) => number
}

/**
 * Additive increase, multiplicative decrease: grows by one for each window in which the limit was used (by half until the first drop), and falls to
 * `backoff` of itself (default 0.9) on a drop, or when a window took longer than `latency` milliseconds (default: no such
 * bound).
 *
 * **When to use**
 *
 * Use when the downstream refuses or times out under overload, or when you know the latency you will not exceed.
 *
 * @category constructors
 * @since 0.1.0
 */
export const aimd = (options?: {
  readonly backoff?: number | undefined
  readonly latency?: number | undefined
}): LimitAlgorithm => {
  const backoff = options?.backoff ?? 0.9
  const latency = options?.latency ?? Infinity
  let slowStart = true
  return {
    next(limit, window) {
      if (window.dropped || (window.latency ?? 0) > latency) {
        slowStart = false
        return Math.floor(limit * backoff)
      }
      if (window.inFlight * 2 < limit) return limit
      return slowStart ? limit + Math.ceil(limit / 2) : limit + 1
    }
  }
}

/**
 * Compares latency now with latency without a queue, and shrinks in proportion as a queue builds up.
 *
 * **When to use**
 *
 * Use when the downstream only becomes slower under overload and says nothing.
 *
 * **Details**
 *
 * The base is the least latency seen, so that it does not creep up with a queue that we make ourselves. When latency
 * stays although the limit was cut, it was not our queue: the base follows it. Latency may rise to `tolerance`
 * (default 1.5) times the base before the limit falls. In each window it may grow by the square root of itself.
 *
 * @category constructors
 * @since 0.1.0
 */
export const gradient = (options?: { readonly tolerance?: number | undefined }): LimitAlgorithm => {
  const tolerance = options?.tolerance ?? 1.5
  let base: number | undefined
  let cuts: { readonly limit: number; readonly latency: number } | undefined
  return {
    next(limit, { dropped, inFlight, latency }) {
      if (dropped) return Math.floor(limit * 0.9)
      if (latency === undefined) return limit
      base = base === undefined ? latency : Math.min(latency, base)
      if (latency > tolerance * base) {
        cuts ??= { limit, latency }
        // A queue of ours would have shrunk with the limit. Half-way between that and nothing decides.
        const cut = limit / cuts.limit
        if (cut > 0.7 || latency < cuts.latency * (1 + cut) / 2) {
          return Math.floor(limit * Math.max(0.5, tolerance * base / latency))
        }
        base = latency
      }
      cuts = undefined
      return inFlight * 2 >= limit ? limit + Math.max(1, Math.floor(Math.sqrt(limit))) : limit
    }
  }
}
