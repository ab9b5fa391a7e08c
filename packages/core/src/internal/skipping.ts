import type * as Effect from "effect/Effect"
import type * as Message from "../Message.ts"
import type { InFlight } from "./inFlight.ts"

/**
 * A middleware in two parts, so that a message that it leaves alone costs no closure and no Effect: whether it does, and
 * what it does otherwise.
 */
export interface Skipping {
  readonly skips: (received: InFlight) => boolean
  readonly wrap: (handler: Effect.Effect<unknown, unknown>, message: Message.Any) => Effect.Effect<unknown, unknown>
}

const Parts = Symbol.for("@millrace/core/Skipping")

/** The middleware with its parts, for the engine; whoever else calls it needs not know them. */
export const skipping = <F extends object>(middleware: F, parts: Skipping): F =>
  Object.defineProperty(middleware, Parts, { value: parts })

export const skippingOf = (middleware: object): Skipping | undefined =>
  Parts in middleware ? middleware[Parts] as Skipping : undefined
