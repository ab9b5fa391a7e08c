import { assert, describe, it } from "@effect/vitest"
import { Pipeline, Publisher, Telemetry, Topic } from "@millrace/core"
import { MemoryTransport, TestHarness } from "@millrace/testing"
import { Data, Effect, Layer, Metric, Schedule, Schema, Tracer } from "effect"
import { TestClock } from "effect/testing"
import { delivery, survives } from "./fixtures/fake.ts"

const Numbers = Topic.make("numbers", { schema: Schema.Number })
const Doubled = Topic.make("doubled", { schema: Schema.Number })
const from = Pipeline.from(Numbers, { group: "test", startFrom: "beginning" })

const recording = () => {
  const spans: Array<Tracer.NativeSpan> = []
  const layer = Layer.succeed(
    Tracer.Tracer,
    Tracer.make({
      span(options) {
        const span = new Tracer.NativeSpan(options)
        spans.push(span)
        return span
      }
    })
  )
  return { spans, layer }
}

class Declined extends Data.TaggedError("Declined") {}

describe("spans", () => {
  it.effect("one process span an attempt, linked to the publisher's, carried on to what is published", () => {
    const { layer, spans } = recording()
    return Effect.gen(function*() {
      const harness = yield* TestHarness.make(
        Numbers,
        from.pipe(Pipeline.to(Doubled, (n) => n * 2), Pipeline.middleware(Telemetry.spans()))
      )
      yield* Effect.withSpan(harness.publish(21), "request")
      const report = yield* harness.runUntilIdle()
      const [request, process, send] = spans as [Tracer.NativeSpan, Tracer.NativeSpan, Tracer.NativeSpan]
      assert.strictEqual(process.name, "process numbers")
      assert.strictEqual(process.kind, "consumer")
      assert.deepStrictEqual(process.links.map(({ span }) => span.spanId), [request.spanId])
      assert.deepStrictEqual(Object.fromEntries(process.attributes), {
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.system": "memory",
        "messaging.destination.name": "numbers",
        "messaging.consumer.group.name": "test",
        "messaging.message.id": "1",
        "server.address": "memory",
        "millrace.attempt": 1
      })
      const doubled = report.published.find(({ topic }) => topic === "doubled")!
      assert.strictEqual(doubled.headers["traceparent"], `00-${send.traceId}-${send.spanId}-01`)
      assert.strictEqual(send.traceId, process.traceId)
    }).pipe(Effect.scoped, Effect.provide(Layer.provideMerge(TestHarness.layer, layer)))
  })

  it.effect("without spans of its own a pipeline hands the trace on as it came, also through a dead letter", () =>
    Effect.gen(function*() {
      const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
      const harness = yield* TestHarness.make(
        Numbers,
        from.pipe(
          Pipeline.to(Doubled),
          Pipeline.mapEffect((n) => n === 2 ? Effect.fail("no") : Effect.void),
          Pipeline.retry({ times: 1, schedule: Schedule.spaced("1 second") })
        )
      )
      for (const n of [1, 2]) yield* harness.publish(n, { headers: { traceparent, tracestate: "a=1" } })
      const report = yield* harness.runUntilIdle()
      const others = report.published.filter(({ topic }) => topic !== "numbers")
      assert.deepStrictEqual(
        others.map(({ headers, topic }) => [topic, headers["traceparent"], headers["tracestate"]]),
        [
          ["doubled", traceparent, "a=1"],
          ["doubled", traceparent, "a=1"],
          ["numbers.dead", traceparent, "a=1"]
        ]
      )
    }).pipe(Effect.scoped, Effect.provide(TestHarness.layer)))
})

describe("metrics", () => {
  it.effect("count outcomes and seconds, with a bounded number of series", () =>
    Effect.gen(function*() {
      const running = yield* Pipeline.start(
        from.pipe(
          Pipeline.tap((n) => n === 0 ? Effect.fail(new Declined()) : Effect.sleep("200 millis")),
          Pipeline.retry({ times: 0 })
        )
      )
      yield* TestClock.adjust("1 second")
      for (const n of [0, 1, 2]) yield* Publisher.publish(Numbers, n)
      while ((yield* running.counts).handled < 2) yield* TestClock.adjust("100 millis")
      const snapshot = yield* Metric.snapshot
      const of = (id: string) => snapshot.filter((metric) => metric.id === id)
      assert.strictEqual(of("messaging.client.consumed.messages").length, 1)
      assert.deepStrictEqual(
        of("millrace.outcomes").map(({ attributes }) => attributes?.["millrace.outcome"]).sort(),
        ["DeadLettered", "Handled"]
      )
      assert.deepStrictEqual(
        of("messaging.process.duration").map(({ attributes }) => attributes?.["error.type"]).sort(),
        ["Declined", undefined]
      )
      const seconds = of("messaging.process.duration").find(({ attributes }) =>
        attributes?.["error.type"] === undefined
      )!
      assert.deepInclude(seconds.state, { count: 2, min: 0.2, max: 0.2 })
    }).pipe(
      Effect.scoped,
      Effect.provide(Layer.merge(MemoryTransport.layer(), Telemetry.layerMetrics)),
      Effect.provideService(Metric.MetricRegistry, new Map())
    ))
})

describe("an observer that throws", () => {
  // was: an observer that throws does not harm the pipeline
  it.effect("leaves the pipeline and the message alone", () => {
    let first = true
    return survives(
      (from) => from,
      delivery(1),
      Effect.provideService(Telemetry.Observer, () => {
        if (first) {
          first = false
          throw new Error("observer")
        }
      })
    )
  })

  // was: an observer that throws on a retry leaks no permit
  it.effect("on a retry leaks no permit", () =>
    survives(
      (from) => from.pipe(Pipeline.tap((n) => n === 1 ? Effect.fail("no") : Effect.void)),
      delivery(1),
      Effect.provideService(Telemetry.Observer, (outcome) => {
        if (outcome._tag === "Retried") throw new Error("observer")
      })
    ))
})
