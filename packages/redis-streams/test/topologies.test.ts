import { assert, describe, it } from "@effect/vitest"
import * as Pipeline from "@millrace/core/Pipeline"
import * as Topic from "@millrace/core/Topic"
import { Transport } from "@millrace/core/Transport"
import { RedisStreams } from "@millrace/redis-streams"
import { Brokers, Wait } from "@millrace/testing"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { execFileSync, spawn } from "node:child_process"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { slotOf } from "../src/internal/cluster.ts"
import { admin, fresh, outgoing, skipsInContainers } from "./redis.ts"

const folder = Effect.acquireRelease(
  Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "millrace-redis-"))),
  (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true, force: true }))
)

const json = (topic: string, value: string) => outgoing(topic, JSON.stringify(value))

/** A pipeline that notes what it handled; values that begin with `bad` fail for good. */
const consuming = Effect.fnUntraced(function*(topic: string, options: RedisStreams.Options) {
  const context = yield* RedisStreams.make(options)
  const handled = new Map<string, number>()
  const running = yield* Pipeline.from(Topic.make(topic, { schema: Schema.String }), {
    group: "g",
    startFrom: "beginning"
  }).pipe(
    Pipeline.mapEffect((value) => {
      handled.set(value, (handled.get(value) ?? 0) + 1)
      return value.startsWith("bad") ? Effect.fail(value) : Effect.void
    }),
    Pipeline.retry({ times: 1, schedule: Schedule.spaced("20 millis") }),
    Pipeline.concurrency(16),
    Pipeline.start,
    Effect.provide(context)
  )
  return { handled, running, redis: Context.get(context, Transport), context }
})

const skips = await skipsInContainers("cluster, sentinel and TLS")

