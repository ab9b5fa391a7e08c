import type * as Effect from "effect/Effect"
import type * as Message from "../Message.ts"
import type * as Settlement from "../Settlement.ts"

/** The engine's side of a message. */
export const InFlight = Symbol.for("@millrace/core/InFlight")

export interface InFlight extends Message.Received {
  /** The topic that the pipeline declares: with wildcards, not the subject of the message. */
  readonly source: string
  /** The name of this consumer at the broker. */
  readonly clientId: string | undefined
  /** The message was decided to have no span: its handlers' spans and publishes have none either. */
  isUnsampled: boolean
  readonly settle: (settlement: Settlement.Settlement) => Effect.Effect<boolean, Settlement.SettleError>
}

export const inFlightOf = (message: Message.Any): InFlight | undefined =>
  InFlight in message ? message[InFlight] as InFlight : undefined
