import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Publisher from "../Publisher.ts"
import * as Settlement from "../Settlement.ts"
import type { Outgoing, Published, Transport } from "../Transport.ts"
import type { Attempt } from "./attempt.ts"
import { outgoing } from "./outgoing.ts"
import type { Source, Step } from "./program.ts"
import { send, store } from "./send.ts"

/**
 * Publishes and, while the broker cannot be reached or has not answered, publishes again under the same id: an outage is
 * not a failure of the message.
 */
export const publishUntilAnswered = (
  transport: Transport["Service"],
  message: Outgoing,
  give: typeof send = store
): Effect.Effect<Published, Publisher.PublishError> =>
  Effect.flatMap(give(transport, [message]), (results) => Effect.fromResult(results[0]!)).pipe(
    Effect.retry({
      schedule: backoff,
      while: (error) => error.reason._tag === "NotSent" || error.reason._tag === "OutcomeUnknown"
    })
  )

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
(value: unknown, attempt: Attempt): Effect.Effect<void, Publisher.PublishError> =>
  Effect.suspend(() => {
    const { delivery } = attempt
    const message = attempt.message!
    const id = `${delivery.origin}/${message.topic}/${source.group}/${message.id}/${path}`
    const target = step.transport ?? Effect.succeed(transport)
    const publish = (value: unknown, id: string) =>
      Effect.flatMap(
        outgoing(step.topic, value, { id }),
        (message) => Effect.flatMap(target, (target) => Effect.asVoid(publishUntilAnswered(target, message, send)))
      )
    let given: unknown
    try {
      given = step.f === undefined ? value : step.f(value, message)
    } catch (error) {
      return Settlement.isRequested(error) ? Effect.fail(error as never) : Effect.die(error)
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
