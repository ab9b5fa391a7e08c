import type * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import type { Outgoing, Published, Transport } from "../Transport.ts"
import type { Attempt } from "./attempt.ts"
import { outgoingOf } from "./outgoing.ts"
import type { Source, Step } from "./program.ts"
import type { PublishError } from "./publishError.ts"
import { send, store } from "./send.ts"
import { thrown } from "./steps.ts"

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
    if (!isUnanswered(first!.failure)) return Exit.fail(first!.failure)
    const again = Effect.flatMap(give(transport, [message]), (results) => Effect.fromResult(results[0]!))
    return Effect.andThen(wait(0), Effect.retry(again, { schedule: backoff, while: isUnanswered }))
  })

/** The broker was not reached, or has not answered. */
export const isUnanswered = ({ reason }: PublishError): boolean =>
  reason._tag === "NotSent" || reason._tag === "OutcomeUnknown"

/**
 * The step `to`: several outputs are published in order. An id derives from the origin and id of the source message and
 * from the step's place in the pipeline, so that a retry publishes under the same id.
 */
export const publishStep = (
  transport: Transport["Service"],
  source: Source,
  step: Extract<Step, { _tag: "To" }>,
  path: string
) =>
(value: unknown, attempt: Attempt): Effect.Effect<unknown, PublishError> =>
  Effect.withFiber(({ context }) => {
    const { delivery } = attempt
    const message = attempt.message!
    const id = `${delivery.origin}/${message.topic}/${source.group}/${message.id}/${path}`
    const publish = (value: unknown, id: string): Effect.Effect<unknown, PublishError> =>
      Effect.flatMapEager(outgoingOf(step.topic, value, { id }, context), (outgoing) =>
        step.transport === undefined
          ? publishUntilAnswered(transport, outgoing, send)
          : Effect.flatMap(step.transport, (target) => publishUntilAnswered(target, outgoing, send)))
    let given: unknown
    try {
      given = step.f === undefined ? value : step.f(value, message)
    } catch (error) {
      return Exit.failCause(thrown(error) as Cause.Cause<never>)
    }
    return step.f !== undefined && Array.isArray(given)
      ? Effect.forEach(given, (value, i) => publish(value, `${id}/${i}`), { discard: true })
      : publish(given, id)
  })

const backoff = Schedule.min([
  Schedule.exponential(Duration.millis(50)),
  Schedule.spaced(Duration.seconds(2))
]).pipe(Schedule.jittered)

/** The wait before a publish that was not answered is sent again, `attempt` counted from 0. */
export const wait = (attempt: number): Effect.Effect<void> =>
  Effect.sleep(Math.min(2000, 50 * 2 ** Math.min(attempt, 10)))
