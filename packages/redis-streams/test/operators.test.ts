import { assert } from "@effect/vitest"
import * as DeadLetter from "@millrace/core/DeadLetter"
import * as Pipeline from "@millrace/core/Pipeline"
import * as Topic from "@millrace/core/Topic"
import { Transport } from "@millrace/core/Transport"
import type { RedisStreams } from "@millrace/redis-streams"
import { Brokers, Proxy, Wait } from "@millrace/testing"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import {
  admin,
  connect,
  demand,
  eachServer,
  fresh,
  noting,
  outgoing,
  retry,
  Server,
  subscribing,
  textOf,
  transport
} from "./redis.ts"

const json = (topic: string, value: string) => outgoing(topic, JSON.stringify(value))

/** Longer than a busy machine stands still: nobody may lose a lease here. */
const quick = { claim: { minIdle: "2 seconds" } } as const

/** A pipeline whose handlers end when they are told to; notes what they began, and which were aborted. */
const working = Effect.fnUntraced(function*(
  topic: string,
  { drainTimeout, ...options }: Partial<RedisStreams.Options> & { readonly drainTimeout?: Duration.Input } = {}
) {
  const context = yield* connect({ ...quick, ...options })
  const begun: Array<string> = []
  const aborted: Array<string> = []
  let finish!: () => void
  const gate = new Promise<void>((resolve) => finish = resolve)
  const running = yield* Pipeline.from(Topic.make(topic, { schema: Schema.String }), {
    group: "g",
    startFrom: "beginning",
    ...(drainTimeout === undefined ? {} : { drainTimeout })
  }).pipe(
    Pipeline.mapPromise(async (value, { attempt, signal }) => {
      begun.push(`${value}#${attempt}`)
      signal.addEventListener("abort", () => aborted.push(value))
      if (value === "stays") await new Promise(() => {})
      if (value.startsWith("fails") && value !== "fails-late" && attempt === 1) throw new Error("once")
      await gate
      if (value === "fails-late") throw new Error("late")
    }),
    Pipeline.retry({ times: 3, schedule: Schedule.spaced("2500 millis") }),
    Pipeline.concurrency(8),
    Pipeline.start,
    Effect.provide(context)
  )
  return { running, begun, aborted, finish, redis: Context.get(context, Transport) }
})

