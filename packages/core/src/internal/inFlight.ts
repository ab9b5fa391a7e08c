import type * as Effect from "effect/Effect"
import type * as Settlement from "../Settlement.ts"
import type * as Transport from "../Transport.ts"

/**
 * The delivery behind a message: what a broker-only operation needs.
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
  /** The operation has settled it: a message that waits for the user to settle it waits no more. */
  readonly settled: () => void
}

/** The engine's side of a message. */
export const InFlight = Symbol.for("@millrace/core/InFlight")

export interface InFlight extends Received {
  /** The topic that the pipeline declares: with wildcards, not the subject of the message. */
  readonly source: string
  /** The name of this consumer at the broker. */
  readonly clientId: string | undefined
  /** Decides that the message has no span: its handlers' spans and publishes have none either. */
  readonly unsample: () => void
  readonly settle: (
    settlement: Settlement.Settlement | Settlement.SettlementRequested
  ) => Effect.Effect<boolean, Settlement.SettleError>
}

export const inFlightOf = (message: object): InFlight | undefined =>
  InFlight in message ? message[InFlight] as InFlight : undefined
