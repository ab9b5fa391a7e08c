import type { BrowseOptions, Delivery } from "@millrace/core/Transport"
import { invalidOption, type TransportError } from "@millrace/core/TransportError"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import type { ReadOptions } from "../Options.ts"
import { EntryReader, type RawEntry, type RedisDelivery } from "./entry.ts"
import { placeOf } from "./groups.ts"
import { isRefusal, list, text, transportError } from "./reply.ts"
import { findOrigin } from "./scripts/origin.ts"
import { evalsha } from "./scripts/script.ts"
import type { Server } from "./server.ts"

/** One page holds about this many bytes at most. */
const maxPageBytes = 4 * 1024 * 1024

const maxPage = 200

const maxPart = 2n ** 64n - 1n

const isId = (id: string) => /^\d{1,20}(-\d{1,20})?$/.test(id) && id.split("-").every((part) => BigInt(part) <= maxPart)

/** The last id of a millisecond: "after 5" means after everything of that millisecond. */
const endOf = (id: string) => id.includes("-") ? id : `${id}-18446744073709551615`

const reading = (server: Server, topic: string) => {
  const key = server.settings.keyPrefix + topic
  const failing = (error: Error) => transportError(`reading ${key}`, server.settings.label, error)
  const ask = (command: ReadonlyArray<string>) => Effect.mapError(server.poll.one(key, command), failing)
  const reader = new EntryReader(topic)
  const origin = server.poll.one(key, evalsha(findOrigin, [key], [])).pipe(
    Effect.map((token) => text(token) === "" ? placeOf(server, key) : text(token)),
    // A name for the place will do where this user may not look at groups.
    Effect.catchIf(isRefusal, () => Effect.succeed(placeOf(server, key))),
    Effect.mapError(failing)
  )
  const read = (origin: string, reply: unknown): ReadonlyArray<RedisDelivery> =>
    (list(reply) as ReadonlyArray<RawEntry>).map((entry) => reader.read(origin, entry, 0))
  return { key, ask, origin, read }
}

/** Entries after and before ids, up to the one that was newest when this began. */
export const browse = (
  server: Server,
  topic: string,
  options: BrowseOptions = {}
): Stream.Stream<Delivery, TransportError> => {
  const { after, before, limit, reverse } = options
  for (const [name, id] of [["after", after], ["before", before]] as const) {
    if (id !== undefined && !isId(id)) return Stream.fail(notAnId(name, id))
  }
  const low = after === undefined ? "-" : `(${endOf(after)}`
  return range(server, topic, low, before === undefined ? "+" : `(${before}`, limit, reverse)
}

const notAnId = (name: string, id: string): TransportError =>
  invalidOption("redis", name, id, "give the id of an entry, such as 1700000000000-0, or its milliseconds")

const range = (
  server: Server,
  topic: string,
  low: string,
  high: string,
  limit = Infinity,
  reverse = false
): Stream.Stream<Delivery, TransportError> => {
  if (limit !== Infinity && !(Number.isSafeInteger(limit) && limit >= 0)) {
    return Stream.fail(invalidOption("redis", "limit", limit, "give a whole number of entries, or Infinity"))
  }
  const { ask, key, origin, read } = reading(server, topic)
  return Stream.unwrap(Effect.map(
    Effect.zip(ask(["XREVRANGE", key, high, low, "COUNT", "1"]), Effect.suspend(() => origin)),
    ([newest, token]) => {
      const last = list(list(newest)[0])[0]
      if (last === undefined || limit < 1) return Stream.empty
      const command = reverse ? "XREVRANGE" : "XRANGE"
      const stop = reverse ? low : text(last)
      let average = 0
      return Stream.paginate({ start: reverse ? text(last) : low, left: limit }, ({ left, start }) => {
        // The first page tells how large entries are.
        const page = Math.min(
          left,
          average === 0 ? 10 : Math.max(1, Math.min(maxPage, Math.floor(maxPageBytes / average)))
        )
        return Effect.map(ask([command, key, start, stop, "COUNT", String(page)]), (reply) => {
          const deliveries: ReadonlyArray<RedisDelivery> = read(token, reply)
          const end = deliveries.at(-1)
          average = Math.max(1, deliveries.reduce((sum, { size }) => sum + size, 0) / Math.max(1, deliveries.length))
          const rest = left - deliveries.length
          const more = end !== undefined && deliveries.length === page && rest > 0
            ? Option.some({ start: `(${end.id}`, left: rest })
            : Option.none<{ start: string; left: number }>()
          return [deliveries as ReadonlyArray<Delivery>, more] as const
        })
      })
    }
  ))
}

/** Entries between two ids, both included. */
export const read = (
  server: Server,
  topic: string,
  options: ReadOptions = {}
): Stream.Stream<Delivery, TransportError> => {
  const { from, limit, reverse, to } = options
  for (const [name, id] of [["from", from], ["to", to]] as const) {
    if (id !== undefined && !isId(id)) return Stream.fail(notAnId(name, id))
  }
  return range(server, topic, from ?? "-", to ?? "+", limit, reverse)
}

/** One entry. */
export const get = (
  server: Server,
  topic: string,
  id: string
): Effect.Effect<Option.Option<Delivery>, TransportError> => {
  if (!isId(id)) return Effect.succeed(Option.none())
  const { ask, key, origin, read } = reading(server, topic)
  return Effect.map(
    Effect.zip(ask(["XRANGE", key, id, id]), origin),
    ([reply, token]) => Option.fromUndefinedOr<Delivery | undefined>(read(token, reply)[0]) as Option.Option<Delivery>
  )
}
