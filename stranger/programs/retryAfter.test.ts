// A provider answers 429 with Retry-After ten times: no attempt is spent, nothing else begins meanwhile, and no real time passes.
import { Pipeline, Settlement, Topic } from "@millrace/core"
import { TestHarness } from "@millrace/testing"
import { Clock, Effect, Schema } from "effect"
import * as assert from "node:assert/strict"
import { test } from "node:test"

const Prompts = Topic.make("prompts", { schema: Schema.Struct({ text: Schema.String }) })

test("ten times 429", async () => {
  let refusals = 10
  const calls: Array<string> = []
  const answering = Pipeline.from(Prompts, { group: "answering" }).pipe(
    Pipeline.mapPromise(async ({ text }) => {
      calls.push(text)
      if (refusals-- > 0) {
        throw Settlement.retry("30 seconds", { reason: "429", countsAttempt: false, pausesPipeline: true })
      }
      return text.toUpperCase()
    }),
    Pipeline.retry({ times: 2 })
  )
  const { elapsed, report } = await Effect.runPromise(
    Effect.gen(function*() {
      const report = yield* TestHarness.run(Prompts, answering, [{ text: "a" }, { text: "b" }])
      return { report, elapsed: yield* Clock.currentTimeMillis }
    }).pipe(Effect.provide(TestHarness.layer))
  )
  assert.deepEqual(report.handled.map(({ message, value }) => [value, message.attempt]).sort(), [["A", 1], ["B", 1]])
  assert.equal(report.deadLettered.length, 0)
  assert.equal(elapsed, 300_000)
  assert.equal(calls.length, 12)
})
