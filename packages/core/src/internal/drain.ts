import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { Run } from "./run.ts"

/**
 * How a pipeline stops, in this order. It runs when the pipeline's scope closes and cannot be interrupted; the
 * subscription closes after it, and the connections after that.
 */
export const drain = (run: Run): Effect.Effect<void> =>
  Effect.gen(function*() {
    const { name, source } = run.program
    // 1. Take nothing more, and begin nothing that was taken.
    run.isDraining = true
    yield* run.reader.stop
    // 2. Release what has not begun: a peer may have it while our handlers finish.
    run.intake.releaseAll()
    // 3. Hand open batches over: they are work that was begun. A batch that has to wait for the end of a pause is released.
    releaseResting(run)
    run.flushBatches()
    // A pause has ended: messages that have left their batch may wait for a permit.
    run.dispatcher.pump()
    // 4. Let running handlers finish.
    if (!(yield* within(run.holding.idle.wait, source.drainTimeout))) {
      // 5. Interrupt the others. What they leave unsettled is released, without counting an attempt.
      yield* Effect.logWarning(
        `${name}: ${counted(run.holding.begun, "handler")} did not finish within drainTimeout, ${
          Duration.format(Duration.fromInputUnsafe(source.drainTimeout))
        }; interrupting`
      )
      interruptHandlers(run)
      if (!(yield* within(run.holding.idle.wait, grace))) {
        yield* Effect.logError(
          `${name}: ${counted(run.holding.begun, "handler")} cannot be interrupted; the messages stay unsettled`
        )
      }
    }
    // 6. Release messages that were handled and that the user has not settled.
    run.outcomes.byHand.releaseAll()
    // 7. Flush settlements. If the broker cannot be told, it will deliver those messages again.
    if (!(yield* within(run.settlements.settler.idle.wait, grace))) {
      yield* Effect.logError(`${name}: the broker did not confirm the last settlements; it will deliver them again`)
    }
    // 8. Dead letters of messages that the broker had deleted when they were released.
    if (!(yield* within(run.outcomes.vanished.awaitWritten, grace))) {
      yield* Effect.logError(
        `${name}: dead letters of messages that the broker has deleted could not be written in time`
      )
    }
    run.close()
  })

const stopping = () => new Error("the pipeline is stopping")

const releaseResting = ({ handler, rest }: Run): void => {
  if (rest.isOver) return
  for (const attempt of handler.waiting.all()) {
    // Without a permit it waits in a batch that has not begun.
    if (attempt.permit === undefined) handler.interrupt(attempt, stopping())
  }
}

const interruptHandlers = (run: Run): void => {
  const { handler, outcomes } = run
  run.isInterrupting = true
  for (const attempt of handler.waiting.all()) {
    if (attempt.state === "confirming") outcomes.ended(attempt, "interrupted", undefined)
    else handler.interrupt(attempt, stopping())
  }
  outcomes.interrupt()
}

const within = (wait: Effect.Effect<void>, duration: Duration.Input): Effect.Effect<boolean> =>
  Effect.map(Effect.timeoutOption(wait, duration), Option.isSome)

/** What is left after the deadline must not hold the process up. */
const grace = "1 second"

const counted = (count: number, what: string): string => `${count} ${what}${count === 1 ? "" : "s"}`
