import * as Message from "@millrace/core/Message"
import * as Settlement from "@millrace/core/Settlement"
import { durationOf, type Hints, received as receivedOf } from "@millrace/core/TransportAuthor"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { invalidOption } from "./connection.ts"
import { JetStreamDelivery } from "./delivery.ts"
import { backoff } from "./recovery.ts"
import { JetStream, partsOf } from "./service.ts"
import { confirmAll } from "./settling.ts"
import { isStandIn } from "./standIn.ts"

/**
 * Acknowledges a message and waits until the server has confirmed it.
 *
 * **Details**
 *
 * `false`: it was settled before. A confirmation that does not come within `timeout` (default 5 seconds) says nothing of
 * the message, so it is acknowledged again, through however many connections, until the server has answered. An
 * interruption (a timeout of the pipeline, say) does not take the acknowledgement back: it goes on in the background, and
 * a handler that fails meanwhile is counted as failed after its settlement. Fails when the connection is closed for good,
 * or when the message was delivered again and is being handled again.
 *
 * @category settling
 * @since 0.1.0
 */
export const ackSync = Effect.fnUntraced(function*(
  message: Message.Any,
  options?: { readonly timeout?: Duration.Input | Hints["duration"] | undefined }
): Effect.fn.Return<boolean, Settlement.SettleError, JetStream> {
  const { duration: timeout, invalid } = durationOf("timeout of ackSync", options?.timeout ?? "5 seconds")
  if (invalid !== undefined || !Duration.isPositive(timeout)) {
    const remedy = "give more than 0, such as 5 seconds: nothing is confirmed in no time"
    const cause = invalidOption("timeout of ackSync", options?.timeout, invalid?.remedy ?? remedy)
    return yield* new Settlement.SettleError({ id: message.id, cause })
  }
  if (isStandIn(yield* JetStream)) return yield* Message.settle(message, Settlement.ack)
  const { connection } = yield* partsOf
  const { delivery, received } = yield* ownDelivery(message)
  if (!received.claim()) return false
  delivery.confirming = true
  const fail = (cause: unknown) => new Settlement.SettleError({ id: message.id, cause })
  const confirmed = connection.whenConnected.pipe(
    Effect.andThen(
      Effect.timeout(
        confirmAll(connection, [delivery]),
        timeout
      )
    ),
    Effect.retry({ schedule: backoff, while: () => connection.state() !== "closed" }),
    Effect.ensuring(Effect.sync(() => {
      delivery.confirming = false
    }))
  )
  return yield* confirmed.pipe(
    Effect.filterOrFail(
      () => delivery.ended("done"),
      () => new Error("it came again before the server confirmed, and is being handled again")
    ),
    Effect.map(() => {
      received.settled()
      return true
    }),
    Effect.mapError(fail),
    Effect.tapError(() => Effect.sync(() => received.unclaim())),
    Effect.onInterrupt(() => {
      delivery.confirming = true
      const ended = Effect.sync(() => delivery.ended("done") && received.settled())
      return Effect.forkDetach(Effect.ignore(Effect.andThen(confirmed, ended)))
    })
  )
})

/**
 * Tells the server that a message is still being worked on, now: for work that may block the event loop for long. Millrace
 * does that by itself every third of the consumer's ack wait. `false`: a peer may have the message.
 *
 * @category settling
 * @since 0.1.0
 */
export const inProgress = Effect.fnUntraced(function*(
  message: Message.Any
): Effect.fn.Return<boolean, Settlement.SettleError, JetStream> {
  const { delivery } = yield* ownDelivery(message)
  return yield* Effect.mapError(delivery.extend(), (cause) => new Settlement.SettleError({ id: message.id, cause }))
})

const ownDelivery = Effect.fnUntraced(function*(message: Message.Any) {
  const service = yield* JetStream
  const received = receivedOf(message)
  const delivery = received?.delivery
  return received === undefined || received.transport !== service.transport || !(delivery instanceof JetStreamDelivery)
    ? yield* new Settlement.SettleError({
      id: message.id,
      cause: new Error("it did not come from this JetStream layer")
    })
    : { delivery, received }
})
