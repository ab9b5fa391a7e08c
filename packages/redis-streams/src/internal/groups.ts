import type { ConsumerInfo, GroupInfo as TransportGroupInfo } from "@millrace/core/Transport"
import { invalidOption, Mismatch, type TransportError } from "@millrace/core/TransportError"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type { GroupInfo } from "../Options.ts"
import { backoff, Lost } from "./connection.ts"
import { codeOf, entriesOf, failure, isPassing, list, millisOfTime, text, transportError } from "./reply.ts"
import { isInternal } from "./scripts/lua.ts"
import { origin as originScript } from "./scripts/origin.ts"
import { evalsha } from "./scripts/script.ts"
import type { Server } from "./server.ts"

/** Whether the group is there; a server that refuses to say leaves it open. */
const exists = (server: Server, key: string, group: string): Effect.Effect<boolean, Error> =>
  Effect.matchEffect(server.control.one(key, ["XPENDING", key, group], server.settings.connectTimeout), {
    onFailure: (error) => {
      const code = codeOf(error)
      return code === "NOGROUP" || code === "NOPERM" || /no such key/i.test(error.message)
        ? Effect.succeed(false)
        : Effect.fail(error)
    },
    onSuccess: () => Effect.succeed(true)
  })

/** Creates the group unless it is there: a full server, or a user without the right, must not refuse what is not needed. */
const create = (server: Server, key: string, group: string, from: string): Effect.Effect<boolean, Error> =>
  Effect.flatMap(exists(server, key, group), (isThere) =>
    isThere
      ? Effect.succeed(false)
      : server.control.one(key, ["XGROUP", "CREATE", key, group, from, "MKSTREAM"], server.settings.connectTimeout)
        .pipe(
          Effect.as(true),
          Effect.catchIf((error) => codeOf(error) === "BUSYGROUP", () => Effect.succeed(false))
        ))

/** A start outlasts a connection that is lost under it, and a server that is not ready yet. */
export const patiently = <A>({ settings }: Server, effect: Effect.Effect<A, Error>): Effect.Effect<A, Error> =>
  Effect.retry(effect, {
    while: (error) => error instanceof Lost || isPassing(error),
    schedule: Schedule.upTo(backoff, { duration: Duration.millis(settings.connectTimeout) })
  })

/** Creates the group, or takes it as it is. Its stream need not exist. */
export const ensure = (server: Server, key: string, group: string, from: string): Effect.Effect<void, TransportError> =>
  Effect.asVoid(
    Effect.mapError(
      patiently(server, create(server, key, group, from)),
      (error) =>
        /Invalid stream ID/.test(error.message)
          ? invalidOption("redis", "startFrom", from, `give "new", "beginning" or the id of an entry`)
          : codeOf(error) === "WRONGTYPE"
          ? mismatch(key)
          : transportError(`creating group ${group} of ${key}`, server.settings.label, error)
    )
  )

/**
 * Creates a group that was deleted. It begins at the beginning: the position it had is not known any more, and unread
 * entries must not be lost. Resolves to whether it had to be created.
 */
export const recreate = (server: Server, key: string, group: string): Effect.Effect<boolean, Error> =>
  Effect.tap(create(server, key, group, "0"), (created) =>
    created
      ? Effect.logWarning(`redis: group ${group} of ${key} was deleted; created again, it reads from the beginning`)
      : Effect.void)

/** The token of this life of the stream; one is made where there is none. */
export const origin = (server: Server, key: string, group: string, fallback?: string): Effect.Effect<string, Error> =>
  Effect.map(
    server.control.one(
      key,
      evalsha(originScript, [key], [group, fallback ?? crypto.randomUUID()]),
      server.settings.connectTimeout
    ),
    text
  )

/** Asks for each command that scripts call by its name: inside a script the server does not say which one it lacks. */
export const missingCommand = (server: Server, key: string): Effect.Effect<Error | undefined> =>
  Effect.map(
    server.control.send(key, ["EVAL", "XINFO", "XPENDING", "XCLAIM", "XREADGROUP", "XGROUP"].map((name) => [name])),
    (replies) =>
      replies.find((reply): reply is Error => reply instanceof Error && /unknown command/i.test(reply.message))
  )

