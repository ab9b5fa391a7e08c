/**
 * What went wrong with a peer (FastStream 0.7) on NATS, each measured there, and must not here.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Pipeline from "@millrace/core/Pipeline"
import * as Publisher from "@millrace/core/Publisher"
import * as Telemetry from "@millrace/core/Telemetry"
import * as Topic from "@millrace/core/Topic"
import { Transport } from "@millrace/core/Transport"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import * as JetStream from "../src/JetStream.ts"
import { onNats, publish, until } from "./nats.ts"

const Job = Schema.Struct({ n: Schema.Number })
const Jobs = Topic.make("jobs", { schema: Job })
const from = JetStream.from(Jobs, { group: "workers", startFrom: "beginning", ackWait: "30 seconds" })
const info = JetStream.consumerInfo(Jobs, "workers")

const publishJobs = (count: number, first = 0) =>
  Publisher.publishAll(Jobs, Arr.makeBy(count, (i) => ({ n: first + i }))).pipe(
    Effect.retry(Schedule.spaced("50 millis"))
  )

describe("P9", () => {
  it.live(
    "a server away for longer than a client's ten tries: the pipeline recovers, the event loop is never blocked, no hot loop",
    () =>
      onNats((broker) =>
        Effect.gen(function*() {
          const { client } = yield* JetStream.JetStream
          const seen = new Set<number>()
          const running = yield* Pipeline.start(from.pipe(
            Pipeline.map((job) => seen.add(job.n)),
            Pipeline.discard
          ))
          yield* publishJobs(10)
          yield* until(Effect.sync(() => seen.size), (size) => size === 10)

          let tries = 0
          const watching = yield* Effect.forkScoped(
            Stream.fromAsyncIterable(client.status(), (cause) => cause).pipe(
              Stream.runForEach((status) => Effect.sync(() => status.type === "reconnecting" && tries++))
            )
          )
          yield* broker.kill
          yield* until(running.health, ({ state }) => state === "reconnecting")
          const cpu = process.cpuUsage()
          yield* until(Effect.sync(() => tries), (tries) => tries > 11, "2 minutes")
          const used = process.cpuUsage(cpu)
          // A blocked event loop and a hot loop both use the processor.
          assert.isBelow((used.user + used.system) / 1e6, 5)
          assert.isUndefined(watching.pollUnsafe())

          yield* broker.start
          yield* publishJobs(10, 10)
          yield* until(Effect.sync(() => seen.size), (size) => size === 20)
          yield* until(running.health, ({ state }) => state === "consuming")
        }), { sync: "always" }),
    90_000
  )
})

describe("P11", () => {
  it.live("the acknowledgement of a handler that finishes during an outage is sent after it, and the handler does not run again", () =>
    onNats((broker) =>
      Effect.gen(function*() {
        const go = Deferred.makeUnsafe<void>()
        const begun = Deferred.makeUnsafe<void>()
        let runs = 0
        const running = yield* Pipeline.start(from.pipe(
          Pipeline.tap(() =>
            Effect.suspend(() => {
              runs++
              Deferred.doneUnsafe(begun, Effect.void)
              return Deferred.await(go)
            })
          ),
          Pipeline.discard
        ))
        yield* publishJobs(1)
        yield* Deferred.await(begun)
        // The server writes down what it has delivered now and then; one that is asked to stop has done so.
        yield* broker.stop
        yield* until(running.health, ({ state }) => state === "reconnecting")
        Deferred.doneUnsafe(go, Effect.void)
        yield* until(running.counts, (counts) => counts.handled === 1)
        yield* broker.start
        yield* until(Effect.retry(info, Schedule.spaced("50 millis")), (info) => info.lag === 0)
        assert.strictEqual(runs, 1)
      }), { sync: "always" }))
})

describe("P12", () => {
  it.live("publishing during an outage waits for the server in a step, and is stored once", () =>
    onNats((broker) =>
      Effect.gen(function*() {
        const Results = Topic.make("results", { schema: Job })
        const go = Deferred.makeUnsafe<void>()
        const begun = Deferred.makeUnsafe<void>()
        const running = yield* Pipeline.start(from.pipe(
          Pipeline.tap(() =>
            Effect.suspend(() => {
              Deferred.doneUnsafe(begun, Effect.void)
              return Deferred.await(go)
            })
          ),
          Pipeline.to(Results),
          Pipeline.retry({ times: 0 })
        ))
        yield* publishJobs(1)
        yield* Deferred.await(begun)
        yield* broker.stop
        yield* until(running.health, ({ state }) => state === "reconnecting")
        Deferred.doneUnsafe(go, Effect.void)
        yield* Effect.sleep("1500 millis")
        yield* broker.start
        yield* until(running.counts, (counts) => counts.handled === 1)
        assert.strictEqual((yield* running.counts).deadLettered, 0)
        assert.strictEqual((yield* JetStream.streamInfo(Results)).messages, 1)
      }), { sync: "always" }))

  it.live("consuming resumes within seconds of the server being back", () =>
    onNats((broker) =>
      Effect.gen(function*() {
        const seen = new Set<number>()
        yield* Pipeline.start(from.pipe(Pipeline.map((job) => seen.add(job.n)), Pipeline.discard))
        yield* publishJobs(1)
        yield* until(Effect.sync(() => seen.size), (size) => size === 1)
        yield* broker.kill
        yield* broker.start
        yield* publishJobs(1, 1)
        // Well before the ack wait, 30 seconds, ends.
        yield* until(Effect.sync(() => seen.size), (size) => size === 2, "15 seconds")
      }), { sync: "always" }))
})

describe("P13", () => {
  it.live("two slow workers own two messages, and leave the rest to others", () =>
    onNats(() =>
      Effect.gen(function*() {
        yield* publishJobs(200)
        let started = 0
        yield* Pipeline.start(from.pipe(
          Pipeline.tap(() => Effect.sync(() => started++).pipe(Effect.andThen(Effect.sleep("2 seconds")))),
          Pipeline.discard,
          Pipeline.concurrency(2)
        ))
        yield* until(Effect.sync(() => started), (started) => started >= 4)
        // Prefetch is measured in time: 200 ms of work that takes two seconds each is less than one message.
        yield* until(info, ({ ackPending }) => ackPending <= 3)
      })
    ))
})

describe("P14", () => {
  it.live("stopping lets the handler finish, and releases the rest to a peer, uncounted", () =>
    onNats((broker) =>
      Effect.gen(function*() {
        yield* publishJobs(100)
        const finished: Array<number> = []
        let begun = 0
        yield* Effect.scoped(Effect.gen(function*() {
          yield* Pipeline.start(
            JetStream.from(Jobs, { group: "workers", startFrom: "beginning", prefetch: 50 }).pipe(
              Pipeline.tap((job) =>
                Effect.sync(() => begun++).pipe(
                  Effect.andThen(Effect.sleep("300 millis")),
                  Effect.tap(() => Effect.sync(() => finished.push(job.n)))
                )
              ),
              Pipeline.discard,
              Pipeline.concurrency(4)
            )
          )
          yield* until(Effect.sync(() => begun), (begun) => begun === 4)
        })).pipe(Effect.provide(Layer.fresh(JetStream.layer({ url: broker.url }))))
        // None was cut off.
        assert.isAtLeast(finished.length, 4)
        yield* until(info, ({ lag }) => lag === 100 - finished.length)

        const attempts: Array<number> = []
        const seen = new Set<number>(finished)
        yield* Pipeline.start(from.pipe(
          Pipeline.map((job, message) => {
            seen.add(job.n)
            attempts.push(message.attempt)
          }),
          Pipeline.discard
        ))
        yield* until(Effect.sync(() => seen.size), (size) => size === 100)
        assert.deepStrictEqual(Arr.dedupe(attempts), [1])
      })
    ))
})

describe("P15", () => {
  it.live("a handler that always fails runs as often as the policy says, then its message is kept as a dead letter", () =>
    onNats(() =>
      Effect.gen(function*() {
        const transport = yield* Transport
        yield* publishJobs(1)
        const attempts: Array<number> = []
        const running = yield* Pipeline.start(from.pipe(
          Pipeline.mapEffect((_, message) => {
            attempts.push(message.attempt)
            return Effect.fail("no")
          }),
          Pipeline.retry({ times: 3, schedule: Schedule.spaced("50 millis") })
        ))
        yield* until(running.counts, (counts) => counts.deadLettered === 1)
        assert.deepStrictEqual(attempts, [1, 2, 3, 4])
        const [dead] = yield* Stream.runCollect(transport.browse("jobs.dead"))
        assert.deepStrictEqual(JSON.parse(new TextDecoder().decode(dead!.body)), { n: 0 })
        yield* until(info, (info) => info.lag === 0)
      })
    ))

  it.live("a retry without a delay does not run thousands of times", () =>
    onNats(() =>
      Effect.gen(function*() {
        yield* publishJobs(1)
        let runs = 0
        yield* Pipeline.start(from.pipe(
          Pipeline.mapEffect(() => {
            runs++
            return Effect.fail("no")
          }),
          Pipeline.retry({ times: Infinity })
        ))
        yield* Effect.sleep("2 seconds")
        assert.isAtMost(runs, 5)
      })
    ))

  it.live("an undecodable message is a dead letter at attempt 1, and stops no other message", () =>
    onNats(() =>
      Effect.gen(function*() {
        const transport = yield* Transport
        yield* publish("jobs", ["not JSON", JSON.stringify({ n: "text" }), "", JSON.stringify({ n: 7 })])
        const seen: Array<number> = []
        const running = yield* Pipeline.start(from.pipe(Pipeline.map((job) => seen.push(job.n))))
        yield* until(running.counts, (counts) => counts.deadLettered === 3 && counts.handled === 1)
        assert.deepStrictEqual(seen, [7])
        const dead = yield* Stream.runCollect(transport.browse("jobs.dead"))
        assert.deepStrictEqual(dead.map((delivery) => new TextDecoder().decode(delivery.body)), [
          "not JSON",
          "{\"n\":\"text\"}",
          ""
        ])
      })
    ))
})

describe("P16", () => {
  it.live("published messages are handled concurrently, and a handler's failure does not reach the publisher", () =>
    onNats(() =>
      Effect.gen(function*() {
        let running = 0
        let most = 0
        const outcomes: Array<string> = []
        yield* Pipeline.start(from.pipe(
          Pipeline.mapEffect((job, message) =>
            Effect.gen(function*() {
              most = Math.max(most, ++running)
              yield* Effect.sleep("100 millis")
              running--
              if (job.n === 0 && message.attempt === 1) return yield* Effect.fail("once")
            })
          ),
          Pipeline.retry({ times: 1, schedule: Schedule.spaced("10 millis") }),
          Pipeline.concurrency(4)
        )).pipe(Effect.provideService(Telemetry.Observer, (outcome) => void outcomes.push(outcome._tag)))
        yield* publishJobs(8)
        yield* until(Effect.sync(() => outcomes.filter((tag) => tag === "Handled").length), (handled) => handled === 8)
        assert.strictEqual(most, 4)
        assert.strictEqual(outcomes.filter((tag) => tag === "Retried").length, 1)
      })
    ))
})