describe.skipIf(skips)("cluster", () => {
  const nodes = Effect.gen(function*() {
    const brokers = yield* Effect.all([0, 1, 2].map(() => Brokers.redis({ args: ["--cluster-enabled", "yes"] })))
    const runs = yield* Effect.forEach(brokers, ({ url }) => admin(url))
    yield* Effect.forEach(
      runs,
      (run, i) => run("CLUSTER", "ADDSLOTSRANGE", ...[["0", "5460"], ["5461", "10922"], ["10923", "16383"]][i]!)
    )
    yield* Effect.forEach(brokers, ({ port }) => runs[0]!("CLUSTER", "MEET", "127.0.0.1", String(port)))
    yield* Wait.until(
      "the cluster is one",
      Effect.map(
        Effect.forEach(runs, (run) => run("CLUSTER", "INFO")),
        (infos) =>
          infos.every((info) => /cluster_state:ok/.test(String(info)) && /cluster_known_nodes:3/.test(String(info)))
      ),
      "1 minute"
    )
    const ids = yield* Effect.map(Effect.forEach(runs, (run) => run("CLUSTER", "MYID")), (ids) => ids.map(String))
    return { brokers, runs, ids, ownerOf: (slot: number) => slot <= 5460 ? 0 : slot <= 10922 ? 1 : 2 }
  })

  it.live("topics on all nodes are published to, consumed, retried and dead-lettered", () =>
    Effect.gen(function*() {
      const { brokers, ownerOf } = yield* nodes
      const names = Arr.makeBy(12, () => fresh("cluster"))
      assert.isAbove(new Set(names.map((name) => ownerOf(slotOf(name)))).size, 1)
      const all = yield* Effect.forEach(names, (name) => consuming(name, { url: brokers[0]!.url, cluster: true }))
      const outcomes = yield* all[0]!.redis.publish(
        Arr.flatMap(names as any, (name: string) =>
          Arr.makeBy(20, (i) => json(name, i === 7 ? `bad ${i}` : String(i)))) as any
      )
      assert.isTrue(outcomes.every(Result.isSuccess))
      for (const { handled, running } of all) {
        yield* Wait.until(
          "all",
          Effect.map(running.counts, ({ deadLettered }) =>
            handled.size === 20 && deadLettered === 1)
        )
      }
    }).pipe(Effect.scoped), 120_000)

  it.live("a slot moved while it is consumed: nothing is lost", () =>
    Effect.gen(function*() {
      const { brokers, ids, ownerOf, runs } = yield* nodes
      const topic = fresh("moving")
      const slot = slotOf(topic)
      const from = ownerOf(slot)
      const to = (from + 1) % 3
      const { handled, redis } = yield* consuming(topic, {
        url: brokers[(from + 2) % 3]!.url,
        cluster: { nodes: [`127.0.0.1:${brokers[from]!.port}`] },
        claim: { minIdle: "1 second" }
      })
      const confirmed = new Set<string>()
      let n = 0
      const publishing = yield* Effect.forkChild(Effect.forever(Effect.gen(function*() {
        const value = String(n++)
        const [outcome] = yield* redis.publish([json(topic, value)])
        if (Result.isSuccess(outcome!)) confirmed.add(value)
        yield* Effect.sleep(1)
      })))
      yield* Wait.until("going", Effect.sync(() => handled.size > 100))
      yield* runs[to]!("CLUSTER", "SETSLOT", String(slot), "IMPORTING", ids[from]!)
      yield* runs[from]!("CLUSTER", "SETSLOT", String(slot), "MIGRATING", ids[to]!)
      const keys = yield* runs[from]!("CLUSTER", "GETKEYSINSLOT", String(slot), "100")
      assert.strictEqual(
        String(yield* runs[from]!("MIGRATE", "127.0.0.1", String(brokers[to]!.port), "", "0", "5000", "KEYS", ...keys)),
        "OK"
      )
      yield* Effect.sleep(300)
      for (const run of [runs[to]!, runs[from]!, runs[3 - from - to]!]) {
        yield* run("CLUSTER", "SETSLOT", String(slot), "NODE", ids[to]!)
      }
      const before = confirmed.size
      yield* Wait.until("publishing goes on", Effect.sync(() => confirmed.size > before + 100))
      yield* Fiber.interrupt(publishing)
      yield* Wait.until("all handled", Effect.sync(() => [...confirmed].every((value) => handled.has(value))))
    }).pipe(Effect.scoped), 120_000)

  it.live(
    "keys moved one by one, then a failover, under load: each key in order, nothing lost, nothing held",
    () =>
      Effect.gen(function*() {
        const { brokers, ids, ownerOf, runs } = yield* nodes
        const topic = fresh("resharded")
        const results = `${topic}-results`
        const slot = slotOf(topic)
        const from = ownerOf(slot)
        const to = (from + 1) % 3
        const replica = yield* admin(
          (yield* Effect.tap(
            Brokers.redis({ args: ["--cluster-enabled", "yes", "--repl-diskless-sync-delay", "0"] }),
            ({ port }) => runs[to]!("CLUSTER", "MEET", "127.0.0.1", String(port))
          )).url
        )
        const follows = replica("CLUSTER", "REPLICATE", ids[to]!)
        yield* Wait.until("known as a replica", Effect.map(follows, (reply) => String(reply) === "OK"))
        const replication = Effect.map(replica("INFO", "replication"), String)
        yield* Wait.until("replicating", Effect.map(replication, (info) => info.includes("master_link_status:up")))

        const url = brokers[(from + 2) % 3]!.url
        const context = yield* RedisStreams.make({ url, cluster: true, claim: { minIdle: "5 seconds" } })
        const redis = Context.get(context, Transport)
        const handled: Record<string, Array<number>> = {}
        const keys = ["a", "b", "c", "d"]
        const Jobs = Topic.make(topic, {
          schema: Schema.Struct({ key: Schema.String, n: Schema.Number }),
          key: ({ key }) => key
        })
        const running = yield* Pipeline.from(Jobs, { group: "g", startFrom: "beginning" }).pipe(
          Pipeline.mapEffect((job, { attempt }) => {
            // Some come twice: their key waits for them.
            if (job.n % 10 === 0 && attempt === 1) return Effect.fail("again")
            ;(handled[job.key] ??= []).push(job.n)
            return Effect.succeed(job)
          }),
          Pipeline.to(Topic.make(results, { schema: Schema.Struct({ key: Schema.String, n: Schema.Number }) })),
          Pipeline.retry({ times: 8, schedule: Schedule.spaced("20 millis") }),
          Pipeline.concurrency({ max: 16, key: ({ value }) => value.key }),
          Pipeline.start,
          Effect.provide(context)
        )
        let n = 0
        /** An id of their own lets messages be published until they are confirmed. */
        const publishing = yield* Effect.forkChild(Effect.forever(Effect.gen(function*() {
          n++
          const job = (key: string) => outgoing(topic, JSON.stringify({ key, n }), { id: `${key}-${n}` })
          const [first, ...rest] = keys.map(job)
          yield* Effect.repeat(redis.publish([first!, ...rest]), {
            until: (outcomes) => outcomes.every(Result.isSuccess),
            schedule: Schedule.spaced("20 millis")
          })
          yield* Effect.sleep(2)
        })))
        const goesOn = (what: string) =>
          Effect.suspend(() => {
            const before = handled["a"]?.length ?? 0
            return Wait.until(what, Effect.sync(() => (handled["a"]?.length ?? 0) > before + 30), "1 minute")
          })
        yield* goesOn("before")

        yield* runs[to]!("CLUSTER", "SETSLOT", String(slot), "IMPORTING", ids[from]!)
        yield* runs[from]!("CLUSTER", "SETSLOT", String(slot), "MIGRATING", ids[to]!)
        const move = (...names: ReadonlyArray<string>) =>
          runs[from]!("MIGRATE", "127.0.0.1", String(brokers[to]!.port), "", "0", "5000", "KEYS", ...names)
        // Scripts name several keys of the slot: while some are here and some there, both nodes say TRYAGAIN.
        const stored = (yield* runs[from]!("CLUSTER", "GETKEYSINSLOT", String(slot), "100")) as ReadonlyArray<string>
        assert.isAbove(stored.length, 1)
        for (const name of stored) {
          yield* move(String(name))
          yield* Effect.sleep(100)
        }
        // Keys that were made meanwhile.
        const left = (yield* runs[from]!("CLUSTER", "GETKEYSINSLOT", String(slot), "100")) as ReadonlyArray<string>
        if (left.length > 0) yield* move(...left.map(String))
        for (const run of [runs[to]!, runs[from]!, runs[3 - from - to]!]) {
          yield* run("CLUSTER", "SETSLOT", String(slot), "NODE", ids[to]!)
        }
        yield* goesOn("after the move")

        assert.strictEqual(String(yield* replica("CLUSTER", "FAILOVER")), "OK")
        yield* Wait.until("failed over", Effect.map(replication, (info) => info.includes("role:master")), "1 minute")
        yield* goesOn("after the failover")
        yield* Fiber.interrupt(publishing)
        yield* Wait.until(
          "all handled",
          Effect.sync(() => keys.every((key) => new Set(handled[key]).size >= n)),
          "1 minute"
        )
        for (const key of keys) {
          const firsts = [...new Set(handled[key])]
          assert.deepStrictEqual(firsts, Arr.makeBy(firsts.length, (i) => i + 1))
        }
        yield* Wait.until(
          "nothing held",
          Effect.map(Effect.provide(RedisStreams.groupInfo(topic, "g"), context), (info) => info?.pending === 0),
          "1 minute"
        )
        yield* Wait.until("consuming", Effect.map(running.health, ({ state }) => state === "consuming"))
        const stream = yield* Stream.runCollect(redis.browse(results, {}))
        assert.strictEqual(new Set(stream.map(({ body }) => new TextDecoder().decode(body))).size, keys.length * n)
        assert.strictEqual((yield* running.counts).deadLettered, 0)
      }).pipe(Effect.scoped),
    240_000
  )
})

