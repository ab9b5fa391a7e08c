/** What a server refuses: it is full, or the user may not. */
import { assert, it, layer } from "@effect/vitest"
import * as Pipeline from "@millrace/core/Pipeline"
import type * as Publisher from "@millrace/core/Publisher"
import * as Settlement from "@millrace/core/Settlement"
import * as Topic from "@millrace/core/Topic"
import { type Delivery, Transport } from "@millrace/core/Transport"
import { RedisStreams } from "@millrace/redis-streams"
import { Brokers, Wait } from "@millrace/testing"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import {
  admin,
  connect,
  demand,
  fresh,
  noting,
  outgoing,
  retry,
  Server,
  servers,
  serving,
  subscribing,
  textOf,
  transport
} from "./redis.ts"

const json = (topic: string, value: string) => outgoing(topic, JSON.stringify(value))

const failure = (result: Result.Result<unknown, Publisher.PublishError>) =>
  Result.isFailure(result) ? result.failure.reason._tag : "taken"

servers.forEach(({ kind, version }) =>
  layer(serving(kind, { version }), { excludeTestServices: true })(`${kind} ${version}, full`, (it) => {
    it.effect("a worker starts, retries, drains and releases on a full server, and health says that it is full", () =>
      Effect.gen(function*() {
        const { run } = yield* Server
        const topic = fresh("full")
        const said: Array<string> = []
        const before = yield* transport()
        yield* before.publish(Arr.makeBy(20, (i) => json(topic, String(i))))
        yield* run("XGROUP", "CREATE", topic, "g", "0")
        yield* run("CONFIG", "SET", "maxmemory", "1")
        const context = yield* Effect.provide(connect({ retention: "until-acked" }), noting(said))
        const handled: Array<string> = []
        const retried: Array<string> = []
        const scope = yield* Scope.make()
        const pipeline = Pipeline.from(Topic.make(topic, { schema: Schema.String }), { group: "g" }).pipe(
          Pipeline.mapEffect((value, { attempt }) =>
            Effect.suspend(() => {
              if (value === "3" && attempt === 1) return Effect.fail(retried.push(value))
              handled.push(value)
              return Effect.void
            })
          ),
          Pipeline.retry({ times: 3 })
        )
        const running = yield* pipeline.pipe(
          Pipeline.start,
          Effect.provide(context),
          Effect.provide(noting(said)),
          Scope.provide(scope)
        )
        yield* Wait.until("handled", Effect.sync(() => handled.length === 20))
        const redis = Context.get(context, Transport)
        for (let i = 0; i < 3; i++) {
          const [outcome] = yield* Effect.provide(redis.publish([json(topic, "new")]), noting(said))
          assert.strictEqual(failure(outcome!), "Refused")
        }
        const health = yield* running.health
        assert.strictEqual(health.state, "impaired")
        assert.match((health as { reason: string }).reason, /no memory left.*raise maxmemory/)
        assert.isAtMost(said.filter((line) => /no memory left/.test(line)).length, 1, said.join("\n"))
        yield* run("CONFIG", "SET", "maxmemory", "0")
        yield* Wait.until(
          "taken",
          Effect.map(redis.publish([json(topic, "new")]), ([outcome]) => failure(outcome!) === "taken")
        )
        assert.strictEqual((yield* running.health).state, "consuming")
        yield* run("CONFIG", "SET", "maxmemory", "1")
        const drained = yield* Effect.forkChild(Scope.close(scope, yield* Effect.exit(Effect.void)))
        yield* Wait.until("drained", Effect.sync(() => drained.pollUnsafe() !== undefined))
        yield* run("CONFIG", "SET", "maxmemory", "0")
      }))

    it.effect("a delayed message waits for room, and health says so with the remedy", () =>
      Effect.gen(function*() {
        const { run } = yield* Server
        const topic = fresh("late")
        const redis = yield* transport()
        const subscription = yield* redis.subscribe(subscribing(topic))
        yield* redis.publish([outgoing(topic, "late", { delay: Duration.millis(200) })])
        yield* run("CONFIG", "SET", "maxmemory", "1")
        yield* Wait.until(
          "told",
          Effect.map(subscription.health, ({ reason }) => /moving delayed .*raise maxmemory/.test(reason ?? ""))
        )
        yield* run("CONFIG", "SET", "maxmemory", "0")
        assert.strictEqual(textOf((yield* subscription.pull(demand(1)))[0]), "late")
        yield* Wait.until("consuming", Effect.map(subscription.health, ({ state }) => state === "consuming"))
      }))

    it.effect("releases and retries are told to a full server", () =>
      Effect.gen(function*() {
        const { run } = yield* Server
        const topic = fresh("settling")
        const redis = yield* transport()
        yield* redis.publish([outgoing(topic, "retry"), outgoing(topic, "release")])
        const subscription = yield* redis.subscribe(subscribing(topic))
        const deliveries: Array<any> = []
        while (deliveries.length < 2) deliveries.push(...yield* subscription.pull(demand(2 - deliveries.length)))
        yield* run("CONFIG", "SET", "maxmemory", "1")
        const settled = yield* subscription.settle([
          { delivery: deliveries[0], settlement: retry(50) },
          { delivery: deliveries[1], settlement: { _tag: "Release" } }
        ])
        assert.deepStrictEqual(settled, [])
        const again: Array<string> = []
        while (again.length < 2) {
          again.push(...(yield* subscription.pull(demand(2))).map((one) => `${textOf(one)}#${one.attempt}`))
        }
        assert.deepStrictEqual(again.toSorted(), ["release#1", "retry#2"])
        yield* run("CONFIG", "SET", "maxmemory", "0")
      }))
  })
)

