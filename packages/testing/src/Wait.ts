/**
 * Waits for conditions in tests, so that no test depends on how fast its machine is.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as TestClock from "effect/testing/TestClock"
import { durationFrom } from "./internal/options.ts"

/**
 * Lets everything run that needs no time: eighty turns of the event loop.
 *
 * @category waiting
 * @since 0.1.0
 */
export const turns: Effect.Effect<void> = Effect.callback<void>((resume) => {
  let left = 80
  const turn = () => left-- > 0 ? void (next = setImmediate(turn)) : resume(Effect.void)
  let next = setImmediate(turn)
  return Effect.sync(() => clearImmediate(next))
})

/**
 * Lets a little time pass. Under `TestClock`: its time, and all that follows from it.
 *
 * @category waiting
 * @since 0.1.0
 */
export const tick: Effect.Effect<void> = Clock.clockWith((clock) =>
  "adjust" in clock ? Effect.andThen(TestClock.adjust(10), turns) : Effect.sleep(5)
)

/**
 * Lets time pass, in small steps: a settlement waits for turns of the loop, and a slot for the settlement before it.
 *
 * @category waiting
 * @since 0.1.0
 */
export const pass = (duration: Duration.Input): Effect.Effect<void> =>
  Effect.gen(function*() {
    const end = (yield* Clock.currentTimeMillis) + Duration.toMillis(durationFrom("duration", duration))
    while ((yield* Clock.currentTimeMillis) < end) yield* tick
  })

/** Nothing of a machine's speed is in `TestClock`; in real time a busy machine may need a while. */
const defaultWithin = Clock.clockWith((clock) => Effect.succeed<Duration.Input>("adjust" in clock ? 20_000 : 60_000))

/**
 * Asks again until the answer is right, and returns it; dies with the last answer when that takes longer than `within`
 * (default a minute, and 20 seconds of `TestClock`), which bounds a test that fails and asserts no speed.
 *
 * @category waiting
 * @since 0.1.0
 */
export const eventually = <A, E, R>(
  what: string,
  question: Effect.Effect<A, E, R>,
  isRight: (answer: A) => boolean,
  within?: Duration.Input
): Effect.Effect<A, E, R> =>
  Effect.gen(function*() {
    const duration = durationFrom("within", within ?? (yield* defaultWithin))
    const deadline = (yield* Clock.currentTimeMillis) + Duration.toMillis(duration)
    for (;;) {
      const answer = yield* question
      if (isRight(answer)) return answer
      if ((yield* Clock.currentTimeMillis) > deadline) {
        return yield* Effect.die(new Error(`did not come to pass: ${what}; last answer: ${JSON.stringify(answer)}`))
      }
      yield* tick
    }
  })

/**
 * Waits until a condition holds, a function or an Effect: see {@link eventually}.
 *
 * @category waiting
 * @since 0.1.0
 */
export const until = <E = never, R = never>(
  what: string,
  condition: (() => boolean) | Effect.Effect<boolean, E, R>,
  within?: Duration.Input
): Effect.Effect<void, E, R> =>
  Effect.asVoid(
    eventually(what, Effect.isEffect(condition) ? condition : Effect.sync(condition), (holds) => holds, within)
  )
