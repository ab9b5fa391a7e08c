import { assert, describe, it } from "@effect/vitest"
import { DeadLetter, Pipeline, Publisher, Topic } from "@millrace/core"
import { MemoryTransport, TestHarness } from "@millrace/testing"
import { Effect, Fiber, Option, Schedule, Schema, Stream } from "effect"
import { TestClock } from "effect/testing"
import core from "../package.json" with { type: "json" }

const Order = Schema.Struct({ id: Schema.String, total: Schema.Number })
const Orders = Topic.make("orders", { schema: Order, key: (order) => order.id })

class Declined extends Error {
  readonly _tag = "Declined"
}

/** Orders over 10 fail as long as the bank is closed. */
const charging = (group: string, bank: { open: boolean }, handled: Array<string> = []) =>
  Pipeline.from(Orders, { group, startFrom: "beginning" }).pipe(
    Pipeline.mapEffect((order, message) =>
      Effect.suspend(() => {
        if (order.total > 10 && !bank.open) {
          return Effect.fail(new Declined("no funds — нет", { cause: new TypeError("card expired") }))
        }
        handled.push(`${group}:${order.id}:${message.attempt}`)
        return Effect.void
      })
    ),
    Pipeline.retry({ times: 1, schedule: Schedule.spaced("1 minute") })
  )

const filled = (n: number, bank: { open: boolean }) =>
  TestHarness.run(
    Orders,
    charging("bank", bank),
    Array.from({ length: n }, (_, i) => ({ id: `o${i}`, total: i % 2 === 0 ? 5 : 50 }))
  )

