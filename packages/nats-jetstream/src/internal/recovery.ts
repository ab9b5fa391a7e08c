import type * as TransportError from "@millrace/core/TransportError"
import { JetStreamApiError } from "@nats-io/jetstream"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { NoAnswer, notConnected } from "./connection.ts"

/** Between tries. */
export const backoff = Schedule.min([Schedule.exponential(Duration.millis(100)), Schedule.spaced(Duration.seconds(2))])
  .pipe(
    Schedule.jittered
  )

/** A cluster that has just been started, or lost a node, has no leader for some seconds; a connection may be lost. */
const willPass = ({ reason }: TransportError.TransportError): boolean =>
  reason._tag === "OperationFailed" &&
  (reason.cause instanceof NoAnswer || reason.cause === notConnected ||
    (reason.cause instanceof JetStreamApiError && reason.cause.status === 503))

/** Waits for a leader, or the connection, up to ten seconds. A domain whose name may be wrong is said at once. */
export const whenReady = <A>(
  effect: Effect.Effect<A, TransportError.TransportError>
): Effect.Effect<A, TransportError.TransportError> =>
  Effect.suspend(() => {
    let isSaid = false
    const say = ({ reason }: TransportError.TransportError) => {
      const cause = reason._tag === "OperationFailed" ? reason.cause : undefined
      if (isSaid || !(cause instanceof NoAnswer && cause.isElsewhere)) return Effect.void
      isSaid = true
      return Effect.logWarning(`${cause.message}; trying for 10 seconds`)
    }
    return Effect.retry(Effect.tapError(effect, say), {
      schedule: Schedule.upTo(backoff, { duration: Duration.seconds(10) }),
      while: willPass
    })
  })

const mayHeal = (error: TransportError.TransportError) =>
  error.reason._tag === "OperationFailed" || error.reason._tag === "Unreachable" || error.reason._tag === "Unsupported"

/** Tries for as long as it may help; a fault that a person has to mend is given ten seconds. */
export const untilHealed = <A>(
  effect: Effect.Effect<A, TransportError.TransportError>
): Effect.Effect<A, TransportError.TransportError> =>
  effect.pipe(
    Effect.retry({ schedule: backoff, while: mayHeal }),
    Effect.retry({ schedule: Schedule.upTo(backoff, { duration: Duration.seconds(10) }) })
  )
