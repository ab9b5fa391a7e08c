import { assert, describe, it } from "@effect/vitest"
import * as DeadLetter from "@millrace/core/DeadLetter"
import * as Pipeline from "@millrace/core/Pipeline"
import * as Publisher from "@millrace/core/Publisher"
import * as Settlement from "@millrace/core/Settlement"
import * as Telemetry from "@millrace/core/Telemetry"
import * as Topic from "@millrace/core/Topic"
import { type Delivery, Transport } from "@millrace/core/Transport"
import * as Brokers from "@millrace/testing/Brokers"
import { DiscardPolicy, jetstreamManager, type StreamConfig } from "@nats-io/jetstream"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { inspect } from "node:util"
import * as JetStream from "../src/JetStream.ts"
import {
  before,
  demand,
  logged,
  onNats,
  outgoing,
  publish,
  settle,
  subscribe,
  take,
  text,
  until,
  versions
} from "./nats.ts"

const Orders = Topic.make("orders", { schema: Schema.Struct({ id: Schema.Number }) })

/** The client's types do not know that a stream may be sealed by an update. */
const sealed: Partial<StreamConfig> = { sealed: true }

const manager = JetStream.JetStream.use(({ client }) => Effect.promise(() => jetstreamManager(client)))

/** Runs what a program of its own would: another connection, closed at the end. */
const elsewhere = <A, E>(
  url: string,
  effect: Effect.Effect<A, E, JetStream.JetStream | Transport>,
  options: JetStream.CommonOptions = {}
) => Effect.provide(effect, Layer.fresh(JetStream.layer({ url, ...options })))

