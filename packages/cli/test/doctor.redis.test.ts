import { assert, describe, it } from "@effect/vitest"
import { Pipeline, Publisher, Topic } from "@millrace/core"
import { RedisStreams } from "@millrace/redis-streams"
import { Brokers, Proxy } from "@millrace/testing"
import { Deferred, Effect, Layer, Redacted, Schema } from "effect"
import { spawn } from "node:child_process"
import * as Fs from "node:fs"
import { createServer, type Server } from "node:net"
import * as Os from "node:os"
import * as Path from "node:path"
import { createClient } from "redis"
import { skipsInContainers } from "../../redis-streams/test/redis.ts"
import type { Finding } from "../src/internal/findings.ts"
import { make as admin } from "../src/internal/redis/admin.ts"
import { commands } from "../src/internal/redis/facts.ts"
import { Command, json, millrace, shiftClock, until } from "./cli.ts"

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

/** A Sentinel that watches this server as `orders`; gives its port. */
const sentinel = Effect.fnUntraced(function*(master: Brokers.Broker) {
  const bin = Path.join(import.meta.dirname, "..", "..", "..", ".cache", "servers", "bin")
  const fetched = Fs.existsSync(bin) ? Fs.readdirSync(bin).filter((name) => /^redis-.*-server$/.test(name)).sort() : []
  const program = fetched.length === 0 ? "redis-server" : Path.join(bin, fetched.at(-1)!)
  const folder = yield* Effect.acquireRelease(
    Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "millrace-cli-"))),
    (folder) => Effect.sync(() => Fs.rmSync(folder, { recursive: true, force: true }))
  )
  const port = yield* Brokers.freePort
  const file = Path.join(folder, "sentinel.conf")
  Fs.writeFileSync(file, `port ${port}\nbind 127.0.0.1\nsentinel monitor orders ${master.host} ${master.port} 1\n`)
  yield* Effect.acquireRelease(
    Effect.sync(() => spawn(program, [file, "--sentinel"], { stdio: "ignore" })),
    (child) => Effect.sync(() => child.kill("SIGKILL"))
  )
  yield* until(
    "the Sentinel answers",
    Effect.match(Effect.tryPromise(() => fetchPing(port)), { onFailure: () => false, onSuccess: () => true })
  )
  return port
})

