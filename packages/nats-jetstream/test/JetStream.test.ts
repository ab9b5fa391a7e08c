import { assert, describe, it } from "@effect/vitest"
import * as DeadLetter from "@millrace/core/DeadLetter"
import * as Message from "@millrace/core/Message"
import * as Pipeline from "@millrace/core/Pipeline"
import * as Publisher from "@millrace/core/Publisher"
import * as Settlement from "@millrace/core/Settlement"
import * as Topic from "@millrace/core/Topic"
import { Transport } from "@millrace/core/Transport"
import { MemoryTransport } from "@millrace/testing"
import { jetstreamManager } from "@nats-io/jetstream"
import * as Arr from "effect/Array"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import * as JetStream from "../src/JetStream.ts"
import { before, onNats, until, versions } from "./nats.ts"

const Order = Schema.Struct({ id: Schema.Number })
const Orders = Topic.make("orders", { schema: Order, key: (order) => `customer ${order.id % 3}` })
const Receipts = Topic.make("receipts", { schema: Order })

const manager = Effect.flatMap(JetStream.JetStream, ({ client }) => Effect.promise(() => jetstreamManager(client)))
const orders = (count: number) => Arr.makeBy(count, (id) => ({ id }))

describe.each(versions)("on nats-server %s", (version) => {
  const on = (f: Parameters<typeof onNats>[0], options: Parameters<typeof onNats>[1] = {}) =>
    onNats(f, { version, ...options })

  describe("from", () => {
    it.live("wildcards give typed parameters of the subject", () =>
      on(() =>
        Effect.gen(function*() {
          const seen: Array<string> = []
          yield* Pipeline.start(
            JetStream.from(Orders, { group: "regions", subject: "orders.{region}.*.{kind}", startFrom: "beginning" })
              .pipe(
                Pipeline.map((order, message) => {
                  const { kind, region } = message.params
                  seen.push(`${region} ${kind} ${order.id} ${message.topic} ${message.key}`)
                }),
                Pipeline.discard
              )
          )
          yield* JetStream.publish(Orders, { id: 1 }, { subject: "orders.eu.x.new" })
          yield* JetStream.publish(Orders, { id: 2 }, { subject: "orders.us.y.old" })
          yield* until(Effect.sync(() => seen), (seen) => seen.length === 2)
          assert.deepStrictEqual(seen, [
            "eu new 1 orders.eu.x.new customer 1",
            "us old 2 orders.us.y.old customer 2"
          ])
        })
      ))

    it.live.skipIf(before(version, 10))(
      "a dead letter of a family of subjects is redriven to its group",
      () =>
        on(() =>
          Effect.gen(function*() {
            const attempts: Array<string> = []
            yield* Pipeline.start(
              JetStream.from(Orders, { group: "regions", subject: "orders.{region}.created", startFrom: "beginning" })
                .pipe(
                  Pipeline.map((_, message) => {
                    attempts.push(message.topic)
                    if (attempts.length === 1) throw new Error("declined")
                  }),
                  Pipeline.retry({ times: 0 }),
                  Pipeline.deadLetter("orders.dead")
                )
            )
            yield* JetStream.publish(Orders, { id: 1 }, { subject: "orders.eu.created" })
            const redriven = yield* until(DeadLetter.redrive("orders.dead"), ({ redriven }) => redriven === 1)
            assert.isUndefined(redriven.refused)
            yield* until(Effect.sync(() => attempts), (attempts) => attempts.length === 2)
            assert.deepStrictEqual(attempts, ["orders.eu.created", "orders.eu.created"])
          })
        )
    )

    it.live.skipIf(before(version, 10))("several filter subjects", () =>
      on(() =>
        Effect.gen(function*() {
          const jsm = yield* manager
          yield* Effect.promise(() => jsm.streams.add({ name: "ALL", subjects: ["orders", "orders.>"] }))
          for (const subject of ["orders.eu", "orders.us", "orders.jp"]) {
            yield* JetStream.publish(Orders, { id: 1 }, { subject })
          }
          const seen: Array<string> = []
          yield* Pipeline.start(
            JetStream.from(Orders, { group: "west", subjects: ["orders.eu", "orders.us"], startFrom: "beginning" })
              .pipe(
                Pipeline.map((_, message) => seen.push(message.topic)),
                Pipeline.discard
              )
          )
          yield* JetStream.publish(Orders, { id: 1 }, { subject: "orders.us" })
          yield* until(Effect.sync(() => seen), (seen) => seen.length === 3)
          assert.deepStrictEqual(seen, ["orders.eu", "orders.us", "orders.us"])
        })
      ))

    it.live("a group begins at a sequence or a time, and an existing one goes on where it stands", () =>
      on(() =>
        Effect.gen(function*() {
          yield* Publisher.publishAll(Orders, orders(5))
          yield* Effect.sleep("50 millis")
          const middle = yield* DateTime.now
          yield* Publisher.publishAll(Orders, orders(7).slice(5))
          const read = (group: string, startFrom: JetStream.StartFrom, count: number) =>
            Effect.scoped(Effect.gen(function*() {
              const seen: Array<number> = []
              yield* Pipeline.start(
                JetStream.from(Orders, { group, startFrom }).pipe(
                  Pipeline.map((order) => seen.push(order.id)),
                  Pipeline.discard
                )
              )
              yield* until(Effect.sync(() => seen), (seen) => seen.length >= count)
              return seen
            }))
          assert.deepStrictEqual(yield* read("a", { sequence: 4 }, 4), [3, 4, 5, 6])
          assert.deepStrictEqual(yield* read("b", { time: middle }, 2), [5, 6])
          yield* Publisher.publishAll(Orders, [{ id: 7 }])
          assert.deepStrictEqual(yield* read("a", "beginning", 1), [7])
        })
      ))
  })

  describe("ackSync", () => {
    it.live("the server has confirmed it when it returns; a failure afterwards is counted and not retried", () =>
      on(() =>
        Effect.gen(function*() {
          yield* Publisher.publish(Orders, { id: 1 })
          const answers: Array<unknown> = []
          const running = yield* Pipeline.start(
            JetStream.from(Orders, { group: "g", startFrom: "beginning" }).pipe(
              Pipeline.mapEffect((_, message) =>
                Effect.gen(function*() {
                  answers.push(yield* JetStream.ackSync(message))
                  answers.push((yield* Effect.orDie(JetStream.consumerInfo(Orders, "g"))).ackPending)
                  answers.push(yield* JetStream.ackSync(message))
                  answers.push(yield* Message.settle(message, Settlement.ack))
                  return yield* Effect.fail("too late")
                })
              ),
              Pipeline.discard
            )
          )
          yield* until(running.counts, (counts) => counts.failedAfterSettle === 1)
          assert.deepStrictEqual(answers, [true, 0, false, false])
          assert.strictEqual((yield* running.counts).retried, 0)
        })
      ))

    it.live("a confirmation that does not come in time is asked for again until it is known; the message is handled once", () =>
      on((broker) =>
        Effect.gen(function*() {
          yield* Publisher.publish(Orders, { id: 1 })
          const began: Array<number> = []
          const confirmed: Array<boolean> = []
          const running = yield* Pipeline.start(
            JetStream.from(Orders, { group: "g", startFrom: "beginning" }).pipe(
              Pipeline.mapEffect((_, message) =>
                Effect.gen(function*() {
                  began.push(message.attempt)
                  yield* broker.pause
                  yield* Effect.forkChild(Effect.delay(broker.resume, "700 millis"))
                  confirmed.push(yield* JetStream.ackSync(message, { timeout: "200 millis" }))
                })
              ),
              Pipeline.retry({ times: 3, schedule: Schedule.spaced("100 millis") })
            )
          )
          yield* until(running.counts, (counts) => counts.handled === 1)
          const { ackPending, lag } = yield* JetStream.consumerInfo(Orders, "g")
          assert.deepStrictEqual({ began, confirmed, lag, ackPending }, {
            began: [1],
            confirmed: [true],
            lag: 0,
            ackPending: 0
          })
          assert.deepInclude(yield* running.counts, { retried: 0, failedAfterSettle: 0, deadLettered: 0 })
        })
      ))

    it.live("an acknowledgement that was interrupted goes on; the handler that failed meanwhile is counted, not retried", () =>
      on((broker) =>
        Effect.gen(function*() {
          yield* Publisher.publish(Orders, { id: 1 })
          const began: Array<number> = []
          const running = yield* Pipeline.start(
            JetStream.from(Orders, { group: "g", startFrom: "beginning" }).pipe(
              Pipeline.mapEffect((_, message) => {
                began.push(message.attempt)
                return Effect.andThen(broker.pause, JetStream.ackSync(message))
              }),
              // Long enough for the pause on a busy machine.
              Pipeline.timeout("2 seconds"),
              Pipeline.retry({ times: 3, schedule: Schedule.spaced("100 millis") })
            )
          )
          yield* until(running.counts, (counts) => counts.failedAfterSettle === 1)
          yield* broker.resume
          yield* until(JetStream.consumerInfo(Orders, "g"), (info) => info.lag === 0)
          assert.deepStrictEqual(began, [1])
          assert.deepInclude(yield* running.counts, { retried: 0, deadLettered: 0 })
        })
      ))

    it.live("a handler may say that it still works; false when a peer may have the message", () =>
      on(() =>
        Effect.gen(function*() {
          yield* Publisher.publish(Orders, { id: 1 })
          const answers: Array<boolean> = []
          const running = yield* Pipeline.start(
            JetStream.from(Orders, { group: "g", startFrom: "beginning", ackWait: "1 second" }).pipe(
              Pipeline.mapEffect((_, message) =>
                Effect.gen(function*() {
                  if (message.attempt > 1) return
                  answers.push(yield* JetStream.inProgress(message))
                  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1500)
                  answers.push(yield* JetStream.inProgress(message))
                })
              )
            )
          )
          yield* until(running.counts, (counts) => counts.handled === 1)
          assert.deepStrictEqual(answers, [true, false])
        })
      ))

    it.live("a message of another broker is refused", () =>
      on(() =>
        Effect.gen(function*() {
          const service = yield* JetStream.JetStream
          const answers: Array<string> = []
          const running = yield* Pipeline.start(
            Pipeline.from(Orders, { group: "g", startFrom: "beginning" }).pipe(
              Pipeline.mapEffect((_, message) => JetStream.ackSync(message)),
              Pipeline.catchTag("SettleError", (error) => Effect.sync(() => answers.push(String(error.cause)))),
              Pipeline.discard
            )
          ).pipe(
            Effect.provideService(JetStream.JetStream, service),
            Effect.tap(() => Publisher.publish(Orders, { id: 1 })),
            Effect.provide(yield* Layer.build(MemoryTransport.layer()))
          )
          yield* until(running.counts, (counts) => counts.handled === 1)
          assert.match(answers[0]!, /did not come from this JetStream layer/)
        })
      ))

    it.live("a pipeline may have each acknowledgement confirmed", () =>
      on(() =>
        Effect.gen(function*() {
          yield* Publisher.publishAll(Orders, orders(500))
          const running = yield* Pipeline.start(
            Pipeline.from(Orders, { group: "g", startFrom: "beginning" }).pipe(
              Pipeline.discard,
              Pipeline.concurrency(16),
              JetStream.acknowledge("confirm")
            )
          )
          yield* until(running.counts, (counts) => counts.handled === 500)
          yield* until(JetStream.consumerInfo(Orders, "g"), (info) => info.lag === 0)
        })
      ))
  })

  describe("publishing", () => {
    it.live("under an id of its own: the server takes it once", () =>
      on(() =>
        Effect.gen(function*() {
          const first = yield* JetStream.publish(Orders, { id: 1 }, { id: "x" })
          const second = yield* JetStream.publish(Orders, { id: 1 }, { id: "x" })
          assert.deepStrictEqual([first.sequence, second.sequence, second.duplicate], [1, 1, true])
          assert.strictEqual((yield* JetStream.publish(Orders, { id: 1 })).sequence, 2)
        })
      ))

    it.live("through an outage, once", () =>
      on((broker) =>
        Effect.gen(function*() {
          yield* JetStream.publish(Orders, { id: 1 })
          yield* broker.pause
          const sending = yield* Effect.forkScoped(JetStream.publish(Orders, { id: 2 }))
          yield* Effect.sleep("100 millis")
          yield* broker.kill
          yield* broker.start
          yield* until(Effect.sync(() => sending.pollUnsafe()), (exit) => exit !== undefined)
          assert.strictEqual((yield* JetStream.streamInfo(Orders)).messages, 2)
        }), { sync: before(version, 10) ? "interval" : "always" }))

    it.live("an expectation that does not hold is refused", () =>
      on(() =>
        Effect.gen(function*() {
          yield* JetStream.publish(Orders, { id: 1 }, { expect: { lastSequence: 0 } })
          const error = yield* Effect.flip(JetStream.publish(Orders, { id: 1 }, { expect: { lastSubjectSequence: 7 } }))
          assert.strictEqual(error.reason._tag, "Refused")
          assert.match(error.message, /wrong last sequence: 1/)
          yield* JetStream.publish(Orders, { id: 2 }, { expect: { lastSubjectSequence: 1, stream: "orders" } })
        })
      ))

    it.live("a time to live, where the server has it", () =>
      on(() =>
        Effect.gen(function*() {
          const publishing = JetStream.publish(Orders, { id: 1 }, { ttl: "1 second" })
          if (before(version, 11)) {
            assert.match((yield* Effect.flip(publishing)).message, /nats-server 2\.11/)
          } else {
            yield* publishing
            yield* until(JetStream.streamInfo(Orders), (info) => info.messages === 0)
          }
        })
      ))

    it.live("a batch is stored as one, or refused as one", () =>
      on(() =>
        Effect.gen(function*() {
          const publishing = JetStream.publishBatch(Orders, [{ id: 1 }, { id: 2 }, { id: 3 }])
          if (before(version, 12)) {
            assert.match((yield* Effect.flip(publishing)).message, /nats-server 2\.12/)
            return
          }
          assert.deepStrictEqual(yield* publishing, { stream: "orders", lastSequence: 3 })
          const transport = yield* Transport
          const stored = yield* Stream.runCollect(transport.browse("orders"))
          assert.deepStrictEqual(stored.map(({ key }) => key), ["customer 1", "customer 2", "customer 0"])
          const many = yield* Effect.flip(JetStream.publishBatch(Orders, [{ id: 0 }, ...orders(1000)]))
          assert.match(many.message, /batch is 1001 messages/)
          const jsm = yield* manager
          yield* Effect.promise(() => jsm.streams.add({ name: "plain", subjects: ["plain"] }))
          const Plain = Topic.make("plain", { schema: Order })
          const refused = yield* Effect.flip(JetStream.publishBatch(Plain, [{ id: 1 }, { id: 2 }]))
          assert.match(refused.message, /atomic publish is disabled/)
          assert.strictEqual((yield* JetStream.streamInfo("plain")).messages, 0)
        })
      ))

    it.live("to publishes from a pipeline on another broker, once for each message", () =>
      on(() =>
        Effect.gen(function*() {
          const service = yield* JetStream.JetStream
          let failures = 3
          const running = yield* Pipeline.start(
            Pipeline.from(Orders, { group: "g", startFrom: "beginning" }).pipe(
              JetStream.to(Receipts),
              JetStream.to(Receipts, (order) => ({ id: -order.id })),
              Pipeline.mapEffect(() => failures-- > 0 ? Effect.fail("late") : Effect.void),
              Pipeline.retry({ times: 5, schedule: Schedule.spaced("10 millis") }),
              Pipeline.discard
            )
          ).pipe(
            Effect.provideService(JetStream.JetStream, service),
            Effect.tap(() => Publisher.publishAll(Orders, orders(3))),
            Effect.provide(yield* Layer.build(MemoryTransport.layer()))
          )
          yield* until(running.counts, (counts) => counts.handled === 3)
          assert.strictEqual((yield* JetStream.streamInfo(Receipts)).messages, 6)
        })
      ))
  })

  it.live("reading without a group goes on with what is published later, in order", () =>
    on((broker) =>
      Effect.gen(function*() {
        yield* Publisher.publishAll(Orders, orders(3))
        const reading = yield* Effect.forkScoped(
          JetStream.read(Orders, { startFrom: { sequence: 2 } }).pipe(
            Stream.take(4),
            Stream.runCollect,
            Effect.provide(Layer.fresh(JetStream.layer({ url: broker.url })))
          )
        )
        yield* Effect.sleep("200 millis")
        yield* Publisher.publishAll(Orders, orders(5).slice(3))
        const read = yield* until(Effect.sync(() => reading.pollUnsafe()), (exit) => exit !== undefined)
        assert.strictEqual(read?._tag, "Success")
        if (read?._tag === "Success") {
          assert.deepStrictEqual(read.value.map(({ id, value }) => [id.split("-")[1], value.id]), [["2", 1], ["3", 2], [
            "4",
            3
          ], [
            "5",
            4
          ]])
        }
      })
    ))

  it.live("reading without a group goes on where it was when the server is back, each once and in order", () =>
    on((broker) =>
      Effect.gen(function*() {
        yield* Publisher.publishAll(Orders, orders(3))
        const read: Array<number> = []
        yield* Effect.forkScoped(
          Stream.runForEach(JetStream.read(Orders), ({ value }) => Effect.sync(() => read.push(value.id)))
        )
        yield* until(Effect.sync(() => read.length), (length) => length === 3)
        yield* broker.restart
        yield* Effect.retry(JetStream.publish(Orders, orders(4)[3]!), Schedule.spaced("50 millis"))
        yield* until(Effect.sync(() => read.length), (length) => length >= 4, "40 seconds")
        assert.deepStrictEqual(read, orders(4).map(({ id }) => id))
      })
    ))

  it.live("a consumer with the bound that the server gives by default is read", () =>
    on(() =>
      Effect.gen(function*() {
        const jsm = yield* manager
        yield* Publisher.publishAll(Receipts, orders(1))
        yield* Effect.promise(() =>
          jsm.consumers.add("receipts", { durable_name: "g", ack_policy: "explicit", filter_subject: "receipts" })
        )
        const { config } = yield* Effect.promise(() => jsm.consumers.info("receipts", "g"))
        assert.strictEqual(config.max_ack_pending, 1000)
        const running = yield* Pipeline.start(
          Pipeline.from(Receipts, { group: "g" }).pipe(Pipeline.concurrency(64))
        )
        yield* until(running.counts, (counts) => counts.handled === 1)
      })
    ))

  it.live("what a group has left to do can be asked", () =>
    on(() =>
      Effect.gen(function*() {
        yield* Publisher.publishAll(Orders, orders(10))
        const running = yield* Pipeline.start(
          Pipeline.from(Orders, { group: "g", startFrom: "beginning", prefetch: 0, drainTimeout: 0 }).pipe(
            Pipeline.mapEffect((order) => order.id < 4 ? Effect.void : Effect.never),
            Pipeline.discard,
            Pipeline.concurrency(2)
          )
        )
        yield* until(running.counts, (counts) => counts.handled === 4)
        const info = yield* until(
          JetStream.consumerInfo(Orders, "g"),
          (info) => info.ackPending === 2 && info.ackFloor.sequence === 4
        )
        assert.deepInclude(info, { stream: "orders", consumer: "g", pending: 4, lag: 6, redelivered: 0 })
        assert.strictEqual(info.lastDelivered.sequence, 6)
        assert.isDefined(info.lastDelivered.at)
        const missing = yield* Effect.flip(JetStream.consumerInfo(Orders, "nobody"))
        assert.match(missing.message, /consumer nobody of stream orders is absent/)
      })
    ))
})
