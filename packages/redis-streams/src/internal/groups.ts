import { invalidOption, Mismatch, TransportError } from "@millrace/core/TransportError"
import * as Effect from "effect/Effect"
import { codeOf, entriesOf, list, text, transportError } from "./reply.ts"
import type { Server } from "./server.ts"

const create = (server: Server, key: string, group: string, from: string): Effect.Effect<boolean, Error> =>
  server.keep.one(key, ["XGROUP", "CREATE", key, group, from, "MKSTREAM"], server.settings.connectTimeout).pipe(
    Effect.as(true),
    Effect.catchIf((error) => codeOf(error) === "BUSYGROUP", () => Effect.succeed(false))
  )

/** Creates the group, or takes it as it is. Its stream need not exist. */
export const ensure = (server: Server, key: string, group: string, from: string): Effect.Effect<void, TransportError> =>
  Effect.asVoid(Effect.mapError(create(server, key, group, from), (error) =>
    /Invalid stream ID/.test(error.message)
      ? invalidOption("redis", "startFrom", from, `give "new", "beginning" or the id of an entry`)
      : codeOf(error) === "WRONGTYPE"
      ? mismatch(key)
      : transportError(`creating group ${group} of ${key}`, server.settings.label, error)))

/** A group that is gone begins at the beginning: what it had read is not known any more, what it had not must not be lost. */
export const recreate = (server: Server, key: string, group: string): Effect.Effect<void, Error> =>
  Effect.flatMap(create(server, key, group, "0"), (created) =>
    created
      ? Effect.logWarning(`redis: group ${group} of ${key} was gone; created again, it reads from the beginning`)
      : Effect.void)

/** Whether a key is free, or a stream. */
export const verify = (server: Server, key: string): Effect.Effect<void, TransportError> =>
  server.keep.one(key, ["TYPE", key], server.settings.connectTimeout).pipe(
    Effect.mapError((error) => transportError(`looking at ${key}`, server.settings.label, error)),
    Effect.flatMap((type) =>
      text(type) === "stream" || text(type) === "none" ? Effect.void : Effect.fail(mismatch(key, text(type)))
    )
  )

const mismatch = (key: string, found = "a key of another type"): TransportError =>
  new TransportError({ transport: "redis", reason: new Mismatch({ name: key, expected: "a stream", found }) })

/**
 * One consumer of a group.
 *
 * @category models
 * @since 0.1.0
 */
export interface ConsumerInfo {
  readonly name: string
  readonly pending: number
  /** Milliseconds since it last asked for entries. */
  readonly idle: number
}

/**
 * What the server knows about a group.
 *
 * @category models
 * @since 0.1.0
 */
export interface GroupInfo {
  /** Delivered to some consumer and not acknowledged. */
  readonly pending: number
  /** Milliseconds since the oldest pending entry was published; `undefined` when none is pending. */
  readonly oldestPendingAge: number | undefined
  /** Entries not delivered yet; `null` where the server cannot know, as after entries were deleted. */
  readonly lag: number | null
  readonly lastDeliveredId: string
  readonly consumers: ReadonlyArray<ConsumerInfo>
}

/** What the server knows about a group; `undefined` when there is none. */
export const info = (server: Server, key: string, group: string): Effect.Effect<GroupInfo | undefined, Error> =>
  Effect.gen(function*() {
    const replies = yield* server.keep.send(key, [
      ["XINFO", "GROUPS", key],
      ["XINFO", "CONSUMERS", key, group],
      ["XPENDING", key, group],
      ["TIME"]
    ])
    const error = replies.find((reply): reply is Error => reply instanceof Error)
    if (error !== undefined) {
      return /no such key|NOGROUP/i.test(error.message) ? undefined : yield* Effect.fail(error)
    }
    const [groups, consumers, pending, time] = replies
    const found = list(groups).map(entriesOf).find((one) => text(one.get("name")) === group)
    if (found === undefined) return undefined
    const oldest = list(pending)[1]
    const [seconds, micros] = list(time).map(Number)
    const lag = found.get("lag")
    return {
      pending: Number(found.get("pending")),
      oldestPendingAge: oldest === null || oldest === undefined
        ? undefined
        : Math.max(0, Math.floor(seconds! * 1000 + micros! / 1000) - Number.parseInt(text(oldest), 10)),
      lag: typeof lag === "number" ? lag : null,
      lastDeliveredId: text(found.get("last-delivered-id")),
      consumers: list(consumers).map(entriesOf).map((one) => ({
        name: text(one.get("name")),
        pending: Number(one.get("pending")),
        idle: Number(one.get("idle"))
      }))
    }
  })