const fetchPing = async (port: number) => {
  const client = await createClient({ url: `redis://127.0.0.1:${port}`, socket: { reconnectStrategy: false } })
    .on("error", () => {}).connect()
  try {
    await client.sendCommand(["PING"])
  } finally {
    client.destroy()
  }
}

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
        yield* send(master.url, "CONFIG SET min-replicas-to-write 2")
        const refusing = (yield* doctor(master.url, ...given)).find(({ id }) => id === "redis/replication")!
        assert.deepInclude(refusing, { level: "error", seen: "min-replicas-to-write 2, 1 replica in time" })
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

    it.live("clocks that differ, writes that fail, memory that will be full, empty blocks, names that are no text", () =>
      Effect.gen(function*() {
        const { url } = yield* Brokers[kind]({ args: [...safe, "--enable-protected-configs", "yes"] })
        const connection = yield* client(url)
        const run = (...args: ReadonlyArray<string | Buffer>) =>
          Effect.promise(() => connection.sendCommand(args.slice()))
        // Two megabytes in a hundred seconds, of two hundred.
        const start = Date.now() - 100_000
        const pipeline = connection.multi()
        for (let i = 0; i < 2000; i++) {
          pipeline.addCommand(["XADD", "grows", `${start + i * 50}-0`, "body", "x".repeat(1000)])
        }
        yield* Effect.promise(() => pipeline.execAsPipeline())
        for (const id of ["1-0", "2-0", "3-0"]) yield* run("XADD", "blocks", id, "body", "x")
        yield* run("XDEL", "blocks", "3-0")
        yield* run("XTRIM", "blocks", "MINID", "=", "3")
        yield* run("XADD", "binary", "*", "body", "x")
        yield* run("XGROUP", "CREATE", "binary", Buffer.from([0xff, 0x01]), "0")
        yield* run("CONFIG", "SET", "dir", "/proc")
        yield* run("BGSAVE")
        yield* until(
          "the snapshot has failed",
          Effect.map(run("INFO", "persistence"), (info) => /rdb_last_bgsave_status:err/.test(String(info)))
        )
        yield* shiftClock(60_000)
        const found = yield* doctor(url, ...given)
        assert.deepStrictEqual(troubles(found), {
          "redis/clock": "warning",
          "redis/persistence-failing": "error",
          "redis/unbounded grows": "warning",
          "redis/empty-blocks blocks": "error",
          "redis/group-name binary/\ufffd\u0001": "unknown"
        })
        assert.match(found.find(({ id }) => id === "redis/unbounded")!.costs!, /at its rate so far in about \dh/)
      }))

    it.live("messages that a stopped pipeline released are not reported as stuck", () =>
      Effect.gen(function*() {
        const { url } = yield* Brokers[kind]({ args: safe })
        const orders = Topic.make("orders", { schema: Schema.String })
        yield* Effect.gen(function*() {
          const running = yield* Pipeline.from(orders, { group: "g", drainTimeout: 0 }).pipe(
            Pipeline.mapEffect(() => Effect.never),
            Pipeline.start
          )
          yield* Publisher.publish(orders, "a")
          yield* until("it is held", Effect.map(running.owned, ({ running }) => running === 1))
        }).pipe(Effect.scoped, Effect.provide(RedisStreams.layer({ url })))
        assert.deepStrictEqual(troubles(yield* doctor(url, "--min-idle", "10s", ...given)), {
          "redis/no-consumers orders/g": "warning"
        })
        const { error, out } = yield* Effect.provide(
          millrace("inspect", "orders"),
          Layer.succeed(Command, { name: kind, flags: ["--redis", url], open: undefined })
        )
        assert.strictEqual(error, "")
        assert.match(out, /No consumer: nothing is handled/)
        assert.match(out, /nobody: released +- +\d$/m)
      }))

    it.live("the user of the documentation may do everything; without rights each command is named", () =>
      Effect.gen(function*() {
        const { host, port, url } = yield* Brokers[kind]({ args: safe })
        const docs = Fs.readFileSync(
          Path.join(import.meta.dirname, "..", "..", "..", "docs", "redis-streams.md"),
          "utf8"
        )
        const rules = docs.match(/ACL SETUSER app[\s\S]*?```/)![0].match(/\+[^\s`\\]+/g)!
        assert.deepStrictEqual(rules.map((rule) => rule.slice(1).toUpperCase()).toSorted(), commands.toSorted())
        const looking = [
          "+info",
          "+config|get",
          "+command|info",
          "+acl|whoami",
          "+acl|dryrun",
          "+scan",
          "+xinfo|stream"
        ]
        yield* send(
          url,
          ["ACL", "SETUSER", "app", "on", ">pw", "~orders*", "~{orders*", "-@all", ...rules, ...looking],
          ["ACL", "SETUSER", "none", "on", ">pw", "~orders*", "-@all", "+ping", ...looking]
        )
        const found = (user: string) =>
          Effect.map(
            doctor(`redis://${user}:pw@${host}:${port}`, ...given),
            (findings) => findings.find(({ id }) => id === "redis/acl")!
          )
        assert.strictEqual((yield* found("app")).level, "ok")
        const { remedy, seen } = yield* found("none")
        for (const rule of rules) {
          if (rule === "+ping") continue
          assert.include(remedy!.split(" "), rule)
          assert.include(seen, rule.slice(1).toUpperCase().replace("|", " "))
        }
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

describe("what only a proxy can make a server say", () => {
  // Servers of these versions are not to be had: the proxy changes a digit of what the server says about itself.
  it.live.each([["6", "redis/version", "error"], ["8.4", "redis/known-faults", "warning"]] as const)(
    "Redis %s: %s",
    ([version, id, level]) =>
      Effect.gen(function*() {
        const broker = yield* Brokers.redis({ args: safe })
        const proxy = yield* Proxy.make(broker, {
          pass: (piece) => {
            const text = piece.toString("latin1")
            const known = /redis_version:\d+\.\d/.exec(text)?.[0]
            if (known === undefined) return piece
            const other = `redis_version:${version}`.padEnd(known.length, ".0")
            return Buffer.from(text.replace(known, other), "latin1")
          }
        })
        const found = troubles(yield* doctor(proxy.through(broker.url), ...given))
        assert.strictEqual(found[id], level)
        assert.strictEqual(found["redis/proxy"], "unknown")
      })
  )

  it.live("a service without CLIENT UNBLOCK", () =>
    Effect.gen(function*() {
      const broker = yield* Brokers.redis({ args: safe })
      const proxy = yield* Proxy.make(broker, {
        pass: (piece) => Buffer.from(piece.toString("latin1").replace("CLIENT|UNBLOCK", "CLIENT|UNKNOWN"), "latin1")
      })
      const found = yield* doctor(proxy.through(broker.url), ...given)
      assert.deepStrictEqual(troubles(found), { "redis/commands": "warning", "redis/proxy": "unknown" })
      assert.match(found.find(({ id }) => id === "redis/commands")!.seen, /lacks CLIENT\|UNBLOCK \(/)
    }))
})

const skips = await skipsInContainers("doctor on a cluster and behind a Sentinel")

describe.skipIf(skips)("cluster and Sentinel", () => {
  it.live(
    "--cluster sees the topics and the servers of all nodes, and a prefix that puts all into one slot",
    () =>
      Effect.gen(function*() {
        const args = [...safe, "--cluster-enabled", "yes"]
        const [one, two] = yield* Effect.all([Brokers.redis({ args }), Brokers.redis({ args })], { concurrency: 2 })
        yield* send(one.url, "CLUSTER ADDSLOTSRANGE 0 8191", `CLUSTER MEET ${two.host} ${two.port}`)
        yield* send(two.url, "CLUSTER ADDSLOTSRANGE 8192 16383")
        const isUp = Effect.map(
          Effect.forEach([one, two], ({ url }) => send(url, "CLUSTER INFO")),
          (all) => all.every(([info]) => /cluster_state:ok/.test(String(info)))
        )
        yield* until("the cluster is one", isUp)
        const given = ["--handler-timeout", "10s", "--grace-period", "60s"]
        yield* Effect.gen(function*() {
          const topics = ["a", "b", "c", "d"]
          for (const topic of topics) {
            assert.strictEqual((yield* millrace("publish", topic, "{}", "--create")).error, "")
          }
          const overview = yield* json("inspect")
          assert.deepStrictEqual(
            overview.topics.map(({ messages, topic }: { topic: string; messages: number }) => [topic, messages]),
            topics.map((topic) => [topic, 1])
          )
          assert.match(overview.server, /, cluster of 2$/)
          assert.deepStrictEqual(troubles((yield* json("doctor", ...given)).findings), {})
          assert.deepStrictEqual(troubles((yield* json("doctor", "--prefix", "{app}:", ...given)).findings), {
            [`redis/cluster 127.0.0.1:${one.port}`]: "warning",
            [`redis/cluster 127.0.0.1:${two.port}`]: "warning"
          })
        }).pipe(Effect.provide(
          Layer.succeed(Command, { name: "redis", flags: ["--redis", one.url, "--cluster"], open: undefined })
        ))
      }),
    120_000
  )

  it.live("a URL of Valkey is taken, and options of NATS are refused", () =>
    Effect.gen(function*() {
      const { port } = yield* Brokers.redis({ args: safe })
      const url = `valkey://127.0.0.1:${port}`
      assert.deepStrictEqual(troubles(yield* doctor(url, ...given)), {})
      const { code, error } = yield* Effect.provide(
        millrace("doctor", "--owned", "500", "--monitor", "http://127.0.0.1:8222"),
        Layer.succeed(Command, { name: "redis", flags: ["--redis", url], open: undefined })
      )
      assert.strictEqual(code, 2)
      assert.match(error, /--monitor and --owned: not for Redis/)
    }), 60_000)

  it.live("--sentinel with rediss:// speaks TLS to the Sentinel", () =>
    Effect.gen(function*() {
      const port = yield* Brokers.freePort
      const first = yield* Deferred.make<number>()
      yield* Effect.acquireRelease(
        Effect.callback<Server>((resume) => {
          const server: Server = createServer((socket) => {
            socket.on("error", () => {})
            socket.once("data", (data) => {
              Deferred.doneUnsafe(first, Effect.succeed(data[0]!))
              socket.destroy()
            })
          }).listen(port, "127.0.0.1", () => resume(Effect.succeed(server)))
        }),
        (server) => Effect.sync(() => server.close())
      )
      const url = Redacted.make(`rediss://127.0.0.1:${port}`)
      // The client tries for a while, and cannot be stopped meanwhile.
      yield* Effect.forkDetach(Effect.scoped(admin({ url, cluster: false, sentinel: "orders", keyPrefix: "" })))
      // The first byte of a TLS handshake.
      assert.strictEqual(yield* Deferred.await(first), 0x16)
    }))

  it.live("--sentinel finds the master", () =>
    Effect.gen(function*() {
      const master = yield* Brokers.redis({ args: safe })
      const port = yield* sentinel(master)
      const { findings, server } = yield* Effect.provide(
        json("doctor", ...given),
        Layer.succeed(Command, {
          name: "redis",
          flags: ["--redis", `redis://127.0.0.1:${port}`, "--sentinel", "orders"],
          open: undefined
        })
      )
      assert.match(server, /^Redis \d/)
      assert.deepStrictEqual(troubles(findings), {})
      assert.isAbove(findings.filter(({ level }: Finding) => level === "ok").length, 10)
    }), 120_000)
})
