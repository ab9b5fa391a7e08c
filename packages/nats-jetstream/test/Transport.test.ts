import { assert, describe, it } from "@effect/vitest"
import type { PublishError } from "@millrace/core/Publisher"
import * as Settlement from "@millrace/core/Settlement"
import { type Delivery, Transport } from "@millrace/core/Transport"
import { jetstreamManager } from "@nats-io/jetstream"
import * as Arr from "effect/Array"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Stream from "effect/Stream"
import * as settings from "../src/internal/settings.ts"
import * as JetStream from "../src/JetStream.ts"
import { before, demand, onNats, outgoing, publish, settle, subscribe, take, text, until, versions } from "./nats.ts"

/** Bounds a test that fails. Messages that only the end of the ack wait brings again have counted an attempt. */
const soon = "1 minute"

const manager = JetStream.JetStream.use(({ client }) => Effect.promise(() => jetstreamManager(client)))

const failureOf = (results: ReadonlyArray<Result.Result<unknown, PublishError>>) =>
  results.map((result) => Result.isFailure(result) ? result.failure.reason._tag : "stored")

describe.each(versions)("on nats-server %s", (version) => {
  const on = (f: Parameters<typeof onNats>[0], options: Parameters<typeof onNats>[1] = {}) =>
    onNats(f, { version, ...options })

  describe("publishing", () => {
    it.live("binary bodies, empty bodies and headers are delivered unchanged", () =>
      on(() =>
        Effect.gen(function*() {
          const transport = yield* Transport
          const bytes = Uint8Array.from({ length: 256 }, (_, i) => i)
          yield* transport.publish([
            outgoing("orders", "", { body: bytes, headers: { "x-note": "grün", traceparent: "00-1-2-01" }, id: "one" }),
            outgoing("orders", "")
          ])
          const subscription = yield* subscribe("orders")
          const [first, second] = yield* take(subscription, 2)
          assert.deepStrictEqual(Uint8Array.from(first!.body), bytes)
          // The id is said to the server and not repeated to handlers, who may copy headers.
          assert.deepStrictEqual({ ...first!.headers }, { "x-note": "grün", traceparent: "00-1-2-01" })
          assert.strictEqual(second!.body.length, 0)
          assert.deepStrictEqual({ ...second!.headers }, {})
        })
      ))

    it.live("an id is taken once", () =>
      on(() =>
        Effect.gen(function*() {
          const transport = yield* Transport
          const twice = yield* transport.publish([
            outgoing("orders", "a", { id: "same" }),
            outgoing("orders", "a", { id: "same" })
          ])
          assert.deepStrictEqual(twice.map((result) => Result.getOrThrow(result).duplicate), [false, true])
          assert.strictEqual((yield* JetStream.streamInfo("orders")).messages, 1)
        })
      ))

    it.live("more messages than the window are all confirmed, in order", () =>
      on(() =>
        Effect.gen(function*() {
          const results = yield* publish("orders", Arr.makeBy(5000, String))
          assert.deepStrictEqual(results.map(({ id }) => Number(id.split("-")[1])), Arr.makeBy(5000, (i) => i + 1))
        })
      ))

    it.live("a body over the server's limit is refused before it is sent, and does not hurt its neighbours", () =>
      on(() =>
        Effect.gen(function*() {
          const transport = yield* Transport
          const results = yield* transport.publish([
            outgoing("orders", "small"),
            outgoing("orders", "x".repeat(2000)),
            outgoing("orders", "small too")
          ])
          assert.deepStrictEqual(failureOf(results), ["stored", "TooLarge", "stored"])
        }), { config: "max_payload: 1KB" }))

    it.live("a megabyte passes", () =>
      on(() =>
        Effect.gen(function*() {
          yield* publish("orders", ["x".repeat(1_000_000)])
          const [delivery] = yield* take(yield* subscribe("orders"), 1)
          assert.strictEqual(delivery!.body.length, 1_000_000)
        })
      ))

    it.live("a subject with spaces is a typed error, not a protocol violation that ends the connection", () =>
      on(() =>
        Effect.gen(function*() {
          const transport = yield* Transport
          const results = yield* transport.publish([outgoing("two words", "a"), outgoing("orders", "b")])
          assert.deepStrictEqual(failureOf(results), ["InvalidOption", "stored"])
        })
      ))

    it.live("a header of a message says nothing to the server: it deletes none of the others", () =>
      on(() =>
        Effect.gen(function*() {
          const transport = yield* Transport
          const told = { "Nats-Rollup": "all", "NATS-Expected-Last-Sequence": "99", "Nats-TTL": "1s", other: "stays" }
          const results = yield* transport.publish([
            outgoing("orders", "first"),
            outgoing("orders", "second", { headers: told })
          ])
          assert.deepStrictEqual(failureOf(results), ["stored", "stored"])
          const deliveries = yield* take(yield* subscribe("orders"), 2)
          assert.deepStrictEqual(deliveries.map(text), ["first", "second"])
          assert.deepStrictEqual({ ...deliveries[1]!.headers }, { other: "stays" })
        })
      ))

    it.live("delayed delivery comes not before its time, or is refused by name", () =>
      on(() =>
        Effect.gen(function*() {
          const transport = yield* Transport
          yield* transport.declare("orders", "output")
          const [result] = yield* transport.publish([outgoing("orders", "later", { delay: Duration.millis(600) })])
          if (!transport.capabilities.delayedPublish) {
            assert.match(
              String(Result.isFailure(result!) && result.failure.message),
              /delay is 600ms: .*needs nats-server 2\.12/
            )
            return
          }
          const sent = Date.now()
          const [delivery] = yield* take(yield* subscribe("orders"), 1)
          assert.strictEqual(text(delivery!), "later")
          assert.isAtLeast(delivery!.publishedAt, sent + 500)
        })
      ))

    const underClock = (skew: number) =>
      Effect.provideService(
        Clock.Clock,
        Object.create(Clock.Clock.defaultValue(), { currentTimeMillisUnsafe: { value: () => Date.now() + skew } })
      )

    for (const [name, skew] of [["behind", -3600_000], ["ahead of", 3600_000]] as const) {
      it.live.skipIf(before(version, 12))(
        `a delay is of the server's clock: ours is an hour ${name} it`,
        () =>
          on(() =>
            Effect.gen(function*() {
              const transport = yield* Transport
              yield* transport.declare("orders", "output")
              const sent = Date.now()
              yield* transport.publish([outgoing("orders", "later", { delay: Duration.millis(700) })])
              const [delivery] = yield* take(yield* subscribe("orders"), 1).pipe(Effect.timeout(soon))
              assert.isAtLeast(delivery!.publishedAt, sent + 500)
            })
          ).pipe(underClock(skew))
      )
    }

    it.live("a retry that is handed over is due when its process meant, whatever the clocks of the two say", () =>
      on((broker) =>
        Effect.gen(function*() {
          yield* publish("orders", ["a"])
          const retryLater = Effect.gen(function*() {
            const subscription = yield* subscribe("orders", { ordered: true })
            yield* settle(subscription, yield* take(subscription, 1), Settlement.retry("10 minutes"))
          })
          yield* Effect.scoped(retryLater).pipe(
            Effect.provide(Layer.fresh(JetStream.layer({ url: broker.url }))),
            underClock(3600_000)
          )
          const [delivery] = yield* take(yield* subscribe("orders", { ordered: true }), 1)
          const left = delivery!.due! - Date.now()
          assert.isTrue(left > 0 && left < 660_000, `${left} ms are left of ten minutes`)
        })
      ))

    it.live("browse shows what is there, oldest first; remove deletes it whatever its state", () =>
      on(() =>
        Effect.gen(function*() {
          const transport = yield* Transport
          const [a, b, c] = yield* publish("orders", ["a", "b", "c"])
          const subscription = yield* subscribe("orders")
          yield* take(subscription, 1)
          assert.strictEqual(yield* transport.remove("orders", [b!.id, "2000"]), 1)
          const left = yield* Stream.runCollect(transport.browse("orders"))
          assert.deepStrictEqual(left.map((delivery) => [delivery.id, text(delivery)]), [[a!.id, "a"], [c!.id, "c"]])
          assert.deepStrictEqual(yield* Stream.runCollect(transport.browse("nothing.here")), [])
        }), { layer: { retention: "until-acked" } }))
  })

  describe("settling", () => {
    it.live("an acknowledged message does not come again, in a work queue it is gone", () =>
      on(() =>
        Effect.gen(function*() {
          yield* publish("orders", ["a", "b"])
          const subscription = yield* subscribe("orders")
          yield* settle(subscription, yield* take(subscription, 2), Settlement.ack)
          yield* until(JetStream.consumerInfo("orders", "group"), (info) => info.lag === 0)
          yield* until(JetStream.streamInfo("orders"), (info) => info.messages === 0)
        }), { layer: { retention: "until-acked" } }))

    it.live("a retry comes again after its delay, not before, with the attempt counted, and is no suspect", () =>
      on(() =>
        Effect.gen(function*() {
          yield* publish("orders", ["a"])
          const subscription = yield* subscribe("orders")
          const started = performance.now()
          yield* settle(subscription, yield* take(subscription, 1), Settlement.retry("400 millis"))
          const [again] = yield* take(subscription, 1)
          assert.isAtLeast(performance.now() - started, 399)
          assert.strictEqual(again!.attempt, 2)
          assert.isTrue(again!.redelivered)
          assert.isFalse(again!.suspect)
        })
      ))

    it.live("a terminated message does not come again", () =>
      on(() =>
        Effect.gen(function*() {
          yield* publish("orders", ["a", "b"])
          const subscription = yield* subscribe("orders")
          yield* settle(subscription, yield* take(subscription, 1), Settlement.terminate("no\nuse"))
          yield* settle(subscription, yield* take(subscription, 1), Settlement.ack)
          yield* until(JetStream.streamInfo("orders"), (info) => info.messages === 0)
        }), { layer: { retention: "until-acked" } }))

    it.live("a released message goes to a peer long before its ack wait ends, and its attempt is not counted", () =>
      on(() =>
        Effect.gen(function*() {
          yield* publish("orders", ["a", "b", "c"])
          const peer = yield* subscribe("orders")
          // Three releases in a row by processes that come and go.
          for (let i = 0; i < 3; i++) {
            yield* Effect.scoped(Effect.gen(function*() {
              const subscription = yield* subscribe("orders")
              const taken = yield* take(subscription, 3)
              assert.deepStrictEqual(taken.map(({ attempt }) => attempt), [1, 1, 1])
              yield* settle(subscription, taken, Settlement.release)
            }))
          }
          const taken = yield* take(peer, 3).pipe(Effect.timeout(soon))
          assert.deepStrictEqual(taken.map(({ attempt, redelivered, suspect }) => [attempt, redelivered, suspect]), [
            [1, true, false],
            [1, true, false],
            [1, true, false]
          ])
        })
      ))

    it.live("a delivery that was fetched and not pulled is released when the subscription closes", () =>
      on(() =>
        Effect.gen(function*() {
          const idle = yield* Effect.scoped(Effect.gen(function*() {
            const subscription = yield* subscribe("orders")
            const asking = yield* Effect.forkScoped(subscription.pull(demand(50)))
            yield* until(JetStream.consumerInfo("orders", "group"), (info) => info.openPulls > 0)
            yield* publish("orders", ["a", "b", "c"])
            return yield* Fiber.join(asking)
          }))
          assert.isAtLeast(idle.length, 1)
          const left = yield* take(yield* subscribe("orders"), 3 - idle.length).pipe(Effect.timeout(soon))
          assert.isTrue(left.every(({ attempt }) => attempt === 1))
        })
      ))

    it.live("an ordered subscription begins with everything that was released, in the order of the stream", () =>
      on(() =>
        Effect.gen(function*() {
          const numbers = Arr.makeBy(700, String)
          yield* publish("orders", numbers.slice(0, 600))
          const released = (count: number) =>
            Effect.scoped(Effect.gen(function*() {
              const subscription = yield* subscribe("orders", { maxOwned: 600 })
              yield* settle(subscription, yield* take(subscription, count), Settlement.release)
            }))
          yield* released(600)
          // The server now has these behind the others.
          yield* released(4)
          yield* publish("orders", numbers.slice(600))
          const subscription = yield* subscribe("orders", { ordered: true })
          const seen: Array<string> = []
          while (seen.length < 700) {
            const taken = yield* subscription.pull(demand(8))
            assert.isAtMost(taken.length, 8)
            seen.push(...taken.map(text))
            yield* settle(subscription, taken, Settlement.ack)
          }
          assert.deepStrictEqual(seen, numbers)
        })
      ))

    it.live("attempts are right through retries, releases and other processes", () =>
      on(() =>
        Effect.gen(function*() {
          yield* publish("orders", ["a"])
          const step = (settlement: Settlement.Settlement | Settlement.SettlementRequested) =>
            Effect.scoped(Effect.gen(function*() {
              const subscription = yield* subscribe("orders")
              const [delivery] = yield* take(subscription, 1)
              yield* settle(subscription, [delivery!], settlement)
              return [delivery!.attempt, delivery!.suspect]
            }))
          const seen = []
          for (
            const settlement of [
              Settlement.retry("1 millis"),
              Settlement.release,
              Settlement.release,
              Settlement.retry("1 millis"),
              Settlement.release,
              Settlement.ack
            ]
          ) seen.push(yield* step(settlement))
          assert.deepStrictEqual(seen, [[1, false], [2, false], [2, false], [2, false], [3, false], [3, false]])
        })
      ))

    it.live("isolated suspects come as many at a time as are wanted; the others are kept and not counted", () =>
      on(() =>
        Effect.gen(function*() {
          yield* publish("orders", ["a", "b", "c"])
          const vanished = yield* subscribe("orders", { ackWait: "1 second" })
          yield* take(vanished, 3)
          const subscription = yield* subscribe("orders", { ackWait: "1 second" })
          const seen: Array<readonly [number, boolean]> = []
          for (let i = 0; i < 3; i++) {
            const taken = yield* subscription.pull(demand(10))
            seen.push(...taken.map(({ attempt, suspect }) => [attempt, suspect] as const))
            assert.isTrue(yield* subscription.begin(taken[0]!))
            // In all longer than the lease: the others are extended meanwhile.
            yield* Effect.sleep("500 millis")
            yield* settle(subscription, taken, Settlement.ack)
          }
          assert.deepStrictEqual(seen, [[2, true], [2, true], [2, true]])
          yield* until(JetStream.consumerInfo("orders", "group"), (info) => info.lag === 0)
        })
      ))

    it.live("suspects below the attempt from which they are isolated come together, each counted", () =>
      on(() =>
        Effect.gen(function*() {
          yield* publish("orders", Arr.makeBy(50, String))
          yield* take(yield* subscribe("orders", { ackWait: "1 second", isolateFrom: 4 }), 50)
          const subscription = yield* subscribe("orders", { ackWait: "1 second", isolateFrom: 4 })
          const taken: Array<Delivery> = []
          while (taken.length < 50) taken.push(...yield* subscription.pull(demand(50, { suspects: 0 })))
          assert.isTrue(taken.every(({ attempt, suspect }) => attempt === 2 && suspect))
        })
      ))

    it.live("an isolated suspect counts from the moment its handler begins, wherever it goes", () =>
      on(() =>
        Effect.gen(function*() {
          yield* publish("orders", ["a"])
          const seen: Array<number> = []
          for (const begins of [false, false, true, true, false]) {
            const subscription = yield* subscribe("orders", { ackWait: "600 millis" })
            const [delivery] = yield* subscription.pull(demand(1))
            seen.push(delivery!.attempt)
            if (begins) yield* subscription.begin(delivery!)
          }
          // The first delivery is no suspect; it counts at once.
          assert.deepStrictEqual(seen, [1, 2, 2, 3, 4])
        })
      ))

    it.live("a released suspect stays a suspect for the next consumer; its attempt is not counted", () =>
      on(() =>
        Effect.gen(function*() {
          yield* publish("orders", ["a"])
          yield* take(yield* subscribe("orders", { ackWait: "1 second" }), 1)
          for (let i = 0; i < 2; i++) {
            const [suspect] = yield* Effect.scoped(Effect.gen(function*() {
              const subscription = yield* subscribe("orders", { ackWait: "1 second" })
              const taken = yield* subscription.pull(demand(1))
              yield* settle(subscription, taken, Settlement.release)
              return taken
            }))
            assert.deepStrictEqual([suspect!.attempt, suspect!.suspect], [2, true])
          }
        })
      ))

    it.live("a message that is kept alive is not given to a peer; one that is not, is lost", () =>
      on(() =>
        Effect.gen(function*() {
          yield* publish("orders", ["kept"])
          const subscription = yield* subscribe("orders", { ackWait: "2 seconds" })
          const [kept] = yield* take(subscription, 1)
          const peer = yield* subscribe("orders", { ackWait: "2 seconds" })
          const stolen = yield* Effect.forkScoped(peer.pull(demand(1)))
          const since = yield* Clock.currentTimeMillis
          while ((yield* Clock.currentTimeMillis) < since + 2_500) {
            assert.deepStrictEqual(yield* Effect.delay(subscription.extend([kept!]), "50 millis"), [])
          }
          assert.isUndefined(stolen.pollUnsafe())
          // Now it is left alone.
          yield* Fiber.join(stolen)
          assert.deepStrictEqual(yield* subscription.extend([kept!]), [kept!])
          assert.deepStrictEqual(yield* settle(subscription, [kept!], Settlement.retry("1 millis")), [kept!])
          assert.strictEqual((yield* JetStream.consumerInfo("orders", "group")).ackPending, 1)
        })
      ))

    it.live("confirmed acknowledgements", () =>
      on(() =>
        Effect.gen(function*() {
          yield* publish("orders", Arr.makeBy(200, String))
          const subscription = yield* subscribe("orders", { settings: Context.make(settings.Acknowledge, "confirm") })
          yield* settle(subscription, yield* take(subscription, 200), Settlement.ack)
          // Confirmed: no need to ask twice.
          assert.strictEqual((yield* JetStream.consumerInfo("orders", "group")).lag, 0)
        })
      ))
  })

  describe("asking", () => {
    it.live("never more than may be owned, whatever is pulled and settled in between", () =>
      on(() =>
        Effect.gen(function*() {
          yield* publish("orders", Arr.makeBy(1000, String))
          const subscription = yield* subscribe("orders")
          const most = 50
          const owned: Array<Delivery> = []
          for (let round = 0; round < 30; round++) {
            owned.push(...yield* subscription.pull(demand(most - owned.length)))
            assert.isAtMost(owned.length, most)
            // The server takes up acknowledgements a little later; what is owned beyond them would stay.
            yield* until(JetStream.consumerInfo("orders", "group"), ({ ackPending }) => ackPending <= most)
            const done = Math.min(owned.length, 1 + (round * 7) % 23)
            yield* settle(subscription, owned.splice(0, done), Settlement.ack)
          }
        })
      ))

    it.live("asking for less takes the rest back", () =>
      on(() =>
        Effect.gen(function*() {
          const subscription = yield* subscribe("orders")
          const large = yield* Effect.forkScoped(subscription.pull(demand(100)))
          yield* until(JetStream.consumerInfo("orders", "group"), (info) => info.openPulls === 1)
          yield* Fiber.interrupt(large)
          yield* subscription.withdraw
          yield* until(JetStream.consumerInfo("orders", "group"), (info) => info.openPulls === 0)
          const small = yield* Effect.forkScoped(subscription.pull(demand(3)))
          yield* until(JetStream.consumerInfo("orders", "group"), (info) => info.openPulls === 1)
          yield* publish("orders", Arr.makeBy(50, String))
          yield* Fiber.join(small)
          assert.isAtMost((yield* JetStream.consumerInfo("orders", "group")).ackPending, 3)
        })
      ))

    it.live("pulling less than was asked for takes the difference back", () =>
      on(() =>
        Effect.gen(function*() {
          yield* publish("orders", ["first"])
          const subscription = yield* subscribe("orders")
          // 99 are still asked for.
          assert.strictEqual((yield* subscription.pull(demand(100))).length, 1)
          const small = yield* Effect.forkScoped(subscription.pull(demand(3)))
          yield* publish("orders", Arr.makeBy(50, String))
          yield* Fiber.join(small)
          // While messages come nothing is taken back, the server would count those on their way: they are handed back.
          const rest = yield* take(yield* subscribe("orders"), 47).pipe(Effect.timeout(soon))
          assert.isTrue(rest.every(({ attempt, suspect }) => attempt === 1 && !suspect))
        })
      ))

    it.live("a message that arrives after the demand was withdrawn goes to a peer", () =>
      on(() =>
        Effect.gen(function*() {
          const idle = yield* subscribe("orders")
          const owner = yield* subscribe("orders")
          yield* publish("orders", Arr.makeBy(20, String))
          const owned = yield* take(owner, 20)
          const asking = yield* Effect.forkScoped(idle.pull(demand(20)))
          yield* until(JetStream.consumerInfo("orders", "group"), (info) => info.openPulls > 0)
          yield* settle(owner, owned, Settlement.release)
          yield* Fiber.interrupt(asking)
          yield* idle.withdraw
          const taken = yield* take(owner, 20).pipe(Effect.timeout(soon))
          assert.deepStrictEqual(taken.filter(({ attempt, suspect }) => attempt > 1 || suspect).map(({ id }) => id), [])
        })
      ))

    it.live("a delivery that arrives between two pulls and is not wanted is released to a peer", () =>
      on(() =>
        Effect.gen(function*() {
          yield* publish("orders", ["first"])
          const idle = yield* subscribe("orders")
          yield* idle.pull(demand(10))
          yield* publish("orders", Arr.makeBy(9, String))
          // One of them is given, eight are left.
          assert.strictEqual((yield* idle.pull(demand(1))).length, 1)
          const taken = yield* take(yield* subscribe("orders"), 8).pipe(Effect.timeout(soon))
          assert.isTrue(taken.every(({ attempt, suspect }) => attempt === 1 && !suspect))
        })
      ))

    it.live("a delivery from before the process stood still is not given: a peer may have handled it", () =>
      on(() =>
        Effect.gen(function*() {
          const subscription = yield* subscribe("orders", { ackWait: "1 second" })
          yield* publish("orders", ["first"])
          yield* subscription.pull(demand(10))
          yield* publish("orders", Arr.makeBy(9, String))
          yield* until(JetStream.consumerInfo("orders", "group"), (info) => info.ackPending === 10)
          Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 2000)
          const taken = yield* subscription.pull(demand(10))
          assert.isTrue(taken.every(({ redelivered }) => redelivered))
        })
      ))

    it.live("two that ask get the same share, however much the first has asked for", () =>
      on(() =>
        Effect.gen(function*() {
          const shares: Array<number> = [0, 0]
          for (const index of [0, 1]) {
            const subscription = yield* subscribe("orders", { maxOwned: 500 })
            const pulling = Effect.map(subscription.pull(demand(500)), (taken) => void (shares[index]! += taken.length))
            yield* Effect.forkScoped(Effect.forever(pulling))
            yield* until(JetStream.consumerInfo("orders", "group"), ({ openPulls }) => openPulls > index)
          }
          yield* publish("orders", Arr.makeBy(60, String))
          yield* until(Effect.sync(() => shares), ([one = 0, other = 0]) => one + other === 60)
          assert.isAtLeast(Math.min(...shares), 20)
        })
      ))

    it.live("a request that expires is asked again", () =>
      on(() =>
        Effect.gen(function*() {
          yield* Transport.use((transport) => transport.declare("orders", "output"))
          const jsm = yield* manager
          yield* Effect.promise(() =>
            jsm.consumers.add("orders", {
              durable_name: "group",
              ack_policy: "explicit",
              max_deliver: -1,
              filter_subject: "orders",
              max_expires: 1e9,
              max_batch: 7,
              max_ack_pending: -1
            })
          )
          const subscription = yield* subscribe("orders")
          const asking = yield* Effect.forkScoped(take(subscription, 20))
          yield* Effect.sleep("2500 millis")
          yield* publish("orders", Arr.makeBy(20, String))
          assert.strictEqual((yield* Fiber.join(asking)).length, 20)
        })
      ))

    it.live("a pull without fresh demand returns due retries only", () =>
      on(() =>
        Effect.gen(function*() {
          yield* publish("orders", Arr.makeBy(4, String))
          const subscription = yield* subscribe("orders")
          const taken = yield* take(subscription, 4)
          yield* subscription.withdraw
          // Later: what has arrived by then is given by the next pull, whatever that asks for.
          yield* publish("orders", Arr.makeBy(6, String))
          yield* settle(subscription, taken, Settlement.retry("700 millis"))
          const again: Array<Delivery> = []
          while (again.length < 4) again.push(...yield* subscription.pull(demand(4 - again.length, { fresh: 0 })))
          assert.deepStrictEqual(again.map(({ attempt }) => attempt), [2, 2, 2, 2])
        })
      ))

    it.live("a pull stays within the bytes that are wanted, and a message beyond them comes alone", () =>
      on(() =>
        Effect.gen(function*() {
          yield* publish("orders", ["x".repeat(50_000), ...Arr.makeBy(20, () => "y".repeat(10_000))])
          const subscription = yield* subscribe("orders")
          const sizes: Array<ReadonlyArray<number>> = []
          for (let left = 21; left > 0;) {
            const taken = yield* subscription.pull(demand(left, { bytes: 35_000 }))
            sizes.push(taken.map(({ body }) => body.length))
            left -= taken.length
            yield* settle(subscription, taken, Settlement.ack)
          }
          assert.deepStrictEqual(sizes[0], [50_000])
          assert.isTrue(sizes.slice(1).every((page) => page.length <= 4), JSON.stringify(sizes))
        })
      ))
  })
})
