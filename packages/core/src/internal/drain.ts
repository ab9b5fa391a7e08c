import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { Engine } from "./engine.ts"

/**
 * How a pipeline stops, in this order. It runs when the pipeline's scope closes and cannot be interrupted; the
 * subscription closes after it, and the connections after that.
 */
export const drain = (
  engine: Engine,
  stopReading: Effect.Effect<void>,
  drainTimeout: Duration.Input
): Effect.Effect<void> =>
  Effect.gen(function*() {
    const { name } = engine.program
    // 1. Take nothing more, and begin nothing that was taken.
    engine.draining = true
    yield* stopReading
    // 2. Hand back at once what was not begun: a peer may have it while our handlers finish.
    engine.releaseWaiting()
    // 3. Hand open batches over: they are work that was begun.
    engine.flushBatches()
    // 4. Let running handlers finish.
    if (!(yield* within(engine.awaitHandlers, drainTimeout))) {
      // 5. Interrupt the others. What they leave unsettled is handed back, without counting an attempt.
      yield* Effect.logWarning(`${name}: ${engine.inUse} handlers did not finish in time, interrupting them`)
      yield* engine.interruptHandlers
      if (!(yield* within(engine.awaitHandlers, grace))) {
        yield* Effect.logError(`${name}: ${engine.inUse} handlers cannot be interrupted; their messages stay unsettled`)
      }
    }
    // 6. Hand back what was handled and left for the user to settle.
    engine.releaseUnsettled()
    // 7. Tell the broker all that is left to say. If it cannot be told, it will deliver those messages again.
    if (!(yield* within(engine.settler.awaitIdle, grace))) {
      yield* Effect.logError(`${name}: the broker did not confirm the last settlements; it will deliver them again`)
    }
    engine.close()
  })

const within = (wait: Effect.Effect<void>, duration: Duration.Input): Effect.Effect<boolean> =>
  Effect.map(Effect.timeoutOption(wait, duration), Option.isSome)

/** What is left after the deadline must not hold the process up. */
const grace = "1 second"