describe("record", () => {
  it.effect("holds everything needed to understand it", () =>
    Effect.gen(function*() {
      const report = yield* filled(2, { open: false })
      const { letter, record } = report.deadLettered[0]!
      assert.deepInclude({ ...record }, {
        version: 1,
        sdk: `millrace/${core.version}`,
        topic: "orders",
        id: "2",
        group: "bank",
        pipeline: "orders/bank",
        reason: "exhausted",
        attempts: 2,
        publishedAt: 0,
        firstFailedAt: 0,
        failedAt: 60_000,
        history: []
      })
      assert.deepInclude(record.error, {
        tag: "Declined",
        message: "no funds — нет",
        causes: ["TypeError: card expired"]
      })
      assert.include(record.error.stack, "DeadLetter.test")
      assert.match(letter.headers[DeadLetter.header]!, /^[\x20-\x7e]+$/)
      assert.strictEqual(letter.id, "orders/bank/2")
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("decodes the original as its topic would", () =>
    Effect.gen(function*() {
      yield* filled(2, { open: false })
      const [letter] = yield* Stream.runCollect(DeadLetter.list("orders.dead"))
      assert.deepStrictEqual(yield* DeadLetter.decode(letter!, Orders), { id: "o1", total: 50 })
      assert.deepStrictEqual(yield* DeadLetter.inspect("orders.dead", letter!.id), Option.some(letter!))
      assert.deepStrictEqual(yield* DeadLetter.inspect("orders.dead", "nope"), Option.none())
    }).pipe(Effect.provide(TestHarness.layer)))
})

describe("redrive", () => {
  it.effect("goes back to the group it failed in; other groups acknowledge it unseen", () =>
    Effect.gen(function*() {
      const bank = { open: false }
      yield* filled(4, bank)
      bank.open = true
      assert.deepStrictEqual(yield* DeadLetter.redrive("orders.dead", { dryRun: true }), { redriven: 2, capped: 0 })
      assert.deepStrictEqual(yield* DeadLetter.redrive("orders.dead", { filter: ({ record }) => record.id === "2" }), {
        redriven: 1,
        capped: 0
      })
      assert.strictEqual((yield* Stream.runCollect(DeadLetter.list("orders.dead"))).length, 1)
      const handled: Array<string> = []
      const other = yield* TestHarness.run(Orders, charging("audit", { open: true }, handled), [])
      const same = yield* TestHarness.run(Orders, charging("bank", bank, handled), [])
      assert.deepStrictEqual(handled, ["audit:o0:1", "audit:o1:1", "audit:o2:1", "audit:o3:1", "bank:o1:1"])
      assert.deepStrictEqual([other.counts.filtered, same.counts.handled], [1, 1])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("what fails again is not a new stranger, and is redriven only so often", () =>
    Effect.gen(function*() {
      const bank = { open: false }
      yield* filled(2, bank)
      for (let times = 0; times < 3; times++) {
        assert.deepStrictEqual(yield* DeadLetter.redrive("orders.dead"), { redriven: 1, capped: 0 })
        yield* TestHarness.run(Orders, charging("bank", bank), [])
      }
      const [letter] = yield* Stream.runCollect(DeadLetter.list("orders.dead"))
      assert.deepStrictEqual(letter!.record.history.map(({ attempts, error, id }) => [id, attempts, error]), [
        ["2", 2, "Declined: no funds — нет"],
        ["3", 2, "Declined: no funds — нет"],
        ["4", 2, "Declined: no funds — нет"]
      ])
      assert.deepStrictEqual(yield* DeadLetter.redrive("orders.dead"), { redriven: 0, capped: 1 })
      assert.deepStrictEqual(yield* DeadLetter.redrive("orders.dead", { cap: 4 }), { redriven: 1, capped: 0 })
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("keeps to its rate", () =>
    Effect.gen(function*() {
      yield* filled(40, { open: false })
      const since = yield* Effect.clockWith((clock) => clock.currentTimeMillis)
      const fiber = yield* Effect.forkChild(DeadLetter.redrive("orders.dead", { rate: 5 }))
      let seconds = 0
      while (fiber.pollUnsafe() === undefined && seconds++ < 20) yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* Fiber.join(fiber), { redriven: 20, capped: 0 })
      const elapsed = (yield* Effect.clockWith((clock) => clock.currentTimeMillis)) - since
      assert.isTrue(elapsed >= 3000 && elapsed <= 5000, `${elapsed} ms`)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("a redrive that was cut short between publishing and deleting does not deliver twice", () =>
    Effect.gen(function*() {
      const bank = { open: false }
      yield* filled(2, bank)
      bank.open = true
      const [letter] = yield* Stream.runCollect(DeadLetter.list("orders.dead"))
      yield* DeadLetter.redrive("orders.dead")
      // As if it had been killed before it deleted: the letter is there still.
      const memory = yield* MemoryTransport.MemoryTransport
      const transport = yield* memory.connect
      yield* transport.publish([DeadLetter.outgoing("orders.dead", letter!.message, letter!.record)])
      yield* DeadLetter.redrive("orders.dead")
      const handled: Array<string> = []
      yield* TestHarness.run(Orders, charging("bank", bank, handled), [])
      assert.deepStrictEqual(handled, ["bank:o1:1"])
    }).pipe(Effect.provide(TestHarness.layer)))
})

describe("writing", () => {
  it.effect("two groups that fail on one message leave two records, one group leaves one", () =>
    Effect.gen(function*() {
      const bank = { open: false }
      yield* filled(2, bank)
      const report = yield* TestHarness.run(Orders, charging("other", bank), [])
      assert.deepStrictEqual(report.deadLettered.map(({ letter }) => letter.id), ["orders/bank/2", "orders/other/2"])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("law 4: a dead letter that cannot be written leaves the source unsettled", () =>
    Effect.gen(function*() {
      const harness = yield* TestHarness.make(
        Orders,
        Pipeline.from(Orders, { group: "bank", startFrom: "beginning" }).pipe(
          Pipeline.mapEffect(() => Effect.fail("no")),
          Pipeline.retry({ times: 0 })
        )
      )
      // There is room for the message, but not for the record beside it.
      yield* harness.publish({ id: "x".repeat(100), total: 1 })
      const report = yield* Effect.flip(harness.runUntilIdle())
      assert.strictEqual(report.groups[0]!.pending.length, 1)
    }).pipe(Effect.provide(MemoryTransport.layer({ history: true, minIdle: "1 hour", maxBody: 400 })), Effect.scoped))

  it.effect("discard deletes what is selected", () =>
    Effect.gen(function*() {
      yield* filled(6, { open: false })
      assert.strictEqual(yield* DeadLetter.discard("orders.dead", { dryRun: true }), 3)
      assert.strictEqual(yield* DeadLetter.discard("orders.dead", { limit: 2 }), 2)
      assert.strictEqual((yield* Stream.runCollect(DeadLetter.list("orders.dead"))).length, 1)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("what is no dead letter is passed over", () =>
    Effect.gen(function*() {
      yield* Publisher.publish(Topic.make("orders.dead", { schema: Order }), { id: "stray", total: 1 })
      assert.strictEqual((yield* Stream.runCollect(DeadLetter.list("orders.dead"))).length, 0)
    }).pipe(Effect.provide(TestHarness.layer)))
})
