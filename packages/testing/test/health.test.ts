import { assert, describe, it } from "@effect/vitest"
import { DeadLetter, Health, Pipeline, Publisher, Telemetry, Topic } from "@millrace/core"
import { JetStream } from "@millrace/nats-jetstream"
import { RedisStreams } from "@millrace/redis-streams"
import { Brokers, Wait } from "@millrace/testing"
import { Duration, Effect, Layer, Metric, Schema } from "effect"
import { jetStream, redis } from "./operator.ts"

const Orders = Topic.make("orders", { schema: Schema.Number })
const pipeline = Pipeline.from(Orders, { group: "g", startFrom: "beginning" }).pipe(Pipeline.map((n) => n))

/** The watchdog, as fast as a test wants it. */
const watchful = Layer.mergeAll(
  Layer.succeed(Telemetry.Watchdog, { silence: Duration.millis(300), unconfirmed: Duration.millis(300) }),
  Layer.succeed(Telemetry.LookInterval, Duration.millis(50)),
  Telemetry.layerLogs(false)
)

const state = (running: Pipeline.Running, state: Pipeline.Health["state"]) =>
  Wait.eventually(state, running.health, (health) => health.state === state)

const handled = (running: Pipeline.Running, count: number) =>
  Wait.eventually(`${count} messages are handled`, running.counts, (counts) => counts.handled >= count)

/** What is told of a pipeline that does not consume, also to an orchestrator. */
const assertTold = (running: Pipeline.Running, before: number, reason: RegExp) =>
  Effect.gen(function*() {
    const health = yield* running.health
    assert.match(health.reason ?? "", reason)
    assert.isAtLeast(health.since, before)
    const { body, status } = yield* Health.respond([running], "/ready")
    assert.strictEqual(status, 503)
    assert.deepInclude(JSON.parse(body).pipelines[0], { state: health.state, reason: health.reason })
  })

describe("health with its reason, under the watchdog", () => {
  it.live("Redis: a group is deleted, a permission is taken", () =>
    Effect.gen(function*() {
      const broker = yield* Brokers.redis()
      yield* redis(broker, "ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all")
      const layer = RedisStreams.layer({ url: `redis://app:pw@${broker.host}:${broker.port}` })
      yield* Effect.gen(function*() {
        const running = yield* Pipeline.start(pipeline)
        yield* Publisher.publish(Orders, 1)
        yield* handled(running, 1)
        yield* redis(broker, "XGROUP", "DESTROY", "orders", "g")
        yield* Publisher.publish(Orders, 2)
        yield* handled(running, 2)
        yield* state(running, "consuming")
        const before = Date.now()
        yield* redis(broker, "ACL", "SETUSER", "app", "-xack")
        yield* Publisher.publish(Orders, 3)
        yield* state(running, "impaired")
        yield* assertTold(running, before, /refused settling in orders: NOPERM .*xack/)
        yield* redis(broker, "ACL", "SETUSER", "app", "-xreadgroup")
        yield* redis(broker, "XADD", "orders", "*", "body", "4")
        yield* state(running, "stopped")
        yield* assertTold(running, before, /^redis: .* refused reading orders: NOPERM .*xreadgroup/)
      }).pipe(Effect.scoped, Effect.provide(layer))
    }).pipe(Effect.scoped, Effect.provide(watchful)))

  it.live("Redis: a server that is away is no refusal, whatever it refused before", () =>
    Effect.gen(function*() {
      const broker = yield* Brokers.redis()
      yield* redis(broker, "ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-xack")
      yield* Effect.gen(function*() {
        const running = yield* Pipeline.start(pipeline)
        yield* Publisher.publish(Orders, 1)
        yield* state(running, "impaired")
        const before = Date.now()
        yield* broker.kill
        yield* state(running, "reconnecting")
        yield* assertTold(running, before, /^no connection: /)
      }).pipe(
        Effect.scoped,
        Effect.provide(RedisStreams.layer({ url: `redis://app:pw@${broker.host}:${broker.port}` }))
      )
    }).pipe(Effect.scoped, Effect.provide(watchful)))

  it.live("NATS: a consumer is deleted, paused by an operator, and may not be acknowledged", () =>
    Effect.gen(function*() {
      const denied = `{ user: noack, password: pw, permissions: { publish: { deny: ["$JS.ACK.>"] } } }`
      const broker = yield* Brokers.nats({
        config: `no_auth_user: app\nauthorization { users: [{ user: app, password: pw }, ${denied}] }`
      })
      const url = (user: string) => `nats://${user}:pw@${broker.host}:${broker.port}`
      yield* Effect.gen(function*() {
        const running = yield* Pipeline.start(pipeline)
        yield* Publisher.publish(Orders, 1)
        yield* handled(running, 1)
        yield* jetStream(broker, "CONSUMER.DELETE.orders.g")
        yield* Publisher.publish(Orders, 2)
        yield* handled(running, 2)
        yield* state(running, "consuming")
        const before = Date.now()
        yield* jetStream(broker, "CONSUMER.PAUSE.orders.g", `{"pause_until":"2100-01-01T00:00:00Z"}`)
        yield* Publisher.publish(Orders, 3)
        yield* Wait.eventually("paused", running.health, ({ reason }) => /paused by an operator/.test(reason ?? ""))
        yield* assertTold(running, before, /^consumer g of stream orders is paused by an operator$/)
        yield* jetStream(broker, "CONSUMER.PAUSE.orders.g", "{}")
        yield* handled(running, 3)
        yield* state(running, "consuming")
      }).pipe(Effect.scoped, Effect.provide(JetStream.layer({ url: url("app") })))
      yield* Effect.gen(function*() {
        const before = Date.now()
        const running = yield* Pipeline.start(pipeline)
        yield* Publisher.publish(Orders, 4)
        yield* state(running, "stopped")
        yield* assertTold(running, before, /^nats: .* refused settling: no permission to publish to \$JS\.ACK/)
      }).pipe(Effect.scoped, Effect.provide(JetStream.layer({ url: url("noack") })))
    }).pipe(Effect.scoped, Effect.provide(watchful)))
})