describe.each(versions)("on nats-server %s", (version) => {
  const on = (f: Parameters<typeof onNats>[0], options: Parameters<typeof onNats>[1] = {}) =>
    onNats(f, { version, ...options })

  describe("the bucket of attempts", () => {
    const ways: Record<string, (jsm: Awaited<ReturnType<typeof jetstreamManager>>) => Promise<unknown>> = {
      deleted: (jsm) => jsm.streams.delete("KV_millrace"),
      sealed: (jsm) => jsm.streams.update("KV_millrace", sealed),
      emptied: (jsm) => jsm.streams.purge("KV_millrace")
    }
    for (const [way, harm] of Object.entries(ways)) {
      it.live(`${way}: messages of a process that died and new ones are handled, and releases go to a peer`, () =>
        on(() =>
          Effect.gen(function*() {
            yield* publish("orders", Arr.makeBy(20, String))
            const wish = { ackWait: "800 millis", isolateFrom: 3 } as const
            yield* take(yield* subscribe("orders", wish), 20)
            const jsm = yield* manager
            yield* Effect.promise(() => harm(jsm))
            const subscription = yield* subscribe("orders", wish)
            const taken = yield* take(subscription, 20).pipe(Effect.timeout("1 minute"))
            assert.deepStrictEqual(
              new Set(taken.map(({ attempt, suspect }) => `${attempt} ${suspect}`)),
              new Set(["2 true"])
            )
            yield* settle(subscription, taken, Settlement.ack)
            yield* publish("orders", ["new"])
            const [fresh] = yield* take(subscription, 1)
            yield* settle(subscription, [fresh!], Settlement.release)
            const [again] = yield* take(subscription, 1).pipe(Effect.timeout("1 minute"))
            assert.strictEqual(text(again!), "new")
          })
        ))
    }

    it.live("deleted, then a suspect is isolated: its attempt begins, and the bucket is made again", () =>
      on(() =>
        Effect.gen(function*() {
          yield* publish("orders", ["a"])
          yield* take(yield* subscribe("orders", { ackWait: "2 seconds" }), 1)
          const subscription = yield* subscribe("orders", { ackWait: "2 seconds" })
          const [suspect] = yield* subscription.pull(demand(1))
          const jsm = yield* manager
          yield* Effect.promise(() => jsm.streams.delete("KV_millrace"))
          assert.isTrue(yield* subscription.begin(suspect!))
          const names = Effect.promise(() => jsm.streams.names().next())
          yield* until(names, (names) => names.includes("KV_millrace"))
        })
      ))

    it.live("gives way where the account has no place for it beside the streams of messages", () =>
      on(() =>
        Effect.gen(function*() {
          const running = yield* Pipeline.start(
            Pipeline.from(Orders, { group: "work" }).pipe(
              Pipeline.mapEffect(({ id }) => id === 1 ? Effect.void : Effect.fail("no")),
              Pipeline.retry({ times: 0 })
            )
          )
          yield* Publisher.publishAll(Orders, [{ id: 1 }, { id: 2 }])
          yield* until(running.counts, ({ deadLettered, handled }) => handled === 1 && deadLettered === 1)
          const jsm = yield* manager
          const names = yield* Effect.promise(() => jsm.streams.names().next())
          assert.deepStrictEqual([...names].sort(), ["orders", "orders_dead"])
        }), {
        config: `accounts { A { jetstream: { max_streams: 2 }, users: [{ user: a, password: a }] } }\nno_auth_user: a`
      }))

    it.live("has the storage of the stream that it serves", () =>
      on(() =>
        Effect.gen(function*() {
          yield* subscribe("orders")
          const jsm = yield* manager
          const { config } = yield* Effect.promise(() => jsm.streams.info("KV_millrace"))
          assert.strictEqual(config.storage, "memory")
        }), { layer: { stream: { storage: "memory" } } }))
  })

  describe("the consumer of a group", () => {
    it.live("is the same after a subject was added to its stream: the group goes on where it stands", () =>
      on(({ url }) =>
        Effect.gen(function*() {
          const seen: Array<string> = []
          const work = (name: string) =>
            Pipeline.from(Orders, { group: "work" }).pipe(
              Pipeline.tap(({ id }) => Effect.sync(() => void seen.push(`${name} ${id}`)))
            )
          const first = yield* Pipeline.start(work("one"))
          yield* Publisher.publish(Orders, { id: 1 })
          yield* until(first.counts, ({ handled }) => handled === 1)
          const jsm = yield* manager
          const { config } = yield* Effect.promise(() => jsm.streams.info("orders"))
          const subjects = [...config.subjects, "orders.audit"]
          yield* Effect.promise(() => jsm.streams.update("orders", { ...config, subjects }))
          yield* elsewhere(
            url,
            Effect.scoped(Effect.gen(function*() {
              yield* Pipeline.start(work("two"))
              yield* Publisher.publishAll(Orders, Arr.makeBy(20, (i) => ({ id: 2 + i })))
              yield* until(Effect.sync(() => seen), (seen) => seen.length >= 21)
              yield* Effect.sleep("200 millis")
            }))
          )
          assert.strictEqual(new Set(seen.map((line) => line.split(" ")[1])).size, seen.length)
          const consumers = yield* Effect.promise(() => jsm.consumers.list("orders").next())
          assert.deepStrictEqual(consumers.map(({ name }) => name), ["work"])
          assert.strictEqual((yield* JetStream.consumerInfo(Orders, "work")).consumer, "work")
        })
      ))

    it.live("an edited ack_wait or max_deliver is restored", () =>
      on(() =>
        Effect.gen(function*() {
          yield* publish("orders", ["a"])
          const subscription = yield* subscribe("orders")
          yield* take(subscription, 1)
          const jsm = yield* manager
          for (const edit of [{ ack_wait: 2e9 }, { max_deliver: 2 }]) {
            yield* Effect.promise(() => jsm.consumers.update("orders", "group", edit))
            yield* until(
              Effect.promise(() => jsm.consumers.info("orders", "group")),
              ({ config }) => config.ack_wait === 30e9 && config.max_deliver === -1
            )
          }
        })
      ))

    it.live("a message that the server gave up under an edited max_deliver is dead-lettered, and leaves a work queue", () =>
      on(() =>
        Effect.gen(function*() {
          const running = yield* Pipeline.start(
            Pipeline.from(Orders, { group: "group" }).pipe(
              Pipeline.mapEffect(() => Effect.fail("again")),
              Pipeline.retry({ times: Infinity, schedule: Schedule.spaced("20 millis") })
            )
          )
          yield* Publisher.publish(Orders, { id: 1 })
          yield* until(running.counts, ({ retried }) => retried >= 2)
          const jsm = yield* manager
          // The option may be restored before the message comes again.
          const edit = Effect.promise(() => jsm.consumers.update("orders", "group", { max_deliver: 2 }))
          yield* until(Effect.andThen(edit, running.counts), ({ deadLettered }) => deadLettered === 1)
          const [letter] = yield* Stream.runCollect(DeadLetter.list("orders.dead"))
          assert.match(letter?.record.error.message ?? "", /the server gave it up after \d+ deliveries/)
          assert.strictEqual(letter?.record.reason, "exhausted")
          yield* until(JetStream.streamInfo("orders"), ({ messages }) => messages === 0)
        }), { layer: { retention: "until-acked" } }))

    it.live("edited to headers_only, its messages have their bodies, and the option is restored", () =>
      on(() =>
        Effect.gen(function*() {
          const subscription = yield* subscribe("orders")
          const jsm = yield* manager
          yield* Effect.promise(() => jsm.consumers.update("orders", "group", { headers_only: true }))
          yield* publish("orders", ["a", "b"])
          const taken = yield* take(subscription, 2)
          assert.deepStrictEqual(taken.map((delivery) => [text(delivery), delivery.attempt]), [["a", 1], ["b", 1]])
          yield* until(
            Effect.promise(() => jsm.consumers.info("orders", "group")),
            ({ config }) => config.headers_only !== true
          )
        })
      ))

    it.live("bounds on one request that an operator sets are kept", () =>
      on(() =>
        Effect.gen(function*() {
          const subscription = yield* subscribe("orders")
          const jsm = yield* manager
          yield* Effect.promise(() => jsm.consumers.update("orders", "group", { max_batch: 2, max_expires: 1e9 }))
          yield* publish("orders", Arr.makeBy(20, String))
          assert.strictEqual((yield* take(subscription, 20)).length, 20)
          assert.strictEqual((yield* subscription.health).state, "consuming")
        })
      ))

    if (!before(version, 10)) {
      it.live("of a stream that stores the topic under another subject is refused: it would read nothing", () =>
        on(() =>
          Effect.gen(function*() {
            const jsm = yield* manager
            const subject_transform = { src: "orders", dest: "moved.orders" }
            yield* Effect.promise(() => jsm.streams.add({ name: "orders", subjects: ["orders"], subject_transform }))
            const error = yield* Effect.flip(subscribe("orders"))
            assert.match(error.message, /subject_transform of stream orders is storing orders as moved.orders/)
          })
        ))
    }

    it.live("without room for one subscription more, health says what the server said", () =>
      on(() =>
        Effect.gen(function*() {
          const jsm = yield* manager
          yield* Effect.promise(() => jsm.streams.add({ name: "orders", subjects: ["orders"] }))
          // Short requests: their silence is noticed within a second.
          const made = { durable_name: "group", ack_policy: "explicit", filter_subject: "orders" } as const
          yield* Effect.promise(() => jsm.consumers.add("orders", { ...made, max_ack_pending: -1, max_expires: 1e9 }))
          const subscription = yield* subscribe("orders")
          yield* Effect.forkScoped(subscription.pull(demand(1)))
          const health = yield* until(subscription.health, ({ state }) => state === "impaired")
          assert.match(health.reason ?? "", /maximum subscriptions exceeded/)
        }), { config: "max_subscriptions: 2" }))

    it.live("deleted by consumer_limits while no process ran, a group goes on behind what it had settled", () =>
      on(({ url }) =>
        Effect.gen(function*() {
          const jsm = yield* manager
          const limits = { consumer_limits: { inactive_threshold: 500e6 } }
          yield* Effect.promise(() => jsm.streams.add({ name: "orders", subjects: ["orders"], ...limits }))
          const seen: Array<number> = []
          const work = Pipeline.from(Orders, { group: "work" }).pipe(
            Pipeline.map(({ id }) => seen.push(id))
          )
          const once = Effect.gen(function*() {
            const running = yield* Pipeline.start(work)
            const id = seen.length
            yield* Publisher.publish(Orders, { id })
            yield* until(Effect.sync(() => seen), (seen) => seen.includes(id))
            return running
          })
          yield* elsewhere(url, Effect.scoped(once))
          yield* Publisher.publish(Orders, { id: -1 })
          yield* until(JetStream.streamInfo("orders"), ({ consumers }) => consumers === 0)
          yield* elsewhere(url, Effect.scoped(once))
          assert.deepStrictEqual(seen, [0, -1, 1])
        })
      ))

    it.live("an edited filter is in health, with its reason, until it is mended", () =>
      on(() =>
        Effect.gen(function*() {
          const transport = yield* Transport
          yield* publish("orders", ["a"])
          const subscription = yield* subscribe("orders")
          yield* take(subscription, 1)
          const jsm = yield* manager
          yield* Effect.promise(() => jsm.consumers.update("orders", "group", { filter_subject: "nothing" }))
          const health = yield* until(subscription.health, ({ state }) => state === "impaired")
          assert.match(health.reason ?? "", /filter_subject of consumer group of stream orders was changed/)
          assert.strictEqual((yield* transport.health).state, "consuming")
          yield* Effect.promise(() => jsm.consumers.update("orders", "group", { filter_subject: "orders" }))
          yield* until(subscription.health, ({ state }) => state === "consuming")
        })
      ))

    if (!before(version, 11)) {
      it.live("with an option that Millrace would not set is refused by its name", () =>
        on(() =>
          Effect.gen(function*() {
            yield* Transport.use((transport) => transport.declare("orders", "output"))
            const jsm = yield* manager
            yield* Effect.promise(() =>
              jsm.consumers.add("orders", {
                durable_name: "group",
                ack_policy: "explicit",
                filter_subject: "orders",
                max_ack_pending: -1,
                priority_groups: ["a"],
                priority_policy: "overflow"
              })
            )
            const error = yield* Effect.flip(subscribe("orders"))
            assert.match(error.message, /priority_.* of consumer group of stream orders is .*, expected absent/)
          })
        ))
    }

    it.live("deleted before it settled anything, a group that began with new messages stays behind the old ones", () =>
      on(() =>
        Effect.gen(function*() {
          yield* publish("orders", ["old 1", "old 2"])
          const subscription = yield* subscribe("orders", { startFrom: "new" })
          const next = yield* Effect.forkScoped(subscription.pull(demand(10)))
          const jsm = yield* manager
          yield* Effect.promise(() => jsm.consumers.delete("orders", "group"))
          yield* until(JetStream.streamInfo("orders"), ({ consumers }) => consumers === 1)
          yield* publish("orders", ["new"])
          assert.deepStrictEqual((yield* Fiber.join(next)).map(text), ["new"])
        })
      ))
  })

  describe("a stream that is created again", () => {
    it.live("is another one for ids, outputs, dead letters and browsing", () =>
      on(() =>
        Effect.gen(function*() {
          const transport = yield* Transport
          const Receipts = Topic.make("receipts", { schema: Schema.Struct({ id: Schema.Number }) })
          const running = yield* Pipeline.start(
            Pipeline.from(Orders, { group: "g", startFrom: "beginning" }).pipe(
              Pipeline.mapEffect(({ id }) => id % 2 === 0 ? Effect.succeed({ id }) : Effect.fail("odd")),
              Pipeline.to(Receipts),
              Pipeline.retry({ times: 0 })
            )
          )
          const first = yield* Publisher.publish(Orders, { id: 0 })
          yield* Publisher.publish(Orders, { id: 1 })
          yield* until(running.counts, ({ deadLettered, handled }) => deadLettered + handled === 2)
          const jsm = yield* manager
          yield* Effect.promise(() => jsm.streams.delete("orders"))
          yield* until(Effect.option(JetStream.streamInfo("orders")), Option.isSome)
          const second = yield* Publisher.publish(Orders, { id: 2 })
          yield* Publisher.publish(Orders, { id: 3 })
          yield* until(running.counts, ({ deadLettered, handled }) => deadLettered + handled === 4)
          assert.strictEqual((yield* JetStream.streamInfo("receipts")).messages, 2)
          assert.strictEqual((yield* Stream.runCollect(DeadLetter.list("orders.dead"))).length, 2)
          assert.deepStrictEqual([first.id, second.id].map((id) => id.split("-")[1]), ["1", "1"])
          assert.notStrictEqual(first.id, second.id)
          assert.isTrue(Option.isNone(yield* transport.get("orders", first.id)))
          assert.isTrue(Option.isSome(yield* transport.get("orders", second.id)))
          const after = yield* Stream.runCollect(transport.browse("orders", { after: first.id }))
          assert.strictEqual(after.length, 2)
        })
      ))

    it.live("is read from its beginning by a reader without a group", () =>
      on(() =>
        Effect.gen(function*() {
          yield* Publisher.publishAll(Orders, [{ id: 1 }, { id: 2 }])
          const read: Array<number> = []
          yield* Effect.forkScoped(
            Stream.runForEach(JetStream.read(Orders), ({ value }) => Effect.sync(() => read.push(value.id)))
          )
          yield* until(Effect.sync(() => read.length), (length) => length === 2)
          const jsm = yield* manager
          yield* Effect.promise(() => jsm.streams.delete("orders"))
          yield* Publisher.publishAll(Orders, [{ id: 3 }, { id: 4 }, { id: 5 }])
          yield* until(Effect.sync(() => read.length), (length) => length >= 5)
          assert.deepStrictEqual(read, [1, 2, 3, 4, 5])
        })
      ))
  })

  describe("targets", () => {
    const made = (config: object) =>
      Effect.gen(function*() {
        const jsm = yield* manager
        yield* Effect.promise(() => jsm.streams.add({ name: "made", subjects: ["made.>"], ...config }))
      })

    it.live("that do not keep what they confirm are refused by name", () =>
      on(() =>
        Effect.gen(function*() {
          const transport = yield* Transport
          const jsm = yield* manager
          const refusals: Array<string> = []
          for (
            const config of [
              { no_ack: true },
              { retention: "interest" },
              { max_msgs_per_subject: 1 },
              ...before(version, 12) ? [] : [{ allow_msg_counter: true }]
            ]
          ) {
            yield* made(config)
            const error = yield* Effect.flip(transport.declare("made.dead", "deadLetter"))
            refusals.push(error.message.split(" of stream made")[0]!)
            yield* Effect.promise(() => jsm.streams.delete("made"))
          }
          assert.deepStrictEqual(refusals, [
            "nats: no_ack",
            "nats: retention",
            "nats: max_msgs_per_subject",
            ...before(version, 12) ? [] : ["nats: allow_msg_counter"]
          ])
        })
      ))

    it.live("that no consumer reads any more refuse dead letters, until one reads them again", () =>
      on(() =>
        Effect.gen(function*() {
          const transport = yield* Transport
          const jsm = yield* manager
          yield* made({ retention: "interest" })
          const reader = { durable_name: "reader", ack_policy: "explicit" as const }
          yield* Effect.promise(() => jsm.consumers.add("made", reader))
          yield* transport.declare("made.dead", "deadLetter")
          const letter = transport.publish([outgoing("made.dead", "a", { id: "a" })])
          yield* Effect.promise(() => jsm.consumers.delete("made", "reader"))
          const [refused] = yield* letter
          const why = Result.isFailure(refused!) ? refused.failure.message : "stored"
          assert.match(why, /made has interest retention: .* no consumer reads them/)
          yield* Effect.promise(() => jsm.consumers.add("made", reader))
          assert.isFalse(Result.getOrThrow((yield* letter)[0]!).duplicate)
          assert.strictEqual((yield* JetStream.streamInfo("made.dead")).messages, 1)
        })
      ))

    it.live("that remove dead letters are named at start; a sealed one is refused", () =>
      logged((lines) =>
        on(() =>
          Effect.gen(function*() {
            const transport = yield* Transport
            const jsm = yield* manager
            for (
              const [config, bound] of [[{ max_msgs: 10 }, "max_msgs 10"], [{ max_age: 60e9 }, "max_age 1m"]] as const
            ) {
              yield* made(config)
              yield* transport.declare("made.dead", "deadLetter")
              assert.include(lines, `stream made removes dead letters of made.dead beyond ${bound}`)
              yield* Effect.promise(() => jsm.streams.delete("made"))
            }
            yield* made({})
            yield* Effect.promise(() => jsm.streams.update("made", sealed))
            const refused = yield* Effect.flip(transport.declare("made.dead", "deadLetter"))
            assert.match(refused.message, /sealed of stream made is true, expected false/)
          })
        )
      ))

    it.live("that are full of dead letters are in health and one line of the log, with the reason, until they take one", () =>
      on(() =>
        logged(Effect.fnUntraced(function*(lines) {
          const jsm = yield* manager
          yield* Effect.promise(() =>
            jsm.streams.add({ name: "full", subjects: ["dead"], max_msgs: 2, discard: DiscardPolicy.New })
          )
          const running = yield* Pipeline.start(
            Pipeline.from(Orders, { group: "g", startFrom: "beginning" }).pipe(
              Pipeline.mapEffect(() => Effect.fail("no")),
              Pipeline.retry({ times: 0 }),
              Pipeline.deadLetter("dead")
            )
          ).pipe(
            Effect.provideService(Telemetry.LookInterval, Duration.millis(100))
          )
          const about = (text: string) => Effect.sync(() => lines.filter((line) => line.includes(text)))
          yield* Publisher.publishAll(Orders, [{ id: 1 }, { id: 2 }, { id: 3 }])
          const health = yield* until(running.health, ({ state }) => state === "impaired")
          assert.match(health.reason ?? "", /dead letters are not stored: .*maximum messages exceeded/)
          yield* until(about("cannot consume: dead letters are not stored"), ({ length }) => length > 0)
          yield* until(running.counts, ({ unsettled }) => unsettled > 2)
          yield* Effect.promise(() => jsm.streams.purge("full"))
          yield* until(running.health, ({ state }) => state === "consuming")
          yield* until(running.counts, ({ deadLettered }) => deadLettered === 3)
          yield* until(about("consuming again after"), ({ length }) => length > 0)
          const outage = lines.filter((line) => !/dead-lettered to|: consuming/.test(line))
          assert.strictEqual(outage.length, 2, outage.join("\n"))
        }))
      ))

    it.live("bounds of sources do not apply to dead letters, which have their own", () =>
      on(() =>
        Effect.gen(function*() {
          const transport = yield* Transport
          yield* transport.declare("orders", "output")
          yield* transport.declare("orders.dead", "deadLetter")
          const jsm = yield* manager
          const bounds = yield* Effect.forEach(["orders", "orders_dead"], (name) =>
            Effect.map(
              Effect.promise(() => jsm.streams.info(name)),
              ({ config }) => [config.max_msgs, config.max_age]
            ))
          assert.deepStrictEqual(bounds, [[10, 0], [-1, 7 * 24 * 3600e9]])
        }), { layer: { stream: { maxMessages: 10 }, deadLetterStream: { maxAge: "7 days" } } }))

    it.live("that are full refuse; a message over the stream's own limit is too large", () =>
      on(() =>
        Effect.gen(function*() {
          const transport = yield* Transport
          yield* made({ max_msgs: 1, discard: "new", max_msg_size: 1000 })
          const results = yield* transport.publish([
            outgoing("made.a", "x".repeat(2000)),
            outgoing("made.a", "a"),
            outgoing("made.a", "b")
          ])
          assert.deepStrictEqual(
            results.map((result) => Result.isFailure(result) ? result.failure.reason._tag : "stored"),
            ["TooLarge", "stored", "Refused"]
          )
        })
      ))
  })

  describe("a family of subjects", () => {
    const regions = JetStream.from(Orders, { group: "regions", subject: "orders.{region}.>" })
    const west = JetStream.from(Orders, { group: "west", subjects: ["orders.eu", "orders.us"] })
    const steps = {
      regions: Effect.scoped(Pipeline.start(regions)),
      west: Effect.scoped(Pipeline.start(west)),
      read: Effect.timeoutOption(Stream.runHead(JetStream.read(Orders)), "300 millis"),
      publish: Publisher.publish(Orders, { id: 1 }),
      publishEu: JetStream.publish(Orders, { id: 1 }, { subject: "orders.eu" })
    }
    for (
      const order of [
        ["regions", "west", "read", "publish"],
        ["publish", "read", "west", "regions"],
        ["west", "publish", "regions", "read"]
      ] as const
    ) {
      it.live(`works from an empty server in the order ${order.join(", ")}`, () =>
        on(() =>
          Effect.gen(function*() {
            for (const step of order) yield* steps[step]
            const { subjects } = yield* JetStream.streamInfo("orders")
            assert.includeMembers([...subjects], ["orders", "orders.eu", "orders.us", "orders.*.>"])
          })
        ))
    }

    it.live("that is declared is one stream, whoever starts first", () =>
      on(() =>
        Effect.gen(function*() {
          const Created = Topic.make("sales.eu.created", { schema: Schema.Struct({ id: Schema.Number }) })
          const Sales = Topic.make("sales", { schema: Schema.Struct({ id: Schema.Number }) })
          yield* Publisher.publish(Created, { id: 1 })
          const running = yield* Pipeline.start(
            JetStream.from(Sales, { group: "ledger", subject: "sales.{region}.created", startFrom: "beginning" }).pipe(
              Pipeline.deadLetter("ledger.dead")
            )
          )
          yield* until(running.counts, ({ handled }) => handled === 1)
          assert.deepStrictEqual((yield* JetStream.streamInfo(Created)).stream, "SALES")
        }), { layer: { stream: { name: "SALES", subjects: ["sales.>"] } } }))

    it.live("of a stream that others made is not widened; the error has the command", () =>
      on(() =>
        Effect.gen(function*() {
          const jsm = yield* manager
          yield* Effect.promise(() => jsm.streams.add({ name: "orders", subjects: ["orders"] }))
          const error = yield* Effect.flip(Effect.scoped(Pipeline.start(west)))
          assert.include(error.message, `nats stream edit orders --subjects "orders,orders.eu,orders.us"`)
        })
      ))

    it.live("a stream is read by its name: a mirror, and what a transform stored", () =>
      on(() =>
        Effect.gen(function*() {
          const jsm = yield* manager
          yield* publish("orders", ["{\"id\":1}"])
          yield* Effect.promise(() => jsm.streams.add({ name: "MIRROR", mirror: { name: "orders" } }))
          const seen: Array<string> = []
          const running = yield* Pipeline.start(
            JetStream.from(Orders, { group: "copies", stream: "MIRROR", startFrom: "beginning" }).pipe(
              Pipeline.tap((_, message) => Effect.sync(() => seen.push(message.topic)))
            )
          )
          yield* until(running.counts, ({ handled }) => handled === 1)
          assert.deepStrictEqual(seen, ["orders"])
          assert.deepStrictEqual(
            (yield* JetStream.read(Orders, { stream: "MIRROR" }).pipe(Stream.take(1), Stream.runCollect)).map((
              { value }
            ) => value.id),
            [1]
          )
          yield* Effect.promise(() =>
            jsm.streams.add({
              name: "SHARDED",
              subjects: ["jobs.*"],
              subject_transform: { src: "jobs.*", dest: "sharded.{{wildcard(1)}}" }
            })
          )
          yield* publish("jobs.a", ["{\"id\":2}"])
          const stored = yield* Effect.flip(subscribe("sharded.a"))
          assert.match(stored.message, /to be read by its name, .*stream: "SHARDED"/)
          const sharded = yield* Pipeline.start(
            JetStream.from(Orders, { group: "shards", stream: "SHARDED", startFrom: "beginning" }).pipe(
              Pipeline.tap((_, message) => Effect.sync(() => seen.push(message.topic)))
            )
          )
          yield* until(sharded.counts, ({ handled }) => handled === 1)
          assert.deepStrictEqual(seen, ["orders", "sharded.a"])
        })
      ))

    it.live("the name of a mirror with subjects of its origin reads the origin, and a line says so", () =>
      logged((lines) =>
        on(() =>
          Effect.gen(function*() {
            const jsm = yield* manager
            yield* publish("orders", ["{\"id\":1}"])
            yield* Effect.promise(() => jsm.streams.add({ name: "MIRROR", mirror: { name: "orders" } }))
            const Mirror = Topic.make("MIRROR", { schema: Schema.Struct({ id: Schema.Number }) })
            yield* Effect.scoped(Pipeline.start(JetStream.from(Mirror, { group: "g", subjects: ["orders"] })))
            assert.isTrue(lines.some((line) => line.includes("stream MIRROR is a mirror, and stream orders is read")))
          })
        )
      ))
  })

  describe("bad messages", () => {
    it.live("a line break in an id or header is refused by name, and holds up no other publish", () =>
      on(() =>
        Effect.gen(function*() {
          const transport = yield* Transport
          yield* transport.declare("orders", "output")
          const hostile = Arr.makeBy(3000, (i) =>
            i === 2000
              ? outgoing("orders", "x", { id: "a\r\nNats-Msg-Id: b" })
              : i === 2500
              ? outgoing("orders", "x", { headers: { note: "two\nlines" } })
              : outgoing("orders", String(i)))
          const [results, innocent] = yield* Effect.all(
            [
              transport.publish(hostile as unknown as Arr.NonEmptyArray<typeof hostile[number]>),
              publish("orders", ["innocent"])
            ],
            { concurrency: "unbounded" }
          ).pipe(Effect.timeout("1 minute"))
          const refused = results.flatMap((result) => Result.isFailure(result) ? [result.failure.message] : [])
          assert.strictEqual(refused.length, 2)
          assert.match(refused[0]!, /id is .*one line/)
          assert.match(refused[1]!, /header note is .*one line/)
          assert.strictEqual(innocent.length, 1)
        })
      ))

    it.live("one id in two topics of a stream is two messages, and so are ids that differ by white space", () =>
      on(() =>
        Effect.gen(function*() {
          const transport = yield* Transport
          const results = yield* transport.publish([
            outgoing("orders.a", "a", { id: "same" }),
            outgoing("orders.b", "b", { id: "same" }),
            ...["same", "same ", "same\t", "same/", "same /"].map((id) => outgoing("orders.a", "a", { id }))
          ])
          assert.deepStrictEqual(
            results.map((result) => Result.getOrThrow(result).duplicate),
            [false, false, true, false, false, false, false]
          )
        }), { layer: { stream: { name: "ORDERS", subjects: ["orders.>"] } } }))

    it.live("a header may have a name that objects have too", () =>
      on(() =>
        Effect.gen(function*() {
          const transport = yield* Transport
          const names = ["constructor", "__proto__", "tostring", "hasownproperty"]
          // Computed, so that all of them are own names.
          const headers = Object.fromEntries(names.map((name) => [name, `of ${name}`]))
          yield* transport.publish([outgoing("orders", "a", { headers })])
          const [taken] = yield* take(yield* subscribe("orders"), 1)
          const [browsed] = yield* Stream.runCollect(transport.browse("orders"))
          for (const delivery of [taken!, browsed!]) {
            assert.deepStrictEqual(
              Object.keys(delivery.headers).map((name) => delivery.headers[name]),
              names.map((name) => `of ${name}`)
            )
          }
        })
      ))

    it.live("a delay that no date can hold is refused, and an endless retry delay is not an immediate one", () =>
      on(() =>
        Effect.gen(function*() {
          const transport = yield* Transport
          const [result] = yield* transport.publish([outgoing("orders", "a", { delay: Duration.infinity })])
          assert.strictEqual(Result.isFailure(result!) && result.failure.reason._tag, "InvalidOption")
          yield* publish("orders", ["b"])
          const subscription = yield* subscribe("orders")
          const taken = yield* take(subscription, 1)
          yield* settle(subscription, taken, { _tag: "Retry", after: Duration.infinity })
          const again = yield* Effect.forkScoped(subscription.pull(demand(1)))
          yield* Effect.sleep("500 millis")
          assert.isUndefined(again.pollUnsafe())
        })
      ))
  })

  it.live("no inspection of the service or a delivery shows the password", () =>
    Effect.scoped(Effect.gen(function*() {
      const users = (password: string) => `authorization { user: app, password: ${password} }`
      const broker = yield* Brokers.nats({ version, config: users("right") })
      const url = broker.url.replace("nats://", "nats://app:right@")
      yield* Effect.gen(function*() {
        const subscription = yield* subscribe("orders")
        yield* publish("orders", ["a"])
        assert.notInclude(inspect(yield* JetStream.JetStream, { depth: null }), "right")
        const [delivery] = yield* take(subscription, 1)
        assert.notInclude(inspect(delivery, { depth: null }), "right")
      }).pipe(Effect.scoped, Effect.provide(Layer.fresh(JetStream.layer({ url }))))
    })))

  it.live("a purge ends retries that wait, and a key whose head was purged goes on", () =>
    on(() =>
      Effect.gen(function*() {
        const handled: Array<number> = []
        const running = yield* Pipeline.start(
          JetStream.from(Orders, { group: "group", startFrom: "beginning", ackWait: "1 second" }).pipe(
            Pipeline.mapEffect(({ id }) => id === 0 ? Effect.fail("later") : Effect.sync(() => handled.push(id))),
            Pipeline.retry({ times: 9, schedule: Schedule.spaced("1 second") }),
            Pipeline.concurrency({ max: 4, key: () => "" })
          )
        )
        yield* Publisher.publish(Orders, { id: 0 })
        yield* until(running.counts, ({ retried }) => retried === 1)
        const jsm = yield* manager
        yield* Effect.promise(() => jsm.streams.purge("orders"))
        yield* Publisher.publish(Orders, { id: 1 })
        yield* until(Effect.sync(() => handled), (handled) => handled.length === 1)
        yield* until(JetStream.consumerInfo(Orders, "group"), ({ lag }) => lag === 0)
        assert.strictEqual((yield* running.counts).deadLettered, 0)
      })
    ))

  it.live("messages that a process left behind when it died are handled at full concurrency", () =>
    on(() =>
      Effect.gen(function*() {
        yield* Publisher.publishAll(Orders, Arr.makeBy(300, (id) => ({ id })))
        yield* take(yield* subscribe("orders", { ackWait: "1 second", maxOwned: 300 }), 300)
        let handling = 0
        const full = Deferred.makeUnsafe<void>()
        const running = yield* Pipeline.start(
          JetStream.from(Orders, { group: "group", startFrom: "beginning", ackWait: "1 second" }).pipe(
            Pipeline.mapEffect(() => {
              if (++handling === 64) Deferred.doneUnsafe(full, Effect.void)
              return Deferred.await(full)
            }),
            Pipeline.concurrency(64)
          )
        )
        yield* until(running.counts, ({ handled }) => handled >= 300)
      })
    ))

  it.live.skipIf(before(version, 11))(
    "dead letters are listed in batches: a request for hundreds of them",
    () =>
      on(() =>
        Effect.gen(function*() {
          const { client } = yield* JetStream.JetStream
          const transport = yield* Transport
          yield* Effect.scoped(Effect.gen(function*() {
            const running = yield* Pipeline.start(
              Pipeline.from(Orders, { group: "g", startFrom: "beginning" }).pipe(
                Pipeline.mapEffect(() => Effect.fail("no")),
                Pipeline.retry({ times: 0 })
              )
            )
            yield* Publisher.publish(Orders, { id: 1 })
            yield* until(running.counts, ({ deadLettered }) => deadLettered === 1)
          }))
          const [{ body, headers }] = yield* Stream.runCollect(transport.browse("orders.dead"))
          yield* transport.publish(Arr.map(Arr.range(2, 1200), () => outgoing("orders.dead", "", { body, headers })))
          const before = client.stats().outMsgs
          const letters = yield* Stream.runCollect(DeadLetter.list("orders.dead"))
          assert.strictEqual(letters.length, 1200)
          assert.isAtMost(client.stats().outMsgs - before, 20)
        })
      )
  )

  it.live("browsing goes both ways, in pages, between ids", () =>
    on(() =>
      Effect.gen(function*() {
        const transport = yield* Transport
        const published = yield* publish("orders", Arr.makeBy(1200, String))
        yield* publish("orders.other", ["not this one"])
        const texts = (options: Parameters<typeof transport.browse>[1]) =>
          Effect.map(
            Stream.runCollect(transport.browse("orders", options)),
            (all: ReadonlyArray<Delivery>) => all.map(text)
          )
        assert.deepStrictEqual(yield* texts({}), Arr.makeBy(1200, String))
        assert.deepStrictEqual(yield* texts({ reverse: true, limit: 3 }), ["1199", "1198", "1197"])
        assert.deepStrictEqual(yield* texts({ after: published[9]!.id, before: published[13]!.id }), ["10", "11", "12"])
        assert.deepStrictEqual(
          yield* texts({ before: published[700]!.id, reverse: true }),
          Arr.makeBy(700, (i) => String(699 - i))
        )
        const found = yield* transport.get("orders", published[41]!.id)
        assert.strictEqual(Option.map(found, text).pipe(Option.getOrNull), "41")
        const [group] = yield* Effect.andThen(subscribe("orders"), transport.groups("orders"))
        assert.deepInclude(group, { group: "group", lag: 1200, pending: 0 })
        assert.isNumber(group!.oldest)
      })
    ))
})
