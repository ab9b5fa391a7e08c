import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
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
    // 1. Take nothing more, and begin nothing that was taken.
    engine.draining = true
    yield* stopReading
    // 2. Hand back at once what was not begun: a peer may have it while our handlers finish.
    engine.releaseWaiting()
    // 3. Hand open batches over: they are work that was begun.
    engine.flushBatches()
    // 4. Let running handlers finish.
    const finished = yield* Effect.timeoutOption(engine.awaitHandlers, drainTimeout)
    // 5. Interrupt the others. What they leave unsettled is handed back, without counting an attempt.
    if (finished._tag === "None") {
      yield* Effect.logWarning(`${engine.program.name}: ${engine.inUse} handlers did not finish in time, interrupting them`)
      yield* engine.interruptHandlers
      yield* engine.awaitHandlers
    }
    // 6. Tell the broker all that is left to say.
    yield* engine.settler.awaitIdle
    engine.close()
  })