eachServer((it, { kind, version }) => {
  it.effect.each(
    [
      ["XDEL of what is handled", (topic: string, ids: ReadonlyArray<string>) => ["XDEL", topic, ...ids]],
      ["XTRIM", (topic: string) => ["XTRIM", topic, "MAXLEN", "0"]]
    ] as const
  )("%s: the handlers finish, nothing stays pending, and it is logged once", ([, command]) =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("trimmed")
      const said: Array<string> = []
      const { aborted, begun, finish, redis, running } = yield* Effect.provide(working(topic), noting(said))
      const published = yield* redis.publish(Arr.makeBy(3, (i) => json(topic, String(i))))
      yield* Wait.until("begun", Effect.sync(() => begun.length === 3))
      const ids = published.map((result) => (result as { success: { id: string } }).success.id)
      yield* run(...command(topic, ids))
      // Two heartbeats.
      yield* Effect.sleep(1_500)
      assert.deepStrictEqual(aborted, [])
      finish()
      yield* Wait.until("handled", Effect.map(running.counts, ({ handled }) => handled === 3))
      yield* Wait.until("none pending", Effect.map(run("XPENDING", topic, "g"), ([n]) => n === 0))
      assert.strictEqual(said.filter((line) => /3 entries were deleted/.test(line)).length, 1, said.join("\n"))
      assert.strictEqual(begun.length, 3)
    }))

  it.effect("XGROUP DELCONSUMER while a retry waits and its process stands still: the retry comes again", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("still")
      const redis = yield* transport({ claim: { minIdle: "600 millis" } })
      const subscription = yield* redis.subscribe(subscribing(topic))
      yield* redis.publish([outgoing(topic, "a")])
      const [delivery] = yield* subscription.pull(demand(1))
      yield* subscription.settle([{ delivery, settlement: retry("1500 millis") }])
      const consumers: ReadonlyArray<ReadonlyArray<unknown>> = yield* run("XINFO", "CONSUMERS", topic, "g")
      const name = consumers.map(([, name]) => String(name)).find((name) => !name.startsWith("millrace:"))
      yield* run("XGROUP", "DELCONSUMER", topic, "g", String(name))
      for (const until = performance.now() + 700; performance.now() < until;);
      const [again] = yield* subscription.pull(demand(1))
      assert.deepStrictEqual([textOf(again), again.attempt], ["a", 2])
    }))

  it.effect.each(
    [
      ["DEL", (topic: string) => ["DEL", topic]],
      ["RENAME", (topic: string) => ["RENAME", topic, `${topic}.old`]],
      ["XTRIM", (topic: string) => ["XTRIM", topic, "MAXLEN", "0"]],
      ["FLUSHALL", () => ["FLUSHALL"]]
    ] as const
  )("%s while retries wait: they are logged and counted as vanished", ([, command]) =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("waiting")
      const said: Array<string> = []
      const { begun, finish, redis, running } = yield* Effect.provide(working(topic), noting(said))
      finish()
      yield* redis.publish(["fails-1", "fails-2"].map((value) => json(topic, value)) as any)
      yield* Wait.until("waiting", Effect.map(running.counts, ({ retried }) => retried === 2))
      yield* run(...command(topic))
      yield* Wait.until("vanished", Effect.map(running.counts, ({ vanished }) => vanished === 2))
      assert.match(said.join("\n"), /entries were deleted before group g had settled them/)
      yield* redis.publish([json(topic, "after")])
      yield* Wait.until("after", Effect.sync(() => begun.includes("after#1")))
    }))

  it.effect("XGROUP DELCONSUMER of a live consumer: it takes back what it owned, running, waiting and fetched", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("consumer")
      const { aborted, begun, finish, redis, running } = yield* working(topic)
      yield* redis.publish(["fails-1", "fails-2", "a", "b"].map((value) => json(topic, value)) as any)
      yield* Wait.until("begun", Effect.map(running.counts, ({ retried }) => begun.length === 4 && retried === 2))
      const consumers = yield* run("XINFO", "CONSUMERS", topic, "g")
      for (const [, name] of consumers) {
        if (!String(name).startsWith("millrace:")) yield* run("XGROUP", "DELCONSUMER", topic, "g", String(name))
      }
      finish()
      yield* Wait.until("all", Effect.map(running.counts, ({ handled }) => handled === 4))
      yield* Wait.until("none pending", Effect.map(run("XPENDING", topic, "g"), ([n]) => n === 0))
      assert.deepStrictEqual(aborted, [])
      assert.deepStrictEqual(begun.toSorted(), ["a#1", "b#1", "fails-1#1", "fails-1#2", "fails-2#1", "fails-2#2"])
    }))

  it.effect.each(
    [
      ["XGROUP DESTROY", (topic: string) => ["XGROUP", "DESTROY", topic, "g"]],
      ["XGROUP SETID to the beginning", (topic: string) => ["XGROUP", "SETID", topic, "g", "0"]]
    ] as const
  )("%s: no handler is aborted, and none runs twice at a time", ([, command]) =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("group")
      const { aborted, begun, finish, redis, running } = yield* working(topic)
      yield* redis.publish(Arr.makeBy(4, (i) => json(topic, String(i))))
      yield* Wait.until("begun", Effect.sync(() => begun.length === 4))
      yield* run(...command(topic))
      yield* Effect.sleep(1_500)
      yield* redis.publish([json(topic, "new")])
      yield* Wait.until("new", Effect.sync(() => begun.includes("new#1")))
      assert.deepStrictEqual(begun, ["0#1", "1#1", "2#1", "3#1", "new#1"])
      assert.deepStrictEqual(aborted, [])
      finish()
      yield* Wait.until("all", Effect.map(running.counts, ({ handled }) => handled === 5))
      yield* Wait.until("none pending", Effect.map(run("XPENDING", topic, "g"), ([n]) => n === 0))
    }))

  it.effect.each(
    [
      ["XDEL", (topic: string, ids: ReadonlyArray<string>) => ["XDEL", topic, ...ids]],
      ["XTRIM", (topic: string) => ["XTRIM", topic, "MAXLEN", "0"]],
      ["DEL, or eviction of the key", (topic: string) => ["DEL", topic]]
    ] as const
  )(
    "%s before a retry or a release: counted as vanished, and the body becomes a dead letter",
    ([, command]) =>
      Effect.gen(function*() {
        const { run } = yield* Server
        const topic = fresh("vanished")
        const scope = yield* Scope.make()
        const { finish, redis, running } = yield* Scope.provide(
          working(topic, { claim: {}, drainTimeout: "10 millis" }),
          scope
        )
        const published = yield* redis.publish(["fails-late", "stays"].map((value) => json(topic, value)) as any)
        yield* Wait.until("begun", Effect.map(running.owned, ({ running }) => running === 2))
        const ids = published.map((result) => (result as { success: { id: string } }).success.id)
        yield* run(...command(topic, ids))
        finish()
        yield* Wait.until("retried", Effect.map(running.counts, ({ deadLettered }) => deadLettered === 1))
        yield* Scope.close(scope, Exit.void)
        const { lost, vanished } = yield* running.counts
        assert.deepStrictEqual({ lost, vanished }, { lost: 0, vanished: 2 })
        const peer = yield* connect()
        const letters = yield* Effect.provide(Stream.runCollect(DeadLetter.list(`${topic}.dead`)), peer)
        assert.deepStrictEqual(
          letters.map(({ message, record }) => [textOf(message), record.reason]),
          [[`"fails-late"`, "vanished"], [`"stays"`, "vanished"]]
        )
        assert.strictEqual(letters[0]!.record.error.message, "late")
      })
  )

  it.effect("a failover to a replica that lags: handlers finish, what it lacks is dead-lettered, and work goes on", () =>
    Effect.gen(function*() {
      const { broker, run } = yield* Server
      const replica = yield* Brokers[kind]({ version })
      const onReplica = yield* admin(replica.url)
      yield* onReplica("REPLICAOF", "127.0.0.1", String(broker.port))
      const target = { host: "127.0.0.1", port: broker.port }
      const proxy = yield* Proxy.make(target)
      const topic = fresh("lag")
      const { aborted, begun, finish, redis, running } = yield* working(topic, {
        url: proxy.through(broker.url),
        claim: {}
      })
      yield* redis.publish([json(topic, "a"), json(topic, "b")])
      yield* Wait.until("begun", Effect.sync(() => begun.length === 2))
      yield* Wait.until(
        "replicated",
        Effect.map(onReplica("XPENDING", topic, "g"), (pending) => Array.isArray(pending) && pending[0] === 2)
      )
      yield* onReplica("REPLICAOF", "NO", "ONE")
      yield* redis.publish([json(topic, "fails-late"), json(topic, "c")])
      yield* Wait.until("begun", Effect.sync(() => begun.length === 4))
      target.port = replica.port
      yield* proxy.cut
      finish()
      yield* Wait.until(
        "settled",
        Effect.map(running.counts, ({ deadLettered, handled }) => handled + deadLettered === 4)
      )
      yield* Wait.until(
        "published",
        Effect.map(redis.publish([json(topic, "d")]), ([outcome]) => outcome!._tag === "Success")
      )
      yield* Wait.until("d", Effect.map(running.counts, ({ handled }) => handled === 4))
      const { lost, vanished } = yield* running.counts
      assert.deepStrictEqual({ lost, vanished, aborted }, { lost: 0, vanished: 1, aborted: [] })
      yield* Wait.until("none pending", Effect.map(onReplica("XPENDING", topic, "g"), ([n]) => n === 0))
      assert.strictEqual(yield* onReplica("XLEN", `${topic}.dead`), 1)
      yield* run("DEL", topic)
    }))

  it.effect("an entry that was deleted while its retry waits is logged and counted, and holds up nothing", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("waiting")
      const said: Array<string> = []
      const redis = yield* Effect.provide(transport(quick), noting(said))
      yield* redis.publish([outgoing(topic, "gone"), outgoing(topic, "kept")])
      const vanished: Array<string> = []
      const subscription = yield* redis.subscribe(
        subscribing(topic, { onVanished: (ids) => void vanished.push(...ids) })
      )
      const deliveries: Array<any> = []
      while (deliveries.length < 2) deliveries.push(...yield* subscription.pull(demand(2 - deliveries.length)))
      yield* subscription.settle(deliveries.map((delivery) => ({ delivery, settlement: retry(300) })) as any)
      yield* run("XDEL", topic, deliveries[0].id)
      const [again] = yield* subscription.pull(demand(2))
      assert.deepStrictEqual([textOf(again), again.attempt], ["kept", 2])
      yield* Wait.until("logged", Effect.sync(() => said.some((line) => /1 entries were deleted/.test(line))))
      assert.deepStrictEqual(vanished, [deliveries[0].id])
      assert.strictEqual((yield* run("XPENDING", topic, "g"))[0], 1)
    }))
})
