import { assert, describe, it } from "@effect/vitest"
import { Brokers } from "@millrace/testing"
import { Effect, Layer } from "effect"
import { createClient } from "redis"
import type { Finding } from "../src/internal/findings.ts"
import { serverChecks } from "../src/internal/redis/serverChecks.ts"
import { Command, json, millrace } from "./cli.ts"

const doctor = (url: string, ...args: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<Finding>> =>
  json("doctor", ...args).pipe(
    Effect.map(({ findings }) => findings),
    Effect.provide(Layer.succeed(Command, { name: "redis", flags: ["--redis", url], open: undefined }))
  )

/** The level of each check that is not fine, by id and, for streams and groups, place. */
const troubles = (findings: ReadonlyArray<Finding>): Record<string, string> =>
  Object.fromEntries(
    findings.filter(({ level }) => level !== "ok").map((
      { at, id, level }
    ) => [at === undefined ? id : `${id} ${at}`, level])
  )

const client = (url: string) =>
  Effect.acquireRelease(
    Effect.promise(() => createClient({ url, RESP: 2 }).on("error", () => {}).connect()),
    (client) => Effect.sync(() => client.destroy())
  )

const send = Effect.fnUntraced(function*(url: string, ...commands: ReadonlyArray<string | ReadonlyArray<string>>) {
  const connection = yield* client(url)
  const replies: Array<unknown> = []
  for (const command of commands) {
    const args = typeof command === "string" ? command.split(" ") : [...command]
    replies.push(yield* Effect.promise(() => connection.sendCommand(args)))
  }
  return replies
})

const safe = ["--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory", "200mb"]

const given = ["--handler-timeout", "10s", "--grace-period", "60s"]

for (const kind of ["redis", "valkey"] as const) {
  describe(`doctor on ${kind}`, () => {
    it.live("a server configured right, in use, has nothing to complain of", () =>
      Effect.gen(function*() {
        const { url } = yield* Brokers[kind]({ args: safe })
        yield* send(
          url,
          "XADD orders * body 1",
          "XGROUP CREATE orders payments 0",
          "XREADGROUP GROUP payments me COUNT 1 STREAMS orders >"
        )
        assert.deepStrictEqual(troubles(yield* doctor(url, ...given)), {})
        const { code, out } = yield* Effect.provide(
          millrace("doctor"),
          Layer.succeed(Command, { name: kind, flags: ["--redis", url], open: undefined })
        )
        assert.strictEqual(code, 0)
        assert.match(out, /0 errors, 0 warnings, 2 unknown, \d+ fine$/)
        assert.isTrue(out.split("\n").every((line) => line.length <= 100))
      }))

    it.live("eviction, no persistence, short timeouts, few connections", () =>
      Effect.gen(function*() {
        const { url } = yield* Brokers[kind]({
          args: [
            "--maxmemory-policy",
            "allkeys-lru",
            "--maxmemory",
            "3mb",
            "--timeout",
            "30",
            "--tcp-keepalive",
            "0",
            "--maxclients",
            "12"
          ]
        })
        const value = "x".repeat(100_000)
        yield* Effect.scoped(send(url, ...Array.from({ length: 60 }, (_, i) => ["SET", `k${i}`, value])))
        yield* Effect.forEach(Array.from({ length: 8 }), () => client(url))
        assert.deepInclude(troubles(yield* doctor(url, ...given)), {
          "redis/maxmemory-policy": "error",
          "redis/evicted": "error",
          "redis/persistence": "error",
          "redis/timeout": "warning",
          "redis/tcp-keepalive": "warning",
          "redis/clients": "error"
        })
      }))

    it.live("volatile eviction, nearly full, no fsync", () =>
      Effect.gen(function*() {
        const { url } = yield* Brokers[kind]({
          args: [
            "--maxmemory-policy",
            "volatile-ttl",
            "--maxmemory",
            "8mb",
            "--appendonly",
            "yes",
            "--appendfsync",
            "no"
          ]
        })
        yield* send(url, ...Array.from({ length: 70 }, (_, i) => ["SET", `k${i}`, "x".repeat(100_000)]))
        const found = yield* doctor(url, ...given)
        assert.deepInclude(troubles(found), {
          "redis/maxmemory-policy": "warning",
          "redis/memory": "error",
          "redis/persistence": "warning"
        })
        assert.strictEqual(
          found.find(({ id }) => id === "redis/maxmemory-policy")?.remedy,
          "CONFIG SET maxmemory-policy noeviction"
        )
      }))

    it.live("snapshots only, scripts renamed away", () =>
      Effect.gen(function*() {
        const { url } = yield* Brokers[kind]({
          args: ["--save", "3600", "1", "--rename-command", "EVAL", "", "--maxmemory", "200mb"]
        })
        const found = yield* doctor(url, ...given)
        assert.deepInclude(troubles(found), { "redis/persistence": "warning", "redis/commands": "error" })
        assert.match(found.find(({ id }) => id === "redis/commands")!.seen, /lacks EVAL \(/)
      }))

    it.live("a master whose replicas need not confirm, and the replica itself", () =>
      Effect.gen(function*() {
        const master = yield* Brokers[kind]({ args: safe })
        const replica = yield* Brokers[kind]({ args: [...safe, "--replicaof", master.host, String(master.port)] })
        const connection = yield* client(master.url)
        yield* Effect.promise(() => connection.sendCommand(["WAIT", "1", "20000"]))
        assert.deepStrictEqual(troubles(yield* doctor(master.url, ...given)), { "redis/replication": "warning" })
        assert.deepInclude(troubles(yield* doctor(replica.url, ...given)), { "redis/replication": "error" })
      }))

    it.live("a node of a cluster that is not used as one", () =>
      Effect.gen(function*() {
        const { url } = yield* Brokers[kind]({
          args: [...safe, "--cluster-enabled", "yes", "--cluster-config-file", "nodes-test.conf"]
        })
        const found = yield* doctor(url, ...given)
        assert.strictEqual(troubles(found)["redis/cluster"], "error")
      }))

    it.live("a user without permissions: what is missing, and what cannot be seen", () =>
      Effect.gen(function*() {
        const { host, port, url } = yield* Brokers[kind]({ args: safe })
        yield* send(
          url,
          "ACL SETUSER app on >pw ~app:* +@all -@admin -@dangerous +info +acl|whoami +acl|dryrun -xclaim",
          "ACL SETUSER blind on >pw ~* +@stream +@connection +@scripting +@hash +@sortedset +time"
        )
        const found = yield* doctor(`redis://app:pw@${host}:${port}`, "--prefix", "app:", ...given)
        assert.deepInclude(troubles(found), { "redis/acl": "error" })
        assert.match(found.find(({ id }) => id === "redis/acl")!.seen, /user app may not run .*XCLAIM/)
        const blind = troubles(yield* doctor(`redis://blind:pw@${host}:${port}`, ...given))
        for (
          const id of [
            "version",
            "maxmemory-policy",
            "memory",
            "persistence",
            "replication",
            "timeout",
            "acl",
            "streams"
          ]
        ) {
          assert.strictEqual(blind[`redis/${id}`], "unknown", id)
        }
      }))

    it.live("streams and groups that grow, are stuck, or lose what was not read", () =>
      Effect.gen(function*() {
        const { url } = yield* Brokers[kind]({ args: safe })
        const entry = ["body", "x"]
        const add = (key: string, from: number, to: number) =>
          Array.from({ length: to - from + 1 }, (_, i) => ["XADD", key, `${from + i}-0`, ...entry])
        const connection = yield* client(url)
        const pipeline = connection.multi()
        for (const command of add("grows", 1, 10_000)) pipeline.addCommand(command)
        yield* Effect.promise(() => pipeline.execAsPipeline())
        yield* send(
          url,
          "XGROUP CREATE grows nobody 0",
          ...add("held", 1, 5),
          "XGROUP CREATE held g 0",
          "XREADGROUP GROUP g dead COUNT 2 STREAMS held >",
          ...add("holes", 1, 5),
          "XGROUP CREATE holes g 0",
          "XGROUP CREATECONSUMER holes g c",
          "XDEL holes 3-0",
          ...add("cut", 1, 300),
          "XGROUP CREATE cut g 0",
          "XREADGROUP GROUP g c COUNT 5 NOACK STREAMS cut >",
          "XTRIM cut MAXLEN = 100",
          ...add("near", 1, 300),
          "XGROUP CREATE near g 0",
          "XREADGROUP GROUP g c COUNT 110 NOACK STREAMS near >",
          "XTRIM near MAXLEN = 200",
          ...add("emptied", 1, 3),
          "XGROUP CREATE emptied g 0",
          "XREADGROUP GROUP g c NOACK STREAMS emptied >",
          "XDEL emptied 1-0 2-0 3-0",
          "XADD emptied 9-0 body x",
          "SET text x"
        )
        yield* Effect.sleep("1200 millis")
        const found = troubles(yield* doctor(url, "--min-idle", "100ms", ...given))
        assert.deepInclude(found, {
          "redis/unbounded grows": "warning",
          "redis/no-consumers grows/nobody": "warning",
          "redis/dead-owner held/g": "error",
          "redis/stuck held/g": "error",
          "redis/lag-unknown holes/g": "warning",
          "redis/unread-trimmed cut/g": "error",
          "redis/unread-trimmed near/g": "warning",
          "redis/claim-time": "warning"
        })
        for (const at of ["holes/g", "emptied/g"]) assert.isUndefined(found[`redis/unread-trimmed ${at}`], at)
        assert.strictEqual(troubles(yield* doctor(url, "--topic", "text", ...given))["redis/key-type text"], "error")
      }))

    it.live("a drain longer than the platform's grace is an error, and nothing said is unknown", () =>
      Effect.gen(function*() {
        const { url } = yield* Brokers[kind]({ args: safe })
        const late = yield* doctor(url, "--grace-period", "30s", "--handler-timeout", "1m")
        assert.deepStrictEqual(troubles(late), { "redis/drain": "error", "redis/claim-time": "warning" })
        assert.deepStrictEqual(troubles(yield* doctor(url)), {
          "redis/drain": "unknown",
          "redis/claim-time": "unknown"
        })
      }))
  })
}

describe("what no server here can be made to say", () => {
  const check = (info: Record<string, string>, skew = 0) =>
    troubles(serverChecks({
      name: "a",
      info: new Map(Object.entries({ redis_version: "8.6.3", role: "master", ...info })),
      config: undefined,
      skew,
      absent: []
    }, { cluster: true, keyPrefix: "{app}:", several: false }))

  it("versions, known faults, failed writes, clocks, one slot", () => {
    assert.strictEqual(check({ redis_version: "6.2.14" })["redis/version"], "error")
    assert.strictEqual(check({ redis_version: "8.4.0" })["redis/known-faults"], "warning")
    assert.isUndefined(check({ redis_version: "7.2.4", valkey_version: "8.4.0" })["redis/known-faults"])
    assert.strictEqual(check({ aof_last_write_status: "err" })["redis/persistence-failing"], "error")
    assert.strictEqual(check({}, 60_000)["redis/clock"], "warning")
    assert.strictEqual(check({ cluster_enabled: "1" })["redis/cluster"], "warning")
  })
})