describe("sentinel", () => {
  const bin = Path.join(import.meta.dirname, "..", "..", "..", ".cache", "servers", "bin")
  const program = Fs.existsSync(bin)
    ? Fs.readdirSync(bin).filter((name) => /^redis-.*-server$/.test(name)).sort().at(-1)
    : undefined

  const sentinel = Effect.fnUntraced(function*(port: number, masterPort: number) {
    const at = Path.join(yield* folder, "sentinel.conf")
    Fs.writeFileSync(
      at,
      [
        `port ${port}`,
        "bind 127.0.0.1",
        "protected-mode no",
        `sentinel monitor orders 127.0.0.1 ${masterPort} 1`,
        "sentinel down-after-milliseconds orders 500",
        "sentinel failover-timeout orders 5000"
      ].join("\n")
    )
    yield* Effect.acquireRelease(
      Effect.sync(() => spawn(Path.join(bin, program!), [at, "--sentinel"], { stdio: "ignore" })),
      (child) => Effect.sync(() => child.kill("SIGKILL"))
    )
    return yield* admin(`redis://127.0.0.1:${port}`)
  })

  it.live.skipIf(skips || program === undefined)(
    "the master killed while it is consumed: the replica takes over",
    () =>
      Effect.gen(function*() {
        const master = yield* Brokers.redis()
        const replica = yield* Brokers.redis()
        const onReplica = yield* admin(replica.url)
        yield* onReplica("REPLICAOF", "127.0.0.1", String(master.port))
        yield* Wait.until(
          "replicating",
          Effect.map(onReplica("INFO", "replication"), (info) => /master_link_status:up/.test(String(info)))
        )
        const port = yield* Brokers.freePort
        const onSentinel = yield* sentinel(port, master.port)
        yield* Wait.until(
          "the replica is known",
          Effect.map(
            onSentinel("SENTINEL", "REPLICAS", "orders"),
            (replicas) => Array.isArray(replicas) && replicas.length === 1
          ),
          "30 seconds"
        )
        const topic = fresh("sentinel")
        const { handled, redis, running } = yield* consuming(topic, {
          url: `redis://127.0.0.1:${port}`,
          sentinel: { master: "orders" },
          claim: { minIdle: "1 second" }
        })
        yield* redis.publish([json(topic, "before")])
        yield* Wait.until("before", Effect.sync(() => handled.has("before")))
        yield* master.kill
        yield* Wait.until(
          "published after the failover",
          Effect.map(
            redis.publish([json(topic, "after")]),
            ([outcome]) => Result.isSuccess(outcome!)
          ),
          "1 minute"
        )
        yield* Wait.until("after", Effect.sync(() => handled.has("after")))
        yield* Wait.until("consuming", Effect.map(running.health, ({ state }) => state === "consuming"))
      }).pipe(Effect.scoped),
    120_000
  )
})

