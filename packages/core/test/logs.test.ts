import { assert, describe, it } from "@effect/vitest"
import { Codec, Pipeline, Publisher, Telemetry, Topic, Transport, TransportError } from "@millrace/core"
import { FakeTransport, MemoryTransport, Wait } from "@millrace/testing"
import { Effect, Layer, Logger, References, Result, Schedule, Schema } from "effect"
import { TestClock } from "effect/testing"
import { delivery, on } from "./fixtures/fake.ts"

const Numbers = Topic.make("numbers", { schema: Schema.Number })
const from = Pipeline.from(Numbers, { group: "g", startFrom: "beginning" })

interface Line {
  readonly level: string
  readonly text: string
  readonly annotations: { readonly [name: string]: unknown }
}

const recording = () => {
  const lines: Array<Line> = []
  const layer = Layer.merge(
    Logger.layer([
      Logger.make(({ fiber, logLevel, message }) => {
        const text = Array.isArray(message) ? message.map(String).join(" ") : String(message)
        lines.push({ level: logLevel, text, annotations: fiber.getRef(References.CurrentLogAnnotations) })
      })
    ]),
    Layer.succeed(References.MinimumLogLevel, "All")
  )
  const of = (level: string) => lines.filter((line) => line.level === level)
  return { lines, layer, of }
}

const until = (test: () => boolean, step = "100 millis" as const) =>
  Effect.gen(function*() {
    for (let i = 0; !test(); i++) {
      assert.isBelow(i, 10_000, "the condition never holds")
      yield* TestClock.adjust(step)
    }
  })

const failing = Pipeline.mapPromise((n: number): Promise<void> => Promise.reject(new TypeError(`cannot charge ${n}`)))