describe("metrics of a source with wildcards", () => {
  it.live("NATS: what its group has still to do is known, and what is redriven is counted by its subject", () =>
    Effect.gen(function*() {
      const broker = yield* Brokers.nats()
      yield* Effect.gen(function*() {
        let isBroken = true
        const regions = JetStream.from(Orders, { group: "g", startFrom: "beginning", subject: "orders.{region}.new" })
        const running = yield* Pipeline.start(
          regions.pipe(
            Pipeline.mapEffect((n) => isBroken && n === 1 ? Effect.fail("no") : Effect.void),
            Pipeline.retry({ times: 0 })
          )
        )
        const publish = (region: string, n: number) =>
          Publisher.publish(Topic.make(`orders.${region}.new`, { schema: Schema.Number }), n)
        yield* publish("eu", 1)
        yield* Wait.eventually("a dead letter", running.counts, ({ deadLettered }) => deadLettered === 1)
        isBroken = false
        yield* DeadLetter.redrive("orders.dead")
        yield* handled(running, 1)
        yield* running.pause
        for (const region of ["eu", "us", "us"]) yield* publish(region, 2)
        const value = (name: string, attributes: Record<string, string> = {}) =>
          Effect.map(Metric.snapshot, (all) => {
            const found = all.find(({ attributes: given, id }) =>
              id === name && Object.entries(attributes).every(([key, text]) => given?.[key] === text)
            )
            return found?.type === "Gauge"
              ? found.state.value
              : found?.type === "Counter"
              ? found.state.count
              : undefined
          })
        yield* Wait.eventually("a lag of 3", value("millrace.lag"), (lag) => lag === 3)
        assert.strictEqual(yield* value("millrace.pending"), 0)
        assert.isAbove(Number(yield* value("millrace.oldest.age")), 0)
        const sent = (topic: string) => value("messaging.client.sent.messages", { "messaging.destination.name": topic })
        assert.deepStrictEqual(
          yield* Effect.forEach(["orders.eu.new", "orders.us.new", "orders.dead"], sent),
          [3, 2, 1]
        )
      }).pipe(Effect.scoped, Effect.provide(JetStream.layer({ url: broker.url })))
    }).pipe(
      Effect.scoped,
      Effect.provide([watchful, Telemetry.layerPolledMetrics("100 millis")]),
      Effect.provideService(Metric.MetricRegistry, new Map())
    ))
})
