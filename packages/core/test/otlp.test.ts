import { assert, describe, it } from "@effect/vitest"
import { Pipeline, Publisher, Telemetry, Topic, Transport } from "@millrace/core"
import { MemoryTransport } from "@millrace/testing"
import { Data, Duration, Effect, Layer, Metric, Schedule, Schema } from "effect"
import { FetchHttpClient } from "effect/http"
import { Otlp } from "effect/observability"
import { createServer, type Server } from "node:http"
import type { AddressInfo } from "node:net"
import * as conventions from "./fixtures/conventions.ts"

interface KeyValue {
  readonly key: string
  readonly value: { readonly stringValue?: string; readonly intValue?: number | string; readonly doubleValue?: number }
}
interface Span {
  readonly traceId: string
  readonly spanId: string
  readonly parentSpanId?: string
  readonly name: string
  readonly kind: number
  readonly attributes: ReadonlyArray<KeyValue>
  readonly links: ReadonlyArray<
    { readonly traceId: string; readonly spanId: string; readonly attributes: ReadonlyArray<KeyValue> }
  >
  readonly events: ReadonlyArray<{ readonly name: string; readonly attributes: ReadonlyArray<KeyValue> }>
  readonly startTimeUnixNano: string
  readonly endTimeUnixNano: string
  readonly status: { readonly code: number; readonly message?: string }
}
interface Point {
  readonly attributes: ReadonlyArray<KeyValue>
  readonly asDouble?: number
  readonly asInt?: number | string
  readonly count?: number
  readonly sum?: number
  readonly explicitBounds?: ReadonlyArray<number>
}
interface MetricData {
  readonly name: string
  readonly unit: string
  readonly sum?: { readonly isMonotonic: boolean; readonly dataPoints: ReadonlyArray<Point> }
  readonly gauge?: { readonly dataPoints: ReadonlyArray<Point> }
  readonly histogram?: { readonly dataPoints: ReadonlyArray<Point> }
}

/** As much of a collector as it takes to see what arrives. */
class Collector {
  readonly spans: Array<Span> = []
  /** The last export: temporality is cumulative. */
  metrics: ReadonlyArray<MetricData> = []

  readonly listen = Effect.acquireRelease(
    Effect.callback<Server>((resume) => {
      const server = createServer((request, response) => {
        const chunks: Array<Buffer> = []
        request.on("data", (chunk: Buffer) => chunks.push(chunk))
        request.on("end", () => {
          const body = JSON.parse(Buffer.concat(chunks).toString("utf8"))
          if (request.url === "/v1/traces") {
            for (const { scopeSpans } of body.resourceSpans) {
              for (const { spans } of scopeSpans) this.spans.push(...spans)
            }
          }
          if (request.url === "/v1/metrics") this.metrics = body.resourceMetrics[0].scopeMetrics[0].metrics
          response.writeHead(200, { "content-type": "application/json" }).end("{}")
        })
      })
      server.listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
    }),
    (server) => Effect.callback<void>((resume) => void server.close(() => resume(Effect.void)))
  )

  /** Runs `effect` with everything exported to this collector when it ends. */
  run<A, E>(effect: Effect.Effect<A, E>): Effect.Effect<A, E> {
    return Effect.scoped(Effect.flatMap(this.listen, (server) => {
      const { port } = server.address() as AddressInfo
      const otlp = Otlp.layerJson({
        baseUrl: `http://127.0.0.1:${port}`,
        resource: { serviceName: "test" },
        metricsTemporality: "cumulative"
      }).pipe(Layer.provide(FetchHttpClient.layer))
      return effect.pipe(Effect.provide(otlp), Effect.provideService(Metric.MetricRegistry, new Map()))
    }))
  }

  of(operation: string): ReadonlyArray<Span> {
    return this.spans.filter((span) => attributesOf(span)["messaging.operation.type"] === operation)
  }

  points(name: string): ReadonlyArray<Point> {
    const metric = this.metrics.find((metric) => metric.name === name)
    return (metric?.sum ?? metric?.histogram ?? metric?.gauge)?.dataPoints ?? []
  }
}

const valueOf = ({ doubleValue, intValue, stringValue }: KeyValue["value"]) =>
  stringValue ?? (intValue === undefined ? doubleValue : Number(intValue))

