/**
 * Stopping a process by signals.
 *
 * Core installs no signal handler. `NodeRuntime.runMain` interrupts the program on the first SIGINT or SIGTERM, which
 * drains its pipelines, and exits with code 130 after a clean drain.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"

/**
 * Makes a second SIGINT or SIGTERM exit at once, with code 1, when the first one takes too long: unsettled messages then
 * is redelivered by the broker, as after a crash.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerExitOnSecond: Layer.Layer<never> = Layer.effectDiscard(
  Effect.acquireRelease(
    Effect.sync(() => {
      let signals = 0
      const onSignal = () => {
        if (++signals === 2) process.exit(1)
      }
      for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, onSignal)
      return onSignal
    }),
    (onSignal) =>
      Effect.sync(() => {
        for (const signal of ["SIGINT", "SIGTERM"] as const) process.off(signal, onSignal)
      })
  )
)
