import { assert, describe, it } from "@effect/vitest"
import { Concurrency, Pipeline, Publisher } from "@millrace/core"
import { FakeTransport, MemoryTransport, Wait } from "@millrace/testing"
import { Effect } from "effect"
import { TestClock } from "effect/testing"
import { adjust, delivery, Numbers, on } from "./fixtures/fake.ts"

const from = Pipeline.from(Numbers, { group: "test", startFrom: "beginning" })

describe("an adaptive limit", () => {
  // was: an adaptive limit's algorithm that throws leaks the permit
  it.effect("gives its permit back when its algorithm throws", () => {
    let n = 0
    return Effect.gen(function*() {
      const hand = FakeTransport.make()
      const limit = Concurrency.makeAdaptive({
        min: 1,
        max: 4,
        window: 0,
        algorithm: {
          next(limit) {
            if (n++ === 0) throw new Error("algorithm")
            return limit
          }
        }
      })
      const { running } = yield* on(
        hand,
        (from) => from.pipe(Pipeline.tap(() => Effect.yieldNow), Pipeline.concurrency(limit))
      )
      hand.deliver(...Array.from({ length: 30 }, (_, i) => delivery(i)))
      yield* Wait.turns
      assert.strictEqual((yield* running.counts).handled, 30)
    })
  })
})

describe("a shared limit", () => {
  // was: two pipelines on one limit, one drained while it waits for a permit: the other goes on
  it.effect("lets one pipeline go on when another one drains while it waits for a permit", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const other = FakeTransport.make()
      const limit = Concurrency.make(1)
      const a = yield* on(
        hand,
        (from) => from.pipe(Pipeline.tap(() => Effect.sleep("1 second")), Pipeline.concurrency(limit))
      )
      const b = yield* on(
        other,
        (from) => from.pipe(Pipeline.tap(() => Effect.sleep("1 second")), Pipeline.concurrency(limit))
      )
      hand.deliver(...[1, 2, 3].map((n) => delivery(n)))
      other.deliver(...[1, 2, 3].map((n) => delivery(n)))
      yield* adjust("500 millis")
      assert.isTrue(yield* b.drained("1 second"))
      for (let n = 0; n < 5; n++) yield* adjust("1 second")
      assert.deepStrictEqual([(yield* a.running.counts).handled, limit.inUse], [3, 0])
    }))

  it.effect("of a layer is one pool for all its pipelines, and changes while it is in use", () => {
    const pool = Concurrency.make(1)
    return Effect.gen(function*() {
      let running = 0
      let most = 0
      const busy = Pipeline.tap(() =>
        Effect.acquireUseRelease(
          Effect.sync(() => most = Math.max(most, ++running)),
          () => Effect.sleep("1 second"),
          () => Effect.sync(() => running--)
        )
      )
      const other = Pipeline.from(Numbers, { group: "other", startFrom: "beginning" })
      yield* Effect.scoped(Effect.gen(function*() {
        const a = yield* Pipeline.start(from.pipe(busy, Pipeline.concurrency(5)))
        const b = yield* Pipeline.start(other.pipe(busy, Pipeline.concurrency(5)))
        for (let n = 0; n < 12; n++) yield* Publisher.publish(Numbers, n)
        yield* TestClock.adjust("1500 millis")
        assert.strictEqual(most, 1)
        yield* pool.resize(3)
        yield* TestClock.adjust("20 seconds")
        assert.strictEqual((yield* a.counts).handled + (yield* b.counts).handled, 24)
      }))
      assert.strictEqual(most, 3)
    }).pipe(Effect.provide(MemoryTransport.layer({ concurrency: pool })))
  })
})

describe("one limit of a layer and of its pipeline", () => {
  it.effect("gives each handler one permit", () => {
    const limit = Concurrency.make(1)
    return Effect.gen(function*() {
      const running = yield* Pipeline.start(
        Pipeline.from(Numbers, { group: "test", startFrom: "beginning", drainTimeout: 0 }).pipe(
          Pipeline.tap(() => Effect.sleep("1 second")),
          Pipeline.concurrency(limit)
        )
      )
      for (let n = 0; n < 7; n++) yield* Publisher.publish(Numbers, n)
      yield* TestClock.adjust("1500 millis")
      assert.deepStrictEqual([(yield* running.counts).handled, limit.inUse], [1, 1])
      yield* limit.resize(3)
      yield* TestClock.adjust("10 millis")
      assert.strictEqual(limit.inUse, 3)
      yield* TestClock.adjust("5 seconds")
      assert.deepStrictEqual([(yield* running.counts).handled, limit.inUse], [7, 0])
    }).pipe(Effect.provide(MemoryTransport.layer({ concurrency: limit })))
  })
})

describe("a limit", () => {
  it.effect("changes while it is in use", () =>
    Effect.gen(function*() {
      const running = yield* Pipeline.start(
        Pipeline.from(Numbers, { group: "test", startFrom: "beginning", drainTimeout: 0 }).pipe(
          Pipeline.tap(() => Effect.sleep("1 second")),
          Pipeline.concurrency(1)
        )
      )
      for (let n = 0; n < 20; n++) yield* Publisher.publish(Numbers, n)
      yield* TestClock.adjust("2 seconds")
      assert.strictEqual((yield* running.owned).running, 1)
      running.limit.resizeUnsafe(6)
      yield* TestClock.adjust("10 millis")
      assert.strictEqual((yield* running.owned).running, 6)
      running.limit.resizeUnsafe(2)
      yield* TestClock.adjust("2 seconds")
      assert.strictEqual((yield* running.owned).running, 2)
    }).pipe(Effect.provide(MemoryTransport.layer())))
})
