import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import type { Outgoing, Published, Transport } from "../Transport.ts"
import type { PublishError } from "./publishError.ts"
import { type send, store } from "./send.ts"

/**
 * Publishes and, while the broker cannot be reached or has not answered, publishes again under the same id: an outage is
 * not a failure of the message.
 */
export const publishUntilAnswered = (
  transport: Transport["Service"],
  message: Outgoing,
  give: typeof send = store
): Effect.Effect<Published, PublishError> =>
  Effect.flatMap(give(transport, [message]), ([first]) => {
    if (Result.isSuccess(first!)) return Exit.succeed(first.success)
    return isUnanswered(first!.failure) ? publishAgain(transport, message, give) : Exit.fail(first!.failure)
  })

/** The same for a message whose first publish was not answered. */
export const publishAgain = (
  transport: Transport["Service"],
  message: Outgoing,
  give: typeof send
): Effect.Effect<Published, PublishError> => {
  const again = Effect.flatMap(give(transport, [message]), (results) => Effect.fromResult(results[0]!))
  return Effect.andThen(wait(0), Effect.retry(again, { schedule: backoff, while: isUnanswered }))
}

export const isUnanswered = ({ reason }: PublishError): boolean =>
  reason._tag === "NotSent" || reason._tag === "OutcomeUnknown"

const backoff = Schedule.min([
  Schedule.exponential(Duration.millis(50)),
  Schedule.spaced(Duration.seconds(2))
]).pipe(Schedule.jittered)

/** The wait before a publish that was not answered is sent again, `attempt` counted from 0. */
export const wait = (attempt: number): Effect.Effect<void> =>
  Effect.sleep(Math.min(2000, 50 * 2 ** Math.min(attempt, 10)))
