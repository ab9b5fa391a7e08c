// The first test of a new project: a pipeline on the broker in memory, with node:test and nothing else.
import { Pipeline, Topic } from "@millrace/core"
import { TestHarness } from "@millrace/testing"
import { Effect, Schema } from "effect"
import * as assert from "node:assert/strict"
import { test } from "node:test"

const Orders = Topic.make("orders", { schema: Schema.Struct({ id: Schema.String, total: Schema.Number }) })
const payments = Pipeline.from(Orders, { group: "payments" }).pipe(
  Pipeline.filter((order) => order.total > 0),
  Pipeline.mapPromise(async (order) => `paid ${order.id}`)
)

test("orders with a total are paid", async () => {
  const report = await Effect.runPromise(
    TestHarness.run(Orders, payments, [{ id: "a", total: 12 }, { id: "b", total: 0 }]).pipe(
      Effect.provide(TestHarness.layer)
    )
  )
  assert.deepEqual(report.handled.map(({ value }) => value), ["paid a"])
  assert.equal(report.filtered.length, 1)
})