const attributesOf = (of: { readonly attributes: ReadonlyArray<KeyValue> }): Record<string, unknown> =>
  Object.fromEntries(of.attributes.map(({ key, value }) => [key, valueOf(value)]))

const Numbers = Topic.make("numbers", { schema: Schema.Number })
const Doubled = Topic.make("doubled", { schema: Schema.Number })

class Declined extends Data.TaggedError("Declined")<{ readonly why: string }> {}

const awaitCounts = (running: Pipeline.Running, test: (counts: Pipeline.Counts) => boolean) =>
  Effect.gen(function*() {
    while (!test(yield* running.counts)) yield* Effect.sleep("5 millis")
  })

/** One single message, ten in one write, one that fails twice; each doubled and published on; then a batch of five. */
const scenario = Effect.gen(function*() {
  const doubling = yield* Pipeline.start(
    Pipeline.from(Numbers, { group: "doubling", startFrom: "beginning" }).pipe(
      Pipeline.tap((n) => n === 13 ? Effect.fail(new Declined({ why: "unlucky" })) : Effect.sleep("20 millis")),
      Pipeline.to(Doubled, (n) => n * 2),
      Pipeline.middleware(Telemetry.spans()),
      Pipeline.retry({ times: 1, schedule: Schedule.spaced("10 millis") })
    )
  )
  const batching = yield* Pipeline.start(
    Pipeline.from(Doubled, { group: "batching", startFrom: "beginning" }).pipe(
      Pipeline.filter((n) => n < 100),
      Pipeline.batch(
        { size: 5, within: "10 seconds", middleware: Telemetry.spans() },
        () => Effect.sleep("30 millis")
      ),
      Pipeline.concurrency(5)
    )
  )
  yield* Effect.withSpan(
    Publisher.publish(Numbers, 1, { headers: { baggage: "user=7", tracestate: "a=1" } }),
    "request",
    {
      kind: "server"
    }
  )
  yield* Publisher.publishAll(Numbers, [2, 3, 4, 5])
  yield* Publisher.publish(Numbers, 13)
  yield* awaitCounts(doubling, ({ deadLettered, handled }) => handled === 5 && deadLettered === 1)
  yield* awaitCounts(batching, ({ handled }) => handled === 5)
  const transport = yield* MemoryTransport.MemoryTransport
  return yield* transport.published
}).pipe(
  Effect.scoped,
  Effect.provide([MemoryTransport.layer({ history: true }), Telemetry.layerMetrics, Telemetry.layerLogs(false)])
)

/** The scenario runs once, for all tests that look at it. */
const collected = Effect.runSync(Effect.cached(Effect.gen(function*() {
  const collector = new Collector()
  const published = yield* collector.run(scenario)
  return { collector, published }
})))

