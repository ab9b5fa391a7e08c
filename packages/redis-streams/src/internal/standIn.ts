import * as Message from "@millrace/core/Message"
import * as Settlement from "@millrace/core/Settlement"
import type * as Transport from "@millrace/core/Transport"
import { received } from "@millrace/core/TransportAuthor"
import { invalidOption, type TransportError } from "@millrace/core/TransportError"
import type * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import type * as Stream from "effect/Stream"
import type { GroupInfo, Removal } from "../Options.ts"
import { noGroup } from "./groups.ts"

/** The service on another broker, for tests. */
export const standIn = (transport: Transport.Transport["Service"]) => ({
  transport,
  groupInfo: (topic: string, group: string): Effect.Effect<GroupInfo, TransportError> => noGroup(topic, group),
  read: (topic: string): Stream.Stream<Transport.Delivery, TransportError> => transport.browse(topic),
  trim: () => Effect.succeed(0),
  remove: (
    messages: Arr.NonEmptyReadonlyArray<Message.Any>
  ): Effect.Effect<ReadonlyArray<Removal>, TransportError> =>
    Effect.forEach(messages, (message) => {
      const behind = received(message)
      if (behind === undefined || behind.transport !== transport) {
        return invalidOption("redis", "message", message.id, "give a message that a pipeline on this Layer received")
      }
      return Effect.map(
        // Settled before, the message is only deleted.
        Effect.andThen(
          Effect.ignore(Message.settle(message, Settlement.ack)),
          transport.remove(message.topic, [message.id])
        ),
        (removed) => removed > 0 ? "removed" as const : "absent" as const
      )
    })
})
