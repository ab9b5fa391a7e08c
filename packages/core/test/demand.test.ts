import { assert, describe, it } from "@effect/vitest"
import { Pipeline, Publisher, Settlement, Telemetry, Topic } from "@millrace/core"
import { FakeTransport, MemoryTransport, TestHarness, Wait } from "@millrace/testing"
import { Clock, Duration, Effect, Schema } from "effect"
import { adjust, delivery, never, Numbers, on } from "./fixtures/fake.ts"

describe("time", () => {
  // was: a clock that is set back stalls the pipeline for ever
  it.effect("messages are asked for although the clock is set back", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      let offset = 10_000_000
      const clock = yield* Clock.clockWith(Effect.succeed)
      const setBack: Clock.Clock = Object.assign(Object.create(clock) as Clock.Clock, {
        currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + offset
      })
      const { running } = yield* Effect.provideService(
        on(hand, (from) => from.pipe(Pipeline.tap(() => Effect.sync(() => offset === 0 || (offset = 0)))), {
          prefetch: undefined
        }),
        Clock.Clock,
        setBack
      )
      hand.deliver(delivery(1))
      yield* adjust("1 second")
      hand.deliver(delivery(2))
      yield* adjust("1 minute")
      assert.strictEqual((yield* running.counts).handled, 2)
    }))
})

describe("the demand", () => {
  // was: a limit that is resized upwards owns more than the subscription was told
  it.effect("grows with a limit that is raised", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const { running } = yield* on(hand, (from) => from.pipe(Pipeline.mapPromise(() => never())), { prefetch: 0 })
      running.limit.resizeUnsafe(100)
      hand.deliver(...Array.from({ length: 200 }, (_, i) => delivery(i)))
      yield* Wait.turns
      assert.deepStrictEqual(yield* running.owned, { waiting: 0, running: 100 })
    }))

  // was: a limit resized to Infinity asks the broker for Infinity
  it.effect("is finite when the limit is not", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const { running } = yield* on(hand, (from) => from)
      running.limit.resizeUnsafe(Infinity)
      hand.deliver(delivery(1))
      yield* Wait.turns
      assert.isTrue(
        hand.demands.map(({ total }) => total).every(Number.isSafeInteger),
        hand.demands.map(({ total }) => total).join()
      )
    }))

  // was: a pipeline takes what the layer's shared limit gives it no permit for
  it.effect("is bounded by the limit that the layer shares", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      hand.limit.resizeUnsafe(1)
      const { running } = yield* on(
        hand,
        (from) => from.pipe(Pipeline.mapPromise(() => never()), Pipeline.concurrency(64)),
        { prefetch: 0 }
      )
      hand.deliver(...Array.from({ length: 64 }, (_, i) => delivery(i)))
      yield* Wait.turns
      assert.isAtMost((yield* running.owned).waiting, 1)
    }))
})

describe("the reader", () => {
  // was: resume during a pause starts a second reader: two pulls at once
  it.effect("has one pull open, also when it is resumed during a pause", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      let pulling = 0
      let most = 0
      const pull = hand.pull
      hand.pull = (max) =>
        Effect.acquireUseRelease(
          Effect.sync(() => most = Math.max(most, ++pulling)),
          () => pull(max),
          // It takes the asking back, which takes a moment.
          () => Effect.andThen(Effect.sleep("1 second"), Effect.sync(() => pulling--))
        )
      const { running } = yield* on(hand, (from) => from)
      const runFork = Effect.runForkWith(yield* Effect.context<never>())
      runFork(running.pause)
      runFork(running.resume)
      yield* adjust("2 seconds")
      assert.strictEqual(most, 1)
    }))

  // was: a pipeline whose reader has ended says that it consumes
  it.effect("that has ended is no consuming pipeline", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      hand.pull = () => Effect.die(new Error("pull"))
      const { running } = yield* on(hand, (from) => from)
      assert.notStrictEqual((yield* running.health).state, "consuming")
    }))
})

