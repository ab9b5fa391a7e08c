import { assert, layer } from "@effect/vitest"
import * as Settlement from "@millrace/core/Settlement"
import { Wait } from "@millrace/testing"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { demand, fresh, outgoing, Server, serving, subscribing, transport } from "./redis.ts"

const calls = (stats: unknown): ReadonlyMap<string, number> =>
  new Map([...String(stats).matchAll(/cmdstat_([^:]+):calls=(\d+)/g)].map(([, name, n]) => [name!, Number(n)]))

layer(serving("redis"), { excludeTestServices: true })("what it costs", (it) => {
  it.effect("idle: one blocking read and one look for abandoned entries a second, however many subscriptions", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const redis = yield* transport()
      for (let i = 0; i < 200; i++) {
        yield* Effect.forkChild((yield* redis.subscribe(subscribing(fresh("idle")))).pull(demand(10)))
      }
      yield* Effect.sleep(1_200)
      const since = performance.now()
      yield* run("CONFIG", "RESETSTAT")
      yield* Effect.sleep(4_000)
      const counts = calls(yield* run("INFO", "commandstats"))
      const seconds = (performance.now() - since) / 1_000
      assert.isAtMost(counts.get("evalsha") ?? 0, seconds / 0.95 + 1)
      assert.isAtMost(counts.get("xreadgroup") ?? 0, seconds / 2 + 1)
      const inScripts = ["xpending", "zrange", "time"]
      const others = [...counts.keys()].filter((name) =>
        !["evalsha", "xreadgroup", "info", ...inScripts].includes(name)
      )
      assert.deepStrictEqual(others.filter((name) => !name.startsWith("config")), [])
    }))

  it.effect("at full rate: far fewer commands than messages", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const redis = yield* transport()
      const topic = fresh("rate")
      const n = 20_000
      for (let i = 0; i < n / 1_000; i++) {
        yield* redis.publish(Arr.makeBy(1_000, (i) => outgoing(topic, String(i))))
      }
      const subscription = yield* redis.subscribe(subscribing(topic))
      yield* run("CONFIG", "RESETSTAT")
      for (let got = 0; got < n;) {
        const deliveries = yield* subscription.pull(demand(256))
        got += deliveries.length
        yield* subscription.settle(Arr.map(deliveries, (delivery) => ({ delivery, settlement: Settlement.ack })))
      }
      const counts = calls(yield* run("INFO", "commandstats"))
      assert.isAtMost((counts.get("xreadgroup") ?? 0) + (counts.get("xack") ?? 0), 0.05 * n)
      yield* Wait.until("all settled", Effect.map(run("XPENDING", topic, "g"), ([pending]) => pending === 0))
    }))

  it.effect(
    "a thousand subscriptions of as many groups share a bounded number of connections, and all get their messages",
    () =>
      Effect.gen(function*() {
        const { run } = yield* Server
        const redis = yield* transport()
        const topic = fresh("groups")
        const clients = Effect.map(run("CLIENT", "LIST"), (list) => String(list).trim().split("\n").length)
        const before = yield* clients
        const groups = Arr.makeBy(1_000, (i) => `g${i}`)
        const subscriptions = yield* Effect.forEach(
          groups,
          (group) => redis.subscribe(subscribing(topic, { group })),
          { concurrency: 50 }
        )
        const pulls = yield* Effect.forEach(subscriptions, ({ pull }) => Effect.forkChild(pull(demand(10))))
        assert.isAtMost((yield* clients) - before, 20)
        yield* redis.publish([outgoing(topic, "for all")])
        yield* Effect.forEach(pulls, Fiber.join, { discard: true })
      }),
    120_000
  )
})