/** A user that may do all that the documentation names but for one command. */
const lacking = Effect.fnUntraced(function*(version: string, ...rules: ReadonlyArray<string>) {
  const broker = yield* Brokers.redis({ version })
  const run = yield* admin(broker.url)
  yield* run("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "-@admin", ...rules)
  const redis = yield* Effect.orDie(RedisStreams.make({
    url: broker.url,
    username: "app",
    password: Redacted.make("secret"),
    claim: { minIdle: "300 millis" }
  }))
  return { run, redis: Context.get(redis, Transport) }
})

it.live.each(["newest", "oldest"])(
  "redis %s: a script that may not do all of its work does none of it",
  (version) =>
    Effect.gen(function*() {
      const delayed = yield* lacking(version, "-zrem")
      const topic = fresh("zrem")
      const subscription = yield* delayed.redis.subscribe(subscribing(topic))
      yield* delayed.redis.publish([outgoing(topic, "late", { delay: Duration.millis(50) })])
      yield* Wait.until("refused", Effect.map(subscription.health, ({ reason }) => /refused .*zrem/.test(reason ?? "")))
      // Some more looks.
      yield* Effect.sleep(1_000)
      assert.strictEqual(yield* delayed.run("XLEN", topic), 0)
      yield* delayed.run("ACL", "SETUSER", "app", "+zrem")
      yield* Wait.until("moved", Effect.map(delayed.run("XLEN", topic), (n) => n === 1))

      for (const command of ["xadd", "hset", "pexpire"]) {
        yield* delayed.run("ACL", "SETUSER", "app", `-${command}`)
        const more = command === "xadd" ? { delay: Duration.millis(50) } : { id: "i" }
        const [outcome] = yield* delayed.redis.publish([outgoing("other", "x", more)])
        assert.strictEqual(failure(outcome!), "Unauthorized", command)
        assert.deepStrictEqual(yield* delayed.run("KEYS", "*other*"), [], command)
        yield* delayed.run("ACL", "SETUSER", "app", `+${command}`)
      }
    }).pipe(Effect.scoped)
)

it.live.each(["newest", "oldest"])(
  "redis %s: a look for abandoned entries that is refused shows in health with the command, and stops no reading",
  (version) =>
    Effect.gen(function*() {
      const { redis, run } = yield* lacking(version, "-xpending")
      const topic = fresh("xpending")
      const subscription = yield* redis.subscribe(subscribing(topic))
      yield* Wait.until("told", Effect.map(subscription.health, ({ state }) => state === "impaired"))
      yield* redis.publish([outgoing(topic, "a")])
      assert.strictEqual(textOf((yield* subscription.pull(demand(1)))[0]), "a")
      const { reason } = (yield* subscription.health) as { readonly reason: string }
      assert.match(reason, /abandoned.*'xpending'/)
      yield* run("ACL", "SETUSER", "app", "+xpending")
      yield* Wait.until("allowed", Effect.map(subscription.health, ({ state }) => state === "consuming"))
    }).pipe(Effect.scoped)
)

it.live("a retry that is refused shows in health until it is taken, whatever else is settled meanwhile", () =>
  Effect.gen(function*() {
    const { redis, run } = yield* lacking("newest", "-hset")
    const topic = fresh("hset")
    const subscription = yield* redis.subscribe(subscribing(topic))
    yield* redis.publish([outgoing(topic, "a"), outgoing(topic, "b")])
    const deliveries: Array<Delivery> = []
    while (deliveries.length < 2) deliveries.push(...yield* subscription.pull(demand(2 - deliveries.length)))
    const retried = subscription.settle([{ delivery: deliveries[0]!, settlement: retry("1 minute") }])
    assert.match((yield* Effect.flip(retried)).message, /hset/i)
    assert.deepStrictEqual(yield* subscription.settle([{ delivery: deliveries[1]!, settlement: Settlement.ack }]), [])
    const { reason, state } = yield* subscription.health
    assert.strictEqual(state, "impaired")
    assert.match(reason ?? "", /settling .*hset/i)
    yield* run("ACL", "SETUSER", "app", "+hset")
    assert.deepStrictEqual(yield* retried, [])
    assert.strictEqual((yield* subscription.health).state, "consuming")
  }).pipe(Effect.scoped))

layer(serving("redis"), { excludeTestServices: true })("a key of another type beside a topic", (it) => {
  it.effect("in place of delayed messages: stops no takeover, shows in health by its name, and ends when it is deleted", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const [broken, other] = [fresh("broken"), fresh("other")]
      const key = `{${broken}}:millrace:delayed`
      yield* run("SET", key, "not a sorted set")
      const redis = yield* transport({ claim: { minIdle: "300 millis" } })
      const one = yield* redis.subscribe(subscribing(broken))
      const two = yield* redis.subscribe(subscribing(other))
      yield* redis.publish([outgoing(broken, "a"), outgoing(other, "b")])
      for (const [topic, subscription] of [[broken, one], [other, two]] as const) {
        yield* subscription.pull(demand(1))
        // Abandoned by a process that is gone.
        yield* redis.publish([outgoing(topic, "left")])
        yield* run("XREADGROUP", "GROUP", "g", "gone", "STREAMS", topic, ">")
        assert.strictEqual(textOf((yield* subscription.pull(demand(1)))[0]), "left")
      }
      const health = yield* one.health
      assert.strictEqual(health.state, "impaired")
      assert.include((health as { reason: string }).reason, key)
      assert.strictEqual((yield* two.health).state, "consuming")
      yield* run("DEL", key)
      yield* Wait.until("consuming", Effect.map(one.health, ({ state }) => state === "consuming"))
    }))

  it.effect("in place of due times: a retry says so in the health by its name, and is recorded when it is deleted", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("dues")
      const key = `{${topic}}:millrace:due:g`
      const redis = yield* transport()
      const subscription = yield* redis.subscribe(subscribing(topic))
      yield* redis.publish([outgoing(topic, "a"), outgoing(topic, "b")])
      const deliveries = yield* subscription.pull(demand(1))
      yield* run("SET", key, "not a hash")
      const settle = subscription.settle([{ delivery: deliveries[0], settlement: retry(10) }])
      const error = yield* Effect.flip(settle)
      assert.strictEqual(error.reason._tag, "Mismatch")
      assert.include(error.message, key)
      const health = yield* subscription.health
      assert.deepStrictEqual([health.state, (health as { reason: string }).reason], ["impaired", error.message])
      // Others are given out, and acknowledged.
      const [other] = yield* subscription.pull(demand(1))
      assert.deepStrictEqual(yield* subscription.settle([{ delivery: other, settlement: { _tag: "Ack" } }]), [])
      yield* run("DEL", key)
      assert.deepStrictEqual(yield* settle, [])
      assert.strictEqual((yield* subscription.health).state, "consuming")
      assert.strictEqual((yield* subscription.pull(demand(1)))[0].attempt, 2)
    }))

  it.effect("in place of due times: a retry that could not be given out is counted once it is", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("due")
      const key = `{${topic}}:millrace:due:g`
      const redis = yield* transport()
      const subscription = yield* redis.subscribe(subscribing(topic))
      yield* redis.publish([outgoing(topic, "a")])
      const [delivery] = yield* subscription.pull(demand(1))
      yield* subscription.settle([{ delivery, settlement: retry(50) }])
      yield* run("SET", key, "not a hash")
      const pulling = yield* Effect.forkChild(subscription.pull(demand(1)))
      yield* Wait.until("told", Effect.map(subscription.health, ({ state }) => state === "impaired"))
      yield* run("DEL", key)
      assert.strictEqual((yield* Fiber.join(pulling))[0].attempt, 2)
    }))
})
