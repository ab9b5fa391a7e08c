import { assert, describe, it } from "@effect/vitest"
import { Pipeline, Topic } from "@millrace/core"
import { FakeTransport, TestHarness, Wait } from "@millrace/testing"
import { Duration, Effect, Schedule, Schema } from "effect"
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

describe("a message that a recursive schema cannot decode within the stack", () => {
  it.effect("is undecodable, at its first attempt", () =>
    Effect.gen(function*() {
      interface Tree {
        readonly children: ReadonlyArray<Tree>
      }
      const Tree = Schema.Struct({ children: Schema.Array(Schema.suspend((): Schema.Codec<Tree> => Tree)) })
      const Trees = Topic.make("trees", { schema: Tree })
      const harness = yield* TestHarness.make(Trees, Pipeline.from(Trees, { group: "test" }))
      yield* harness.publishRaw("{\"children\":[".repeat(20_000) + "]}".repeat(20_000))
      const { deadLettered } = yield* harness.runUntilIdle()
      assert.deepStrictEqual(deadLettered.map(({ record: { attempts, reason } }) => [reason, attempts]), [
        ["undecodable", 1]
      ])
    }).pipe(Effect.scoped, Effect.provide(TestHarness.layer)))
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
