import type * as Message from "@millrace/core/Message"
import type { Transport } from "@millrace/core/Transport"
import * as TransportAuthor from "@millrace/core/TransportAuthor"
import { invalidOption, type TransportError } from "@millrace/core/TransportError"
import type * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import type { Removal, RemoveOptions } from "../Options.ts"
import { RedisDelivery } from "./entry.ts"
import { list, transportError } from "./reply.ts"
import { remove } from "./scripts/remove.ts"
import { evalsha } from "./scripts/script.ts"
import type { Server } from "./server.ts"
import { RedisSubscription } from "./subscription.ts"

const answers: ReadonlyMap<number, Removal> = new Map([[1, "removed"], [2, "kept"], [3, "kept"], [-1, "absent"]])

interface Wanted {
  readonly received: TransportAuthor.Received
  readonly delivery: RedisDelivery
  readonly subscription: RedisSubscription
  readonly index: number
  readonly isClaimed: boolean
}

export const make = (server: Server, transport: Transport["Service"]) =>
(
  messages: Arr.NonEmptyReadonlyArray<Message.Any>,
  options?: RemoveOptions
): Effect.Effect<ReadonlyArray<Removal>, TransportError> =>
  Effect.suspend(() => {
    const wanted: Array<Wanted> = []
    for (const message of messages) {
      const received = TransportAuthor.received(message)
      const delivery = received?.delivery
      const subscription = delivery instanceof RedisDelivery ? RedisDelivery.state(delivery).source : undefined
      if (
        received === undefined || received.transport !== transport || !(delivery instanceof RedisDelivery) ||
        !(subscription instanceof RedisSubscription)
      ) {
        for (const { isClaimed, received } of wanted) if (isClaimed) received.unclaim()
        return invalidOption("redis", "message", message.id, "give a message that a pipeline on this Layer received")
      }
      wanted.push({ received, delivery, subscription, index: wanted.length, isClaimed: received.claim() })
    }
    const removals: Array<Removal> = []
    return Effect.forEach(
      Map.groupBy(wanted, ({ subscription }) => subscription),
      ([subscription, some]) => {
        const { consumer, group, key } = subscription.options
        const command = evalsha(remove, [key], [
          group,
          consumer,
          options?.force === true ? "1" : "0",
          ...some.map(({ delivery }) => delivery.id)
        ])
        return Effect.match(server.write.one(key, command), {
          onFailure: (error) => {
            for (const { isClaimed, received } of some) if (isClaimed) received.unclaim()
            return transportError(`removing from ${key}`, server.settings.label, error)
          },
          onSuccess: (replies) => {
            some.forEach(({ delivery, index, isClaimed, received }, i) => {
              removals[index] = answers.get(Number(list(replies)[i])) ?? "absent"
              subscription.ended(delivery)
              if (isClaimed) received.settled()
            })
            return undefined
          }
        })
      },
      { concurrency: "unbounded" }
    ).pipe(
      Effect.flatMap((failures) => {
        const failure = failures.find((failure) => failure !== undefined)
        return failure === undefined ? Effect.succeed(removals) : Effect.fail(failure)
      }),
      Effect.uninterruptible
    )
  })
