import * as Effect from "effect/Effect"
import * as References from "effect/References"
import { Logs } from "../Telemetry.ts"

/**
 * Runs an Effect, and the fibers that it forks, without log lines where the lines of pipelines are off
 * (`Telemetry.Logs`). Transports wrap the making of their service in it.
 *
 * @category logging
 * @since 0.1.0
 */
export const quietly = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.flatMap(
    Logs,
    (logs) => logs === false ? Effect.provideService(effect, References.MinimumLogLevel, "None") : effect
  )

/** Runs an Effect that only logs, unless the log lines of pipelines are off: then the Effect does not run. */
export const unlessQuiet = (effect: Effect.Effect<void>): Effect.Effect<void> =>
  Effect.flatMap(Logs, (logs) => logs === false ? Effect.void : effect)
