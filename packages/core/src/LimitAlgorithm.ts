/**
 * How a limit of handlers follows their latency and errors. Algorithms only compute;
 * `Concurrency.makeAdaptive` measures and enforces.
 *
 * All of them treat errors, timeouts and a late event loop as a drop, never grow a limit that is not used, and stay
 * within `min` and `max`: a limit that ignores one of these runs away.
 *
 * @since 0.1.0
 */

import * as Duration from "effect/Duration"
import type { Hints } from "./internal/hint.ts"
import { durationOf, invalidNumber, keepInvalid, unknownOption } from "./internal/invalid.ts"

/**
 * Latency and errors of the handlers in one window of time.
 *
 * @category models
 * @since 0.1.0
 */
export interface Window {
  /** The mean latency of the handlers that succeeded, in milliseconds; `undefined` when none did. */
  readonly latency: number | undefined
  /** The most handlers that ran at once. */
  readonly inFlight: number
  /** Whether too many handlers failed or timed out, or the event loop was late. */
  readonly dropped: boolean
}

/**
 * Computes the next limit from the present one. An instance has memory and belongs to one limit.
 *
 * @category models
 * @since 0.1.0
 */
export interface LimitAlgorithm {
  /** The limit after `window`; the caller bounds it. */
  readonly next: (limit: number, window: Window) => number
}

/**
 * Options of {@link aimd}.
 *
 * @category models
 * @since 0.1.0
 */
export interface AimdOptions {
  /** The part of the limit that a drop leaves. Default 0.9. */
  readonly backoff?: number | undefined
  /** A window with a higher mean latency is a drop. Default: no such bound. */
  readonly latency?: Duration.Input | Hints["duration"] | undefined
}

/**
 * Additive increase, multiplicative decrease: the limit grows by one for each window in which it was used (by half until
 * the first drop), and falls to `backoff` of itself on a drop.
 *
 * **When to use**
 *
 * Use when the downstream refuses or times out under overload, or when you know the latency you will not exceed.
 *
 * @category constructors
 * @since 0.1.0
 */
export const aimd = (options?: AimdOptions): LimitAlgorithm => {
  const backoff = options?.backoff ?? 0.9
  const bound = durationOf("aimd.latency", options?.latency ?? Duration.infinity)
  const latency = Duration.toMillis(bound.duration)
  let slowStart = true
  return keepInvalid(
    {
      next(limit: number, window: Window) {
        if (window.dropped || (window.latency ?? 0) > latency) {
          slowStart = false
          return Math.floor(limit * backoff)
        }
        if (window.inFlight * 2 < limit) return limit
        return slowStart ? limit + Math.ceil(limit / 2) : limit + 1
      }
    },
    (options === undefined ? undefined : unknownOption("aimd", options, ["backoff", "latency"])) ?? bound.invalid ??
      invalidNumber("aimd.backoff", backoff, 0, 1, "give a part of the limit, from 0 to 1")
  )
}

/**
 * Options of {@link gradient}.
 *
 * @category models
 * @since 0.1.0
 */
export interface GradientOptions {
  /** How far the latency may rise, as a multiple of the base, before the limit falls. Default 1.5. */
  readonly tolerance?: number | undefined
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
 * The base is the least latency seen, so that the base does not rise with a queue that we make ourselves. When latency
 * stays although the limit was cut, the queue was not ours: the base follows the latency. In each window the limit may
 * grow by the square root of itself.
 *
 * @category constructors
 * @since 0.1.0
 */
export const gradient = (options?: GradientOptions): LimitAlgorithm => {
  const tolerance = options?.tolerance ?? 1.5
  let base: number | undefined
  let cuts: { readonly limit: number; readonly latency: number } | undefined
  return keepInvalid(
    {
      next(limit: number, { dropped, inFlight, latency }: Window) {
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
    },
    (options === undefined ? undefined : unknownOption("gradient", options, ["tolerance"])) ??
      invalidNumber("gradient.tolerance", tolerance, 1, Number.MAX_VALUE, "give a multiple of the base, 1 or more")
  )
}
