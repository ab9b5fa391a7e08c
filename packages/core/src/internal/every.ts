import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"

/**
 * Runs `effect` once in each interval, never twice at a time, until the returned function is called. In real time the
 * timer does not keep the process alive: what only looks on must not.
 */
export const every = (
  clock: Clock.Clock,
  run: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>,
  interval: Duration.Duration,
  effect: Effect.Effect<void>
): () => void => {
  let fiber: Fiber.Fiber<void> | undefined
  if (clock !== Context.get(Context.empty(), Clock.Clock)) {
    fiber = run(Effect.forever(Effect.delay(effect, interval)))
    return () => fiber!.interruptUnsafe()
  }
  const timer = setInterval(() => {
    if (fiber !== undefined) return
    fiber = run(effect)
    fiber.addObserver(() => {
      fiber = undefined
    })
  }, Math.min(Duration.toMillis(interval), longest))
  timer.unref()
  return () => {
    clearInterval(timer)
    fiber?.interruptUnsafe()
  }
}

/** Node takes a longer one for a millisecond. */
const longest = 2 ** 31 - 1