describe("exported through OTLP", () => {
  it.live("spans have the names, kinds and attributes of the conventions", () =>
    Effect.gen(function*() {
      const { collector } = yield* collected
      const spans = collector.spans.filter((span) => "messaging.operation.type" in attributesOf(span))
      assert.isAbove(spans.length, 10)
      for (const span of spans) {
        const attributes = attributesOf(span)
        const convention = conventions.spans[String(attributes["messaging.operation.type"])]!
        assert.strictEqual(span.kind, convention.kind)
        assert.strictEqual(
          span.name,
          `${attributes["messaging.operation.name"]} ${
            attributes["messaging.destination.template"] ?? attributes["messaging.destination.name"]
          }`
        )
        for (const name of convention.required) assert.property(attributes, name, span.name)
        const allowed = [...convention.required, ...convention.optional, ...convention.own]
        for (const [name, value] of Object.entries(attributes)) {
          assert.include(allowed, name, span.name)
          assert.strictEqual(typeof value, conventions.types[name] === "int" ? "number" : "string", name)
        }
        // Required where the operation failed, and only there.
        assert.strictEqual("error.type" in attributes, span.status.code === 2)
      }
    }))

  it.live("every publish is a producer span that its messages carry; a process span links to it", () =>
    Effect.gen(function*() {
      const { collector, published } = yield* collected
      const sends = collector.of("send")
      const counts = sends.filter(({ name }) => name === "send numbers").map((span) =>
        attributesOf(span)["messaging.batch.message_count"]
      )
      assert.deepStrictEqual(counts.sort(), [4, undefined, undefined])
      const request = collector.spans.find(({ name }) => name === "request")!
      const first = sends.find(({ parentSpanId }) => parentSpanId === request.spanId)!
      assert.strictEqual(first.traceId, request.traceId)
      const carried = new Set(published.map(({ headers }) => headers["traceparent"]?.split("-")[2]))
      for (const send of sends) assert.isTrue(carried.has(send.spanId), send.name)
      const process = collector.of("process").find(({ links }) => links[0]?.spanId === first.spanId)!
      assert.notStrictEqual(process.traceId, first.traceId)
      const next = sends.find(({ parentSpanId }) => parentSpanId === process.spanId)!
      assert.strictEqual(next.name, "send doubled")
      const doubled = published.find(({ headers }) => headers["traceparent"]?.includes(next.spanId))!
      assert.strictEqual(doubled.headers["baggage"], "user=7")
      // A tracestate belongs to its trace: the process span has begun another one.
      assert.notProperty(doubled.headers, "tracestate")
    }))

  it.live("a batch is one span as long as its function, with a link for each message", () =>
    Effect.gen(function*() {
      const { collector } = yield* collected
      const [batch] = collector.of("process").filter(({ name }) => name === "process doubled") as [Span]
      assert.strictEqual(attributesOf(batch)["messaging.batch.message_count"], 5)
      assert.strictEqual(batch.links.length, 5)
      const ids = batch.links.map((link) => attributesOf(link)["messaging.message.id"])
      assert.strictEqual(new Set(ids).size, 5)
      const millis = Number(BigInt(batch.endTimeUnixNano) - BigInt(batch.startTimeUnixNano)) / 1e6
      assert.isAtLeast(millis, 29)
    }))

  it.live("a failed attempt is an error with its type and the user's own error", () =>
    Effect.gen(function*() {
      const { collector } = yield* collected
      const failed = collector.of("process").filter(({ status }) => status.code === 2)
      assert.deepStrictEqual(failed.map((span) => attributesOf(span)["error.type"]), ["Declined", "Declined"])
      assert.deepStrictEqual(failed.map((span) => attributesOf(span)["millrace.attempt"]).sort(), [1, 2])
      const exception = attributesOf(failed[0]!.events[0]!)
      assert.strictEqual(exception["exception.type"], "Declined")
    }))

  it.live("metrics have the names, types, units, buckets and attributes of the conventions", () =>
    Effect.gen(function*() {
      const { collector } = yield* collected
      for (const [name, convention] of Object.entries(conventions.metrics)) {
        const metric = collector.metrics.find((metric) => metric.name === name)!
        assert.isDefined(metric, name)
        assert.strictEqual(metric.unit, convention.unit, name)
        assert.property(metric, convention.type, name)
        assert.isAbove(collector.points(name).length, 0)
        for (const point of collector.points(name)) {
          const attributes = attributesOf(point)
          const required = attributes["messaging.operation.name"] === "send"
            ? convention.required.filter((name) => name !== "messaging.consumer.group.name")
            : convention.required
          for (const attribute of required) assert.property(attributes, attribute, name)
          for (const attribute of Object.keys(attributes)) {
            assert.include([...convention.required, ...convention.optional], attribute, name)
          }
          if (convention.type === "histogram") assert.deepStrictEqual(point.explicitBounds, conventions.seconds)
        }
      }
    }))

  it.live("metrics have the values", () =>
    Effect.gen(function*() {
      const { collector } = yield* collected
      const sum = (name: string, attributes: Record<string, unknown>) =>
        collector.points(name).filter((point) => {
          const given = attributesOf(point)
          return Object.entries(attributes).every(([key, value]) => given[key] === value)
        }).reduce((sum, { asDouble, asInt, count }) => sum + (count ?? asDouble ?? Number(asInt)), 0)
      const consumer = { "messaging.destination.name": "numbers", "messaging.consumer.group.name": "doubling" }
      // Six messages, one of them delivered again.
      assert.strictEqual(sum("messaging.client.consumed.messages", consumer), 7)
      assert.strictEqual(sum("millrace.redelivered", consumer), 1)
      assert.strictEqual(sum("messaging.client.sent.messages", { "messaging.destination.name": "numbers" }), 6)
      assert.strictEqual(sum("messaging.client.sent.messages", { "messaging.destination.name": "numbers.dead" }), 1)
      assert.strictEqual(sum("messaging.client.sent.messages", { "messaging.destination.name": "doubled" }), 5)
      assert.strictEqual(
        sum("messaging.client.operation.duration", {
          "messaging.destination.name": "numbers",
          "messaging.operation.name": "send"
        }),
        3
      )
      assert.isAbove(
        sum("messaging.client.operation.duration", { ...consumer, "messaging.operation.name": "settle" }),
        0
      )
      assert.strictEqual(sum("messaging.process.duration", consumer), 7)
      assert.strictEqual(sum("messaging.process.duration", { ...consumer, "error.type": "Declined" }), 2)
      assert.strictEqual(sum("millrace.wait.duration", consumer), 6)
      const outcomes = (outcome: string) => sum("millrace.outcomes", { ...consumer, "millrace.outcome": outcome })
      assert.deepStrictEqual([outcomes("Handled"), outcomes("Retried"), outcomes("DeadLettered")], [5, 1, 1])
    }))
})

