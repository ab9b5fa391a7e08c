// The same with vitest, of whichever version the project has.
import { Pipeline, Topic } from "@millrace/core"
import { TestHarness } from "@millrace/testing"
import { Effect, Schema } from "effect"
import { expect, test } from "vitest"

const Numbers = Topic.make("numbers", { schema: Schema.Number })

test("numbers are doubled", async () => {
  const doubled = Pipeline.from(Numbers, { group: "double" }).pipe(Pipeline.map((n) => n * 2))
  const report = await Effect.runPromise(
    TestHarness.run(Numbers, doubled, [1, 2]).pipe(Effect.provide(TestHarness.layer))
  )
  expect(report.handled.map(({ value }) => value)).toEqual([2, 4])
})