/** Names the place of a stream, without telling its lives apart. */
export const placeOf = ({ settings }: Server, key: string): string => `${settings.label}/${settings.database}/${key}`

/** Whether a key is free, or a stream. A user who may not ask for types is told by the first publish. */
export const verify = (server: Server, key: string): Effect.Effect<void, TransportError> =>
  server.control.one(key, ["TYPE", key], server.settings.connectTimeout).pipe(
    Effect.catchIf((error) => /NOPERM.*'type' command/.test(error.message), () => Effect.succeed("none")),
    Effect.mapError((error) => transportError(`looking at ${key}`, server.settings.label, error)),
    Effect.flatMap((type) =>
      text(type) === "stream" || text(type) === "none" ? Effect.void : Effect.fail(mismatch(key, text(type)))
    )
  )

export const noGroup = (stream: string, group: string): TransportError =>
  failure(new Mismatch({ name: `group ${group} of stream ${stream}`, expected: "there", found: "absent" }))

const mismatch = (key: string, found = "a key of another type"): TransportError =>
  failure(new Mismatch({ name: key, expected: "a stream", found }))

const consumersOf = (reply: unknown): ReadonlyArray<ConsumerInfo> =>
  list(reply).map(entriesOf)
    .map((one) => ({
      name: text(one.get("name")),
      pending: Number(one.get("pending")),
      idle: Number(one.get("idle"))
    }))
    .filter(({ name }) => !isInternal(name))

const isMissing = (error: Error): boolean => /no such key|NOGROUP/i.test(error.message)

/** Everything that the server knows about a group; `undefined` when there is none. */
export const info = (server: Server, key: string, group: string): Effect.Effect<GroupInfo | undefined, Error> =>
  Effect.gen(function*() {
    const replies = yield* server.control.send(key, [
      ["XINFO", "GROUPS", key],
      ["XINFO", "CONSUMERS", key, group],
      ["XPENDING", key, group],
      ["TIME"]
    ])
    const error = replies.find((reply): reply is Error => reply instanceof Error)
    if (error !== undefined) return isMissing(error) ? undefined : yield* Effect.fail(error)
    const [groups, consumers, pending, time] = replies
    const found = list(groups).map(entriesOf).find((one) => text(one.get("name")) === group)
    if (found === undefined) return undefined
    const oldest = list(pending)[1]
    const lag = found.get("lag")
    return {
      pending: Number(found.get("pending")),
      oldestPendingAge: oldest === null || oldest === undefined
        ? undefined
        : Math.max(0, millisOfTime(time) - millisOf(text(oldest))),
      lag: typeof lag === "number" ? lag : null,
      lastDeliveredId: text(found.get("last-delivered-id")),
      consumers: consumersOf(consumers)
    }
  })

const millisOf = (id: string): number => Number.parseInt(id, 10)

/** What each group of a stream has still to do. */
export const all = (server: Server, key: string): Effect.Effect<ReadonlyArray<TransportGroupInfo>, Error> =>
  server.poll.one(key, ["XINFO", "GROUPS", key]).pipe(
    Effect.flatMap((reply) =>
      Effect.forEach(list(reply).map(entriesOf), (found) => {
        const group = text(found.get("name"))
        const position = text(found.get("last-delivered-id"))
        return Effect.map(
          server.poll.send(key, [
            ["XINFO", "CONSUMERS", key, group],
            ["XPENDING", key, group],
            ["XRANGE", key, `(${position}`, "+", "COUNT", "1"]
          ]),
          ([consumers, pending, unread]): TransportGroupInfo => {
            const lag = found.get("lag")
            const ids = [list(pending)[1], list(list(unread)[0])[0]].filter((id) => Buffer.isBuffer(id))
            return {
              group,
              ...(typeof lag === "number" ? { lag } : {}),
              pending: Number(found.get("pending")),
              ...(ids.length === 0 ? {} : { oldest: Math.min(...ids.map((id) => millisOf(text(id)))) }),
              ...(consumers instanceof Error ? {} : { consumers: consumersOf(consumers) })
            }
          }
        )
      })
    ),
    Effect.catchIf(isMissing, () => Effect.succeed([]))
  )
