import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Message from "../Message.ts"
import * as Publisher from "../Publisher.ts"
import type { Outgoing, Published, Transport } from "../Transport.ts"
import type { Source, Step } from "./program.ts"

/**
 * Publishes and, while the broker cannot be reached or has not answered, publishes again under the same id: an outage is
 * not a failure of the message.
 */
export const publishUntilAnswered = (
  transport: Transport["Service"],
  message: Outgoing
): Effect.Effect<Published, Publisher.PublishError> =>
  Effect.flatMap(transport.publish([message]), (results) => Effect.fromResult(results[0]!)).pipe(
    Effect.retry({
      schedule: backoff,
      while: (error) => error.reason._tag === "NotSent" || error.reason._tag === "OutcomeUnknown"
    })
  )

/** The step `to`: several outputs are published in order, each under an id that a retry derives again. */
export const publishStep = (
  transport: Transport["Service"],
  source: Source,
  step: Extract<Step, { _tag: "To" }>,
  path: string,
  value: unknown,
  message: Message.Any
): Effect.Effect<void, Publisher.PublishError> =>
  Effect.suspend(() => {
    const id = `${message.topic}/${source.group}/${message.id}/${path}`
    const headers = traceOf(message.headers)
    const publish = (value: unknown, id: string) =>
      Effect.flatMap(
        Publisher.outgoing(step.topic, value, { id, headers }),
        (outgoing) => Effect.asVoid(publishUntilAnswered(transport, outgoing))
      )
    const given = step.f === undefined ? value : step.f(value, message)
    return step.f !== undefined && Array.isArray(given)
      ? Effect.forEach(given, (value, i) => publish(value, `${id}/${i}`), { discard: true })
      : publish(given, id)
  })

/** A trace goes on through pipelines that open no span of their own. */
const traceOf = (headers: Message.Headers): Message.Headers => {
  const trace: Record<string, string> = {}
  for (const name of ["traceparent", "tracestate", "baggage"]) {
    const text = headers[name]
    if (text !== undefined) trace[name] = text
  }
  return trace
}

const backoff = Schedule.min([
  Schedule.exponential(Duration.millis(50)),
  Schedule.spaced(Duration.seconds(2))
]).pipe(Schedule.jittered)
