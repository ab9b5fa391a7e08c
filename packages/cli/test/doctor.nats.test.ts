import { assert, describe, it } from "@effect/vitest"
import { Brokers, Proxy } from "@millrace/testing"
import {
  AckPolicy,
  type ConsumerConfig,
  type JetStreamManager,
  jetstreamManager,
  ReplayPolicy,
  RetentionPolicy,
  StorageType,
  type StreamConfig
} from "@nats-io/jetstream"
import { connect } from "@nats-io/transport-node"
import { Effect, Layer } from "effect"
import type { Finding } from "../src/internal/findings.ts"
import { Command, json, millrace, shiftClock, until } from "./cli.ts"

const doctor = (url: string, ...args: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<Finding>> =>
  json("doctor", ...args).pipe(
    Effect.map(({ findings }) => findings),
    Effect.provide(Layer.succeed(Command, { name: "nats", flags: ["--nats", url], open: undefined }))
  )

const troubles = (findings: ReadonlyArray<Finding>): Record<string, string> =>
  Object.fromEntries(
    findings.filter(({ level }) => level !== "ok").map((
      { at, id, level }
    ) => [at === undefined ? id : `${id} ${at}`, level])
  )

/** A cluster that has just been started answers after some seconds. */
const patiently = <A>(f: () => Promise<A>) =>
  Effect.retry(Effect.tryPromise(f), { times: 100, while: () => Effect.as(Effect.sleep("100 millis"), true) })

const manager = Effect.fnUntraced(function*(url: string) {
  const connection = yield* Effect.acquireRelease(
    Effect.promise(() => connect({ servers: url })),
    (connection) => Effect.promise(() => connection.close())
  )
  const jsm = yield* patiently(() => jetstreamManager(connection, { timeout: 1000 }))
  return { connection, jsm, js: jsm.jetstream() }
})

const modern = { allow_msg_ttl: true, allow_msg_schedules: true, allow_atomic: true, allow_direct: true }

const stream = (jsm: JetStreamManager, name: string, config: Partial<StreamConfig> = {}) =>
  Effect.promise(() => jsm.streams.add({ name, subjects: [name], ...modern, ...config }))

const consumer = (jsm: JetStreamManager, stream: string, name: string, config: Partial<ConsumerConfig> = {}) =>
  Effect.promise(() => jsm.consumers.add(stream, { durable_name: name, ack_policy: AckPolicy.Explicit, ...config }))

const given = ["--grace-period", "60s"]

/** Two groups of a work queue with filters of which neither holds the other; whether the server took the second one. */
const overlapping = Effect.fnUntraced(function*(jsm: JetStreamManager) {
  yield* Effect.promise(() =>
    jsm.streams.add({ name: "jobs", subjects: ["jobs.>"], retention: RetentionPolicy.Workqueue })
  )
  yield* consumer(jsm, "jobs", "one", { filter_subject: "jobs.a.*" })
  return yield* Effect.promise(() =>
    jsm.consumers.add("jobs", { durable_name: "two", ack_policy: AckPolicy.Explicit, filter_subject: "jobs.*.b" })
      .then(() => true, () => false)
  )
})

const seconds = (n: number) => n * 1e9

describe("doctor on NATS", () => {
  it.live("a server configured right, in use, has nothing to complain of", () =>
    Effect.gen(function*() {
      const port = yield* Brokers.freePort
      const { url } = yield* Brokers.nats({ sync: "always", config: `http: "127.0.0.1:${port}"` })
      const { js, jsm } = yield* manager(url)
      yield* stream(jsm, "orders")
      yield* consumer(jsm, "orders", "payments", { max_ack_pending: 1000 })
      yield* stream(jsm, "KV_millrace", { subjects: ["$KV.millrace.>"] })
      const messages = yield* Effect.promise(async () => (await js.consumers.get("orders", "payments")).consume())
      yield* Effect.addFinalizer(() => Effect.sync(() => messages.stop()))
      const found = yield* doctor(url, "--monitor", `http://127.0.0.1:${port}`, "--handler-timeout", "10s", ...given)
      assert.deepStrictEqual(troubles(found), {})
      const { code, out } = yield* Effect.provide(
        millrace("doctor"),
        Layer.succeed(Command, { name: "nats", flags: ["--nats", url], open: undefined })
      )
      assert.strictEqual(code, 0)
      assert.match(out, /0 errors, 0 warnings, 2 unknown, \d+ fine$/)
      assert.isTrue(out.split("\n").every((line) => line.length <= 100))
    }))

  it.live("what is written now and then, and what monitoring does not tell", () =>
    Effect.gen(function*() {
      const port = yield* Brokers.freePort
      const { url } = yield* Brokers.nats({ config: `http: "127.0.0.1:${port}"` })
      const found = yield* doctor(url, "--monitor", `http://127.0.0.1:${port}`, ...given)
      assert.strictEqual(troubles(found)["nats/sync-interval"], "warning")
      const unsaid = troubles(yield* doctor(url))
      assert.deepInclude(unsaid, { "nats/sync-interval": "unknown", "nats/drain": "unknown" })
      assert.strictEqual(troubles(yield* doctor(url, "--grace-period", "30s"))["nats/drain"], "error")
    }))

  it.live("streams that lose, refuse or cannot be redriven from", () =>
    Effect.gen(function*() {
      const { url } = yield* Brokers.nats()
      const { js, jsm } = yield* manager(url)
      const fill = (subject: string, count: number) =>
        Effect.promise(async () => {
          for (let i = 0; i < count; i++) await js.publish(subject, "x".repeat(100))
        })
      yield* stream(jsm, "memory", { storage: StorageType.Memory })
      yield* stream(jsm, "async", { persist_mode: "async", allow_atomic: false } as Partial<StreamConfig>)
      yield* stream(jsm, "old", { max_msgs: 10 })
      yield* consumer(jsm, "old", "g")
      yield* fill("old", 20)
      yield* stream(jsm, "new", {
        max_msgs: 10,
        discard: "new",
        allow_msg_schedules: false
      } as Partial<StreamConfig>)
      yield* fill("new", 10)
      yield* stream(jsm, "letters", { subjects: ["orders.dead"], max_msgs_per_subject: 1, deny_delete: true })
      yield* stream(jsm, "brief", { max_age: seconds(60), duplicate_window: seconds(10) })
      yield* stream(jsm, "aged", { max_age: seconds(10), duplicate_window: seconds(1) })
      yield* consumer(jsm, "aged", "g")
      yield* stream(jsm, "silent", { no_ack: true })
      yield* stream(jsm, "interested", { retention: RetentionPolicy.Interest })
      yield* stream(jsm, "queue", { subjects: ["jobs.a", "jobs.b"], retention: RetentionPolicy.Workqueue })
      yield* consumer(jsm, "queue", "a", { filter_subject: "jobs.a" })
      yield* stream(jsm, "small", { max_msg_size: 10_000 })
      yield* Effect.promise(() => jsm.streams.add({ name: "aging", subjects: ["aging"], allow_direct: false }))
      yield* stream(jsm, "single", { max_consumers: 1 })
      yield* consumer(jsm, "single", "g")
      yield* stream(jsm, "sealed")
      yield* Effect.promise(() => jsm.streams.update("sealed", { sealed: true } as Partial<StreamConfig>))
      yield* fill("aged", 1)
      const found = troubles(yield* doctor(url, "--longest-delay", "5m", "--largest", "9000", ...given))
      assert.deepInclude(found, {
        "nats/storage memory": "warning",
        "nats/persist-mode async": "error",
        "nats/discard-old old": "error",
        "nats/discard-new new": "error",
        "nats/max-msgs-per-subject letters": "error",
        "nats/deny-delete letters": "warning",
        "nats/max-age brief": "error",
        "nats/duplicate-window brief": "warning",
        "nats/no-ack silent": "error",
        "nats/interest interested": "error",
        "nats/work-queue queue": "warning",
        "nats/max-msg-size small": "warning",
        "nats/stream-features aging": "warning",
        "nats/deny-delete sealed": "error",
        "nats/max-consumers single": "warning",
        "nats/attempt-records KV_millrace": "warning"
      })
      // Between 80 % of its age and its end.
      while (troubles(yield* doctor(url, "--topic", "aged"))["nats/max-age aged"] !== "error") {
        yield* Effect.sleep("50 millis")
      }
    }))

  it.live(
    "a consumer that is full and goes on is no trouble; options of Redis are refused",
    () =>
      Effect.gen(function*() {
        const { url } = yield* Brokers.nats()
        const { js, jsm } = yield* manager(url)
        yield* stream(jsm, "orders")
        yield* consumer(jsm, "orders", "busy", { max_ack_pending: 2 })
        const reader = yield* Effect.promise(() => js.consumers.get("orders", "busy"))
        const next = Effect.promise(async () => {
          await js.publish("orders", "a")
          return (await reader.next({ expires: 5000 }))!
        })
        let held = [yield* next, yield* next]
        // One is settled, and the next one taken in its place.
        yield* Effect.forkScoped(Effect.forever(Effect.gen(function*() {
          yield* Effect.sleep("50 millis")
          held.shift()!.ack()
          held = [...held, yield* next]
        })))
        const found = yield* doctor(url, ...given)
        assert.deepStrictEqual(found.filter(({ id, level }) => id === "nats/max-ack-pending" && level !== "ok"), [])
        const { code, error } = yield* Effect.provide(
          millrace("doctor", "--min-idle", "10s"),
          Layer.succeed(Command, { name: "nats", flags: ["--nats", url], open: undefined })
        )
        assert.strictEqual(code, 2)
        assert.match(error, /--min-idle: not for NATS/)
      }),
    60_000
  )

  it.live("consumers that fight with the pipeline, starve it, vanish, or stand still", () =>
    Effect.gen(function*() {
      const { url } = yield* Brokers.nats()
      const { connection, js, jsm } = yield* manager(url)
      yield* stream(jsm, "orders")
      yield* stream(jsm, "KV_millrace", { subjects: ["$KV.millrace.>"], storage: StorageType.Memory })
      yield* consumer(jsm, "orders", "limited", {
        max_deliver: 3,
        backoff: [seconds(1), seconds(2)],
        ack_wait: seconds(1)
      })
      yield* consumer(jsm, "orders", "vanishing", { inactive_threshold: seconds(3600) })
      yield* consumer(jsm, "orders", "short", { ack_wait: seconds(1) })
      yield* consumer(jsm, "orders", "full", { max_ack_pending: 2 })
      yield* consumer(jsm, "orders", "pushed", { deliver_subject: "elsewhere", headers_only: true })
      yield* consumer(jsm, "orders", "careless", { ack_policy: AckPolicy.None })
      yield* consumer(jsm, "orders", "halted", { pause_until: new Date(Date.now() + 3_600_000).toISOString() })
      yield* consumer(jsm, "orders", "again", { ack_wait: seconds(30) })
      yield* consumer(jsm, "orders", "forgetful", { mem_storage: true })
      yield* consumer(jsm, "orders", "bounded", { max_batch: 1, max_expires: seconds(1) })
      yield* consumer(jsm, "orders", "slow", { replay_policy: ReplayPolicy.Original })
      // One of a tool, which vanishes by itself.
      const { name } = yield* Effect.promise(() => jsm.consumers.add("orders", { ack_policy: AckPolicy.None }))
      yield* Effect.promise(async () => {
        for (let i = 0; i < 12; i++) await js.publish("orders", String(i))
        for await (
          const _ of await (await js.consumers.get("orders", "full")).fetch({ max_messages: 2, expires: 2000 })
        ) void _
        const again = await js.consumers.get("orders", "again")
        for (let round = 0; round < 2; round++) {
          for await (const message of await again.fetch({ max_messages: 12, expires: 2000 })) {
            if (round === 0) message.nak()
          }
        }
        await connection.flush()
      })
      const found = troubles(yield* doctor(url, "--owned", "500", "--handler-timeout", "1m", ...given))
      assert.deepInclude(found, {
        "nats/max-deliver orders/limited": "error",
        "nats/backoff orders/limited": "error",
        "nats/inactive-threshold orders/vanishing": "error",
        "nats/ack-wait orders/short": "warning",
        "nats/ack-wait orders/vanishing": "warning",
        "nats/max-ack-pending orders/full": "error",
        "nats/push-consumer orders/pushed": "error",
        "nats/headers-only orders/pushed": "error",
        "nats/ack-policy orders/careless": "error",
        "nats/consumer-storage orders/forgetful": "warning",
        "nats/pull-limits orders/bounded": "warning",
        "nats/replay-policy orders/slow": "warning",
        "nats/paused orders/halted": "warning",
        "nats/no-consumers orders/vanishing": "warning",
        "nats/redelivered orders/again": "warning",
        "nats/attempt-records KV_millrace": "warning"
      })
      assert.deepStrictEqual(Object.keys(found).filter((key) => key.endsWith(`/${name}`)), [])
    }))

  it.live("accounts near their limits, messages near the server's", () =>
    Effect.gen(function*() {
      const { host, port } = yield* Brokers.nats({
        config: `max_payload: 100KB
accounts {
  A: {
    jetstream: { max_mem: 1M, max_file: 1M, max_streams: 2, max_consumers: 100, max_ack_pending: 100 }
    users: [ { user: a, password: pw } ]
  }
  $SYS: { users: [ { user: sys, password: pw } ] }
}
no_auth_user: a`
      })
      const url = `nats://a:pw@${host}:${port}`
      const { js, jsm } = yield* manager(url)
      yield* stream(jsm, "orders", { duplicate_window: seconds(120) })
      yield* stream(jsm, "others")
      yield* Effect.promise(async () => {
        for (let i = 0; i < 11; i++) await js.publish("orders", "x".repeat(90_000))
      })
      const found = yield* doctor(url, "--largest", "90000", "--owned", "500", ...given)
      assert.deepInclude(troubles(found), {
        "nats/account-limits": "error",
        "nats/account-max-ack-pending": "error",
        "nats/max-payload": "warning"
      })
      assert.deepStrictEqual(
        found.filter(({ id }) => id === "nats/account-limits").map(({ seen }) => seen.split(" ").at(-1)),
        ["storage", "streams"]
      )
    }))

  it.live.each(
    [["2.10", /delayed publishing is refused/], ["2.9", /term\(\) leaves messages in work queues/]] as const
  )(
    "nats-server %s: what it lacks, and groups of a work queue that overlap",
    ([version, costs]) =>
      Effect.gen(function*() {
        const { url } = yield* Brokers.nats({ version })
        const { jsm } = yield* manager(url)
        const isTaken = yield* overlapping(jsm)
        const found = yield* doctor(url, ...given)
        assert.strictEqual(troubles(found)["nats/version"], "warning")
        assert.match(found.find(({ id }) => id === "nats/version")!.costs!, costs)
        assert.strictEqual(troubles(found)["nats/work-queue-overlap jobs"], isTaken ? "error" : undefined)
        assert.strictEqual(isTaken, version === "2.9", "newer servers refuse the second group")
      })
  )

  it.live("an account without JetStream is an error of the doctor, and one line of another command", () =>
    Effect.gen(function*() {
      const { host, port } = yield* Brokers.nats({
        config: `accounts {
  A: { jetstream: enabled, users: [ { user: a, password: pw } ] }
  B: { users: [ { user: b, password: pw } ] }
}
no_auth_user: a`
      })
      const url = `nats://b:pw@${host}:${port}`
      assert.deepStrictEqual(troubles(yield* doctor(url, ...given)), { "nats/jetstream": "error" })
      const { code, error } = yield* Effect.provide(
        millrace("lag"),
        Layer.succeed(Command, { name: "nats", flags: ["--nats", url], open: undefined })
      )
      assert.strictEqual(code, 2)
      assert.match(error, /^millrace: [^\n]*start nats-server with -js, or enable it for this account$/)
    }))

  it.live("servers before 2.9 are refused in one line", () =>
    Effect.gen(function*() {
      const broker = yield* Brokers.nats()
      // Such a server is not to be had: the proxy changes what it says about itself.
      const proxy = yield* Proxy.make(broker, {
        pass: (piece) =>
          Buffer.from(piece.toString("latin1").replace(/"version":"[\d.]+"/, "\"version\":\"2.8.4\""), "latin1")
      })
      const ran = yield* Effect.provide(
        millrace("doctor"),
        Layer.succeed(Command, { name: "nats", flags: ["--nats", proxy.through(broker.url)], open: undefined })
      )
      assert.deepStrictEqual([ran.code, ran.out], [2, ""])
      assert.match(ran.error, /^millrace: .*nats-server 2\.8\.4.*needs nats-server 2\.9.*$/)
    }))

  it.live("clocks that differ, a stream that grows, monitoring that is silent", () =>
    Effect.gen(function*() {
      const { url } = yield* Brokers.nats()
      const { connection, jsm } = yield* manager(url)
      yield* stream(jsm, "grows")
      yield* stream(jsm, "kept", { max_msgs: 1_000_000 })
      yield* stream(jsm, "grows_dead", { subjects: ["grows.dead"] })
      for (const subject of ["grows", "kept", "grows.dead"]) {
        for (let i = 0; i < 10_000; i++) connection.publish(subject, "x")
      }
      const stored = async (name: string) => (await jsm.streams.info(name)).state.messages
      yield* Effect.forEach(["grows", "kept", "grows_dead"], (name) =>
        until(`${name} is filled`, Effect.map(Effect.promise(() => stored(name)), (n) => n === 10_000)))
      yield* shiftClock(-60_000)
      const silent = ["--monitor", `http://127.0.0.1:${yield* Brokers.freePort}`]
      const found = yield* doctor(url, ...silent, ...given)
      assert.deepStrictEqual(troubles(found), {
        "nats/clock": "warning",
        "nats/unbounded grows": "warning",
        "nats/sync-interval": "unknown"
      })
      assert.match(
        found.find(({ id }) =>
          id === "nats/sync-interval"
        )!.seen,
        /monitoring does not answer/
      )
    }))

  it.live("a user who may not look: unknown, not fine", () =>
    Effect.gen(function*() {
      const { host, port } = yield* Brokers.nats({
        config: `authorization { users: [
  { user: all, password: pw }
  { user: blind, password: pw, permissions: { publish: { deny: ["$JS.API.INFO", "$JS.API.STREAM.>"] } } }
] }
no_auth_user: all`
      })
      const { jsm } = yield* manager(`nats://${host}:${port}`)
      yield* stream(jsm, "orders")
      assert.deepStrictEqual(troubles(yield* doctor(`nats://blind:pw@${host}:${port}`, ...given)), {
        "nats/account-limits": "unknown",
        "nats/attempt-records KV_millrace": "unknown",
        "nats/streams": "unknown",
        "nats/sync-interval": "unknown"
      })
    }))

  it.live("one replica in a cluster, of a topic and of the attempt records", () =>
    Effect.gen(function*() {
      const ports = yield* Effect.all([Brokers.freePort, Brokers.freePort, Brokers.freePort])
      const routes = ports.map((port) => `nats-route://127.0.0.1:${port}`).join(", ")
      const nodes = yield* Effect.forEach(ports, (port, index) =>
        Brokers.nats({
          config: `server_tags: ["node-${index}"]
cluster { name: millrace, listen: "127.0.0.1:${port}", routes: [${routes}] }`
        }), { concurrency: "unbounded" })
      const [{ url }] = nodes as [Brokers.Broker]
      const { jsm } = yield* manager(url)
      // Not on the node that is killed: a stream with one replica there answers nothing.
      const placement = { cluster: "millrace", tags: ["node-0"] }
      yield* patiently(() => jsm.streams.add({ name: "one", subjects: ["one"], num_replicas: 1, placement }))
      yield* patiently(() => jsm.streams.add({ name: "three", subjects: ["three"], num_replicas: 3 }))
      yield* patiently(() =>
        jsm.streams.add({ name: "KV_millrace", subjects: ["$KV.millrace.>"], num_replicas: 1, placement })
      )
      // While a leader is elected the question cannot be asked.
      const ask = (...args: ReadonlyArray<string>) =>
        Effect.catchCause(
          Effect.suspend(() => Effect.map(doctor(url, ...args), troubles)),
          () => Effect.succeed<Record<string, string>>({})
        )
      let found = yield* ask(...given)
      while (found["nats/attempt-records KV_millrace"] === undefined) found = yield* ask(...given)
      assert.strictEqual(found["nats/replicas one"], "error")
      assert.isUndefined(found["nats/replicas three"])
      assert.strictEqual(found["nats/attempt-records KV_millrace"], "error")
      yield* nodes[2]!.kill
      while ((yield* ask("--topic", "three"))["nats/replica-behind three"] !== "warning") {
        yield* Effect.sleep("200 millis")
      }
    }), 180_000)
})
