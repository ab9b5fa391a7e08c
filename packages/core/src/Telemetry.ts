/**
 * Seeing what becomes of messages.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import type * as Message from "./Message.ts"
import type * as Transport from "./Transport.ts"

/**
 * What became of one attempt at one message.
 *
 * - `Handled`: `value` is what the last step gave
 * - `Filtered`: a filter, or the group it was redriven for, said it is not for this pipeline
 * - `Retried`: it comes again after `delay` milliseconds
 * - `DeadLettered`, `Discarded`: it will not be tried again
 * - `Released`: handed back without counting, by drain
 * - `Lost`: another consumer has it
 * - `FailedAfterSettle`: it failed when it had been settled by hand
 *
 * @category models
 * @since 0.1.0
 */
export type Outcome = {
  readonly pipeline: string
  readonly delivery: Transport.Delivery
  /** `undefined` when the message could not be decoded or was never begun. */
  readonly message: Message.Any | undefined
} & OutcomeKind

/**
 * The kinds of {@link Outcome}.
 *
 * @category models
 * @since 0.1.0
 */
export type OutcomeKind =
  | { readonly _tag: "Handled"; readonly value: unknown }
  | { readonly _tag: "Filtered" | "Released" | "Lost" }
  | { readonly _tag: "Retried"; readonly delay: number; readonly cause: Cause.Cause<unknown> }
  | { readonly _tag: "DeadLettered" | "Discarded" | "FailedAfterSettle"; readonly cause: Cause.Cause<unknown> }

/**
 * Called with every outcome of the pipelines started under it, synchronously: keep it cheap. Default: none.
 *
 * @category references
 * @since 0.1.0
 */
export const Observer = Context.Reference<((outcome: Outcome) => void) | undefined>(
  "@millrace/core/Telemetry/Observer",
  { defaultValue: () => undefined }
)
