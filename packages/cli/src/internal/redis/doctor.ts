import * as Effect from "effect/Effect"
import { bad, type Finding, type Given, ok, unknown } from "../findings.ts"
import { programChecks } from "../programChecks.ts"
import type { Admin, CommandError, Target } from "./admin.ts"
import { refusals, serverFacts, streamFacts } from "./facts.ts"
import { scan } from "./scan.ts"
import { serverChecks } from "./serverChecks.ts"
import { streamChecks, stuckAfter } from "./streamChecks.ts"

/** As many streams are examined, the rest is counted. */
const maxStreams = 2_000

/** What a pipeline sends about a topic, and the keys beside it. */
const tried = (prefix: string, topic: string): ReadonlyArray<ReadonlyArray<string>> => {
  const key = prefix + topic
  const beside = `${key.includes("{") ? key : `{${key}}`}:millrace:`
  return [
    ["XADD", key, "*", "body", "x"],
    ["XREADGROUP", "GROUP", "g", "c", "STREAMS", key, ">"],
    ["XACK", key, "g", "0-1"],
    ["XCLAIM", key, "g", "c", "0", "0-1"],
    ["XPENDING", key, "g"],
    ["XGROUP", "CREATE", key, "g", "0", "MKSTREAM"],
    ["XINFO", "GROUPS", key],
    ["XRANGE", key, "-", "+"],
    ["XREVRANGE", key, "+", "-"],
    ["XDEL", key, "0-1"],
    ["XTRIM", key, "MAXLEN", "100"],
    ["EVAL", "return 1", "2", key, `${beside}due:g`],
    ["HSET", `${beside}ids:0`, "a", "b"],
    ["ZADD", `${beside}delayed`, "0", "a"],
    ["CLIENT", "ID"],
    ["PING"]
  ]
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
  return refused.length === 0
    ? ok(id, `user ${user} may do everything that a pipeline over ${example} needs`)
    : bad(
      "error",
      id,
      `user ${user} may not run ${refused.join("; ")}`,
      "pipelines fail where they need it, some only hours later",
      `ACL SETUSER ${user} ${
        [...new Set(refused.map((command) => `+${command.split(" ")[0]!.toLowerCase()}`))].join(" ")
      } and allow the keys ~${target.keyPrefix}* and ~{${target.keyPrefix}*}:millrace:*`
    )
})

const streams = Effect.fnUntraced(function*(admin: Admin, target: Target, given: Given) {
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
  for (const facts of all) if (facts !== undefined) findings.push(...streamChecks(facts, given))
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
      ...(yield* Effect.catch(streams(admin, target, given), (error) =>
        error.message.startsWith("NOPERM")
          ? Effect.succeed([
            unknown(
              "redis/streams",
              "this user may not list and examine streams",
              "stuck groups are not seen",
              "ACL SETUSER <user> +scan +xinfo +xpending +type"
            )
          ])
          : Effect.fail(error)))
    ]
  }
)
