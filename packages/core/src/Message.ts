/**
 * A delivery as a handler sees it.
 *
 * @since 0.1.0
 */
import type * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type { Headers } from "./internal/headers.ts"
import { inFlightOf } from "./internal/inFlight.ts"
import type * as Settlement from "./Settlement.ts"

export type { Headers } from "./internal/headers.ts"

/**
 * A decoded message.
 *
 * @category models
 * @since 0.1.0
 */
export interface Message<out A> {
  /** The decoded value, as the topic's codec gives it. */
  readonly value: A
  /** The broker's own id, unique within the topic; the same on each delivery. */
  readonly id: string
  /** The topic; for a source with wildcards, the subject the message was published on. */
  readonly topic: string
  /** The key that its publisher gave. */
  readonly key: string | undefined
  /** Headers by lower-case name. */
  readonly headers: Headers
  /** 1 for the first attempt; counted at the broker, so that the count survives the process. */
  readonly attempt: number
  /** Whether the message was delivered before, whether or not that counted as an attempt. */
  readonly redelivered: boolean
  /** When the message was stored. */
  readonly publishedAt: DateTime.Utc
  /** Aborts on timeout, on shutdown and when another consumer has taken the message over. Made when first read. */
  readonly signal: AbortSignal
}

/**
 * A message of a topic whose headers have a schema.
 *
 * @category models
 * @since 0.1.0
 */
export interface WithHeaders<out A, out H> extends Message<A> {
  /** The headers, as the topic's header schema gives them. */
  readonly typedHeaders: H
}

/**
 * Any message.
 *
 * @category models
 * @since 0.1.0
 */
export type Any = Message<unknown>

/**
 * Tells the messages that a pipeline gave to its handlers from other values. Never throws.
 *
 * @category guards
 * @since 0.1.0
 */
export const isMessage = (u: unknown): u is Any => {
  try {
    return typeof u === "object" && u !== null && inFlightOf(u as Any) !== undefined
  } catch {
    return false
  }
}

/**
 * Settles a message by hand and waits until the broker has been told.
 *
 * **Details**
 *
 * Gives `false` when the message was settled already or this consumer no longer owns it: the first settlement is final,
 * a second is a no-op. A handler that fails afterwards is counted, neither retried nor dead-lettered. Fails with
 * `SettleError` when its dead letter cannot be written, or when the pipeline stops before the broker has answered.
 *
 * @category settling
 * @since 0.1.0
 */
export const settle: {
  /**
   * Settles a message by hand and waits until the broker has been told.
   *
   * **Details**
   *
   * Gives `false` when the message was settled already or this consumer no longer owns it: the first settlement is final,
   * a second is a no-op. A handler that fails afterwards is counted, neither retried nor dead-lettered. Fails with
   * `SettleError` when its dead letter cannot be written, or when the pipeline stops before the broker has answered.
   */
  (
    settlement: Settlement.Settlement | Settlement.SettlementRequested
  ): (self: Any) => Effect.Effect<boolean, Settlement.SettleError>
  /**
   * Settles a message by hand and waits until the broker has been told.
   *
   * **Details**
   *
   * Gives `false` when the message was settled already or this consumer no longer owns it: the first settlement is final,
   * a second is a no-op. A handler that fails afterwards is counted, neither retried nor dead-lettered. Fails with
   * `SettleError` when its dead letter cannot be written, or when the pipeline stops before the broker has answered.
   */
  (
    self: Any,
    settlement: Settlement.Settlement | Settlement.SettlementRequested
  ): Effect.Effect<boolean, Settlement.SettleError>
} = dual(
  2,
  (
    self: Any,
    settlement: Settlement.Settlement | Settlement.SettlementRequested
  ): Effect.Effect<boolean, Settlement.SettleError> =>
    Effect.suspend(() => inFlightOf(self)?.settle(settlement) ?? Effect.succeed(false))
)
