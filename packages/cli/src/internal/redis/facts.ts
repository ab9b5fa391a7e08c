import * as Effect from "effect/Effect"
import * as Dns from "node:dns/promises"
import { isIP } from "node:net"
import { type Admin, type CommandError, info, isInternal, list, millisOf, type Node, pairs } from "./admin.ts"

/** What one server says about itself; `undefined` where this user may not ask. */
export interface ServerFacts {
  readonly name: string
  readonly info: ReadonlyMap<string, string> | undefined
  readonly config: ReadonlyMap<string, string> | undefined
  /** Milliseconds that its clock is ahead of ours. */
  readonly skew: number | undefined
  /** Commands that are not there, of those asked for; `undefined`: not known. */
  readonly absent: ReadonlyArray<string> | undefined
  /** The address at which the server has this connection, and what was dialled; `undefined`: not known. */
  readonly path: { readonly dialled: string; readonly server: string; readonly isSame: boolean } | undefined
}

/** A stream, its groups and their consumers. */
export interface StreamFacts {
  readonly topic: string
  readonly key: string
  readonly length: number
  /** Blocks that hold the entries. */
  readonly blocks: number
  /** `undefined` where it does not matter, or is not known. */
  readonly bytes: number | undefined
  /** Milliseconds between the first entry and the last. */
  readonly span: number
  /** Entries ever added; `undefined` before Redis 7.0. */
  readonly added: number | undefined
  readonly first: string | undefined
  readonly maxDeleted: string
  readonly groups: ReadonlyArray<GroupFacts>
  /** Groups that could not be looked at: deleted meanwhile, or of a name that is no text. */
  readonly unreadable: ReadonlyArray<string>
}

export interface GroupFacts {
  readonly name: string
  readonly pending: number
  readonly lastDelivered: string
  /** Entries of the stream that the group has been given; `undefined`: the server cannot know. */
  readonly entriesRead: number | undefined
  /** `undefined`: the server cannot know. */
  readonly lag: number | undefined
  /** Processes, without the consumers that belong to Millrace. */
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

/** Every command that a pipeline or one of its scripts sends; a test holds the list against the documented ACL user. */
export const commands = [
  "XADD",
  "XREADGROUP",
  "XACK",
  "XPENDING",
  "XCLAIM",
  "XDEL",
  "XTRIM",
  "XRANGE",
  "XREVRANGE",
  "XGROUP|CREATE",
  "XGROUP|DELCONSUMER",
  "XINFO|GROUPS",
  "XINFO|CONSUMERS",
  "EVALSHA",
  "EVAL",
  "TIME",
  "TYPE",
  "EXISTS",
  "HGET",
  "HMGET",
  "HSET",
  "HDEL",
  "HLEN",
  "PTTL",
  "PEXPIRE",
  "ZADD",
  "ZRANGE",
  "ZREM",
  "ZCOUNT",
  "SET",
  "PING",
  "CLIENT|ID",
  "CLIENT|UNBLOCK"
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
      : commands.filter((_, i) => replies[i] === null || (Array.isArray(replies[i]) && list(replies[i]).length === 0)),
    path: yield* pathOf(node)
  }
  return facts
})

/** Splits `host:port`, also `[::1]:6379`. */
const split = (address: string): readonly [host: string, port: string] => {
  const at = address.lastIndexOf(":")
  return [address.slice(0, at).replace(/^\[|\]$/g, ""), address.slice(at + 1)]
}

/** Compares the address that was dialled with the one at which the server accepted the connection. */
const pathOf = Effect.fnUntraced(function*({ dialled, send }: Node) {
  if (dialled === undefined) return undefined
  const server = / laddr=(\S+)/.exec(String(yield* maybe(send(["CLIENT", "INFO"]))))?.[1]
  if (server === undefined) return undefined
  const [host, port] = split(dialled)
  const [serverHost, serverPort] = split(server)
  const addresses = isIP(host) !== 0 ? [host] : yield* Effect.orElseSucceed(
    Effect.tryPromise(async () => (await Dns.lookup(host, { all: true })).map(({ address }) => address)),
    () => undefined
  )
  return addresses === undefined
    ? undefined
    : { dialled, server, isSame: port === serverPort && addresses.includes(serverHost) }
})

/** The size of a stream with fewer entries says nothing about its growth. */
const fewEntries = 1_000

const number = (reply: unknown): number | undefined =>
  reply === null || reply === undefined || !Number.isFinite(Number(reply)) ? undefined : Number(reply)

/** So many pending entries are looked at: what processes have released stands among those left alone. */
const maxLeft = 100

const groupFacts = Effect.fnUntraced(function*(admin: Admin, key: string, raw: unknown, stuckAfter: number) {
  const group = pairs(raw)
  const name = String(group.get("name"))
  const all = list(yield* admin.send(key, ["XINFO", "CONSUMERS", key, name])).map((raw) => {
    const consumer = pairs(raw)
    return {
      name: String(consumer.get("name")),
      pending: Number(consumer.get("pending")),
      idle: Number(consumer.get("idle"))
    }
  })
  const consumers = all.filter(({ name }) => !isInternal(name))
  const left = list(
    yield* admin.send(key, ["XPENDING", key, name, "IDLE", String(stuckAfter), "-", "+", String(maxLeft)])
  ).map(list)
  const [id, consumer, idle] = left.find(([, owner]) => !isInternal(String(owner))) ?? []
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
    const length = Number(stream.get("length"))
    const added = number(stream.get("entries-added"))
    const unreadable: Array<string> = []
    const groups: Array<GroupFacts> = []
    for (const raw of list(yield* admin.send(key, ["XINFO", "GROUPS", key]))) {
      const facts = yield* Effect.catch(
        groupFacts(admin, key, raw, stuckAfter),
        (error) => /NOGROUP|no such key/i.test(error.message) ? Effect.succeed(undefined) : Effect.fail(error)
      )
      if (facts === undefined) unreadable.push(String(pairs(raw).get("name")))
      else groups.push(facts)
    }
    const grows = added === length && length >= fewEntries
    return {
      topic,
      key,
      length,
      blocks: Number(stream.get("radix-tree-keys")),
      bytes: grows ? number(yield* maybe(admin.send(key, ["MEMORY", "USAGE", key, "SAMPLES", "10"]))) : undefined,
      span: (millisOf(list(stream.get("last-entry"))[0]) ?? 0) - (millisOf(first) ?? 0),
      added,
      first: first === undefined ? undefined : String(first),
      maxDeleted: String(stream.get("max-deleted-entry-id") ?? "0-0"),
      groups,
      unreadable
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
