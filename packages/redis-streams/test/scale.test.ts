/** Many consumers and large pending lists, large replies and slow networks. */
import { assert, it, layer } from "@effect/vitest"
import * as Codec from "@millrace/core/Codec"
import * as DeadLetter from "@millrace/core/DeadLetter"
import * as Pipeline from "@millrace/core/Pipeline"
import * as Publisher from "@millrace/core/Publisher"
import * as Topic from "@millrace/core/Topic"
import { Transport } from "@millrace/core/Transport"
import { RedisStreams } from "@millrace/redis-streams"
import { Brokers, Proxy, Wait } from "@millrace/testing"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { prune } from "../src/internal/scripts/prune.ts"
import {
  connect,
  demand,
  eachServer,
  fresh,
  noting,
  outgoing,
  Server,
  serving,
  subscribing,
  transport
} from "./redis.ts"

const calls = (stats: unknown, command: string): number =>
  Number(new RegExp(`cmdstat_${command}:calls=(\\d+)`).exec(String(stats))?.[1] ?? 0)

/** Microseconds that the server spent on a command in all. */
const spent = (stats: unknown, command: string): number =>
  Number(new RegExp(`cmdstat_${command}:calls=\\d+,usec=(\\d+)`).exec(String(stats))?.[1] ?? 0)

eachServer((it) => {
  it.effect("a look for abandoned entries costs nothing of what is pending elsewhere", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("pending")
      yield* run("XGROUP", "CREATE", topic, "g", "0", "MKSTREAM")
      yield* run(
        "EVAL",
        "for i = 1, 100000 do redis.call('XADD', KEYS[1], '*', 'body', 'x') end",
        "1",
        topic
      )
      // Twenty live consumers hold it all.
      for (let i = 0; i < 20; i++) {
        yield* run("XREADGROUP", "GROUP", "g", `live-${i}`, "COUNT", "5000", "STREAMS", topic, ">")
      }
      const redis = yield* transport({ claim: { minIdle: "1 hour" } })
      const subscription = yield* redis.subscribe(subscribing(topic))
      yield* Effect.forkScoped(subscription.pull(demand(10)))
      yield* Effect.sleep(500)
      // What a look through everything costs on this machine at this moment.
      yield* run("CONFIG", "RESETSTAT")
      for (let i = 0; i < 5; i++) yield* run("XPENDING", topic, "g", "IDLE", "3600000", "-", "+", "1")
      const everything = spent(yield* run("INFO", "commandstats"), "xpending") / 5
      yield* run("CONFIG", "RESETSTAT")
      yield* Effect.sleep(2_000)
      const looks = calls(yield* run("INFO", "commandstats"), "evalsha")
      assert.isAbove(looks, 0)
      assert.isBelow(spent(yield* run("INFO", "commandstats"), "evalsha") / looks, everything / 4)
    }))

  it.effect("dead consumers are deleted some at a time, names of any alphabet too, and live ones stay", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("consumers")
      yield* run("XGROUP", "CREATE", topic, "g", "0", "MKSTREAM")
      yield* run("XGROUP", "CREATECONSUMER", topic, "g", "wörker-消費者")
      yield* run(
        "EVAL",
        "for i = 1, 3000 do redis.call('XGROUP', 'CREATECONSUMER', KEYS[1], 'g', 'dead-' .. i) end",
        "1",
        topic
      )
      yield* run("XADD", topic, "*", "body", "x")
      yield* run("XREADGROUP", "GROUP", "g", "owner", "STREAMS", topic, ">")
      const names = Effect.map(
        run("XINFO", "CONSUMERS", topic, "g"),
        (all: ReadonlyArray<ReadonlyArray<unknown>>) => all.map(([, name]) => String(name))
      )
      const context = yield* connect({ forgetConsumersAfter: "800 millis", consumer: "me" })
      const redis = Context.get(context, Transport)
      const subscription = yield* redis.subscribe(subscribing(topic))
      yield* Effect.forkScoped(subscription.pull(demand(1)))
      yield* run("CONFIG", "RESETSTAT")
      yield* Wait.until("deleted", Effect.map(names, (all) => !all.some((name) => /dead-|wörker/.test(name))))
      // Old servers know a consumer only once it was given something.
      const others = (all: ReadonlyArray<string>) =>
        all.filter((name) => name !== "me" && !name.startsWith("millrace:"))
      assert.deepStrictEqual(others(yield* names), ["owner"])
      assert.isDefined((yield* names).find((name) => name.startsWith("millrace:origin:")))
      const info = yield* Effect.provide(RedisStreams.groupInfo(topic, "g"), context)
      assert.deepStrictEqual(others(info.consumers.map(({ name }) => name)), ["owner"])
    }))

  it.effect("dead consumers are deleted by one process at a time, and so many by each step", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("steps")
      yield* run("XGROUP", "CREATE", topic, "g", "0", "MKSTREAM")
      yield* run(
        "EVAL",
        "for i = 1, 30 do redis.call('XGROUP', 'CREATECONSUMER', KEYS[1], 'g', 'dead-' .. i) end",
        "1",
        topic
      )
      const lock = `{${topic}}:lock`
      const step = run("EVAL", prune.lua, "2", topic, lock, "g", "0", "20", "3600000")
      assert.deepStrictEqual((yield* step).slice(0, 2), [20, 1])
      // Another process, while the first one is at it.
      assert.deepStrictEqual((yield* step).slice(0, 2), [0, 0])
      yield* run("DEL", lock)
      assert.deepStrictEqual((yield* step).slice(0, 2), [10, 0])
    }))

  it.effect("an origin whose consumer was deleted is put back by a process that knows it", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("origin")
      const redis = yield* transport({ forgetConsumersAfter: "400 millis" })
      yield* redis.subscribe(subscribing(topic))
      const origin = Effect.map(
        run("XINFO", "CONSUMERS", topic, "g"),
        (all: ReadonlyArray<ReadonlyArray<unknown>>) =>
          all.map(([, name]) => String(name)).find((name) => name.startsWith("millrace:origin:"))
      )
      const before = yield* origin
      yield* run("XGROUP", "DELCONSUMER", topic, "g", String(before))
      yield* Wait.until("put back", Effect.map(origin, (now) => now === before))
    }))
})

