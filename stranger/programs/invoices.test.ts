// An invoice is sent through a flaky service, and its author wants to test the retries, the timeout and the dead letter.
import { Pipeline, Topic } from "@millrace/core"
import { TestHarness } from "@millrace/testing"
import { Effect, Schedule } from "effect"
import * as assert from "node:assert/strict"
import { test } from "node:test"
import { z } from "zod"

const Invoices = Topic.make("invoices", { schema: z.object({ id: z.string(), cents: z.number().int() }) })

type Send = (id: string, signal: AbortSignal) => Promise<string>
const invoicing = (send: Send) =>
  Pipeline.from(Invoices, { group: "invoicing" }).pipe(
    Pipeline.filter((invoice) => invoice.cents > 0),
    Pipeline.mapPromise((invoice, { signal }) => send(invoice.id, signal)),
    Pipeline.timeout("30 seconds"),
    Pipeline.retry({ times: 3, schedule: Schedule.exponential("1 minute") })
  )

test("a flaky service is retried, a dead one ends in a dead letter, a silent one times out", async () => {
  let calls = 0
  const send: Send = async (id, signal) => {
    if (id === "flaky" && ++calls < 3) throw new Error("try again")
    if (id === "dead") throw new Error("no such customer")
    if (id === "silent") await new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)))
    return `sent ${id}`
  }
  const invoices = ["flaky", "dead", "silent"].map((id) => ({ id, cents: 100 }))
  const run = TestHarness.run(Invoices, invoicing(send), [...invoices, { id: "free", cents: 0 }])
  const report = await Effect.runPromise(run.pipe(Effect.provide(TestHarness.layer)))
  assert.deepEqual(report.handled.map(({ value }) => value), ["sent flaky"])
  assert.equal(report.filtered.length, 1)
  assert.deepEqual(report.deadLettered.map(({ record }) => [record.attempts, record.error.tag]).sort(), [
    [4, "Error"],
    [4, "TimeoutError"]
  ])
})
