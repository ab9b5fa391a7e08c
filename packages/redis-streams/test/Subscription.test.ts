import { assert } from "@effect/vitest"
import * as Settlement from "@millrace/core/Settlement"
import type { Delivery, Subscription } from "@millrace/core/Transport"
import { Wait } from "@millrace/testing"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { Source } from "../src/internal/source.ts"
import { demand, eachServer, fresh, noting, outgoing, retry, Server, subscribing, textOf, transport } from "./redis.ts"

const pullAll = (subscription: Subscription, n: number): Effect.Effect<ReadonlyArray<Delivery>, unknown> =>
  Effect.gen(function*() {
    const got: Array<Delivery> = []
    while (got.length < n) got.push(...yield* subscription.pull(demand(n - got.length)))
    return got
  })

const settleAll = (
  subscription: Subscription,
  deliveries: ReadonlyArray<Delivery>,
  settlement: Settlement.Settlement
) => subscription.settle(deliveries.map((delivery) => ({ delivery, settlement })) as any)

/** Also those that `Duration` itself would not make. */
const durationOf = (millis: number): Duration.Duration =>
  Number.isFinite(millis) && millis >= 0
    ? Duration.millis(millis)
    : millis === Infinity
    ? Duration.infinity
    : Object.assign(Object.create(Duration.zero), { value: { _tag: "Millis", millis } })

const idle = { claim: { minIdle: "300 millis" } } as const

/** Where a lease must not end: longer than a busy machine stands still. */
const unhurried = { claim: { minIdle: "1500 millis" } } as const

