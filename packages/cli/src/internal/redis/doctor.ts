import * as Effect from "effect/Effect"
import { bad, type Finding, type Given, ok, unknown } from "../findings.ts"
import { programChecks } from "../programChecks.ts"
import type { Admin, CommandError, Target } from "./admin.ts"
import { refusals, type ServerFacts, serverFacts, streamFacts } from "./facts.ts"
import { roomOf } from "./memoryChecks.ts"
import { scan } from "./scan.ts"
import { serverChecks } from "./serverChecks.ts"
import { streamChecks, stuckAfter } from "./streamChecks.ts"

/** As many streams are examined, the rest is counted. */
const maxStreams = 2_000

/** What a pipeline sends about a topic, and the keys beside it. */
const tried = (prefix: string, topic: string): ReadonlyArray<ReadonlyArray<string>> => {
  const key = prefix + topic
  const beside = `${key.includes("{") ? `${key}:` : `{${key}}`}:millrace:`
  return [
    ["XADD", key, "*", "body", "x"],
    ["XREADGROUP", "GROUP", "g", "c", "STREAMS", key, ">"],
    ["XACK", key, "g", "0-1"],
    ["XPENDING", key, "g"],
    ["XCLAIM", key, "g", "c", "0", "0-1"],
    ["XDEL", key, "0-1"],
    ["XTRIM", key, "MAXLEN", "100"],
    ["XRANGE", key, "-", "+"],
    ["XREVRANGE", key, "+", "-"],
    ["XGROUP", "CREATE", key, "g", "0", "MKSTREAM"],
    ["XGROUP", "DELCONSUMER", key, "g", "c"],
    ["XINFO", "GROUPS", key],
    ["XINFO", "CONSUMERS", key, "g"],
    ["EVALSHA", "0".repeat(40), "2", key, `${beside}due:g`],
    ["EVAL", "return 1", "2", key, `${beside}due:g`],
    ["TIME"],
    ["TYPE", key],
    ["EXISTS", key],
    ["HGET", `${beside}due:g`, "a"],
    ["HMGET", `${beside}ids:0`, "a"],
    ["HSET", `${beside}ids:0`, "a", "b"],
    ["HDEL", `${beside}due:g`, "a"],
    ["HLEN", `${beside}due:g`],
    ["PTTL", `${beside}ids:0`],
    ["PEXPIRE", `${beside}ids:0`, "1000"],
    ["ZADD", `${beside}delayed`, "0", "a"],
    ["ZRANGE", `${beside}delayed`, "0", "0"],
    ["ZREM", `${beside}delayed`, "a"],
    ["ZCOUNT", `${beside}delayed`, "0", "1"],
    ["SET", `${beside}maintenance:g`, "1", "NX", "PX", "1000"],
    ["PING"],
    ["CLIENT", "ID"],
    ["CLIENT", "UNBLOCK", "0"]
  ]
}

const containers = ["CLIENT", "XGROUP", "XINFO"]

/** The rule that allows a command: `+xadd`, `+client|id`. */
const ruleFor = (command: string): string => {
  const [name = "", sub = ""] = command.toLowerCase().split(" ")
  return containers.includes(name.toUpperCase()) ? `+${name}|${sub}` : `+${name}`
}

const permissions = Effect.fnUntraced(function*(admin: Admin, target: Target, topic: string | undefined) {
  const id = "redis/acl"
  const example = topic ?? "orders"
  const found = yield* refusals(admin.nodes[0]!, tried(target.keyPrefix, example))
  if (found === undefined) {
    return unknown(
      id,
      "this user may not run ACL DRYRUN",
      "a missing permission shows when a pipeline needs it",
      "run doctor once as an administrator, or: ACL SETUSER <user> +acl|whoami +acl|dryrun"
    )
  }
  const { refused, user } = found
  const isMinor = refused.every((command) => command.startsWith("CLIENT "))
  return refused.length === 0
    ? ok(id, `user ${user} may do everything that a pipeline over ${example} needs`)
    : bad(
      isMinor ? "warning" : "error",
      id,
      `user ${user} may not run ${refused.join("; ")}`,
      isMinor
        ? "a read cannot be ended early: reads are short, so there are more of them"
        : "pipelines fail where they need it, some only hours later",
      `ACL SETUSER ${user} ${
        [...new Set(refused.map(ruleFor))].join(" ")
      } and allow the keys ~${target.keyPrefix}* and ~{${target.keyPrefix}*}:millrace:*`
    )
})

const streams = Effect.fnUntraced(function*(admin: Admin, target: Target, given: Given, room: number | undefined) {
  const topics = given.topic === undefined ? yield* scan(admin, target.keyPrefix) : [given.topic]
  const findings: Array<Finding> = []
  if (given.topic !== undefined) {
    const type = yield* admin.send(target.keyPrefix + given.topic, ["TYPE", target.keyPrefix + given.topic])
    if (type !== "stream" && type !== "none") {
      return [bad(
        "error",
        "redis/key-type",
        `the key ${target.keyPrefix}${given.topic} is a ${type}`,
        "every publish and read fails with WRONGTYPE",
        "choose another topic, a keyPrefix, or delete the key",
        given.topic
      )]
    }
  }
  const examined = topics.slice(0, maxStreams)
  const all = yield* Effect.forEach(
    examined,
    (topic) => streamFacts(admin, target.keyPrefix + topic, topic, stuckAfter(given)),
    { concurrency: 16 }
  )
  for (const facts of all) if (facts !== undefined) findings.push(...streamChecks(facts, given, room))
  if (topics.length > examined.length) {
    findings.push(
      unknown(
        "redis/streams",
        `${examined.length} of ${topics.length} streams were examined`,
        "the others may be stuck",
        "millrace doctor --topic <topic>"
      )
    )
  }
  return findings
})

/** Bytes until the first server is full. */
const room = (servers: ReadonlyArray<ServerFacts>): number | undefined => {
  const rooms = servers.flatMap((facts) => roomOf(facts) ?? [])
  return rooms.length === 0 ? undefined : Math.min(...rooms)
}

/** Everything about a server, its streams and groups. */
export const examine = Effect.fnUntraced(
  function*(admin: Admin, target: Target, given: Given): Effect.fn.Return<ReadonlyArray<Finding>, CommandError> {
    const servers = yield* Effect.forEach(admin.nodes, serverFacts)
    const several = servers.length > 1
    return [
      ...servers.flatMap((facts) =>
        serverChecks(facts, { cluster: target.cluster, keyPrefix: target.keyPrefix, several })
      ),
      yield* permissions(admin, target, given.topic),
      ...programChecks("redis", given, { name: "claim.minIdle", millis: given.minIdle }),
      ...(yield* Effect.catch(
        streams(admin, target, given, room(servers)),
        (error) =>
          error.message.startsWith("NOPERM")
            ? Effect.succeed([
              unknown(
                "redis/streams",
                "this user may not list and examine streams",
                "stuck groups are not seen",
                "ACL SETUSER <user> +scan +xinfo +xpending +type"
              )
            ])
            : Effect.fail(error)
      ))
    ]
  }
)
