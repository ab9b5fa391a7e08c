import type * as Effect from "effect/Effect"
import type * as Concurrency from "../Concurrency.ts"
import type * as Transport from "../Transport.ts"
import type { TransportError } from "../TransportError.ts"

/**
 * Counts of the messages of a running pipeline since it started.
 *
 * @category models
 * @since 0.1.0
 */
export interface Counts {
  readonly handled: number
  readonly filtered: number
  readonly retried: number
  readonly deadLettered: number
  readonly discarded: number
  readonly released: number
  /** Failed after its handler had settled it: neither retried nor dead-lettered. */
  readonly failedAfterSettle: number
  /** Taken over by another consumer before it was settled here. */
  readonly lost: number
  /** Deleted by the broker (a bound, an operator, eviction) before they were settled. */
  readonly vanished: number
  /** Settlements that had to be sent again. */
  readonly resettled: number
  /** With `manual`: not settled in time. */
  readonly unsettled: number
}

/**
 * Whether a running pipeline consumes messages: its transport's health, or `paused` (by `pause` or by a handler),
 * `draining`, `stopped`. What ended a pipeline stays its reason.
 *
 * @category models
 * @since 0.1.0
 */
export interface Health {
  readonly state: Transport.Health["state"] | "paused" | "draining" | "stopped"
  /** Milliseconds since the epoch. */
  readonly since: number
  readonly reason?: string | undefined
}

/**
 * A pipeline that runs.
 *
 * @category models
 * @since 0.1.0
 */
export interface Running {
  readonly name: string
  readonly topic: string
  readonly group: string
  /** Stops taking messages; messages that were taken are finished. */
  readonly pause: Effect.Effect<void>
  readonly resume: Effect.Effect<void>
  /** Whether messages can be consumed now, since when, and why not. */
  readonly health: Effect.Effect<Health>
  /** The bound of this pipeline's handlers; resize it while it runs. */
  readonly limit: Concurrency.Limit
  /** Messages held by this process: waiting for a slot, and running. */
  readonly owned: Effect.Effect<{ readonly waiting: number; readonly running: number }>
  readonly counts: Effect.Effect<Counts>
  /** Ends only when the pipeline can no longer run. */
  readonly await: Effect.Effect<never, TransportError>
}
