import { assert, describe, it } from "@effect/vitest"
import { Health, Pipeline, Publisher, Settlement, Telemetry, Topic, Transport, TransportError } from "@millrace/core"
import { FakeTransport, MemoryTransport, TestHarness } from "@millrace/testing"
import {
  Array as Arr,
  Clock,
  Data,
  Duration,
  Effect,
  Exit,
  Layer,
  Metric,
  Schedule,
  Schema,
  Scope,
  Tracer
} from "effect"
import { TestClock } from "effect/testing"
import { delivery, on, survives } from "./fixtures/fake.ts"

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

const publisher = { traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", baggage: "user=7" }
const carried = (flags: string) => ({ traceparent: `00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-${flags}` })

describe("sampling", () => {
  /** The spans of a handler that opens one of its own and publishes, for messages with these headers. */
  const spansOf = (
    options: Telemetry.SpanOptions,
    headers: ReadonlyArray<Record<string, string>>
  ) => {
    const { layer, spans } = recording()
    return Effect.gen(function*() {
      const harness = yield* TestHarness.make(
        Numbers,
        from.pipe(
          Pipeline.tap((n) => Effect.withSpan(Publisher.publish(Doubled, n), "own")),
          Pipeline.to(Doubled),
          Pipeline.middleware(Telemetry.spans(options))
        )
      )
      for (const each of headers) yield* harness.publish(1, { headers: each })
      const report = yield* harness.runUntilIdle()
      const published = report.published.filter(({ topic }) => topic === "doubled")
      return { sampled: spans.filter(({ sampled }) => sampled).map(({ name }) => name), published }
    }).pipe(
      Effect.scoped,
      Effect.provide(Layer.provideMerge(TestHarness.layer, layer)),
      Effect.provideService(Telemetry.Logs, false)
    )
  }

  it.effect("a message that is not sampled has no span, nor have its handlers and what they publish", () =>
    Effect.gen(function*() {
      const { published, sampled } = yield* spansOf({ sampleRatio: 0 }, [{}, carried("01")])
      assert.deepStrictEqual(sampled, [])
      assert.strictEqual(published.length, 4)
      for (const { headers } of published) assert.match(headers["traceparent"]!, /-00$/)
    }))

  it.effect("the publisher's decision is kept", () =>
    Effect.gen(function*() {
      const { sampled } = yield* spansOf({}, [carried("00")])
      assert.deepStrictEqual(sampled, [])
      const all = yield* spansOf({}, [carried("01")])
      assert.deepStrictEqual(all.sampled, ["process numbers", "own", "send doubled", "send doubled"])
    }))

  it.effect("the messages of a trace are decided alike, and as many as asked for are sampled", () =>
    Effect.gen(function*() {
      const traces = Array.from({ length: 200 }, (_, i) => ({
        traceparent: `00-${(i * 7919 + 1).toString(16).padStart(19, "0")}${
          Math.floor(i / 200 * 16 ** 13).toString(16).padStart(13, "0")
        }-b7ad6b7169203331-01`
      }))
      const { sampled } = yield* spansOf({ sampleRatio: 0.25 }, traces.flatMap((trace) => [trace, trace]))
      assert.strictEqual(sampled.filter((name) => name === "process numbers").length, 100)
    }))
})

describe("the trace of a message", () => {
  it.effect("goes on in what handlers publish, baggage and tracestate as well", () =>
    Effect.gen(function*() {
      const harness = yield* TestHarness.make(
        Numbers,
        from.pipe(Pipeline.tap((n) => Publisher.publish(Doubled, n)))
      )
      yield* harness.publish(1, { headers: { ...publisher, tracestate: "a=1" } })
      const report = yield* harness.runUntilIdle()
      const { headers } = report.published.find(({ topic }) => topic === "doubled")!
      assert.deepInclude(headers, { ...publisher, tracestate: "a=1" })
    }).pipe(Effect.scoped, Effect.provide(TestHarness.layer)))

  it.effect("is in its dead letter: the span of the last attempt, else the publisher's", () => {
    const { layer, spans } = recording()
    const failing = from.pipe(Pipeline.mapEffect(() => Effect.fail("no")), Pipeline.middleware(Telemetry.spans()))
    return Effect.gen(function*() {
      const once = Pipeline.retry(failing, { times: 0 })
      const traced = yield* TestHarness.run(Numbers, once, [1])
      const process = spans.find(({ kind }) => kind === "consumer")!
      assert.strictEqual(traced.deadLettered[0]!.record.trace, `00-${process.traceId}-${process.spanId}-01`)
    }).pipe(Effect.provide(Layer.provideMerge(TestHarness.layer, layer)))
  })

  const id = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
  const long = Array.from({ length: 30 }, (_, i) => `vendor${i}=${"x".repeat(20)}`).join(",")
  it.effect.each<readonly [string, Record<string, string>, boolean]>([
    ["later versions are known as far as version 00", { traceparent: `cc-${id}-01-more`, tracestate: "a=1" }, true],
    ["a long tracestate goes on whole", { traceparent: `00-${id}-01`, tracestate: long, baggage: "a=1" }, true],
    ["a wrong traceparent goes nowhere", { traceparent: `00-${id}-01-more`, tracestate: "a=1" }, false],
    ["version ff is wrong", { traceparent: `ff-${id}-01`, tracestate: "a=1" }, false],
    ["upper case is wrong", { traceparent: `00-${id.toUpperCase()}-01`, tracestate: "a=1" }, false],
    ["ids of zeros are wrong", { traceparent: `00-${"0".repeat(32)}-${"0".repeat(16)}-01`, tracestate: "a=1" }, false],
    ["control characters go nowhere", { tracestate: "a=1\u0000", baggage: "user=\u001b[31m7" }, false],
    ["a baggage over its bound goes nowhere", { baggage: `a=${"x".repeat(10_000)}` }, false]
  ])("of a foreign publisher: %s", ([, headers, isCarried]) => {
    const { layer, spans } = recording()
    return Effect.gen(function*() {
      const plain = yield* TestHarness.make(
        Numbers,
        from.pipe(Pipeline.to(Doubled), Pipeline.mapEffect(() => Effect.fail("no")), Pipeline.retry({ times: 0 }))
      )
      yield* plain.publish(1, { headers })
      const { deadLettered, published } = yield* plain.runUntilIdle()
      const sent = published.find(({ topic }) => topic === "doubled")!
      for (const name of ["traceparent", "tracestate", "baggage"] as const) {
        assert.strictEqual(sent.headers[name], isCarried ? headers[name] : undefined)
      }
      const trace = isCarried ? headers["traceparent"] : undefined
      assert.strictEqual(deadLettered[0]!.record.trace, trace)
      const traced = yield* TestHarness.make(
        Numbers,
        Pipeline.from(Numbers, { group: "traced" }).pipe(
          Pipeline.map((n) => n),
          Pipeline.middleware(Telemetry.spans())
        )
      ).pipe(Effect.provide(layer))
      yield* traced.publish(1, { headers })
      yield* traced.runUntilIdle()
      const process = spans.find(({ kind }) => kind === "consumer")!
      assert.strictEqual(process.links[0]?.span.traceId, trace?.slice(3, 35))
    }).pipe(
      Effect.scoped,
      Effect.provide(TestHarness.layer),
      Effect.provideService(Telemetry.Logs, false)
    )
  })

  it.effect("without a tracer a message has no span, and its trace goes on as it came", () =>
    Effect.gen(function*() {
      const current: Array<unknown> = []
      const harness = yield* TestHarness.make(
        Numbers,
        from.pipe(
          Pipeline.tap(() => Effect.map(Effect.option(Effect.currentParentSpan), (span) => current.push(span._tag))),
          Pipeline.to(Doubled),
          Pipeline.middleware(Telemetry.spans())
        )
      )
      yield* harness.publish(1, { headers: publisher })
      const { published } = yield* harness.runUntilIdle()
      assert.deepStrictEqual(current, ["None"])
      assert.deepInclude(published.find(({ topic }) => topic === "doubled")!.headers, publisher)
    }).pipe(Effect.scoped, Effect.provide(TestHarness.layer)))

  it.effect("a source with wildcards has one span name, and the subject as an attribute", () => {
    const { layer, spans } = recording()
    return Effect.gen(function*() {
      const memory = yield* MemoryTransport.make()
      const transport = yield* memory.connect
      // As a subscription with wildcards gives them.
      const wild: typeof transport = {
        ...transport,
        subscribe: (options) =>
          Effect.map(transport.subscribe(options), (subscription) => ({
            ...subscription,
            pull: (demand) =>
              Effect.map(subscription.pull(demand), (deliveries) =>
                Arr.map(deliveries, (delivery) =>
                  Object.defineProperty(delivery, "topic", { value: `numbers.${delivery.id}` })))
          }))
      }
      yield* Effect.gen(function*() {
        const running = yield* Pipeline.start(from.pipe(Pipeline.map((n) => n), Pipeline.middleware(Telemetry.spans())))
        yield* Publisher.publishAll(Numbers, [1, 2])
        while ((yield* running.counts).handled < 2) yield* TestClock.adjust("10 millis")
      }).pipe(Effect.scoped, Effect.provideService(Transport.Transport, wild))
      const processed = spans.filter(({ kind }) => kind === "consumer")
      assert.deepStrictEqual(processed.map(({ name }) => name), ["process numbers", "process numbers"])
      assert.deepStrictEqual(
        processed.map(({ attributes }) => [
          attributes.get("messaging.destination.name"),
          attributes.get("messaging.destination.template")
        ]),
        [["numbers.1", "numbers"], ["numbers.2", "numbers"]]
      )
    }).pipe(Effect.provide(layer), Effect.provideService(Telemetry.Logs, false))
  })
})

describe("health", () => {
  it.effect("probes say whether the process lives and consumes, and why not", () =>
    Effect.gen(function*() {
      const running = yield* Pipeline.start(from.pipe(Pipeline.map((n) => n)))
      const probe = (path: string) => Effect.map(Health.respond([running], path), ({ status }) => status)
      assert.deepStrictEqual(yield* Effect.forEach(["/health", "/ready", "/other"], probe), [200, 200, 404])
      yield* running.pause
      const { body, status } = yield* Health.respond([running], "http://localhost:8080/api/ready?verbose")
      assert.strictEqual(status, 200)
      const [pipeline] = JSON.parse(body).pipelines
      assert.deepInclude(pipeline, { name: "numbers/test", state: "paused", reason: "`pause` was called", waiting: 0 })
      const away: Pipeline.Running = {
        ...running,
        health: Effect.succeed({ state: "reconnecting", since: 0, reason: "connection refused" })
      }
      const probeAway = (path: string) => Effect.map(Health.respond([running, away], path), ({ status }) => status)
      assert.deepStrictEqual(yield* Effect.forEach(["/health", "/ready"], probeAway), [200, 503])
      const stopped: Pipeline.Running = { ...running, health: Effect.succeed({ state: "stopped", since: 0 }) }
      assert.strictEqual((yield* Health.respond([stopped], "/health")).status, 503)
      // Before the broker is connected.
      const early = yield* Effect.forEach(["/health", "/ready"], (path) => Health.respond([], path))
      assert.deepStrictEqual(early.map(({ status }) => status), [200, 503])
      assert.strictEqual(JSON.parse(early[1]!.body).reason, "no pipeline has started")
    }).pipe(Effect.scoped, Effect.provide(MemoryTransport.layer()), Effect.provideService(Telemetry.Logs, false)))
})

const until = (running: Pipeline.Running, test: (health: Pipeline.Health) => boolean) =>
  Effect.gen(function*() {
    for (let i = 0; !test(yield* running.health); i++) {
      assert.isBelow(i, 10_000, "the condition never holds")
      yield* TestClock.adjust("100 millis")
    }
    return yield* running.health
  })

describe("the state of a pipeline", () => {
  it.effect("is paused while a handler has paused it, with its reason", () =>
    Effect.gen(function*() {
      const limited = Pipeline.mapEffect(from, (n) =>
        n === 1 ? Effect.fail(Settlement.retry("1 minute", { pausesPipeline: true })) : Effect.void)
      const running = yield* Pipeline.start(limited)
      yield* Publisher.publishAll(Numbers, [1, 2])
      const { reason, since } = yield* until(running, ({ state }) =>
        state === "paused")
      assert.match(reason!, /^a handler has paused the pipeline until 1970-01-01T00:01:0\d\.\d{3}Z$/)
      assert.isBelow(since, 1000)
      const again = yield* until(running, ({ state }) => state === "consuming")
      assert.isAtLeast(again.since, 60_000)
    }).pipe(Effect.scoped, Effect.provide(MemoryTransport.layer()), Effect.provideService(Telemetry.Logs, false)))

  it.effect("stays what ended it, whatever is called afterwards", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const running = yield* Scope.provide(Pipeline.start(from.pipe(Pipeline.map((n) => n))), scope)
      yield* running.pause
      yield* TestClock.adjust("1 minute")
      yield* running.pause
      assert.strictEqual((yield* running.health).since, 0)
      yield* Scope.close(scope, Exit.void)
      for (const call of [running.pause, running.resume]) {
        yield* call
        const { reason, since, state } = yield* running.health
        assert.deepStrictEqual([state, since, reason], ["stopped", 60_000, "the pipeline's scope was closed"])
      }
    }).pipe(Effect.provide(MemoryTransport.layer()), Effect.provideService(Telemetry.Logs, false)))

  it.effect("is stopped with the first reason, also where it was paused and when its scope closes", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const reason = new TransportError.Unauthorized({ address: "fake:1", operation: "reading", detail: "no" })
      hand.pull = () => Effect.fail(new TransportError.TransportError({ transport: "fake", reason }))
      const { drained, running } = yield* on(hand, (from) => Pipeline.map(from, (n) => n))
      const stopped = yield* until(running, ({ state }) => state === "stopped")
      assert.include(stopped.reason, "refused reading")
      yield* running.pause
      assert.deepStrictEqual(yield* running.health, stopped)
      assert.isTrue(yield* drained("5 seconds"))
      assert.deepStrictEqual(yield* running.health, stopped)
    }).pipe(Effect.provideService(Telemetry.Logs, false)))
})