describe("logs", () => {
  it.effect("one line when a pipeline starts, one when it stops", () => {
    const { layer, of } = recording()
    return Effect.gen(function*() {
      yield* Effect.scoped(Pipeline.start(from.pipe(Pipeline.map(() => 1), Pipeline.concurrency(8))))
      yield* until(() => of("Info").length === 2)
      const [start, stop] = of("Info") as [Line, Line]
      assert.strictEqual(start.text, "numbers/g: consuming numbers as group g from memory, concurrency 8")
      assert.deepStrictEqual(start.annotations, {
        pipeline: "numbers/g",
        topic: "numbers",
        group: "g",
        broker: "memory",
        concurrency: 8
      })
      assert.strictEqual(stop.text, "numbers/g: stopped; no message")
    }).pipe(Effect.provide([MemoryTransport.layer(), layer]))
  })

  it.effect("retries at debug, a dead letter as a warning with its error and the stack", () => {
    const { layer, of } = recording()
    return Effect.gen(function*() {
      const retried = from.pipe(failing, Pipeline.retry({ times: 2, schedule: Schedule.spaced("1 second") }))
      yield* Pipeline.start(retried)
      yield* Publisher.publish(Numbers, 7)
      yield* until(() => of("Warn").length === 1)
      assert.deepStrictEqual(of("Debug").map(({ text }) => text), [
        "numbers/g: attempt 1 of message 1 failed, next one in 1s: TypeError: cannot charge 7",
        "numbers/g: attempt 2 of message 1 failed, next one in 1s: TypeError: cannot charge 7"
      ])
      const [warning] = of("Warn") as [Line]
      assert.strictEqual(
        warning.text,
        "numbers/g: message 1 is dead-lettered to numbers.dead (after 3 attempts, exhausted): TypeError: cannot charge 7"
      )
      const { "error.stack": stack, ...annotations } = warning.annotations
      assert.deepStrictEqual(annotations, {
        pipeline: "numbers/g",
        topic: "numbers",
        group: "g",
        id: "1",
        attempts: 3,
        reason: "exhausted",
        "error.type": "TypeError"
      })
      assert.include(String(stack), "logs.test.ts")
      assert.notInclude(String(stack), "core/src/internal")
    }).pipe(Effect.scoped, Effect.provide([MemoryTransport.layer(), layer]))
  })

  it.effect("discarded and undecodable messages as warnings", () => {
    const { layer, of } = recording()
    return Effect.gen(function*() {
      yield* Pipeline.start(from.pipe(failing, Pipeline.retry({ times: 0 }), Pipeline.discard))
      yield* Publisher.publish(Numbers, 7)
      yield* Publisher.publish(Topic.make("numbers", { schema: Schema.String }), "no \u001b[31mnumber\u0007")
      yield* until(() => of("Warn").length === 2)
      const [discarded, undecodable] = of("Warn").map(({ text }) => text)
      assert.strictEqual(
        discarded,
        "numbers/g: message 1 is discarded (after 1 attempt, exhausted): TypeError: cannot charge 7"
      )
      assert.match(undecodable!, /^numbers\/g: message 2 is discarded \(it cannot be decoded\): SchemaError: /)
      assert.notMatch(undecodable!, /\p{Cc}/u)
    }).pipe(Effect.scoped, Effect.provide([MemoryTransport.layer(), layer]))
  })

  it.effect("a dead letter with the attempts that were made, whatever its letter took", () => {
    const { layer, of } = recording()
    return Effect.gen(function*() {
      const hand = FakeTransport.make()
      const { publish } = hand
      const error = new Publisher.PublishError({
        topic: "numbers.dead",
        reason: new Publisher.Refused({ detail: "full" })
      })
      hand.publish = (messages) => Effect.succeed(messages.map(() => Result.fail(error)))
      yield* on(hand, (from) => from.pipe(failing, Pipeline.retry({ times: 0 })))
      hand.deliver(delivery(1))
      yield* Wait.turns
      hand.publish = publish
      hand.deliver(delivery(1, { attempt: 2, redelivered: true }))
      yield* Wait.turns
      const [{ annotations, text }] = of("Warn") as [Line]
      assert.include(text, "(after 1 attempt, exhausted)")
      assert.strictEqual(annotations["attempts"], 1)
    }).pipe(Effect.provide(layer))
  })

  it.effect("each is one bounded line without control characters, whatever names, errors and bodies hold", () => {
    const { layer, lines } = recording()
    const Odd = Topic.make("we\"ird\n\u001b[31mtopic", { schema: Schema.String })
    class Huge extends Error {
      readonly _tag = "Huge\n\u001b[31m"
      readonly more = "y".repeat(3_000_000)
    }
    return Effect.gen(function*() {
      const odd = Pipeline.from(Odd, { group: "g\r\n\u001b[32m", startFrom: "beginning" }).pipe(
        Pipeline.tap((text) =>
          text === "huge" ? Effect.fail(new Huge(`\u001b[31mred\n${"x".repeat(3_000_000)}`)) : Effect.void
        ),
        Pipeline.retry({ times: 1, schedule: Schedule.spaced("1 second") })
      )
      const running = yield* Pipeline.start(odd)
      yield* Publisher.publish(Odd, "huge")
      const Foreign = Topic.make(Odd.name, { codec: Codec.text })
      yield* Publisher.publish(Foreign, `{${"z".repeat(900_000)}`)
      yield* until(() => Effect.runSync(running.counts).deadLettered === 2)
      yield* Wait.turns
      assert.strictEqual(lines.filter(({ level }) => level === "Warn").length, 2)
      for (const { annotations, text } of lines) {
        assert.notMatch(text, /\p{Cc}/u)
        assert.isBelow(text.length, 600)
        const shown = Object.values(annotations).map((value) =>
          typeof value === "string" ? value : JSON.stringify(value)
        )
        assert.notMatch(shown.join(""), /[^\P{Cc}\n]/u)
        assert.isBelow(shown.join("").length, 6000)
      }
    }).pipe(Effect.scoped, Effect.provide([MemoryTransport.layer(), layer]))
  })

  it.effect("at most so many warnings a minute, a stack for the first, and a count of the others", () => {
    const { layer, of } = recording()
    return Effect.gen(function*() {
      const running = yield* Pipeline.start(from.pipe(failing, Pipeline.retry({ times: 0 }), Pipeline.concurrency(8)))
      yield* Publisher.publishAll(Numbers, Array.from({ length: 100 }, (_, i) => i))
      const counts = () => Effect.runSync(running.counts)
      yield* until(() => counts().deadLettered === 100, "100 millis")
      assert.strictEqual(of("Warn").length, 3)
      assert.deepStrictEqual(of("Warn").map(({ annotations }) => "error.stack" in annotations), [true, false, false])
      yield* TestClock.adjust("2 minutes")
      assert.strictEqual(
        of("Warn").at(-1)!.text,
        "numbers/g: 97 more messages dead-lettered in the last minute (TypeError 97)"
      )
      assert.deepInclude(of("Warn").at(-1)!.annotations, { omitted: 97, "omitted.reasons": { exhausted: 97 } })
      yield* Publisher.publish(Numbers, 1)
      yield* until(() => of("Warn").length === 5)
      assert.isTrue("error.stack" in of("Warn").at(-1)!.annotations)
    }).pipe(Effect.scoped, Effect.provide([MemoryTransport.layer(), layer, Telemetry.layerLogs({ perMinute: 3 })]))
  })

  it.effect("a message that fails again and again is a warning now and then", () => {
    const { layer, of } = recording()
    return Effect.gen(function*() {
      const endless = from.pipe(failing, Pipeline.retry({ times: Infinity, schedule: Schedule.spaced("1 second") }))
      yield* Pipeline.start(endless)
      yield* Publisher.publish(Numbers, 7)
      yield* until(() => of("Warn").length === 1)
      assert.include(of("Warn")[0]!.text, "message 1 has failed 10 times: TypeError: cannot charge 7")
    }).pipe(Effect.scoped, Effect.provide([MemoryTransport.layer(), layer]))
  })

  it.effect("a handler that runs for long is a warning, once", () => {
    const { layer, of } = recording()
    return Effect.gen(function*() {
      const stuck = Pipeline.from(Numbers, { group: "g", startFrom: "beginning", drainTimeout: 0 }).pipe(
        Pipeline.mapPromise(() => new Promise<void>(() => {}))
      )
      yield* Pipeline.start(stuck)
      yield* Publisher.publish(Numbers, 7)
      yield* TestClock.adjust("4 minutes")
      assert.deepStrictEqual(of("Warn"), [])
      yield* TestClock.adjust("10 minutes")
      assert.deepStrictEqual(of("Warn").map(({ text }) => text), [
        "numbers/g: the handler of message 1 has been running for 5m"
      ])
    }).pipe(Effect.scoped, Effect.provide([MemoryTransport.layer(), layer]))
  })

  it.effect("a message that waits for its batch runs no handler; the batch is long when its function is", () => {
    const { layer, of } = recording()
    return Effect.gen(function*() {
      const stuck = Pipeline.from(Numbers, { group: "g", startFrom: "beginning", drainTimeout: 0 }).pipe(
        Pipeline.batch({ size: 10, within: "3 minutes" }, () => Effect.never)
      )
      yield* Pipeline.start(stuck)
      yield* Publisher.publish(Numbers, 7)
      yield* TestClock.adjust("2 minutes")
      assert.deepStrictEqual(of("Warn"), [])
      yield* TestClock.adjust("150 seconds")
      assert.deepStrictEqual(of("Warn").map(({ text }) => text), [
        "numbers/g: the handler of message 1 has been running for 1m"
      ])
    }).pipe(
      Effect.scoped,
      Effect.provide([MemoryTransport.layer(), layer, Telemetry.layerLogs({ longRunning: "1 minute" })])
    )
  })

  it.effect("one line when an outage begins, one when it ends, for all pipelines of a broker", () => {
    const { layer, of } = recording()
    return Effect.gen(function*() {
      let health: Transport.Health = { state: "consuming", since: 0 }
      const transport = yield* Transport.Transport
      const unsteady: typeof transport = {
        ...transport,
        subscribe: (options) =>
          Effect.map(transport.subscribe(options), (subscription) => ({
            ...subscription,
            health: Effect.sync(() => health)
          }))
      }
      for (const group of ["a", "b", "c"]) {
        yield* Pipeline.start(Pipeline.from(Numbers, { group }).pipe(Pipeline.map(() => 1))).pipe(
          Effect.provideService(Transport.Transport, unsteady)
        )
      }
      yield* TestClock.adjust("10 seconds")
      health = { state: "reconnecting", since: 10_000, reason: "connection refused" }
      yield* TestClock.adjust("30 seconds")
      const begins = "memory: numbers/a cannot consume: connection refused"
      assert.deepStrictEqual(of("Warn").map(({ text }) => text), [begins])
      // A reason that passes is a part of the outage, one that lasts is news.
      health = { state: "reconnecting", since: 10_000, reason: "loading" }
      yield* TestClock.adjust("5 seconds")
      health = { state: "reconnecting", since: 10_000, reason: "the password is wrong" }
      yield* TestClock.adjust("25 seconds")
      const texts = of("Warn").map(({ text }) => text.replace(/numbers\/\w/, "numbers/a"))
      assert.deepStrictEqual(texts, [begins, "memory: numbers/a cannot consume: the password is wrong"])
      health = { state: "consuming", since: 70_000 }
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(of("Warn").length, 2)
      const ended = of("Info").filter(({ text }) => text.includes("again")).map(({ text }) => text)
      assert.deepStrictEqual(ended, ["memory: consuming again after 1m 5s (3 pipelines affected)"])
    }).pipe(Effect.scoped, Effect.provide([MemoryTransport.layer(), layer]))
  })

  it.effect("nothing at all when they are off, but what handlers log themselves", () => {
    const { layer, lines } = recording()
    return Effect.gen(function*() {
      const transport = yield* Transport.Transport
      const noisy: typeof transport = {
        ...transport,
        subscribe: (options) =>
          Effect.map(Effect.tap(transport.subscribe(options), Effect.logWarning("subscribing")), (subscription) => ({
            ...subscription,
            pull: (demand) => Effect.andThen(Effect.logWarning("pulling"), subscription.pull(demand)),
            settle: (batch) => Effect.andThen(Effect.logWarning("settling"), subscription.settle(batch)),
            health: Effect.succeed({ state: "reconnecting", since: 0, reason: "connection refused" })
          }))
      }
      const pipeline = from.pipe(
        Pipeline.tap(() => Effect.logWarning("a handler")),
        failing,
        Pipeline.retry({ times: 0 })
      )
      const running = yield* Pipeline.start(pipeline).pipe(
        Effect.provideService(Transport.Transport, noisy),
        Effect.provideService(Telemetry.Observer, () => {
          throw new Error("observer")
        })
      )
      yield* Publisher.publish(Numbers, 7)
      yield* until(() => Effect.runSync(running.counts).deadLettered === 1)
      yield* Wait.turns
      yield* TestClock.adjust("1 minute")
    }).pipe(
      Effect.scoped,
      Effect.andThen(Effect.sync(() => assert.deepStrictEqual(lines.map(({ text }) => text), ["a handler"]))),
      Effect.provide([MemoryTransport.layer(), layer, Telemetry.layerLogs(false)])
    )
  })

  it.effect("a pipeline that can no longer run is one line and one state", () => {
    const { layer, lines } = recording()
    return Effect.gen(function*() {
      const hand = FakeTransport.make()
      const error = new TransportError.TransportError({
        transport: "fake",
        reason: new TransportError.Unauthorized({ address: "fake:1", operation: "reading", detail: "no permission" })
      })
      hand.pull = () => Effect.fail(error)
      hand.health = Effect.succeed({ state: "impaired", since: 0, reason: "no permission" })
      const { running } = yield* on(hand, (from) => from.pipe(Pipeline.map((n) => n)))
      yield* TestClock.adjust("1 minute")
      const health = yield* running.health
      assert.deepStrictEqual([health.state, health.reason], ["stopped", "fake: fake:1 refused reading: no permission"])
      assert.isAbove(health.since, -1)
      assert.deepStrictEqual(lines.filter(({ level }) => level !== "Info").map(({ text }) => text), [
        "numbers/test can no longer run: fake: fake:1 refused reading: no permission"
      ])
    }).pipe(Effect.provide(layer))
  })

  it.effect("an observer that throws is logged once and breaks nothing", () => {
    const { layer, of } = recording()
    return Effect.gen(function*() {
      const running = yield* Pipeline.start(from.pipe(Pipeline.map((n) => n)))
      yield* Publisher.publishAll(Numbers, [1, 2, 3])
      yield* until(() => Effect.runSync(running.counts).handled === 3)
      assert.strictEqual(of("Error").length, 1)
      assert.include(of("Error")[0]!.text, "an observer of outcomes failed")
    }).pipe(
      Effect.scoped,
      Effect.provideService(Telemetry.Observer, () => {
        throw new Error("observer")
      }),
      Effect.provide([MemoryTransport.layer(), layer])
    )
  })
})