layer(serving("redis"), { excludeTestServices: true })("large messages", (it) => {
  it.effect("one of the largest size that the server takes is dead-lettered, listed and redriven", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const limit = 2 * 1024 * 1024
      yield* run("CONFIG", "SET", "proto-max-bulk-len", String(limit))
      const topic = Topic.make(fresh("largest"), { codec: Codec.bytes })
      const context = yield* connect()
      let fails = true
      const running = yield* Pipeline.from(topic, { group: "g", startFrom: "beginning" }).pipe(
        Pipeline.mapEffect(({ length }) =>
          fails ? Effect.fail("no") : Effect.sync(() => assert.strictEqual(length, limit))
        ),
        Pipeline.retry({ times: 0 }),
        Pipeline.start,
        Effect.provide(context)
      )
      yield* Effect.provide(Publisher.publish(topic, new Uint8Array(limit)), context)
      yield* Wait.until("dead-lettered", Effect.map(running.counts, ({ deadLettered }) => deadLettered === 1))
      const letters = yield* Effect.provide(Stream.runCollect(DeadLetter.list(`${topic.name}.dead`)), context)
      assert.deepStrictEqual(letters.map(({ message }) => message.body.length), [limit])
      fails = false
      yield* Effect.provide(DeadLetter.redrive(`${topic.name}.dead`), context)
      yield* Wait.until("handled", Effect.map(running.counts, ({ handled }) => handled === 1))
      assert.strictEqual(yield* run("XLEN", `${topic.name}.dead`), 0)
      yield* run("CONFIG", "SET", "proto-max-bulk-len", "512mb")
    }))

  it.effect("are read in pages, however large they are together", () =>
    Effect.gen(function*() {
      const topic = fresh("large")
      const context = yield* connect({ claim: { minIdle: "2 seconds" } })
      const redis = Context.get(context, Transport)
      for (let i = 0; i < 40; i++) yield* redis.publish([outgoing(topic, new Uint8Array(4_000_000).fill(i))])
      const letters = yield* Stream.runFold(redis.browse(topic), () => 0, (n, { body }) => n + body.length)
      assert.strictEqual(letters, 160_000_000)
      const newest = yield* Stream.runCollect(redis.browse(topic, { reverse: true, limit: 2 }))
      assert.deepStrictEqual(newest.map(({ body }) => body[0]), [39, 38])
    }))
})

it.live(
  "a slow network is no dead connection: messages of 200 kB at 10 MB/s arrive without a standstill",
  () =>
    Effect.gen(function*() {
      const broker = yield* Brokers.redis()
      const proxy = yield* Proxy.make(broker)
      const direct = Context.get(yield* Effect.orDie(RedisStreams.make({ url: broker.url })), Transport)
      const topic = fresh("slow")
      const body = new Uint8Array(200_000)
      for (let i = 0; i < 5; i++) yield* direct.publish(Arr.makeBy(20, () => outgoing(topic, body)))
      yield* proxy.shape({ latency: 0, bandwidth: 10_000_000 })
      const said: Array<string> = []
      const url = proxy.through(broker.url)
      const redis = Context.get(
        yield* Effect.orDie(RedisStreams.make({ url, claim: { minIdle: "5 seconds" } })).pipe(
          Effect.provide(noting(said))
        ),
        Transport
      )
      const subscription = yield* redis.subscribe(subscribing(topic))
      let got = 0
      const attempts = new Set<number>()
      while (got < 100) {
        const deliveries = yield* subscription.pull(demand(512))
        for (const { attempt } of deliveries) attempts.add(attempt)
        got += deliveries.length
        yield* subscription.settle(
          Arr.map(deliveries, (delivery) => ({ delivery, settlement: { _tag: "Ack" } as const }))
        )
      }
      assert.deepStrictEqual([...attempts], [1])
      assert.deepStrictEqual(said.filter((line) => /lost/.test(line)), [])
    }).pipe(Effect.scoped)
)

it.live(
  "one reply that takes longer than the connection's timeout is waited for while its bytes arrive",
  () =>
    Effect.gen(function*() {
      const broker = yield* Brokers.redis()
      const proxy = yield* Proxy.make(broker)
      const direct = Context.get(yield* Effect.orDie(RedisStreams.make({ url: broker.url })), Transport)
      const topic = fresh("one")
      yield* direct.publish([outgoing(topic, new Uint8Array(6_000_000))])
      yield* proxy.shape({ latency: 0, bandwidth: 2_000_000 })
      const said: Array<string> = []
      const url = proxy.through(broker.url)
      const redis = Context.get(
        yield* Effect.orDie(RedisStreams.make({ url, answerTimeout: "1 second" })).pipe(Effect.provide(noting(said))),
        Transport
      )
      const [delivery] = yield* (yield* redis.subscribe(subscribing(topic))).pull(demand(1))
      assert.deepStrictEqual([delivery.body.length, delivery.attempt], [6_000_000, 1])
      const [stored] = yield* Stream.runCollect(redis.browse(topic))
      assert.strictEqual(stored!.body.length, 6_000_000)
      assert.deepStrictEqual(said.filter((line) => /lost/.test(line)), [])
    }).pipe(Effect.scoped)
)