describe("metrics", () => {
  it.effect("the broker is asked about the groups of a topic once an interval, whatever the number of pipelines", () =>
    Effect.gen(function*() {
      const transport = yield* Transport.Transport
      let asked = 0
      let groups: Effect.Effect<ReadonlyArray<Transport.GroupInfo>, TransportError.TransportError> = Effect.succeed([])
      const counted: typeof transport = {
        ...transport,
        groups: () =>
          Effect.suspend(() => {
            asked++
            return groups
          })
      }
      const handler = (n: number) => n
      const consumer = (group: string) => Pipeline.from(Numbers, { group }).pipe(Pipeline.map(handler))
      for (const pipeline of [consumer("a"), consumer("a"), consumer("a"), consumer("b")]) {
        yield* Pipeline.start(pipeline).pipe(Effect.provideService(Transport.Transport, counted))
        yield* TestClock.adjust("1 second")
      }
      const first = asked
      assert.strictEqual(first, 1)
      yield* TestClock.adjust("10 minutes")
      assert.isAtMost(asked - first, 41)
      assert.isAtLeast(asked - first, 40)

      /** What is exported once the next poll is over. */
      const lags = Effect.gen(function*() {
        yield* TestClock.adjust("1 minute")
        const snapshot = yield* Metric.snapshot
        return snapshot.filter(({ id }) => id === "millrace.lag").map(({ attributes, state }) =>
          [attributes?.["messaging.consumer.group.name"], (state as Metric.GaugeState<number>).value] as const
        )
      })
      // The server cannot know the lag of one group; then the broker is away.
      groups = Effect.succeed([{ group: "a", pending: 1 }, { group: "b", lag: 0, pending: 0 }])
      assert.deepStrictEqual(yield* lags, [["b", 0]])
      groups = Effect.fail(
        new TransportError.TransportError({
          transport: "memory",
          reason: new TransportError.Unreachable({ address: "memory" })
        })
      )
      assert.deepStrictEqual(yield* lags, [])
    }).pipe(
      Effect.scoped,
      Effect.provide([MemoryTransport.layer(), Telemetry.layerPolledMetrics("15 seconds")]),
      Effect.provideService(Metric.MetricRegistry, new Map()),
      Effect.provideService(Telemetry.Logs, false)
    ))

  it.effect("publishers on one transport keep the attributes of their own contexts", () =>
    Effect.gen(function*() {
      for (const tenant of ["a", "b", "a"]) {
        yield* Publisher.publish(Numbers, 1).pipe(
          Effect.provideService(Metric.CurrentMetricAttributes, { tenant })
        )
      }
      const sent = (yield* Metric.snapshot).filter(({ id }) => id === "messaging.client.sent.messages")
      assert.deepStrictEqual(
        sent.map(({ attributes, state }) => [attributes?.["tenant"], (state as Metric.CounterState<number>).count]),
        [["a", 2], ["b", 1]]
      )
    }).pipe(
      Effect.provide(Layer.merge(MemoryTransport.layer(), Telemetry.layerMetrics)),
      Effect.provideService(Metric.MetricRegistry, new Map())
    ))

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

  it.effect.each([false, true])(
    "a plain function has its own time: not that of a pause, nor of an observer (observed: %s)",
    (isObserved) =>
      Effect.gen(function*() {
        const base = yield* Clock.Clock
        let millis = 1000
        const clock: Clock.Clock = Object.assign(Object.create(base), {
          monotonicTimeNanosUnsafe: () => BigInt(millis) * 1_000_000n
        })
        const observer = () => {
          millis += 5000
        }
        yield* Effect.gen(function*() {
          const work = Pipeline.map(from, (n) => {
            millis += n
          })
          const running = yield* Pipeline.start(work)
          const handled = (count: number) =>
            Effect.gen(function*() {
              while ((yield* running.counts).handled < count) yield* Effect.yieldNow
            })
          yield* Publisher.publishAll(Numbers, [100, 200])
          yield* handled(2)
          millis += 7000
          yield* Publisher.publish(Numbers, 300)
          yield* handled(3)
          const snapshot = yield* Metric.snapshot
          const seconds = snapshot.find(({ id }) => id === "messaging.process.duration")!
          assert.deepInclude(seconds.state, { count: 3, min: 0.1, max: 0.3 })
        }).pipe(
          Effect.scoped,
          isObserved ? Effect.provideService(Telemetry.Observer, observer) : (effect) => effect,
          Effect.provide(Layer.merge(MemoryTransport.layer(), Telemetry.layerMetrics)),
          Effect.provideService(Clock.Clock, clock),
          Effect.provideService(Metric.MetricRegistry, new Map())
        )
      })
  )
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

it.live("an interval that is longer than Node's timers is not taken for a millisecond", () =>
  Effect.gen(function*() {
    const warnings: Array<string> = []
    const listener = ({ name }: Error) => void warnings.push(name)
    process.on("warning", listener)
    yield* Pipeline.start(from).pipe(
      Effect.provideService(Telemetry.LookInterval, Duration.infinity),
      Effect.scoped,
      Effect.provide(MemoryTransport.layer())
    )
    yield* Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))
    process.off("warning", listener)
    assert.deepStrictEqual(warnings, [])
  }))