describe("metrics", () => {
  it.live("the handler alone is its duration, however long the broker takes for the dead letter", () =>
    Effect.gen(function*() {
      const collector = new Collector()
      yield* collector.run(
        Effect.gen(function*() {
          const memory = yield* MemoryTransport.make()
          const transport = yield* memory.connect
          const slow = {
            ...transport,
            publish: (messages: Parameters<typeof transport.publish>[0]) =>
              Effect.delay(transport.publish(messages), messages[0].topic.endsWith(".dead") ? "300 millis" : "0 millis")
          }
          yield* Effect.gen(function*() {
            const running = yield* Pipeline.start(
              Pipeline.from(Numbers, { group: "g", startFrom: "beginning" }).pipe(
                Pipeline.mapEffect(() => Effect.fail("no")),
                Pipeline.retry({ times: 0 })
              )
            )
            yield* Publisher.publish(Numbers, 1)
            yield* awaitCounts(running, ({ deadLettered }) => deadLettered === 1)
          }).pipe(Effect.provideService(Transport.Transport, slow))
        }).pipe(Effect.scoped, Effect.provide([Telemetry.layerMetrics, Telemetry.layerLogs(false)]))
      )
      const [point] = collector.points("messaging.process.duration")
      assert.isBelow(point!.sum!, 0.3)
    }))

  it.live("a released message has an outcome, gauges are read and leave with the pipeline, unknown numbers are absent", () =>
    Effect.gen(function*() {
      const collector = new Collector()
      let during: ReadonlyArray<Metric.Metric.Snapshot> = []
      const gauge = (id: string, state?: string) =>
        during.filter((metric) =>
          metric.id === id && (state === undefined || metric.attributes?.["millrace.state"] === state)
        )
          .map((metric) => metric.type === "Gauge" ? metric.state.value : NaN)
      const left = () => Number(gauge("millrace.pending")[0]) + Number(gauge("millrace.lag")[0])
      yield* collector.run(
        Effect.gen(function*() {
          yield* Effect.scoped(Effect.gen(function*() {
            const stuck = Pipeline.from(Numbers, { group: "g", startFrom: "beginning", drainTimeout: 0 }).pipe(
              Pipeline.mapEffect(() => Effect.never)
            )
            const running = yield* Pipeline.start(stuck)
            yield* Publisher.publishAll(Numbers, [1, 2, 3])
            while ((yield* running.owned).running === 0) yield* Effect.sleep("5 millis")
            while (gauge("millrace.oldest.age").length === 0 || left() < 3) {
              yield* Effect.sleep("5 millis")
              during = yield* Metric.snapshot
            }
          }))
        }).pipe(
          Effect.provide([
            MemoryTransport.layer(),
            Telemetry.layerPolledMetrics(Duration.millis(20)),
            Telemetry.layerLogs(false)
          ])
        )
      )
      assert.deepStrictEqual(gauge("millrace.owned", "running"), [1])
      assert.deepStrictEqual(gauge("millrace.health", "consuming"), [1])
      assert.deepStrictEqual(gauge("millrace.health", "stopped"), [0])
      const released = collector.points("millrace.outcomes").find((point) =>
        attributesOf(point)["millrace.outcome"] === "Released"
      )
      assert.isAtLeast(released?.asDouble ?? 0, 1)
      for (const name of ["millrace.owned", "millrace.health", "millrace.lag", "millrace.pending"]) {
        assert.deepStrictEqual(collector.points(name), [], name)
      }
    }))
})
