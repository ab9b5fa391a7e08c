import { assert, describe, it } from "@effect/vitest"
import { type Message, Pipeline, Topic } from "@millrace/core"
import { TestHarness } from "@millrace/testing"
import { Deferred, Effect, Schedule, Schema } from "effect"

const Event = Schema.Struct({ key: Schema.String, n: Schema.Number })
type Event = typeof Event.Type
const Events = Topic.make("events", { schema: Event })
const from = Pipeline.from(Events, { group: "test", startFrom: "beginning" })
const byKey = (max: number) => <A, E, R>(self: Pipeline.Pipeline<Message.Message<Event>, A, E, R>) =>
  Pipeline.concurrency(self, { max, key: ({ value }) => value.key })

const interleaved = (keys: number, each: number) =>
  Array.from({ length: keys * each }, (_, i) => ({ key: `k${i % keys}`, n: Math.floor(i / keys) }))

const perKey = (values: ReadonlyArray<unknown>) =>
  Map.groupBy(values as ReadonlyArray<{ readonly key: string; readonly n: number }>, ({ key }) => key)

describe("keys", () => {
  it.effect("one key one at a time and in order, many keys at once", () =>
    Effect.gen(function*() {
      const running = new Map<string, number>()
      let total = 0
      let most = 0
      const report = yield* TestHarness.run(
        Events,
        from.pipe(
          Pipeline.tap(({ key }) =>
            Effect.acquireUseRelease(
              Effect.sync(() => {
                running.set(key, (running.get(key) ?? 0) + 1)
                most = Math.max(most, ++total)
                assert.strictEqual(running.get(key), 1)
              }),
              () => Effect.sleep(key === "k0" ? "30 millis" : "10 millis"),
              () =>
                Effect.sync(() => {
                  running.set(key, 0)
                  total--
                })
            )
          ),
          byKey(4)
        ),
        interleaved(8, 10)
      )
      assert.strictEqual(most, 4)
      for (const [, values] of perKey(report.handled.map(({ value }) => value))) {
        assert.deepStrictEqual(values.map(({ n }) => n), Array.from({ length: 10 }, (_, i) => i))
      }
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("order holds through retries: a failing head holds back only its own key, without a slot", () =>
    Effect.gen(function*() {
      const failures = new Map<string, number>()
      const order: Array<string> = []
      const report = yield* TestHarness.run(
        Events,
        from.pipe(
          Pipeline.tap(({ key, n }) =>
            Effect.suspend(() => {
              const seen = failures.get(`${key}${n}`) ?? 0
              failures.set(`${key}${n}`, seen + 1)
              order.push(`${key}${n}`)
              return key === "k0" && n === 1 && seen < 2 ? Effect.fail("not yet") : Effect.void
            })
          ),
          Pipeline.retry({ times: 5, schedule: Schedule.spaced("1 minute") }),
          byKey(1)
        ),
        interleaved(3, 4)
      )
      assert.strictEqual(report.handled.length, 12)
      for (const [, values] of perKey(report.handled.map(({ value }) => value))) {
        assert.deepStrictEqual(values.map(({ n }) => n), [0, 1, 2, 3])
      }
      // With a single slot, the other keys were all done before the first retry.
      assert.deepStrictEqual(order.slice(-4), ["k01", "k01", "k02", "k03"])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("a head that is dead-lettered makes way for the next of its key", () =>
    Effect.gen(function*() {
      const report = yield* TestHarness.run(
        Events,
        from.pipe(
          Pipeline.tap(({ n }) => n === 0 ? Effect.fail("never") : Effect.void),
          Pipeline.retry({ times: 2, schedule: Schedule.spaced("1 second") }),
          byKey(2)
        ),
        interleaved(2, 3)
      )
      assert.strictEqual(report.deadLettered.length, 2)
      assert.strictEqual(report.handled.length, 4)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("one stuck key does not idle the others, whatever stands behind it", () =>
    Effect.gen(function*() {
      const release = yield* Deferred.make<void>()
      const harness = yield* TestHarness.make(
        Events,
        Pipeline.from(Events, { group: "test", startFrom: "beginning", prefetch: 8 }).pipe(
          Pipeline.tap(({ key }) => key === "stuck" ? Deferred.await(release) : Effect.void),
          byKey(4)
        )
      )
      for (let n = 0; n < 500; n++) yield* harness.publish({ key: "stuck", n })
      for (let n = 0; n < 500; n++) yield* harness.publish({ key: `k${n}`, n })
      while ((yield* harness.running.counts).handled < 500) yield* Effect.yieldNow
      assert.strictEqual((yield* harness.running.owned).running, 1)
      yield* Deferred.succeed(release, undefined)
      const report = yield* harness.runUntilIdle()
      assert.strictEqual(report.handled.length, 1000)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("an undecodable message is in nobody's way", () =>
    Effect.gen(function*() {
      const harness = yield* TestHarness.make(Events, from.pipe(byKey(2)))
      yield* harness.publish({ key: "a", n: 0 })
      yield* harness.publishRaw("nonsense")
      yield* harness.publish({ key: "a", n: 1 })
      const report = yield* harness.runUntilIdle()
      assert.deepStrictEqual([report.handled.length, report.deadLettered.length], [2, 1])
    }).pipe(Effect.provide(TestHarness.layer)))
})
