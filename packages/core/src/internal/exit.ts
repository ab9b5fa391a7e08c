import type * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"

/** The result of an Effect that needs no fiber because it is an `Exit` already. */
export const exitOf = <A, E, R>(effect: Effect.Effect<A, E, R>): Exit.Exit<A, E> | undefined =>
  Exit.isExit(effect) ? effect as Exit.Exit<A, E> : undefined
