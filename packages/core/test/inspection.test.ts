import { assert, describe, it } from "@effect/vitest"
import { Concurrency, Pipeline, Topic } from "@millrace/core"
import { Data, Effect, Result, Schedule, Schema } from "effect"
import { inspect } from "node:util"

const Orders = Topic.make("orders", {
  schema: Schema.Struct({ id: Schema.String, total: Schema.Number }),
  key: (order) => order.id
})
const Receipts = Topic.make("receipts", { schema: Schema.Number })

class Declined extends Data.TaggedError("Declined") {}

const isPayable = (order: { readonly total: number }) => order.total > 0
const charge = async (order: { readonly total: number }) => order.total

const payments = Pipeline.from(Orders, { group: "payments", drainTimeout: "10 seconds" }).pipe(
  Pipeline.filter(isPayable),
  Pipeline.mapPromise(charge),
  Pipeline.timeout("5 seconds"),
  Pipeline.tap(() => Effect.fail(new Declined())),
  Pipeline.catchTag("Declined", () => Effect.succeed(0)),
  Pipeline.branch((total) => total > 100 ? "large" : "small", {
    large: Pipeline.map((total) => total),
    small: (self) => self
  }),
  Pipeline.middleware((handler) => handler),
  Pipeline.filterMap((total) => Result.succeed(total)),
  Pipeline.mapEffect((total) => Effect.succeed(total)),
  Pipeline.batch({ size: 10, within: "100 millis" }, () => Effect.void),
  Pipeline.to(Receipts),
  Pipeline.retry({ times: Infinity, schedule: Schedule.spaced("1 second"), while: () => true }),
  Pipeline.deadLetter("orders.failed"),
  Pipeline.concurrency({ max: 8, key: (message) => message.key }),
  Pipeline.ackPolicy("manual", { settleWithin: "1 minute" })
)

const description = {
  name: "orders/payments",
  source: {
    topic: "orders",
    contentType: "application/json",
    headers: false,
    key: true,
    group: "payments",
    startFrom: "new",
    prefetch: "automatic",
    waiting: 10_000,
    drainTimeout: 10_000,
    settings: {}
  },
  steps: [
    {
      step: "middleware",
      steps: [
        { step: "filter", function: "isPayable" },
        { step: "mapPromise", function: "charge" },
        { step: "timeout", duration: 5000 },
        { step: "tap" },
        { step: "catchTag", tags: ["Declined"] },
        { step: "branch", cases: { large: [{ step: "map" }], small: [] } }
      ]
    },
    { step: "filterMap" },
    { step: "mapEffect" },
    { step: "batch", size: 10, within: 100 },
    { step: "to", topic: "receipts", contentType: "application/json", headers: false, key: false, value: false }
  ],
  policies: {
    ackPolicy: "manual",
    settleWithin: 60_000,
    retry: { times: "unbounded", schedule: "custom", while: true },
    deadLetter: "orders.failed",
    concurrency: { max: 8, limit: "own", key: true }
  }
}

describe("a pipeline", () => {
  it("is described as plain data: source, steps, policies", () => {
    assert.deepStrictEqual(Pipeline.describe(payments), description as never)
    assert.deepStrictEqual(structuredClone(Pipeline.describe(payments)), Pipeline.describe(payments))
  })

  it("is described with its defaults", () => {
    const { policies } = Pipeline.describe(Pipeline.from(Orders, { group: "g" }))
    assert.deepStrictEqual(policies, {
      ackPolicy: "on-success",
      retry: { times: 4, schedule: "default", while: false },
      deadLetter: "orders.dead",
      concurrency: { max: 1, limit: "own", key: false }
    })
  })

  it("tells a shared limit and a discarded message", () => {
    const { policies } = Pipeline.describe(
      Pipeline.from(Orders, { group: "g" }).pipe(Pipeline.concurrency(Concurrency.make(3)), Pipeline.discard)
    )
    assert.deepStrictEqual(policies.concurrency, { max: 3, limit: "shared", key: false })
    assert.isFalse(policies.deadLetter)
  })

  it("shows its description under JSON.stringify, util.inspect and in a template", () => {
    assert.deepStrictEqual(JSON.parse(JSON.stringify(payments)), description)
    assert.deepStrictEqual(JSON.parse(`${payments}`.replace(/^Pipeline\((.*)\)$/, "$1")), description)
    for (const text of ["Pipeline {", "isPayable", "large: [ { step: 'map'", "orders.failed"]) {
      assert.include(inspect(payments), text)
    }
    assert.include(inspect({ a: { b: { c: payments } } }), "[Pipeline]")
  })

  it("gives the topics that it reads and writes as values", () => {
    const topics = Pipeline.topics(payments)
    assert.strictEqual(topics.source, Orders as never)
    assert.deepStrictEqual(topics.outputs, [Receipts as never])
  })
})
