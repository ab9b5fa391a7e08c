import { NodeServices } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Publisher, Transport } from "@millrace/core"
import { RedisStreams } from "@millrace/redis-streams"
import { Brokers, TestHarness } from "@millrace/testing"
import { Effect, Schedule, Stream } from "effect"
import { Orders, payments, Receipts } from "../src/payments.ts"
import { memory, nats, redis, run, start } from "./processes.ts"

describe("payments", () => {
  it.effect("an order becomes a receipt; one with nothing to pay is filtered, one the bank refuses dead-lettered", () =>
    Effect.gen(function*() {
      const report = yield* TestHarness.run(Orders, payments, [
        { id: "1", customer: "ada", total: 12 },
        { id: "2", customer: "ada", total: 0 },
        { id: "3", customer: "nobody", total: 7 }
      ])
      assert.deepStrictEqual(report.handled.map(({ value }) => value), [{ order: "1", reference: "bank-1", paid: 12 }])
      assert.strictEqual(report.counts.filtered, 1)
      assert.deepStrictEqual(report.retried.map(({ attempt, id }) => [id, attempt]), [["3", 1], ["3", 2], ["3", 3], [
        "3",
        4
      ]])
      const delay = report.retried.reduce((sum, { delay }) => sum + delay, 0)
      assert.isTrue(30_000 < delay && delay < 50_000, `${delay} ms`)
      assert.deepStrictEqual(
        report.deadLettered.map(({ letter, record }) => [letter.topic, record.attempts, record.reason]),
        [["orders.dead", 5, "exhausted"]]
      )
    }).pipe(Effect.provide(TestHarness.layer)))

  for (const transport of [memory, redis, nats]) {
    it.live(`${transport.name}: the program pays what there is to pay`, () =>
      Effect.gen(function*() {
        const { exitCode, stderr, stdout } = yield* run("payments.main.ts", yield* transport.flags)
        assert.strictEqual(exitCode, 0, stderr)
        assert.strictEqual([...stdout.matchAll(/^receipt bank-\d+: \d$/gm)].length, 16)
        assert.match(stdout, /^16 paid, 4 with nothing to pay$/m)
      }).pipe(Effect.provide(NodeServices.layer)))
  }

  it.live("redis: the program of the README runs until SIGTERM, drains and exits with 130", () =>
    Effect.gen(function*() {
      const { url } = yield* Brokers.redis()
      const program = yield* start("payments.redis.ts", [], { env: { REDIS_URL: url } })
      yield* Effect.gen(function*() {
        const redis = yield* RedisStreams.RedisStreams
        const { browse } = yield* Transport.Transport
        yield* eventually(Effect.isSuccess(redis.groupInfo("orders", "payments")))
        const orders = Array.from({ length: 500 }, (_, n) => ({ id: `${n}`, customer: "ada", total: 1 }))
        yield* Publisher.publishAll(Orders, orders)
        yield* eventually(Effect.map(Stream.runCount(browse(Receipts.name)), (receipts) => receipts >= 100))
        yield* program.kill({ killSignal: "SIGTERM" })
        assert.strictEqual(Number(yield* program.exitCode), 130)
        // Nothing is half done: what is not pending any more has its receipt, and the rest waits for the next process.
        const receipts = yield* Stream.runCount(browse(Receipts.name))
        const group = yield* redis.groupInfo("orders", "payments")
        assert.strictEqual(receipts + group.pending + (group.lag ?? 0), orders.length)
      }).pipe(Effect.provide(RedisStreams.layer({ url })))
    }).pipe(Effect.provide(NodeServices.layer)))
})

const eventually = <E, R>(condition: Effect.Effect<boolean, E, R>) =>
  Effect.repeat(condition, { until: (holds) => holds, schedule: Schedule.spaced("10 millis") })