describe("the harness", () => {
  // was: a promise that takes 50 ms of real time makes the harness say that it is not idle
  it.effect("waits for a promise that takes 50 ms of real time", () =>
    Effect.gen(function*() {
      const report = yield* TestHarness.run(
        Numbers,
        Pipeline.from(Numbers, { group: "test", startFrom: "beginning" }).pipe(
          Pipeline.mapPromise((n) => new Promise<number>((resolve) => setTimeout(() => resolve(n), 50)))
        ),
        [1]
      )
      assert.strictEqual(report.handled.length, 1)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("says why it does not come to rest, and what to do", () =>
    Effect.gen(function*() {
      const stuck = Pipeline.from(Numbers, { group: "stuck" }).pipe(Pipeline.tapPromise(() => new Promise(() => {})))
      const error = yield* Effect.flip(TestHarness.run(Numbers, stuck, [1]))
      assert.match(error.message, /not settled: \[1\].* a handler has not ended .*layerLive/)
      const paused = yield* TestHarness.make(Numbers, Pipeline.from(Numbers, { group: "paused" }))
      yield* paused.running.pause
      yield* paused.publish(1)
      assert.match((yield* Effect.flip(paused.runUntilIdle())).message, /the pipeline is paused/)
    }).pipe(Effect.scoped, Effect.provide(TestHarness.layer)))

  it.effect("refuses a topic that the pipeline does not read, and values that are no array", () =>
    Effect.gen(function*() {
      const pipeline = Pipeline.from(Numbers, { group: "test" })
      const Others = Topic.make("others", { schema: Schema.Int })
      const other = yield* Effect.flip(TestHarness.run(Others, pipeline, [1]))
      assert.include(other.message, "topic is \"others\": the pipeline reads numbers")
      const values = yield* Effect.flip(TestHarness.run(Numbers, pipeline, 1 as never))
      assert.include(values.message, "values is 1: give an array of values")
    }).pipe(Effect.provide(TestHarness.layer)))

  // was: NotIdle, when the handler ended in the last turns of the loop before the harness looked
  it.effect("waits for the settlement of a handler, in whichever turn of the loop it ends", () =>
    Effect.gen(function*() {
      for (let turns = 60; turns < 110; turns += 2) {
        const slow = Pipeline.from(Numbers, { group: "test" }).pipe(
          Pipeline.tapPromise(async () => {
            for (let turn = 0; turn < turns; turn++) await new Promise((resolve) => setImmediate(resolve))
          })
        )
        assert.strictEqual((yield* TestHarness.run(Numbers, slow, [1])).handled.length, 1)
      }
    }).pipe(Effect.provide(TestHarness.layer)))
})

describe("the broker in memory", () => {
  // was: a retry that became due between two readings of the clock was not delivered until something else happened
  it.live("delivers a retry that becomes due while it looks", () =>
    Effect.gen(function*() {
      const real = yield* Clock.clockWith(Effect.succeed)
      let reading = 0
      // Each reading is a millisecond later than the one before.
      const clock: Clock.Clock = Object.assign(Object.create(real), { currentTimeMillisUnsafe: () => ++reading })
      for (let delay = 1; delay <= 12; delay++) {
        const retrying = Pipeline.from(Numbers, { group: `after ${delay}`, startFrom: "beginning" }).pipe(
          Pipeline.tapPromise(async (_, { attempt }) => {
            if (attempt === 1) throw Settlement.retry(delay)
          })
        )
        yield* Effect.gen(function*() {
          yield* Publisher.publish(Numbers, 1)
          const running = yield* Pipeline.start(retrying)
          yield* Wait.eventually("it is handled", running.counts, ({ handled }) => handled === 1)
        }).pipe(
          Effect.scoped,
          Effect.provide(MemoryTransport.layer({ minIdle: Duration.infinity })),
          Effect.provideService(Telemetry.LookInterval, undefined),
          Effect.provideService(Clock.Clock, clock)
        )
      }
    }))
})
