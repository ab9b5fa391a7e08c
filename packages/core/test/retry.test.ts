import { assert, describe, it } from "@effect/vitest"
import { Pipeline } from "@millrace/core"
import { FakeTransport, TestHarness, Wait } from "@millrace/testing"
import { Duration, Effect, Schedule } from "effect"
import { TestClock } from "effect/testing"
import { delivery, Numbers, on } from "./fixtures/fake.ts"

describe("the schedule", () => {
  // was: a retry schedule by the calendar counts from 1970
  it.effect("by the calendar counts from now", () =>
    Effect.gen(function*() {
      yield* TestClock.setTime(Date.UTC(2026, 0, 1, 10, 45))
      const hand = FakeTransport.make()
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.tap(() => Effect.fail("no")),
          Pipeline.retry({ times: 2, schedule: Schedule.cron("0 * * * *") as any })
        ))
      hand.deliver(delivery(1))
      yield* Wait.turns
      const [retry] = hand.settled.map(({ settlement }) => settlement)
      assert.strictEqual(retry?._tag === "Retry" && Duration.toMinutes(retry.after!), 15)
    }))
})

describe("a redriven message", () => {
  // was: a redriven message of another group that this one cannot decode is dead-lettered
  it.effect("of another group is passed over, also where this one cannot decode it", () =>
    Effect.gen(function*() {
      const harness = yield* TestHarness.make(
        Numbers,
        Pipeline.from(Numbers, { group: "test", startFrom: "beginning" })
      )
      yield* harness.publishRaw("nonsense", { "millrace-group": "other" })
      const report = yield* harness.runUntilIdle()
      assert.deepStrictEqual([report.counts.filtered, report.counts.deadLettered], [1, 0])
    }).pipe(Effect.provide(TestHarness.layer)))
})
