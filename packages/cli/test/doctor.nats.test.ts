import { assert, describe, it } from "@effect/vitest"
import { Brokers } from "@millrace/testing"
import {
  AckPolicy,
  type ConsumerConfig,
  type JetStreamManager,
  jetstreamManager,
  RetentionPolicy,
  StorageType,
  type StreamConfig
} from "@nats-io/jetstream"
import { connect } from "@nats-io/transport-node"
import { Effect, Layer } from "effect"
import { createServer } from "node:net"
import type { Finding } from "../src/internal/findings.ts"
import type { Facts } from "../src/internal/nats/facts.ts"
import { serverChecks } from "../src/internal/nats/serverChecks.ts"
import { Command, json, millrace } from "./cli.ts"

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

const seconds = (n: number) => n * 1e9

const freePort = Effect.callback<number>((resume) => {
  const server = createServer().listen(0, "127.0.0.1", () => {
    const address = server.address()
    server.close(() => resume(Effect.succeed(typeof address === "object" && address !== null ? address.port : 0)))
  })
})

describe("doctor on NATS", () => {
  it.live("a server configured right, in use, has nothing to complain of", () =>
    Effect.gen(function*() {
      const port = yield* freePort
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
      const port = yield* freePort
      const { url } = yield* Brokers.nats({ config: `http: "127.0.0.1:${port}"` })
      const found = yield* doctor(url, "--monitor", `http://127.0.0.1:${port}`, ...given)
      assert.strictEqual(troubles(found)["nats/sync-interval"], "warning")
      assert.strictEqual(troubles(yield* doctor(url))["nats/sync-interval"], "unknown")
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
      yield* Effect.promise(() => jsm.streams.add({ name: "mirrored", mirror: { name: "memory" } }))
      yield* stream(jsm, "interested", { retention: RetentionPolicy.Interest })
      yield* stream(jsm, "queue", { subjects: ["jobs.a", "jobs.b"], retention: RetentionPolicy.Workqueue })
      yield* consumer(jsm, "queue", "a", { filter_subject: "jobs.a" })
      yield* stream(jsm, "small", { max_msg_size: 10_000 })
      yield* Effect.promise(() => jsm.streams.add({ name: "aging", subjects: ["aging"], allow_direct: false }))
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
        "nats/mirror mirrored": "error",
        "nats/interest interested": "error",
        "nats/work-queue queue": "warning",
        "nats/max-msg-size small": "warning",
        "nats/stream-features aging": "warning",
        "nats/deny-delete sealed": "error",
        "nats/attempt-records KV_millrace": "warning"
      })
      // Between 80 % of its age and its end.
      while (troubles(yield* doctor(url, "--topic", "aged"))["nats/max-age aged"] !== "error") {
        yield* Effect.sleep("50 millis")
      }
    }))

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
        "nats/paused orders/halted": "warning",
        "nats/no-consumers orders/vanishing": "warning",
        "nats/redelivered orders/again": "warning",
        "nats/attempt-records KV_millrace": "warning"
      })
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

  it.live("an older server says what it lacks", () =>
    Effect.gen(function*() {
      const { url } = yield* Brokers.nats({ version: "2.10" })
      const found = yield* doctor(url, ...given)
      assert.strictEqual(troubles(found)["nats/version"], "warning")
      assert.match(found.find(({ id }) => id === "nats/version")!.costs!, /delayed publishing is refused/)
    }))

  it.live("one replica in a cluster, of a topic and of the attempt records", () =>
    Effect.gen(function*() {
      const ports = yield* Effect.all([freePort, freePort, freePort])
      const routes = ports.map((port) => `nats-route://127.0.0.1:${port}`).join(", ")
      const nodes = yield* Effect.forEach(ports, (port) =>
        Brokers.nats({ config: `cluster { name: millrace, listen: "127.0.0.1:${port}", routes: [${routes}] }` }), {
        concurrency: "unbounded"
      })
      const [{ url }] = nodes as [Brokers.Broker]
      const { jsm } = yield* manager(url)
      yield* patiently(() =>
        jsm.streams.add({ name: "one", subjects: ["one"], num_replicas: 1 })
      )
      yield* patiently(() =>
        jsm.streams.add({ name: "three", subjects: ["three"], num_replicas: 3 })
      )
      yield* patiently(() => jsm.streams.add({ name: "KV_millrace", subjects: ["$KV.millrace.>"], num_replicas: 1 }))
      const found = troubles(yield* doctor(url, ...given))
      assert.strictEqual(found["nats/replicas one"], "error")
      assert.isUndefined(found["nats/replicas three"])
      assert.strictEqual(found["nats/attempt-records KV_millrace"], "error")
      yield* nodes[2]!.kill
      const late = yield* Effect.retry(
        Effect.suspend(() => Effect.map(doctor(url, "--topic", "three"), troubles)).pipe(
          Effect.filterOrFail((found) => found["nats/replica-behind three"] === "warning")
        ),
        { times: 100, while: () => Effect.as(Effect.sleep("200 millis"), true) }
      )
      assert.strictEqual(late["nats/replica-behind three"], "warning")
    }))
})

describe("what no server here can be made to say", () => {
  const facts: Facts = {
    version: "2.15.1",
    clustered: false,
    maxPayload: undefined,
    account: undefined,
    syncInterval: undefined,
    skew: undefined,
    streams: [],
    bucket: undefined
  }
  const check = (given: Partial<Facts>) =>
    troubles(serverChecks({ ...facts, ...given }, {
      topic: undefined,
      monitor: undefined,
      handlerTimeout: undefined,
      drainTimeout: 30_000,
      gracePeriod: undefined,
      minIdle: 30_000,
      owned: undefined,
      retryHorizon: undefined,
      largest: undefined,
      longestDelay: undefined
    }))

  it("versions and clocks", () => {
    assert.strictEqual(check({ version: "2.8.4" })["nats/version"], "error")
    assert.strictEqual(check({ version: "2.9.10" })["nats/version"], "warning")
    assert.strictEqual(check({ skew: -60_000 })["nats/clock"], "warning")
    assert.strictEqual(check({})["nats/account-limits"], "unknown")
  })
})
