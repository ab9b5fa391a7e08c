// Orders go into a ledger of our own (an Effect service on SQLite) and out to two topics.
import { Pipeline, Topic } from "@millrace/core"
import { TestHarness } from "@millrace/testing"
import { Context, Data, Effect, Layer, Schema } from "effect"
import * as assert from "node:assert/strict"
import { DatabaseSync } from "node:sqlite"
import { test } from "node:test"

class Declined extends Data.TaggedError("Declined")<{ readonly why: string }> {}

class Ledger extends Context.Service<Ledger, {
  readonly enter: (id: string, total: number) => Effect.Effect<void, Declined>
  readonly total: Effect.Effect<number>
}>()("stranger/Ledger") {}

const LedgerLive = Layer.sync(Ledger, () => {
  const database = new DatabaseSync(":memory:")
  database.exec("CREATE TABLE entries (id TEXT PRIMARY KEY, total REAL)")
  return {
    enter: (id, total) =>
      total > 1000
        ? Effect.fail(new Declined({ why: `${total} is above the limit` }))
        : Effect.sync(() => void database.prepare("INSERT INTO entries VALUES (?, ?)").run(id, total)),
    total: Effect.sync(() => database.prepare("SELECT sum(total) AS total FROM entries").get()!["total"] as number)
  }
})

const Orders = Topic.make("orders", { schema: Schema.Struct({ id: Schema.String, total: Schema.Finite }) })
const Invoices = Topic.make("invoices", { schema: Schema.Struct({ order: Schema.String }) })
const Mails = Topic.make("mails", { schema: Schema.Struct({ about: Schema.String }) })

const ledger = Pipeline.from(Orders, { group: "ledger" }).pipe(
  Pipeline.tap((order) => Ledger.use(({ enter }) => enter(order.id, order.total))),
  Pipeline.to(Invoices, (order) => ({ order: order.id })),
  Pipeline.to(Mails, (order) => ({ about: order.id })),
  Pipeline.retry({ times: 2, while: (error) => error._tag !== "Declined" })
)

test("what is declined is kept at once, the rest is entered and sent on", async () => {
  const program = Effect.gen(function*() {
    const report = yield* TestHarness.run(Orders, ledger, [{ id: "a", total: 10 }, { id: "b", total: 5000 }])
    return { report, total: yield* Ledger.use(({ total }) => total) }
  })
  const { report, total } = await Effect.runPromise(
    program.pipe(Effect.provide(Layer.mergeAll(TestHarness.layer, LedgerLive)))
  )
  assert.equal(total, 10)
  assert.deepEqual(report.published.map(({ topic }) => topic).filter((topic) => topic !== "orders").sort(), [
    "invoices",
    "mails",
    "orders.dead"
  ])
  assert.deepEqual(report.deadLettered.map(({ record }) => [record.reason, record.attempts, record.error.tag]), [
    ["rejected", 1, "Declined"]
  ])
})
