import { assert, describe, it } from "@effect/vitest"
import { Pipeline, Publisher, Settlement, Topic } from "@millrace/core"
import { TestHarness } from "@millrace/testing"
import { Duration, Effect, Schedule, Schema } from "effect"

const Numbers = Topic.make("numbers", { schema: Schema.Int, key: () => "one" })
const numbers = Pipeline.from(Numbers, { group: "test" })
const realTime = (millis: number) => new Promise((resolve) => setTimeout(resolve, millis))

describe("TestHarness.layer", () => {
  it.effect("goes on when a handler that took real time asks for a retry that does not count", () =>
    Effect.gen(function*() {
      let refusals = 3
      const refusing = numbers.pipe(Pipeline.mapPromise(async (n) => {
        await realTime(40)
        if (refusals-- > 0) throw Settlement.retry("7 seconds", { countsAttempt: false })
        return n
      }))
      const { handled, retried } = yield* TestHarness.run(Numbers, refusing, [1])
      assert.deepStrictEqual([handled.length, retried.length], [1, 3])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("goes on when a handler that took real time sleeps", () =>
    Effect.gen(function*() {
      const sleeping = numbers.pipe(
        Pipeline.tap(() => Effect.andThen(Effect.promise(() => realTime(40)), Effect.sleep("1 hour")))
      )
      const { handled } = yield* TestHarness.run(Numbers, sleeping, [1])
      assert.strictEqual(handled.length, 1)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("reaches each due instant, also one that is no sum of the steps to it", () =>
    Effect.gen(function*() {
      // A clock that moves by rounded differences stands still just before some of these.
      const delays = Array.from({ length: 30 }, (_, n) => 1000 + n / 7)
      let begun = 0
      const failing = numbers.pipe(
        Pipeline.batch({ size: 50, within: "100 millis" }, () => {
          const after = delays[begun++]
          return after === undefined ? Effect.void : Effect.fail(Settlement.retry(Duration.millis(after)))
        }),
        Pipeline.concurrency({ max: 64, key: (message) => message.key }),
        Pipeline.retry({ times: 1000, schedule: Schedule.spaced("1 second") })
      )
      const { handled } = yield* TestHarness.run(Numbers, failing, [1, 2, 3])
      assert.strictEqual(handled.length, 3)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("ends with NotIdle where a pipeline publishes to its own topic without end", () =>
    Effect.gen(function*() {
      const circular = numbers.pipe(Pipeline.tap((n) => Publisher.publish(Numbers, n + 1)))
      const error = yield* Effect.flip(TestHarness.run(Numbers, circular, [1]))
      assert.include(error.message, "publish to its own topic")
    }).pipe(Effect.provide(TestHarness.layer)))
})