eachServer((it) => {
  it.effect("gives bytes, headers and key unchanged", () =>
    Effect.gen(function*() {
      const redis = yield* transport()
      const topic = fresh("bytes")
      const body = Uint8Array.from({ length: 256 }, (_, i) => i)
      yield* redis.publish([
        outgoing(topic, body, { headers: { "content-type": "x", "a-header": "ä€", "millrace-key": "k%20k" } }),
        outgoing(topic, ""),
        outgoing(topic, new Uint8Array(1_000_000).fill(255))
      ])
      const subscription = yield* redis.subscribe(subscribing(topic))
      const [first, empty, large] = yield* pullAll(subscription, 3)
      assert.deepStrictEqual(Uint8Array.from(first!.body), body)
      assert.deepStrictEqual({ ...first!.headers }, {
        "content-type": "x",
        "a-header": "ä€",
        "millrace-key": "k%20k"
      })
      assert.strictEqual(first!.key, "k k")
      assert.strictEqual(first!.attempt, 1)
      assert.isFalse(first!.redelivered || first!.suspect)
      assert.strictEqual(first!.topic, topic)
      assert.approximately(first!.publishedAt, Date.now(), 60_000)
      assert.strictEqual(empty!.body.length, 0)
      assert.deepStrictEqual({ ...empty!.headers }, {})
      assert.strictEqual(large!.body.length, 1_000_000)
      assert.isTrue(large!.body.every((byte) => byte === 255))
    }))

  it.effect("gives what redis-cli wrote with all its fields and no body", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const redis = yield* transport()
      const topic = fresh("foreign")
      yield* run("XADD", topic, "*", "user_id", "1", "action", "login")
      const [delivery] = yield* (yield* redis.subscribe(subscribing(topic))).pull(demand(1))
      assert.strictEqual(delivery!.body.length, 0)
      assert.deepStrictEqual(
        [...delivery!.fields!].map(([name, bytes]) => [name, new TextDecoder().decode(bytes)]),
        [["user_id", "1"], ["action", "login"]]
      )
    }))

  it.effect("begins a new group where startFrom says, and leaves an existing one where it stands", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const redis = yield* transport()
      const topic = fresh("start")
      yield* redis.publish([outgoing(topic, "1"), outgoing(topic, "2")])
      const fromNew = yield* redis.subscribe(subscribing(topic, { group: "new", startFrom: "new" }))
      const fromBeginning = yield* redis.subscribe(subscribing(topic, { group: "beginning" }))
      const [entry] = yield* run("XRANGE", topic, "-", "+", "COUNT", "1")
      const fromId = yield* redis.subscribe(
        subscribing(topic, { group: "id", settings: Context.make(Source, { startFrom: String(entry[0]) }) as any })
      )
      yield* run("XGROUP", "CREATE", topic, "there", "$")
      const there = yield* redis.subscribe(subscribing(topic, { group: "there", startFrom: "beginning" }))
      yield* redis.publish([outgoing(topic, "3")])
      const texts = (subscription: Subscription, n: number) =>
        Effect.map(pullAll(subscription, n), (deliveries) => deliveries.map(textOf).join())
      assert.strictEqual(yield* texts(fromNew, 1), "3")
      assert.strictEqual(yield* texts(fromBeginning, 3), "1,2,3")
      assert.strictEqual(yield* texts(fromId, 2), "2,3")
      assert.strictEqual(yield* texts(there, 1), "3")
    }))

  it.effect("never takes more than was asked for", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const redis = yield* transport()
      const topic = fresh("demand")
      yield* redis.publish(Arr.makeBy(100, (i) => outgoing(topic, String(i))))
      const subscription = yield* redis.subscribe(subscribing(topic))
      assert.strictEqual((yield* pullAll(subscription, 3)).length, 3)
      const [pending] = yield* run("XPENDING", topic, "g")
      assert.strictEqual(Number(pending), 3)
    }))

  it.effect("a read that blocks for a minute delays neither start nor delivery nor another subscription", () =>
    Effect.gen(function*() {
      const redis = yield* transport({ block: "1 minute" })
      const topic = fresh("block")
      const other = fresh("other")
      const subscription = yield* redis.subscribe(subscribing(topic))
      const pulling = yield* Effect.forkChild(subscription.pull(demand(10)))
      yield* Effect.sleep(50)
      const second = yield* redis.subscribe(subscribing(other))
      yield* redis.publish([outgoing(other, "other")])
      assert.strictEqual(textOf((yield* second.pull(demand(10)).pipe(Effect.timeout("30 seconds")))[0]), "other")
      yield* redis.publish([outgoing(topic, "mine")])
      assert.strictEqual(textOf((yield* Fiber.join(pulling).pipe(Effect.timeout("30 seconds")))[0]), "mine")
    }))

  it.effect("reads a hundred streams of a group on one connection", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const redis = yield* transport()
      const before = String(yield* run("CLIENT", "LIST")).trim().split("\n").length
      const names = Arr.makeBy(100, () => fresh("many"))
      const subscriptions = yield* Effect.forEach(names, (name) => redis.subscribe(subscribing(name)))
      const pulls = yield* Effect.forEach(
        subscriptions,
        (subscription) => Effect.forkChild(pullAll(subscription, 20))
      )
      yield* redis.publish(
        Arr.flatMap(names as any, (name: string) => Arr.makeBy(20, (i) => outgoing(name, `${name} ${i}`))) as any
      )
      const all = yield* Effect.forEach(pulls, Fiber.join)
      all.forEach((deliveries, i) =>
        assert.deepStrictEqual(deliveries.map(textOf), Arr.makeBy(20, (n) => `${names[i]} ${n}`))
      )
      const after = String(yield* run("CLIENT", "LIST")).trim().split("\n").length
      assert.isAtMost(after - before, 2)
    }))

  it.effect("withdraw: what arrives anyway is given by the next pull, or released when that does not come", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const redis = yield* transport()
      const topic = fresh("withdrawn")
      const subscription = yield* redis.subscribe(subscribing(topic))
      for (const wait of [0, 5, 50]) {
        yield* Fiber.interrupt(yield* Effect.forkChild(subscription.pull(demand(5)), { startImmediately: true }))
        yield* Effect.sleep(wait)
        yield* subscription.withdraw
        yield* redis.publish([outgoing(topic, "1")])
        yield* Effect.sleep(20)
        assert.deepStrictEqual(yield* run("XPENDING", topic, "g", "-", "+", "10"), [])
        const [delivery] = yield* subscription.pull(demand(1))
        yield* settleAll(subscription, [delivery], Settlement.ack)
      }
      // An interrupted pull cancels nothing: its message is released once the engine wants nothing any more.
      yield* Fiber.interrupt(yield* Effect.forkChild(subscription.pull(demand(5)), { startImmediately: true }))
      yield* Effect.sleep(20)
      yield* redis.publish([outgoing(topic, "2")])
      yield* Wait.until("read", Effect.map(run("XPENDING", topic, "g"), ([n]) => n === 1))
      yield* subscription.withdraw
      yield* Wait.until(
        "released",
        Effect.map(
          run("XPENDING", topic, "g", "-", "+", "10"),
          (page) => page.every(([, , idle, count]: [string, string, number, number]) => count === 0 && idle > 1e12)
        )
      )
      const peer = yield* (yield* transport()).subscribe(subscribing(topic))
      const [delivery] = yield* peer.pull(demand(1))
      assert.strictEqual(delivery.attempt, 1)
    }))

  it.effect("an acknowledged message is not given again", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const redis = yield* transport(idle)
      const topic = fresh("ack")
      yield* redis.publish(Arr.makeBy(10, (i) => outgoing(topic, String(i))))
      const subscription = yield* redis.subscribe(subscribing(topic))
      const deliveries = yield* pullAll(subscription, 10)
      assert.deepStrictEqual(yield* settleAll(subscription, deliveries, Settlement.ack), [])
      assert.strictEqual(Number((yield* run("XPENDING", topic, "g"))[0]), 0)
      assert.deepStrictEqual(yield* settleAll(subscription, deliveries, Settlement.ack), [])
    }))

  it.effect("a retry comes back to the same process when it is due, counted, whether that is before or after minIdle", () =>
    Effect.gen(function*() {
      const redis = yield* transport(unhurried)
      const topic = fresh("retry")
      const subscription = yield* redis.subscribe(subscribing(topic))
      const peer = yield* (yield* transport(unhurried)).subscribe(subscribing(topic))
      yield* redis.publish([outgoing(topic, "1")])
      for (const [attempt, delay] of [[1, 0], [2, 50], [3, 2_500]] as const) {
        const [delivery] = yield* subscription.pull(demand(1))
        assert.strictEqual(delivery!.attempt, attempt)
        assert.strictEqual(delivery!.redelivered, attempt > 1)
        assert.isFalse(delivery!.suspect)
        const since = performance.now()
        const stolen = yield* Effect.forkChild(peer.pull(demand(1)))
        assert.deepStrictEqual(
          yield* settleAll(subscription, [delivery!], retry(Duration.millis(delay))),
          []
        )
        const [again] = yield* subscription.pull(demand(1))
        yield* Fiber.interrupt(stolen)
        assert.isAtLeast(performance.now() - since, delay - 1)
        assert.strictEqual(again!.attempt, attempt + 1)
        yield* settleAll(subscription, [again!], Settlement.release)
      }
    }))

  it.effect("a retry that waits long beside a lot of traffic is not taken over by a peer", () =>
    Effect.gen(function*() {
      const redis = yield* transport(unhurried)
      const topic = fresh("beside")
      const subscription = yield* redis.subscribe(subscribing(topic))
      const peer = yield* (yield* transport(unhurried)).subscribe(subscribing(topic))
      yield* redis.publish([outgoing(topic, "waits")])
      yield* settleAll(subscription, yield* subscription.pull(demand(1)), retry("3 seconds"))
      const taking = (from: Subscription, texts: Array<string>) =>
        Effect.forkScoped(Effect.forever(Effect.flatMap(from.pull(demand(1)), (deliveries) => {
          texts.push(...deliveries.map((delivery) => `${textOf(delivery)} ${delivery.attempt}`))
          return settleAll(from, deliveries, Settlement.ack)
        })))
      const mine: Array<string> = []
      const peers: Array<string> = []
      yield* taking(subscription, mine)
      yield* taking(peer, peers)
      yield* Effect.forkScoped(
        Effect.forever(Effect.andThen(redis.publish([outgoing(topic, "traffic")]), Effect.sleep(10)))
      )
      yield* Wait.until("it is back", Effect.sync(() => [...mine, ...peers].some((text) => text.startsWith("waits"))))
      assert.include(mine, "waits 2")
    }))

  it.effect("a settlement that is interrupted once it was sent is still accounted for", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const redis = yield* transport(idle)
      const topic = fresh("interrupted")
      yield* redis.publish([outgoing(topic, "1")])
      yield* run("XGROUP", "CREATE", topic, "g", "0")
      yield* run("XREADGROUP", "GROUP", "g", "dead", "COUNT", "1", "STREAMS", topic, ">")
      const subscription = yield* redis.subscribe(subscribing(topic))
      const [suspect] = yield* subscription.pull(demand(1))
      assert.isTrue(suspect.suspect)
      yield* Fiber.interrupt(
        yield* Effect.forkChild(settleAll(subscription, [suspect], Settlement.ack), { startImmediately: true })
      )
      yield* redis.publish([outgoing(topic, "3")])
      assert.strictEqual(textOf((yield* subscription.pull(demand(1)))[0]), "3")
    }))

  it.effect("a waiting retry keeps its due time and count when its process closes or dies", () =>
    Effect.gen(function*() {
      const topic = fresh("handover")
      for (const how of ["closes", "dies"]) {
        const scope = yield* Scope.make()
        const first = yield* Scope.provide(transport(idle), scope)
        const subscription = yield* Scope.provide(first.subscribe(subscribing(topic)), scope)
        yield* first.publish([outgoing(topic, how)])
        const [delivery] = yield* subscription.pull(demand(1))
        const due = Date.now() + 2_500
        yield* settleAll(subscription, [delivery!], retry("2500 millis"))
        const { run } = yield* Server
        if (how === "closes") yield* Scope.close(scope, Exit.void)
        else yield* run("XCLAIM", topic, "g", "dead", "0", delivery!.id, "JUSTID")
        const peer = yield* (yield* transport(idle)).subscribe(subscribing(topic))
        const [again] = yield* peer.pull(demand(1))
        assert.isAtLeast(Date.now(), due - 20, how)
        assert.strictEqual(again!.attempt, 2, how)
        assert.isFalse(again!.suspect, how)
        yield* settleAll(peer, [again!], Settlement.ack)
        yield* Scope.close(scope, Exit.void)
      }
    }))

  it.effect("a peer takes a released entry before minIdle, its attempt uncounted", () =>
    Effect.gen(function*() {
      const redis = yield* transport()
      const topic = fresh("release")
      yield* redis.publish(Arr.makeBy(300, (i) => outgoing(topic, String(i))))
      const subscription = yield* redis.subscribe(subscribing(topic))
      const deliveries = yield* pullAll(subscription, 300)
      const peer = yield* (yield* transport()).subscribe(subscribing(topic))
      yield* settleAll(subscription, deliveries, Settlement.release)
      const taken = yield* pullAll(peer, 300)
      assert.deepStrictEqual(taken.map(textOf), deliveries.map(textOf))
      for (const { attempt, redelivered, suspect } of taken) {
        assert.deepStrictEqual([attempt, redelivered, suspect], [1, true, false])
      }
    }))

  it.effect("suspects below isolateFrom are claimed in bulk, each counted", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const redis = yield* transport(idle)
      const topic = fresh("dead")
      yield* redis.publish(Arr.makeBy(100, (i) => outgoing(topic, String(i))))
      yield* run("XGROUP", "CREATE", topic, "g", "0")
      yield* run("XREADGROUP", "GROUP", "g", "dead", "COUNT", "100", "STREAMS", topic, ">")
      const subscription = yield* redis.subscribe(subscribing(topic, { isolateFrom: 3 }))
      const deliveries = yield* subscription.pull(demand(1000, { suspects: 0 }))
      assert.deepStrictEqual(deliveries.map(textOf), Arr.makeBy(100, String))
      for (const { attempt, suspect } of deliveries) assert.deepStrictEqual([attempt, suspect], [2, true])
      yield* settleAll(subscription, deliveries, Settlement.release)
      // A release keeps the flag, and the count of the attempt that was never settled.
      const again = yield* subscription.pull(demand(1000, { suspects: 0 }))
      for (const { attempt, suspect } of again) assert.deepStrictEqual([attempt, suspect], [2, true])
    }))

  it.effect("from isolateFrom on no more suspects are given than asked for, each counted when it begins", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const redis = yield* transport(idle)
      const topic = fresh("isolated")
      yield* redis.publish(Arr.makeBy(5, (i) => outgoing(topic, String(i))))
      yield* run("XGROUP", "CREATE", topic, "g", "0")
      yield* run("XREADGROUP", "GROUP", "g", "dead", "COUNT", "4", "STREAMS", topic, ">")
      const counts = Effect.map(
        run("XPENDING", topic, "g", "-", "+", "10"),
        (page) => page.map(([, , , count]: [string, string, number, number]) => count)
      )
      const subscription = yield* redis.subscribe(subscribing(topic, { isolateFrom: 2 }))
      // They do not hold up what is unread.
      const [unread] = yield* subscription.pull(demand(10, { suspects: 0 }))
      assert.strictEqual(textOf(unread), "4")
      yield* settleAll(subscription, [unread], Settlement.ack)
      for (let i = 0; i < 4; i++) {
        const [delivery, ...rest] = yield* subscription.pull(demand(100, { suspects: 1 }))
        assert.deepStrictEqual([delivery.attempt, delivery.suspect, rest.length, textOf(delivery)], [
          2,
          true,
          0,
          String(i)
        ])
        assert.deepStrictEqual(yield* counts, Array(4 - i).fill(1))
        if (i === 1) {
          yield* settleAll(subscription, [delivery], Settlement.release)
          const [same] = yield* subscription.pull(demand(100, { suspects: 1 }))
          assert.deepStrictEqual([same.attempt, same.suspect, textOf(same)], [2, true, "1"])
          assert.isTrue(yield* subscription.begin(same))
          assert.isTrue(yield* subscription.begin(same))
          assert.deepStrictEqual(yield* subscription.extend([same]), [])
          assert.deepStrictEqual(yield* settleAll(subscription, [same], Settlement.ack), [])
          continue
        }
        // The heartbeat of the engine may come at any time.
        const begun = Effect.all([subscription.begin(delivery), subscription.extend([delivery])], { concurrency: 2 })
        assert.deepStrictEqual(yield* begun, [true, []])
        assert.deepStrictEqual(yield* counts, [2, ...Array(3 - i).fill(1)])
        yield* settleAll(subscription, [delivery], Settlement.ack)
      }
    }))

  it.effect("an entry that is neither settled nor extended is redelivered to its only consumer, counted; the first delivery is fenced", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const redis = yield* transport(idle)
      const topic = fresh("unsettled")
      yield* redis.publish([outgoing(topic, "1")])
      for (const isolateFrom of [9, 2]) {
        const subscription = yield* redis.subscribe(subscribing(topic, { group: `g${isolateFrom}`, isolateFrom }))
        const [first] = yield* subscription.pull(demand(5))
        const [second] = yield* subscription.pull(demand(5))
        assert.deepStrictEqual([second.attempt, second.suspect, second.redelivered], [2, true, true])
        for (const settlement of [retry(0), Settlement.release, { _tag: "Terminate", reason: "no" } as const]) {
          assert.deepStrictEqual(yield* settleAll(subscription, [first], settlement), [first])
        }
        assert.deepStrictEqual(yield* subscription.extend([first, second]), [first])
        assert.deepStrictEqual(yield* settleAll(subscription, [second], Settlement.ack), [])
        assert.strictEqual(Number((yield* run("XPENDING", topic, `g${isolateFrom}`))[0]), 0)
      }
    }))

  it.effect("a retry that is sent again after its next attempt has begun changes nothing", () =>
    Effect.gen(function*() {
      const redis = yield* transport()
      const topic = fresh("fenced")
      yield* redis.publish([outgoing(topic, "1")])
      const subscription = yield* redis.subscribe(subscribing(topic))
      const [first] = yield* subscription.pull(demand(1))
      yield* settleAll(subscription, [first], retry(0))
      const [second] = yield* subscription.pull(demand(1))
      assert.strictEqual(second.attempt, 2)
      assert.deepStrictEqual(yield* settleAll(subscription, [first], retry(0)), [first])
      assert.deepStrictEqual(yield* subscription.extend([second]), [])
      assert.deepStrictEqual(yield* settleAll(subscription, [second], retry(0)), [])
      const [third] = yield* subscription.pull(demand(1))
      assert.strictEqual(third.attempt, 3)
    }))

  it.effect("the origin is the same after a restart and for each group, and another one for each life and database", () =>
    Effect.gen(function*() {
      const { run, url } = yield* Server
      const topic = fresh("origin")
      const originOf = (options?: Parameters<typeof transport>[0], group = "g") =>
        Effect.scoped(Effect.gen(function*() {
          const redis = yield* transport(options)
          const subscription = yield* redis.subscribe(subscribing(topic, { group }))
          yield* redis.publish([outgoing(topic, "1")])
          const [delivery] = yield* subscription.pull(demand(1))
          yield* settleAll(subscription, [delivery], Settlement.ack)
          return delivery.origin
        }))
      const first = yield* originOf()
      assert.strictEqual(yield* originOf(), first)
      assert.strictEqual(yield* originOf({}, "h"), first)
      assert.notStrictEqual(yield* originOf({ url: `${url}/1` }), first)
      assert.notStrictEqual(yield* originOf({ keyPrefix: "p:" }), first)
      yield* run("DEL", topic)
      const second = yield* originOf()
      assert.notStrictEqual(second, first)
      // Deleted while it is consumed.
      const redis = yield* transport()
      const subscription = yield* redis.subscribe(subscribing(topic))
      yield* run("DEL", topic)
      yield* redis.publish([outgoing(topic, "1")])
      const [delivery] = yield* subscription.pull(demand(1))
      assert.notInclude([first, second], delivery.origin)
    }))

  it.effect("released entries are given before unread ones, at start and later", () =>
    Effect.gen(function*() {
      const topic = fresh("order")
      const publisher = yield* transport()
      yield* publisher.publish(Arr.makeBy(40, (i) => outgoing(topic, String(i))))
      const got: Array<string> = []
      while (got.length < 40) {
        yield* Effect.scoped(Effect.gen(function*() {
          const subscription = yield* (yield* transport()).subscribe(subscribing(topic))
          const [first, ...rest] = yield* subscription.pull(demand(7))
          yield* settleAll(subscription, rest, Settlement.release)
          yield* settleAll(subscription, [first], Settlement.ack)
          got.push(textOf(first))
          const again = yield* subscription.pull(demand(3))
          assert.strictEqual(textOf(again[0]), String(got.length))
          yield* settleAll(subscription, again, Settlement.release)
        })).pipe(Effect.when(Effect.sync(() => got.length < 39)))
        if (got.length === 39) break
      }
      assert.deepStrictEqual(got, Arr.makeBy(39, String))
    }))

  it.effect("a delay that is negative, infinite or huge settles like any other and holds up no neighbour", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const redis = yield* transport()
      const topic = fresh("delays")
      const delays = [-1_000, Infinity, 1e21, NaN, 0.4]
      yield* redis.publish(Arr.makeBy(6, (i) => outgoing(topic, String(i))))
      const subscription = yield* redis.subscribe(subscribing(topic))
      const deliveries = yield* pullAll(subscription, 6)
      const settlements = deliveries.map((delivery, i) => ({
        delivery,
        settlement: i === 5 ? Settlement.ack : { _tag: "Retry" as const, after: durationOf(delays[i]!) }
      }))
      assert.deepStrictEqual(yield* subscription.settle(settlements as any), [])
      assert.strictEqual(Number((yield* run("XPENDING", topic, "g"))[0]), 5)
      const again = yield* pullAll(subscription, 3)
      assert.deepStrictEqual(again.map(textOf).sort(), ["0", "3", "4"])
    }))

  it.effect("a delivery that is lost with its connection is no suspect and counts no attempt", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("lost")
      const redis = yield* transport({ ...idle, consumer: topic })
      yield* redis.publish([outgoing(topic, "1")])
      const subscription = yield* redis.subscribe(subscribing(topic))
      yield* run("XREADGROUP", "GROUP", "g", topic, "COUNT", "1", "STREAMS", topic, ">")
      const [delivery] = yield* subscription.pull(demand(1))
      assert.deepStrictEqual([delivery.attempt, delivery.redelivered, delivery.suspect], [1, true, false])
    }))

  it.effect("a retry that waits is kept by its process, also while others arrive all the time", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const minIdle = 900
      const redis = yield* transport({ claim: { minIdle } })
      const topic = fresh("kept")
      const subscription = yield* redis.subscribe(subscribing(topic))
      yield* redis.publish([outgoing(topic, "retried")])
      const [delivery] = yield* subscription.pull(demand(1))
      yield* subscription.settle([{ delivery, settlement: retry("1 hour") }])
      const idles: Array<number> = []
      for (const until = performance.now() + 3 * minIdle; performance.now() < until;) {
        yield* redis.publish([outgoing(topic, "other")])
        const [other] = yield* subscription.pull(demand(1))
        yield* subscription.settle([{ delivery: other, settlement: { _tag: "Ack" } }])
        const [[, , idle]] = yield* run("XPENDING", topic, "g", delivery.id, delivery.id, "1")
        idles.push(Number(idle))
        yield* Effect.sleep(20)
      }
      // It was extended again and again: without that it would have been idle for all of the time.
      assert.isAtLeast(idles.filter((idle, i) => i > 0 && idle < idles[i - 1]!).length, 2)
    }))

  it.effect("an entry that is extended is not claimed, however long its handler takes", () =>
    Effect.gen(function*() {
      const redis = yield* transport(unhurried)
      const topic = fresh("kept")
      yield* redis.publish([outgoing(topic, "1")])
      const subscription = yield* redis.subscribe(subscribing(topic))
      const peer = yield* (yield* transport(unhurried)).subscribe(subscribing(topic))
      const deliveries = yield* subscription.pull(demand(1))
      const stolen = yield* Effect.forkChild(peer.pull(demand(1)))
      const own = yield* Effect.forkChild(subscription.pull(demand(1)))
      // Three leases.
      for (let i = 0; i < 30; i++) {
        yield* Effect.sleep(Duration.times(subscription.lease!, 1 / 10))
        assert.deepStrictEqual(yield* subscription.extend(deliveries), [])
      }
      assert.isUndefined(stolen.pollUnsafe())
      assert.isUndefined(own.pollUnsafe())
    }))

  it.effect("a former owner is told so and changes nothing, but its ack stands", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const redis = yield* transport()
      const topic = fresh("former")
      yield* redis.publish([outgoing(topic, "1")])
      const subscription = yield* redis.subscribe(subscribing(topic))
      const [delivery] = yield* subscription.pull(demand(1))
      yield* run("XCLAIM", topic, "g", "peer", "0", delivery!.id)
      const before = yield* run("XPENDING", topic, "g", "-", "+", "1")
      assert.deepStrictEqual(yield* subscription.extend([delivery!]), [delivery!])
      for (
        const settlement of [retry("1 second"), Settlement.release, { _tag: "Terminate", reason: "no" } as const]
      ) {
        assert.deepStrictEqual(yield* settleAll(subscription, [delivery!], settlement), [delivery!])
      }
      const after = yield* run("XPENDING", topic, "g", "-", "+", "1")
      assert.deepStrictEqual([after[0][1], after[0][3]], ["peer", before[0][3]])
      assert.deepStrictEqual(yield* settleAll(subscription, [delivery!], Settlement.ack), [])
      assert.strictEqual(Number((yield* run("XPENDING", topic, "g"))[0]), 0)
    }))

  it.effect("entries deleted while they were pending are cleaned away and reported, and do not stop the others", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const said: Array<string> = []
      const redis = yield* Effect.provide(transport(idle), noting(said))
      const topic = fresh("deleted")
      yield* redis.publish([outgoing(topic, "1"), outgoing(topic, "2")])
      yield* run("XGROUP", "CREATE", topic, "g", "0")
      const [[, [[first]]]] = yield* run("XREADGROUP", "GROUP", "g", "dead", "COUNT", "2", "STREAMS", topic, ">")
      yield* run("XDEL", topic, first)
      const subscription = yield* redis.subscribe(subscribing(topic))
      const [delivery] = yield* subscription.pull(demand(5))
      assert.strictEqual(textOf(delivery!), "2")
      yield* settleAll(subscription, [delivery!], Settlement.ack)
      assert.strictEqual(Number((yield* run("XPENDING", topic, "g"))[0]), 0)
      assert.strictEqual(said.filter((line) => line.includes("deleted before") && line.includes(first)).length, 1)
    }))

  it.effect("with no demand for fresh messages only due retries are given", () =>
    Effect.gen(function*() {
      const redis = yield* transport()
      const topic = fresh("waiting")
      yield* redis.publish(Arr.makeBy(5, (i) => outgoing(topic, String(i))))
      const subscription = yield* redis.subscribe(subscribing(topic))
      const two = yield* pullAll(subscription, 2)
      yield* settleAll(subscription, two, retry("1 second"))
      const [next] = yield* subscription.pull(demand(5, { fresh: 0 }))
      assert.strictEqual(next!.attempt, 2)
    }))

  it.effect("a pull is bounded in bytes, and gives at least one message", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const redis = yield* transport()
      const topic = fresh("bytes")
      for (let i = 0; i < 20; i++) yield* redis.publish([outgoing(topic, new Uint8Array(500_000))])
      const subscription = yield* redis.subscribe(subscribing(topic))
      const first = yield* subscription.pull(demand(100, { bytes: 1_000_000 }))
      assert.isAtMost(first.length, 3)
      const second = yield* subscription.pull(demand(100, { bytes: 1_000_000 }))
      assert.isAtMost(second.length, 3)
      const third = yield* subscription.pull(demand(100, { bytes: 1 }))
      assert.strictEqual(third.length, 1)
      assert.isAtMost(Number((yield* run("XPENDING", topic, "g"))[0]), 20)
    }))

  it.effect("close releases entries that were fetched and not pulled, and deletes a consumer that owns nothing", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("close")
      const redis = yield* transport()
      yield* Effect.scoped(Effect.gen(function*() {
        const subscription = yield* redis.subscribe(subscribing(topic))
        yield* redis.publish([outgoing(topic, "1")])
        yield* settleAll(subscription, yield* subscription.pull(demand(1)), Settlement.ack)
      }))
      const names = (yield* run("XINFO", "CONSUMERS", topic, "g")).map(([, name]: [string, string]) => name)
      assert.deepStrictEqual(names.filter((name: string) => !name.startsWith("millrace:")), [])
    }))

  it.effect("an entry that comes while its subscription closes is released, and counts no attempt", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("closing")
      const publisher = yield* transport()
      const redis = yield* transport()
      for (let round = 0; round < 50; round++) {
        const scope = yield* Scope.make()
        const subscription = yield* Scope.provide(redis.subscribe(subscribing(topic)), scope)
        const pulling = yield* Effect.forkChild(subscription.pull(demand(10)), { startImmediately: true })
        yield* Effect.sleep(5)
        const publishing = yield* Effect.forkChild(publisher.publish([outgoing(topic, "1")]), {
          startImmediately: true
        })
        yield* Fiber.interrupt(pulling)
        const pulled = yield* Fiber.await(pulling)
        if (Exit.isSuccess(pulled)) yield* settleAll(subscription, pulled.value, Settlement.release)
        yield* Scope.close(scope, Exit.void)
        yield* Fiber.join(publishing)
      }
      const pending: ReadonlyArray<ReadonlyArray<unknown>> = yield* run("XPENDING", topic, "g", "-", "+", "100")
      assert.deepStrictEqual(pending.filter(([, , , count]) => Number(count) > 0), [])
    }))
})
