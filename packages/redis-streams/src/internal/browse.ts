import type { Delivery } from "@millrace/core/Transport"
import type { TransportError } from "@millrace/core/TransportError"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { EntryReader, type RawEntry } from "./entry.ts"
import { list, text, transportError } from "./reply.ts"
import type { Server } from "./server.ts"

const page = 200

/** What a stream holds, oldest first, up to what was its last entry when this began. */
export const browse = (server: Server, topic: string): Stream.Stream<Delivery, TransportError> => {
  const reader = new EntryReader()
  const key = server.settings.keyPrefix + topic
  const ask = (command: ReadonlyArray<string>) =>
    Effect.mapError(
      server.poll.one(key, command),
      (error) => transportError(`browsing ${key}`, server.settings.label, error)
    )
  return Stream.unwrap(Effect.map(ask(["XREVRANGE", key, "+", "-", "COUNT", "1"]), (newest) => {
    const last = list(list(newest)[0])[0]
    if (last === undefined) return Stream.empty
    return Stream.paginate(
      "-",
      (start) =>
        Effect.map(ask(["XRANGE", key, start, text(last), "COUNT", String(page)]), (reply) => {
          const entries = list(reply) as ReadonlyArray<RawEntry>
          const deliveries: ReadonlyArray<Delivery> = entries.map((entry) =>
            reader.read(undefined, topic, entry, 1, false, false)
          )
          const more = entries.length === page ? Option.some(`(${text(entries.at(-1)![0])}`) : Option.none<string>()
          return [deliveries, more] as const
        })
    )
  }))
}