describe("TLS", () => {
  const hasOpenssl = (() => {
    try {
      execFileSync("openssl", ["version"], { stdio: "ignore" })
      return true
    } catch {
      return false
    }
  })()

  it.live.skipIf(skips || !hasOpenssl)(
    "connects, refuses a certificate nobody vouches for, and presents its own",
    () =>
      Effect.gen(function*() {
        const at = yield* folder
        const key = Path.join(at, "key.pem")
        const cert = Path.join(at, "cert.pem")
        const subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
        const options = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", cert]
        execFileSync("openssl", ["req", ...options, ...subject], { stdio: "ignore" })
        const port = yield* Brokers.freePort
        yield* Brokers.redis({
          args: ["--tls-port", String(port), "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert]
        })
        const url = `rediss://127.0.0.1:${port}`
        const error = yield* Effect.flip(RedisStreams.make({ url, connectTimeout: "500 millis" }))
        assert.strictEqual(error.reason._tag, "Unreachable")
        const plain = yield* Effect.flip(
          RedisStreams.make({ url: `redis://127.0.0.1:${port}`, connectTimeout: "1 hour" })
        )
        assert.match(plain.message, /TLS: the server expects it/)
        const [certificate, privateKey] = [Fs.readFileSync(cert), Fs.readFileSync(key)]
        const topic = fresh("tls")
        const { handled, redis } = yield* consuming(topic, {
          url,
          tls: { ca: certificate, cert: certificate, key: privateKey }
        })
        yield* redis.publish([json(topic, "a")])
        yield* Wait.until("a", Effect.sync(() => handled.has("a")))
      }).pipe(Effect.scoped)
  )
})

describe("ACL", () => {
  it.live("a user with only the commands of the documentation can do everything", () =>
    Effect.gen(function*() {
      const docs = Fs.readFileSync(Path.join(import.meta.dirname, "..", "..", "..", "docs", "redis-streams.md"), "utf8")
      for (const version of ["newest", "oldest"]) {
        const broker = yield* Brokers.redis({ version })
        const run = yield* admin(broker.url)
        const rules = docs.match(/ACL SETUSER app[\s\S]*?```/)![0].match(/[+~-][^\s`\\]+/g)!
        const reply = yield* run(
          "ACL",
          "SETUSER",
          "app",
          "reset",
          "on",
          ">secret",
          ...rules.map((rule) => rule.replace("orders", "acl"))
        )
        assert.strictEqual(String(reply), "OK")
        const topic = fresh("acl")
        const { context, handled, redis, running } = yield* consuming(topic, {
          url: `redis://127.0.0.1:${broker.port}`,
          username: "app",
          password: Redacted.make("secret"),
          retention: "until-acked",
          block: "1 second"
        })
        yield* redis.publish([
          json(topic, "a"),
          json(topic, "bad"),
          outgoing(topic, `"id"`, { id: "i" }),
          outgoing(topic, `"late"`, { delay: Duration.millis(100) })
        ])
        yield* Wait.until(
          "all",
          Effect.map(running.counts, ({ deadLettered }) => handled.size === 4 && deadLettered === 1)
        )
        yield* Wait.until("removed", Effect.map(run("XLEN", topic), (n) => n === 0))
        assert.isDefined(yield* Effect.provide(RedisStreams.groupInfo(topic, "g"), context))
        const other = yield* redis.publish([json("other", "x")])
        assert.strictEqual(Result.isFailure(other[0]!) && other[0].failure.reason._tag, "Unauthorized")
        assert.strictEqual((yield* Effect.flip(redis.declare("other", "output"))).reason._tag, "Unauthorized")
      }
    }).pipe(Effect.scoped))
})
