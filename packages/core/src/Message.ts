/**
 * What a handler sees of one delivery.
 *
 * @since 0.1.0
 */
import type * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import { inFlightOf } from "./internal/inFlight.ts"
import type * as Settlement from "./Settlement.ts"
import type * as Transport from "./Transport.ts"

/**
 * Headers of a message; names are lower-case. `content-type`, `traceparent` and `millrace-*` are reserved.
 *
 * @category models
 * @since 0.1.0
 */
export interface Headers {
  readonly [name: string]: string
}

/**
 * A decoded message.
 *
 * - `id`: the broker's own id, unique within the topic
 * - `attempt`: 1 for the first; counted at the broker, so it survives the process
 * - `redelivered`: it was delivered before, whether or not that counted as an attempt
 * - `signal`: made when first read; aborts on timeout, shutdown and lost ownership
 *
 * @category models
 * @since 0.1.0
 */
export interface Message<out A> {
  readonly value: A
  readonly id: string
  readonly topic: string
  readonly key: string | undefined
  readonly headers: Headers
  readonly attempt: number
  readonly redelivered: boolean
  readonly publishedAt: DateTime.Utc
  readonly signal: AbortSignal
}

/**
 * A message of a topic whose headers have a schema.
 *
 * @category models
 * @since 0.1.0
 */
export interface WithHeaders<out A, out H> extends Message<A> {
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
 * Settles a message by hand and waits until the broker has been told.
 *
 * **Details**
 *
 * Gives `false` when the message was settled already or this consumer no longer owns it: the first settlement is final,
 * a second is a no-op. A handler that fails afterwards is counted, neither retried nor dead-lettered.
 *
 * @category settling
 * @since 0.1.0
 */
export const settle: {
  (
    settlement: Settlement.Settlement | Settlement.SettlementRequested
  ): (self: Any) => Effect.Effect<boolean, Settlement.SettleError>
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
    Effect.suspend(() =>
      inFlightOf(self)?.settle(settlement._tag === "SettlementRequested" ? settlement.settlement : settlement) ??
        Effect.succeed(false)
    )
)

/**
 * The delivery behind a message, for authors of transports: what a broker-only operation needs.
 *
 * @category models
 * @since 0.1.0
 */
export interface Received {
  readonly delivery: Transport.Delivery
  readonly group: string
  /** The transport the delivery came from: an operation of another one must refuse it. */
  readonly transport: Transport.Transport["Service"]
  /** Settles it as far as the pipeline is concerned: `false` when it was settled before. */
  readonly claim: () => boolean
  /** Takes `claim` back when the operation failed, so that the pipeline's policies decide. */
  readonly unclaim: () => void
}

/**
 * Gives the delivery behind a message; `undefined` for a message that no engine made (a test's own).
 *
 * @category accessors
 * @since 0.1.0
 */
export const received = (self: Any): Received | undefined => inFlightOf(self)
