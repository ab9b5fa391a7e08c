import * as Effect from "effect/Effect"
import { type Admin, type CommandError, info, list, type Node, pairs } from "./admin.ts"

/** What one server says about itself; `undefined` where this user may not ask. */
export interface ServerFacts {
  readonly name: string
  readonly info: ReadonlyMap<string, string> | undefined
  readonly config: ReadonlyMap<string, string> | undefined
  /** Milliseconds that its clock is ahead of ours. */
  readonly skew: number | undefined
  /** Commands that are not there, of those asked for; `undefined`: not known. */
  readonly absent: ReadonlyArray<string> | undefined
}

/** A stream, its groups and their consumers. */
export interface StreamFacts {
  readonly topic: string
  readonly length: number
  /** Entries ever added; `undefined` before Redis 7.0. */
  readonly added: number | undefined
  readonly first: string | undefined
  readonly maxDeleted: string
  readonly groups: ReadonlyArray<GroupFacts>
}

export interface GroupFacts {
  readonly name: string
  readonly pending: number
  readonly lastDelivered: string
  /** Entries of the stream that the group has been given; `undefined`: the server cannot know. */
  readonly entriesRead: number | undefined
  /** `undefined`: the server cannot know. */
  readonly lag: number | undefined
  readonly consumers: ReadonlyArray<{ readonly name: string; readonly pending: number; readonly idle: number }>
  /** The pending entry that was left alone longest, and for how long, when beyond what was asked for. */
  readonly stuck: { readonly id: string; readonly consumer: string; readonly idle: number } | undefined
}

const maybe = <A>(effect: Effect.Effect<A, CommandError>): Effect.Effect<A | undefined> =>
  Effect.match(effect, { onFailure: () => undefined, onSuccess: (value) => value })

const parameters = [
  "maxmemory",
  "maxmemory-policy",
  "appendonly",
  "appendfsync",
  "save",
  "min-replicas-to-write",
  "timeout",
  "tcp-keepalive",
  "maxclients"
]

/** Every command that a pipeline sends, with its fallbacks. */
export const commands = [
  "XADD",
  "XREADGROUP",
  "XACK",
  "XCLAIM",
  "XAUTOCLAIM",
  "XPENDING",
  "XGROUP",
  "XINFO",
  "XRANGE",
  "XREVRANGE",
  "XDEL",
  "XTRIM",
  "EVAL",
  "EVALSHA",
  "CLIENT",
  "CLIENT|UNBLOCK",
  "PING",
  "HGET",
  "HSET",
  "HDEL",
  "ZADD",
  "ZRANGE",
  "ZREM",
  "TIME"
]

export const serverFacts = Effect.fnUntraced(function*(node: Node) {
  const config = yield* maybe(Effect.map(
    Effect.forEach(parameters, (name) => maybe(node.send(["CONFIG", "GET", name]))),
    (replies) => {
      const all = new Map<string, string>()
      for (const reply of replies) for (const [name, value] of pairs(reply)) all.set(name, String(value))
      return all.size === 0 ? undefined : all
    }
  ))
  const before = Date.now()
  const time = yield* maybe(node.send(["TIME"]))
  const after = Date.now()
  const known = yield* maybe(node.send(["COMMAND", "INFO", ...commands]))
  const replies = known === undefined ? undefined : list(known)
  const facts: ServerFacts = {
    name: node.name,
    info: yield* maybe(Effect.map(node.send(["INFO"]), info)),
    config,
    skew: time === undefined
      ? undefined
      : Number(list(time)[0]) * 1000 + Math.floor(Number(list(time)[1]) / 1000) - Math.round((before + after) / 2),
    absent: replies === undefined || replies.length !== commands.length
      ? undefined
      : commands.filter((_, i) => replies[i] === null || (Array.isArray(replies[i]) && list(replies[i]).length === 0))
  }
  return facts
})

const number = (reply: unknown): number | undefined =>
  reply === null || reply === undefined || !Number.isFinite(Number(reply)) ? undefined : Number(reply)

const groupFacts = Effect.fnUntraced(function*(admin: Admin, key: string, raw: unknown, stuckAfter: number) {
  const group = pairs(raw)
  const name = String(group.get("name"))
  const consumers = list(yield* admin.send(key, ["XINFO", "CONSUMERS", key, name])).map((raw) => {
    const consumer = pairs(raw)
    return {
      name: String(consumer.get("name")),
      pending: Number(consumer.get("pending")),
      idle: Number(consumer.get("idle"))
    }
  })
  const left = list(yield* admin.send(key, ["XPENDING", key, name, "IDLE", String(stuckAfter), "-", "+", "1"]))
  const [id, consumer, idle] = list(left[0])
  const facts: GroupFacts = {
    name,
    pending: Number(group.get("pending")),
    lastDelivered: String(group.get("last-delivered-id")),
    entriesRead: number(group.get("entries-read")),
    lag: number(group.get("lag")),
    consumers,
    stuck: id === undefined ? undefined : { id: String(id), consumer: String(consumer), idle: Number(idle) }
  }
  return facts
})

/** `undefined`: there is no such stream any more. */
export const streamFacts = Effect.fnUntraced(
  function*(admin: Admin, key: string, topic: string, stuckAfter: number): Effect.fn.Return<
    StreamFacts | undefined,
    CommandError
  > {
    const reply = yield* admin.send(key, ["XINFO", "STREAM", key]).pipe(
      Effect.catch((error) => /no such key/i.test(error.message) ? Effect.succeed(undefined) : Effect.fail(error))
    )
    if (reply === undefined) return undefined
    const stream = pairs(reply)
    const first = list(stream.get("first-entry"))[0]
    const groups = list(yield* admin.send(key, ["XINFO", "GROUPS", key]))
    return {
      topic,
      length: Number(stream.get("length")),
      added: number(stream.get("entries-added")),
      first: first === undefined ? undefined : String(first),
      maxDeleted: String(stream.get("max-deleted-entry-id") ?? "0-0"),
      groups: yield* Effect.forEach(groups, (group) => groupFacts(admin, key, group, stuckAfter))
    }
  }
)

/** Which of these may the user of this connection not run; `undefined`: the server does not tell this user. */
export const refusals = Effect.fnUntraced(
  function*(node: Node, tried: ReadonlyArray<ReadonlyArray<string>>): Effect.fn.Return<
    { readonly user: string; readonly refused: ReadonlyArray<string> } | undefined
  > {
    const user = yield* maybe(node.send(["ACL", "WHOAMI"]))
    if (user === undefined) return undefined
    const refused: Array<string> = []
    for (const command of tried) {
      const answer = yield* maybe(node.send(["ACL", "DRYRUN", String(user), ...command]))
      if (answer === undefined) return undefined
      if (answer !== "OK") refused.push(command.join(" "))
    }
    return { user: String(user), refused }
  }
)