describe("the watchdog", () => {
  const watched = (change: (subscription: Transport.Subscription) => Partial<Transport.Subscription>) =>
    Effect.gen(function*() {
      const transport = yield* Transport.Transport
      return yield* Pipeline.start(from.pipe(Pipeline.map((n) => n))).pipe(
        Effect.provideService(Transport.Transport, {
          ...transport,
          subscribe: (options) =>
            Effect.map(transport.subscribe(options), (subscription) => ({ ...subscription, ...change(subscription) }))
        })
      )
    })

  it.effect("finds messages that the broker has and does not deliver", () =>
    Effect.gen(function*() {
      let isBroken = true
      const running = yield* watched((subscription) => ({
        pull: (demand) => Effect.suspend(() => isBroken ? Effect.never : subscription.pull(demand))
      }))
      yield* TestClock.adjust("10 minutes")
      assert.strictEqual((yield* running.health).state, "consuming")
      yield* Publisher.publishAll(Numbers, [1, 2, 3])
      yield* TestClock.adjust("3 minutes")
      const health = yield* running.health
      assert.strictEqual(health.state, "impaired")
      assert.strictEqual(health.reason, "the broker has 3 messages for the group and delivers none")
      isBroken = false
      yield* running.pause
      yield* running.resume
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual((yield* running.health).state, "consuming")
      assert.strictEqual((yield* running.counts).handled, 3)
    }).pipe(Effect.scoped, Effect.provide([MemoryTransport.layer(), Telemetry.layerLogs(false)])))

  it.effect("finds settlements that are not confirmed", () =>
    Effect.gen(function*() {
      let isBroken = true
      const running = yield* watched((subscription) => ({
        settle: (batch) =>
          Effect.suspend(() => isBroken ? Effect.delay(Effect.sync(() => []), "1 hour") : subscription.settle(batch))
      }))
      yield* Publisher.publishAll(Numbers, [1, 2, 3])
      yield* TestClock.adjust("20 seconds")
      assert.strictEqual((yield* running.health).state, "consuming")
      yield* TestClock.adjust("1 minute")
      const health = yield* running.health
      assert.strictEqual(health.state, "impaired")
      assert.match(health.reason!, /^the broker does not confirm settlements: \d wait$/)
      isBroken = false
      yield* TestClock.adjust("1 hour")
      const again = yield* running.health
      assert.strictEqual(again.state, "consuming")
      assert.isAbove(again.since, health.since)
    }).pipe(Effect.scoped, Effect.provide([MemoryTransport.layer(), Telemetry.layerLogs(false)])))
})
