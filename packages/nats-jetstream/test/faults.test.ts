import { assert, describe, it } from "@effect/vitest"
import * as Pipeline from "@millrace/core/Pipeline"
import * as Settlement from "@millrace/core/Settlement"
import * as Topic from "@millrace/core/Topic"
import { Transport } from "@millrace/core/Transport"
import type * as Brokers from "@millrace/testing/Brokers"
import type { Proxy } from "@millrace/testing/Proxy"
import { jetstreamManager } from "@nats-io/jetstream"
import * as Arr from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { connect } from "node:net"
import * as JetStream from "../src/JetStream.ts"
import {
  before,
  demand,
  onNats,
  outgoing,
  proxied,
  publish,
  settle,
  subscribe,
  take,
  text,
  until,
  versions
} from "./nats.ts"

const Orders = Topic.make("orders", { schema: Schema.Number })

const manager = Effect.flatMap(JetStream.JetStream, ({ client }) => Effect.promise(() => jetstreamManager(client)))

/** Publishes until it has been stored, as pipelines do. */
const publishPatiently = (topic: string, body: string) =>
  Effect.retry(publish(topic, [body]), Schedule.spaced("50 millis"))

describe.each(versions)("on nats-server %s", (version) => {
  const on = (f: Parameters<typeof onNats>[0], options: Parameters<typeof onNats>[1] = {}) =>
    onNats(f, { version, sync: before(version, 10) ? "interval" : "always", ...options })

  /** What a test does goes through a proxy, which can also send astray what is published on some subjects. */
  const onProxy = (
    f: (
      broker: Brokers.Broker,
      way: Proxy & {
        readonly url: string
        readonly misdirect: (...prefixes: ReadonlyArray<`$JS.${string}`>) => Effect.Effect<void>
      }
    ) => ReturnType<Parameters<typeof onNats>[0]>
  ) =>
    on((broker) =>
      Effect.gen(function*() {
        let astray: ReadonlyArray<string> = []
        const way = yield* proxied(broker, (piece, to) => {
          if (astray.length === 0 || to === "client") return piece
          const text = piece.toString("latin1")
          const passed = astray.reduce((text, prefix) => text.replaceAll(prefix, prefix.replace("$JS", "$NO")), text)
          return Buffer.from(passed, "latin1")
        })
        const misdirect = (...prefixes: ReadonlyArray<string>) =>
          Effect.sync(() => {
            astray = prefixes.map((prefix) => `PUB ${prefix}`)
          })
        yield* Effect.provide(
          Effect.scoped(f(broker, { ...way, misdirect })),
          Layer.fresh(JetStream.layer({ url: way.url }))
        )
      })
    )

  it.live("a server that is killed and comes back: reading goes on, settling too", () =>
    on((broker) =>
      Effect.gen(function*() {
        yield* publish("orders", ["before", "held"])
        const subscription = yield* subscribe("orders")
        const [before, held] = yield* take(subscription, 2)
        const next = yield* Effect.forkScoped(subscription.pull(demand(10)))
        yield* broker.kill
        yield* until(subscription.health, ({ state }) => state === "reconnecting")

        // What is said while nobody listens is not believed to have been heard.
        const unheard = yield* Effect.result(settle(subscription, [before!], Settlement.ack))
        assert.isTrue(Result.isFailure(unheard) && unheard.failure.reason._tag === "OperationFailed")
        const waiting = yield* Effect.forkScoped(
          Effect.retry(settle(subscription, [before!, held!], Settlement.ack), {
            while: (error) => error.reason._tag === "OperationFailed"
          })
        )
        yield* broker.start
        assert.deepStrictEqual(yield* Fiber.join(waiting), [])
        yield* until(subscription.health, ({ state }) => state === "consuming")
        yield* publishPatiently("orders", "after")
        // A server that was killed may have forgotten that it had delivered: then they come again, as new.
        for (let taken = yield* Fiber.join(next);; taken = yield* subscription.pull(demand(10))) {
          yield* settle(subscription, taken, Settlement.ack)
          if (taken.some((delivery) => text(delivery) === "after")) break
        }
        yield* until(JetStream.consumerInfo("orders", "group"), (info) => info.lag === 0)
      })
    ))

  it.live("headers that no client would write are read unchanged, and end no connection", () =>
    on((broker) =>
      Effect.gen(function*() {
        const transport = yield* Transport
        const handled: Array<number> = []
        yield* Pipeline.start(
          JetStream.from(Topic.make("orders", { schema: Schema.Number }), { group: "group", startFrom: "beginning" })
            .pipe(
              Pipeline.map((n) => void handled.push(n))
            )
        )
        const heads = [
          "NATS/1.0\r\nä: x\r\n\r\n",
          "NATS/1.0 503\r\n\r\n",
          "NATS/1.0\r\n : a\rb\r\n\r\n",
          "NATS/1.0\r\n\r\n\0R"
        ]
        yield* Effect.callback<void>((resume) => {
          const socket = connect(broker.port, broker.host)
          socket.on("data", (data) => data.includes("PONG") && resume(Effect.sync(() => socket.destroy())))
          socket.write("CONNECT {\"verbose\":false,\"headers\":true}\r\n")
          for (const head of heads) {
            const size = Buffer.byteLength(head)
            socket.write(`HPUB orders ${size} ${size}\r\n${head}\r\n`)
          }
          socket.write("PING\r\n")
        })
        yield* publish("orders", ["1"])
        yield* until(Effect.sync(() => handled.length), (handled) => handled === 1)
        const dead = yield* until(Stream.runCollect(transport.browse("orders.dead")), (dead) => dead.length === 4)
        assert.deepStrictEqual(dead.map(({ headers }) => Object.keys(headers)[0]), [
          "%c3%a4",
          "millrace-dead-letter",
          "%20",
          "millrace-dead-letter"
        ])
        assert.strictEqual((yield* transport.health).state, "consuming")
        const stored = yield* Stream.runCollect(transport.browse("orders"))
        assert.deepStrictEqual(stored.map(({ headers }) => Object.entries(headers)[0]), [
          ["ä", "x"],
          undefined,
          [" ", "a\rb"],
          undefined,
          undefined
        ])
      })
    ))

  it.live("publishing without a connection says that the message was not sent", () =>
    on((broker) =>
      Effect.gen(function*() {
        const transport = yield* Transport
        yield* publish("orders", ["a"])
        yield* broker.kill
        yield* until(transport.health, ({ state }) => state === "reconnecting")
        const [result] = yield* transport.publish([outgoing("orders", "b")])
        assert.isTrue(Result.isFailure(result!) && result.failure.reason._tag === "NotSent")
      })
    ))

  it.live("the outcome of a publish whose connection is lost is unknown, and an id makes it safe to repeat", () =>
    on((broker) =>
      Effect.gen(function*() {
        const transport = yield* Transport
        yield* publish("orders", ["a"])
        yield* broker.pause
        const sending = yield* Effect.forkScoped(transport.publish([outgoing("orders", "b", { id: "b" })]))
        yield* Effect.sleep("100 millis")
        yield* broker.kill
        const [result] = yield* Fiber.join(sending)
        assert.isTrue(Result.isFailure(result!) && result.failure.reason._tag === "OutcomeUnknown")
        yield* broker.start
        yield* until(transport.health, ({ state }) => state === "consuming")
        yield* transport.publish([outgoing("orders", "b", { id: "b" })])
        assert.strictEqual((yield* JetStream.streamInfo("orders")).messages, 2)
      })
    ))

  it.live("an unconfirmed publish without an id is repeated under one, and stored once", () =>
    on((broker) =>
      Effect.gen(function*() {
        let left = 1
        const { url } = yield* proxied(
          broker,
          (piece, to) => to === "client" && piece.includes(`"stream":"orders"`) && left-- > 0 ? undefined : piece
        )
        yield* Transport.use((transport) => transport.declare("orders", "output"))
        const [published] = yield* publish("orders", ["a"]).pipe(
          Effect.provide(Layer.fresh(JetStream.layer({ url })))
        )
        assert.deepInclude(published, { duplicate: true })
        const stored = yield* Transport.use((transport) => transport.get("orders", published!.id))
        assert.isTrue(Option.isSome(stored))
        assert.strictEqual((yield* JetStream.streamInfo("orders")).messages, 1)
      })
    ))

  it.live("a frozen server is noticed within seconds, and read again when it thaws", () =>
    on((broker) =>
      Effect.gen(function*() {
        yield* publish("orders", ["a"])
        const subscription = yield* subscribe("orders")
        yield* settle(subscription, yield* take(subscription, 1), Settlement.ack)
        const next = yield* Effect.forkScoped(subscription.pull(demand(10)))
        yield* broker.pause
        yield* until(subscription.health, ({ state }) => state === "reconnecting")
        yield* broker.resume
        yield* until(subscription.health, ({ state }) => state === "consuming")
        yield* publishPatiently("orders", "b")
        assert.deepStrictEqual((yield* Fiber.join(next)).map(text), ["b"])
      })
    ))

  it.live("a retry keeps its place in its key when the server stands still for longer than the claim time", () =>
    on((broker) =>
      Effect.gen(function*() {
        const handled: Array<string> = []
        const running = yield* Pipeline.start(
          JetStream.from(Orders, { group: "group", startFrom: "beginning", ackWait: "500 millis" }).pipe(
            Pipeline.mapEffect((n, { attempt }) => {
              handled.push(`${n} at ${attempt}`)
              return n === 1 && attempt === 1 ? Effect.fail("again") : Effect.void
            }),
            Pipeline.retry({ times: 3, schedule: Schedule.spaced("300 millis") }),
            Pipeline.concurrency({ max: 4, key: () => "" })
          )
        )
        yield* publish("orders", ["1", "2"])
        yield* until(running.counts, ({ retried }) => retried === 1)
        yield* broker.pause
        yield* Effect.sleep("4 seconds")
        yield* broker.resume
        yield* until(running.counts, (counts) => counts.handled === 2)
        assert.deepStrictEqual(handled.map((line) => line[0]), ["1", "1", "2"])
      })
    ))

  // was: a message that waited for its key and was delivered again lost its place: later messages of the key overtook it
  it.live("messages keep their places in their key when the server delivers them again while they wait here", () =>
    on(() =>
      Effect.gen(function*() {
        const begun: Array<number> = []
        const first = yield* Latch.make()
        const running = yield* Pipeline.start(
          JetStream.from(Orders, { group: "group", startFrom: "beginning", ackWait: "3 seconds" }).pipe(
            Pipeline.mapEffect((n) => {
              begun.push(n)
              return n === 1 ? first.await : Effect.void
            }),
            Pipeline.concurrency({ max: 4, key: () => "" })
          )
        )
        yield* publish("orders", ["1", "2", "3", "4"])
        yield* until(running.owned, ({ running, waiting }) => running === 1 && waiting === 3)
        // As a server does that was killed and has forgotten what it knew of them.
        const { client } = yield* JetStream.JetStream
        for (const sequence of [3, 2]) client.publish(`$JS.ACK.orders.group.1.${sequence}.${sequence}.0.0`, "-NAK")
        yield* until(running.counts, ({ lost }) => lost === 2)
        yield* first.open
        yield* until(running.counts, ({ handled }) => handled === 4)
        assert.deepStrictEqual(begun, [1, 2, 3, 4])
      })
    ))

  it.live("a consumer deleted while nothing happens is created again, and goes on where it stood", () =>
    on(() =>
      Effect.gen(function*() {
        yield* publish("orders", ["a", "b"])
        const subscription = yield* subscribe("orders")
        yield* settle(subscription, yield* take(subscription, 2), Settlement.ack)
        const next = yield* Effect.forkScoped(subscription.pull(demand(10)))
        const jsm = yield* manager
        yield* until(JetStream.consumerInfo("orders", "group"), (info) => info.openPulls === 1)
        yield* Effect.promise(() => jsm.consumers.delete("orders", "group"))
        yield* publish("orders", ["c"])
        // At least what was not settled for certain: what was is known only if the consumer was looked at since.
        const again = (yield* Fiber.join(next)).map(text)
        while (!again.includes("c")) again.push(...(yield* subscription.pull(demand(10))).map(text))
        assert.deepStrictEqual(["a", "b", "c"].slice(-again.length), again)
      })
    ))

  it.live(
    "a request that the server has forgotten with its consumer is noticed soon after it has expired",
    () =>
      on(() =>
        Effect.gen(function*() {
          yield* publish("orders", ["a"])
          const subscription = yield* subscribe("orders")
          yield* settle(subscription, yield* take(subscription, 1), Settlement.ack)
          // As for a request that reaches the consumer while it is deleted: there is a receiver, and no answer.
          const { client } = yield* JetStream.JetStream
          client.subscribe("$JS.API.CONSUMER.MSG.NEXT.>", { callback: () => {} })
          const jsm = yield* manager
          yield* Effect.promise(() => jsm.consumers.delete("orders", "group"))
          yield* publish("orders", ["b"])
          const again = (yield* subscription.pull(demand(1))).map(text)
          if (again[0] === "a") again.push(...(yield* subscription.pull(demand(1))).map(text))
          assert.strictEqual(again.at(-1), "b")
          // Without any look at requests that have expired, two heartbeats would tell: after ten seconds.
        })
      ),
    9_000
  )

  it.live("a consumer deleted while messages flow: none is lost", () =>
    on(() =>
      Effect.gen(function*() {
        const total = 3000
        const subscription = yield* subscribe("orders")
        const seen = new Set<string>()
        const reading = yield* Effect.forkScoped(Effect.whileLoop({
          while: () => seen.size < total,
          body: () =>
            Effect.flatMap(subscription.pull(demand(50)), (taken) => {
              for (const delivery of taken) seen.add(text(delivery))
              return Effect.retry(settle(subscription, taken, Settlement.ack), { times: 50 })
            }),
          step: () => {}
        }))
        const jsm = yield* manager
        for (let i = 0; i < 3; i++) {
          yield* publish("orders", Arr.makeBy(total / 3, (n) => String(i * total + n)))
          yield* Effect.promise(() => jsm.consumers.delete("orders", "group").catch(() => false))
        }
        yield* until(Effect.sync(() => seen.size), (size) => size === total)
        yield* Fiber.join(reading)
      }), { sync: "interval" }))

  it.live("a stream that is deleted while it is read is created again, and its next messages are read", () =>
    on(() =>
      Effect.gen(function*() {
        yield* publish("orders", ["a", "b", "c"])
        const subscription = yield* subscribe("orders")
        yield* settle(subscription, yield* take(subscription, 3), Settlement.ack)
        const next = yield* Effect.forkScoped(subscription.pull(demand(10)))
        const jsm = yield* manager
        yield* Effect.promise(() => jsm.streams.delete("orders"))
        yield* publishPatiently("orders", "d")
        assert.deepStrictEqual((yield* Fiber.join(next)).map(text), ["d"])
      })
    ))

  it.live("a message of a stream that was created again is no copy of the earlier message with its sequence", () =>
    on(() =>
      Effect.gen(function*() {
        yield* publish("orders", ["a"])
        const subscription = yield* subscribe("orders")
        const [held] = yield* take(subscription, 1)
        const next = yield* Effect.forkScoped(subscription.pull(demand(10)))
        const jsm = yield* manager
        yield* Effect.promise(() => jsm.streams.delete("orders"))
        yield* publishPatiently("orders", "d")
        const [given] = yield* Fiber.join(next).pipe(Effect.timeout("1 minute"))
        assert.strictEqual(text(given!), "d")
        assert.deepStrictEqual([given!, held!].map(({ id }) => id.split("-")[1]), ["1", "1"])
        assert.notStrictEqual(given!.id, held!.id)
        assert.notStrictEqual(given!.origin, held!.origin)
      })
    ))

  it.live("a settlement of a stream's earlier life leaves the message alone that has its sequence now", () =>
    on(() =>
      Effect.gen(function*() {
        const subscription = yield* subscribe("orders")
        yield* publish("orders", ["a", "b", "c", "d"])
        const [done, failed, released, ended] = yield* take(subscription, 4)
        const next = yield* Effect.forkScoped(subscription.pull(demand(10)))
        const jsm = yield* manager
        yield* Effect.promise(() => jsm.streams.delete("orders"))
        yield* publishPatiently("orders", "e")
        const given = [...yield* Fiber.join(next)]
        yield* publish("orders", ["f", "g", "h"])
        while (given.length < 4) given.push(...yield* subscription.pull(demand(10)))
        assert.deepStrictEqual(yield* subscription.extend([done!, failed!, released!, ended!]), [])
        const lost = yield* subscription.settle([
          { delivery: done!, settlement: Settlement.ack },
          { delivery: failed!, settlement: { _tag: "Retry", after: Duration.zero } },
          { delivery: released!, settlement: Settlement.release },
          { delivery: ended!, settlement: { _tag: "Terminate", reason: "over" } }
        ])
        assert.deepStrictEqual(lost.map((delivery) => [text(delivery), delivery.vanished]), [["b", true], ["c", true]])
        // The second attempt of each is the one that its own retry asks for.
        yield* settle(subscription, given, { _tag: "Retry", after: Duration.zero })
        const again: Array<string> = []
        while (again.length < 4) {
          const deliveries = yield* subscription.pull(demand(10)).pipe(Effect.timeout("20 seconds"))
          again.push(...deliveries.map((delivery) => `${text(delivery)}${delivery.attempt}`))
        }
        assert.deepStrictEqual(again.sort(), ["e2", "f2", "g2", "h2"])
      })
    ))

  it.live("a subscription ends by name whose stream has another name, or whose consumer may not be created", () =>
    on((broker) =>
      Effect.gen(function*() {
        yield* publish("orders", ["a"])
        yield* publish("receipts", ["a"])
        yield* Effect.scoped(subscribe("orders"))
        const jsm = yield* manager
        const failure = (topic: string, change: () => Promise<unknown>) =>
          Effect.gen(function*() {
            const subscription = yield* subscribe(topic)
            yield* settle(subscription, yield* take(subscription, 1), Settlement.ack)
            const next = yield* Effect.forkScoped(Effect.flip(subscription.pull(demand(10))))
            yield* Effect.promise(change)
            return (yield* Fiber.join(next)).message
          })
        const [renamed, deleted] = yield* Effect.all([
          failure("receipts", async () => {
            // In this order, the subscription cannot create its stream again before the other one is there.
            await jsm.streams.update("receipts", { subjects: ["receipts.old", "millrace-delayed.receipts.*"] })
            await jsm.streams.add({ name: "other", subjects: ["receipts"] })
            await jsm.streams.delete("receipts")
          }),
          failure("orders", () => jsm.consumers.delete("orders", "group")).pipe(
            Effect.scoped,
            Effect.provide(Layer.fresh(JetStream.layer({ url: broker.url, manage: "verify" })))
          )
        ], { concurrency: 2 })
        assert.match(renamed, /the stream of receipts is other, expected receipts, which group group reads/)
        assert.match(deleted, /consumer group of stream orders is absent, expected there \(manage is "verify"\)/)
        const { state } = yield* Effect.promise(() => jsm.streams.info("other"))
        assert.strictEqual(state.consumer_count, 0)
      })
    ))

  it.live("a retry that waits survives the death of the server, with its time and its count", () =>
    on((broker) =>
      Effect.gen(function*() {
        yield* publish("orders", ["a"])
        const subscription = yield* subscribe("orders")
        const said = performance.now()
        yield* settle(subscription, yield* take(subscription, 1), Settlement.retry("4 seconds"))
        yield* broker.restart
        const [again] = yield* take(subscription, 1)
        assert.strictEqual(again!.attempt, 2)
        assert.isFalse(again!.suspect)
        // The server stores the time in whole seconds.
        assert.isAtLeast(performance.now() - said, 2900)
      })
    ))

  it.live("many retries that wait long do not hold up new messages", () =>
    on(() =>
      Effect.gen(function*() {
        yield* publish("orders", Arr.makeBy(1500, String))
        const subscription = yield* subscribe("orders", { maxOwned: 2000 })
        yield* settle(subscription, yield* take(subscription, 1500), Settlement.retry("1 hour"))
        yield* publish("orders", ["new"])
        assert.deepStrictEqual((yield* take(subscription, 1)).map(text), ["new"])
      }), { sync: "interval" }))

  it.live("stopping one of two under load burns no attempt", () =>
    on(() =>
      Effect.gen(function*() {
        const attempts = new Map<number, number>()
        let handled = 0
        const pipeline = JetStream.from(Orders, {
          group: "group",
          startFrom: "beginning",
          prefetch: 200
        }).pipe(
          Pipeline.map((_, message) => {
            handled++
            attempts.set(message.attempt, (attempts.get(message.attempt) ?? 0) + 1)
          }),
          Pipeline.concurrency(16)
        )
        yield* Pipeline.start(pipeline)
        let published = 0
        const load = publish("orders", Arr.makeBy(20, String)).pipe(
          Effect.andThen(Effect.sync(() => published += 20)),
          Effect.andThen(Effect.sleep("4 millis")),
          Effect.forever
        )
        const loading = yield* Effect.forkScoped(load)
        for (let round = 0; round < 10; round++) {
          yield* Effect.scoped(Effect.andThen(Pipeline.start(pipeline), Effect.sleep("100 millis")))
        }
        yield* Fiber.interrupt(loading)
        yield* until(Effect.sync(() => handled), (handled) => handled >= published)
        assert.deepStrictEqual([...attempts.keys()], [1])
      })
    ))

  it.live("asking for less while messages arrive burns no attempt", () =>
    on(() =>
      Effect.gen(function*() {
        const { client } = yield* JetStream.JetStream
        let takenBack = 0
        // Of a topic that is idle requests may be taken back, which may burn attempts: on a machine that is busy.
        let wereIdle = false
        // When each topic last gave something.
        const gave = new Map<string, number>()
        const original = client.subscribe.bind(client)
        client.subscribe = (subject, options) => {
          const subscription = original(subject, options)
          const drain = subscription.drain.bind(subscription)
          subscription.drain = () => {
            if ([...gave.values()].every((at) => performance.now() - at < 500)) takenBack++
            else wereIdle = true
            return drain()
          }
          return subscription
        }
        const asking = Effect.fnUntraced(function*(pause: number) {
          const topic = `orders-${pause}`
          const subscription = yield* subscribe(topic)
          yield* Effect.forkScoped(
            publish(topic, Arr.makeBy(5, String)).pipe(Effect.andThen(Effect.sleep(pause)), Effect.forever)
          )
          for (let handled = 0; handled < 100;) {
            const taken = yield* subscription.pull(demand(handled % 2 === 0 ? 100 : 1))
            handled += taken.length
            gave.set(topic, performance.now())
            yield* settle(subscription, taken, Settlement.ack)
            assert.isTrue(wereIdle || taken.every(({ attempt }) => attempt === 1))
          }
          // Closing may take back what is open.
          assert.strictEqual(takenBack, 0)
        })
        yield* Effect.all([100, 150, 200, 250, 300, 350].map(asking), { concurrency: "unbounded", discard: true })
      })
    ))

  it.live("a message that is redelivered while its acknowledgement is confirmed does not run again", () =>
    onProxy((_, { misdirect }) =>
      Effect.gen(function*() {
        const seen: Array<string> = []
        const running = yield* Pipeline.start(
          JetStream.from(Orders, { group: "group", startFrom: "beginning", ackWait: "1 second", prefetch: 10 }).pipe(
            Pipeline.tap((_, message) => {
              seen.push("run")
              return Effect.andThen(
                JetStream.ackSync(message, { timeout: "30 seconds" }),
                Effect.sync(() => seen.push("confirmed"))
              )
            })
          )
        )
        yield* misdirect("$JS.ACK.")
        yield* publish("orders", ["1"])
        yield* until(JetStream.consumerInfo("orders", "group"), (info) => info.redelivered > 0)
        // Longer than what is owned goes without a sign of life.
        yield* Effect.sleep("1500 millis")
        yield* misdirect()
        yield* until(JetStream.consumerInfo("orders", "group"), (info) => info.lag === 0)
        yield* until(running.owned, ({ waiting }) => waiting === 0)
        assert.deepStrictEqual(seen, ["run", "confirmed"])
      })
    ))

  it.live("a message that a process loses and is given again is no suspect", () =>
    on(() =>
      Effect.gen(function*() {
        yield* publish("orders", ["a"])
        const subscription = yield* subscribe("orders", { ackWait: "1 second" })
        const [first] = yield* take(subscription, 1)
        const pulling = yield* Effect.forkScoped(subscription.pull(demand(10)))
        const jsm = yield* manager
        const info = Effect.promise(() => jsm.consumers.info("orders", "group"))
        yield* until(info, ({ delivered }) => delivered.consumer_seq > 1)
        yield* until(subscription.extend([first!]), (lost) => lost.length > 0)
        const [again] = yield* Fiber.join(pulling)
        assert.deepInclude(again, { attempt: 2, suspect: false })
      })
    ))

  it.live("a message whose acknowledgement a busy server handles late is not given again", () =>
    onProxy((_, { misdirect }) =>
      Effect.gen(function*() {
        yield* publish("orders", ["a"])
        const subscription = yield* subscribe("orders", { ackWait: "2 seconds" })
        const taken = yield* take(subscription, 1)
        yield* Effect.sleep("1200 millis")
        yield* misdirect("$JS.ACK.")
        yield* settle(subscription, taken, Settlement.ack)
        yield* misdirect()
        const next = yield* Effect.forkScoped(take(subscription, 1))
        yield* until(JetStream.consumerInfo("orders", "group"), (info) => info.lag === 0)
        yield* publish("orders", ["b"])
        assert.deepStrictEqual((yield* Fiber.join(next)).map(text), ["b"])
      })
    ))

  it.live("a message that is redelivered while its attempts are read is given once", () =>
    onProxy((broker, { misdirect }) =>
      Effect.gen(function*() {
        const wish = { ackWait: "600 millis" } as const
        const jsm = yield* manager
        yield* publish("orders", ["a"])
        yield* Effect.scoped(Effect.gen(function*() {
          const other = yield* subscribe("orders", wish)
          yield* settle(other, yield* take(other, 1), Settlement.retry("50 millis"))
        })).pipe(Effect.provide(Layer.fresh(JetStream.layer({ url: broker.url }))))
        // Nobody answers, and nobody says so.
        yield* JetStream.JetStream.use(({ client }) => Effect.sync(() => client.subscribe("$NO.>")))
        yield* misdirect("$JS.ACK.", "$JS.API.STREAM.MSG.GET.")
        const subscription = yield* subscribe("orders", wish)
        const pulling = yield* Effect.forkScoped(subscription.pull(demand(10)))
        const info = Effect.promise(() => jsm.consumers.info("orders", "group"))
        yield* until(info, ({ delivered }) => delivered.consumer_seq >= 3)
        yield* misdirect()
        const given = yield* Fiber.join(pulling)
        yield* settle(subscription, given, Settlement.ack)
        yield* publish("orders", ["b"])
        assert.deepStrictEqual([...given, ...yield* take(subscription, 1)].map(text), ["a", "b"])
      })
    ))

  it.live("a server that hangs up during the handshake is tried again at once", () =>
    on((broker) =>
      Effect.gen(function*() {
        let hangUps = 0
        let left = 0
        const { cut, url } = yield* proxied(broker, (piece, to) => {
          if (to === "client" || left === 0 || !piece.includes("CONNECT {")) return piece
          left--
          hangUps++
          return undefined
        })
        yield* Effect.gen(function*() {
          const subscription = yield* subscribe("orders")
          const pulling = yield* Effect.forkScoped(subscription.pull(demand(10)))
          left = 3
          yield* cut
          yield* until(Effect.sync(() => hangUps), (hangUps) => hangUps === 3)
          yield* until(subscription.health, ({ state }) => state === "consuming")
          const info = JetStream.consumerInfo("orders", "group")
          assert.strictEqual((yield* until(info, ({ openPulls }) => openPulls > 0)).openPulls, 1)
          yield* publish("orders", ["a"])
          assert.deepStrictEqual((yield* Fiber.join(pulling)).map(text), ["a"])
        }).pipe(Effect.scoped, Effect.provide(Layer.fresh(JetStream.layer({ url, connectTimeout: "1 hour" }))))
      })
    ))

  it.live("a subscription whose connection is lost while it starts, starts, and keeps attempts", () =>
    on((broker) =>
      Effect.gen(function*() {
        const unlucky = ["STREAM.NAMES", "CREATE.orders", "INFO.KV_millrace", "CREATE.KV_millrace"]
        const { url } = yield* proxied(broker, (piece, to) => {
          const index = to === "client" ? -1 : unlucky.findIndex((words) => piece.includes(words))
          if (index < 0) return piece
          unlucky.splice(index, 1)
          return undefined
        })
        yield* Effect.gen(function*() {
          const subscription = yield* subscribe("orders")
          yield* publish("orders", ["a"])
          yield* settle(subscription, yield* take(subscription, 1), Settlement.release)
          assert.deepStrictEqual((yield* take(subscription, 1)).map(({ attempt }) => attempt), [1])
        }).pipe(Effect.scoped, Effect.provide(Layer.fresh(JetStream.layer({ url }))))
        assert.deepStrictEqual(unlucky, [])
      })
    ))

  it.live("a message that is lost before its handler began counts no attempt when it comes again", () =>
    on(() =>
      Effect.gen(function*() {
        const attempts: Array<readonly [order: number, attempt: number]> = []
        const jsm = yield* manager
        const goOn = yield* Latch.make()
        yield* publish("orders", ["1", "2"])
        const running = yield* Pipeline.start(
          JetStream.from(Orders, { group: "group", startFrom: "beginning", ackWait: "1 second", prefetch: 1 }).pipe(
            Pipeline.tap((order, { attempt }) => {
              attempts.push([order, attempt])
              return goOn.await
            })
          )
        )
        yield* until(running.owned, ({ waiting }) => waiting === 1)
        // The process stands still for longer than the server waits.
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 2000)
        const info = Effect.promise(() => jsm.consumers.info("orders", "group"))
        yield* until(info, ({ delivered }) => delivered.consumer_seq >= 4)
        yield* goOn.open
        yield* until(running.counts, ({ handled }) => handled === 2)
        assert.deepStrictEqual(attempts.filter(([order]) => order === 2), [[2, 1]])
      })
    ))

  it.live("deliveries to a half-open connection count no attempt, and are no suspects", () =>
    on((broker) =>
      Effect.gen(function*() {
        let isPatient = false
        const { cut, hang, heal, url } = yield* proxied(broker, (piece) => {
          isPatient ||= /"expires":[2-9]\d{9}/.test(piece.toString("latin1"))
          return piece
        })
        const attempts: Array<number> = []
        const jsm = yield* manager
        yield* Effect.gen(function*() {
          const running = yield* Pipeline.start(
            JetStream.from(Orders, { group: "group", startFrom: "beginning", ackWait: "500 millis" }).pipe(
              Pipeline.map((_, { attempt }) => attempts.push(attempt)),
              Pipeline.retry({ times: 0 }),
              Pipeline.concurrency(10)
            )
          )
          yield* until(Effect.sync(() => isPatient), (isPatient) => isPatient)
          yield* Effect.andThen(hang, heal)
          yield* publish("orders", ["1"]).pipe(Effect.provide(Layer.fresh(JetStream.layer({ url: broker.url }))))
          // The request is open, and the server fills it again and again.
          const info = Effect.promise(() => jsm.consumers.info("orders", "group"))
          yield* until(info, ({ delivered }) => delivered.consumer_seq >= 3)
          yield* cut
          yield* until(running.counts, ({ handled, deadLettered }) => handled + deadLettered > 0)
          assert.deepStrictEqual(attempts, [2])
        }).pipe(Effect.scoped, Effect.provide(Layer.fresh(JetStream.layer({ url }))))
      })
    ))

  it.live("closing ends although the server is gone", () =>
    on((broker) =>
      Effect.gen(function*() {
        yield* publish("orders", ["a", "b"])
        yield* Effect.scoped(Effect.gen(function*() {
          const subscription = yield* subscribe("orders")
          yield* take(subscription, 1)
          yield* broker.kill
          yield* until(subscription.health, ({ state }) => state === "reconnecting")
        })).pipe(Effect.provide(Layer.fresh(JetStream.layer({ url: broker.url }))))
      })
    ))
})
