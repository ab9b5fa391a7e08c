import { assert, describe, it } from "@effect/vitest"
import { Pipeline, Publisher, Topic, TransportAuthor } from "@millrace/core"
import { FakeTransport, MemoryTransport, TestHarness, Wait } from "@millrace/testing"
import { Effect, Exit, Result, Schedule, Schema, Scope } from "effect"
import { TestClock } from "effect/testing"
import { adjust, delivery, on } from "./fixtures/fake.ts"

const Numbers = Topic.make("numbers", { schema: Schema.Number })
const from = Pipeline.from(Numbers, { group: "test", startFrom: "beginning" })
const upTo = (n: number) => Array.from({ length: n }, (_, i) => i)

describe("batch", () => {
  it.effect("is handed over when full, and the remainder when its time has come", () =>
    Effect.gen(function*() {
      const batches: Array<ReadonlyArray<number>> = []
      const report = yield* TestHarness.run(
        Numbers,
        from.pipe(
          Pipeline.batch({ size: 4, within: "10 seconds" }, (values) => Effect.sync(() => batches.push(values))),
          Pipeline.map((n) => n * 10)
        ),
        upTo(10)
      )
      assert.deepStrictEqual(batches, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]])
      assert.deepStrictEqual(report.handled.map(({ value }) => value), upTo(10).map((n) => n * 10))
      assert.strictEqual(report.settled.length, 10)
      assert.strictEqual(yield* Effect.clockWith((clock) => clock.currentTimeMillis), 10_000)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("is one permit, however many messages it holds", () =>
    Effect.gen(function*() {
      let running = 0
      let most = 0
      yield* TestHarness.run(
        Numbers,
        from.pipe(
          Pipeline.batch({ size: 5, within: "1 second" }, () =>
            Effect.acquireUseRelease(
              Effect.sync(() => most = Math.max(most, ++running)),
              () => Effect.sleep("1 second"),
              () => Effect.sync(() => running--)
            )),
          Pipeline.concurrency(3)
        ),
        upTo(60)
      )
      assert.strictEqual(most, 3)
      assert.strictEqual(yield* Effect.clockWith((clock) => clock.currentTimeMillis), 4000)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("that fails is retried and dead-lettered message by message", () =>
    Effect.gen(function*() {
      const report = yield* TestHarness.run(
        Numbers,
        from.pipe(
          Pipeline.batch(
            { size: 3, within: "1 second" },
            (values) => values.includes(1) ? Effect.fail("poison") : Effect.void
          ),
          Pipeline.retry({ times: 1, schedule: Schedule.spaced("1 second") })
        ),
        upTo(3)
      )
      assert.strictEqual(report.counts.retried, 3)
      assert.deepStrictEqual(report.deadLettered.map(({ record }) => record.attempts), [2, 2, 2])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("batchEach answers for each: a failed item is retried alone", () =>
    Effect.gen(function*() {
      const batches: Array<ReadonlyArray<number>> = []
      const report = yield* TestHarness.run(
        Numbers,
        from.pipe(
          Pipeline.batchEach({ size: 3, within: "1 second" }, (values, messages) => {
            batches.push(values)
            return Effect.succeed(values.map((n, i) =>
              n === 1 && messages[i]!.attempt === 1 ? Result.fail("once") : Result.succeed(`done ${n}`)
            ))
          }),
          Pipeline.retry({ times: 1, schedule: Schedule.spaced("1 second") })
        ),
        upTo(3)
      )
      assert.deepStrictEqual(batches, [[0, 1, 2], [1]])
      assert.deepStrictEqual(
        report.handled.map(({ value }) =>
          value
        ),
        ["done 0", "done 2", "done 1"]
      )
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("batchEach with a wrong number of results is a defect of the whole batch", () =>
    Effect.gen(function*() {
      const report = yield* TestHarness.run(
        Numbers,
        from.pipe(
          Pipeline.batchEach({ size: 2, within: "1 second" }, () => Effect.succeed([Result.succeed(1)])),
          Pipeline.retry({ times: 0 })
        ),
        upTo(2)
      )
      assert.strictEqual(report.deadLettered.length, 2)
      assert.include(report.deadLettered[0]!.record.error.message, "1 results for 2 messages")
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("bounds messages that left it by a timeout and run on, like any others", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const begun: Array<number> = []
      const { running } = yield* on(hand, (from) =>
        from.pipe(
          Pipeline.batch({ size: 10, within: "1 hour" }, () => Effect.void),
          Pipeline.timeout("1 second"),
          Pipeline.catchTag("TimeoutError", () => Effect.as(Effect.sleep("1 second"), begun.push(begun.length))),
          Pipeline.concurrency(1)
        ))
      hand.deliver(delivery(1), delivery(2), delivery(3))
      for (const expected of [1, 2, 3]) {
        yield* adjust("1 second")
        assert.deepStrictEqual([begun.length, running.limit.inUse], [expected, 1])
      }
      yield* adjust("1 second")
      assert.deepStrictEqual([(yield* running.counts).handled, running.limit.inUse], [3, 0])
    }))

  it.effect("an open batch is handed over on drain", () =>
    Effect.gen(function*() {
      const batches: Array<ReadonlyArray<number>> = []
      yield* Effect.scoped(Effect.gen(function*() {
        const harness = yield* TestHarness.make(
          Numbers,
          from.pipe(Pipeline.batch({ size: 10, within: "1 hour" }, (values) => Effect.sync(() => batches.push(values))))
        )
        for (const n of upTo(3)) yield* harness.publish(n)
        while ((yield* harness.running.owned).running < 3) yield* Effect.yieldNow
      }))
      assert.deepStrictEqual(batches, [[0, 1, 2]])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("messages of a process that died run in one batch, not one after the other", () =>
    Effect.gen(function*() {
      const memory = yield* MemoryTransport.MemoryTransport
      const process = yield* Scope.make()
      const transport = yield* Scope.provide(memory.connect, process)
      for (const n of upTo(20)) yield* Publisher.publish(Numbers, n)
      const mortal = TransportAuthor.fromTransport(Numbers, { group: "test", startFrom: "beginning", prefetch: 20 }, {
        transport: Effect.succeed(transport)
      }).pipe(Pipeline.tap(() => Effect.never))
      yield* Pipeline.start(Pipeline.concurrency(mortal, 20)).pipe(Scope.provide(yield* Scope.make()))
      while ((yield* memory.groups)[0]!.pending.length < 20) yield* Effect.yieldNow
      yield* Scope.close(process, Exit.void)
      let handled = 0
      yield* Pipeline.start(
        from.pipe(
          Pipeline.batch({ size: 10, within: "1 hour" }, (values) => Effect.sync(() => handled += values.length))
        )
      )
      for (let second = 0; second < 60; second++) yield* TestClock.adjust("1 second")
      assert.strictEqual(handled, 20)
    }).pipe(Effect.provide(MemoryTransport.layer())))

  it.effect("fills in a branch, too", () =>
    Effect.gen(function*() {
      const batches: Array<ReadonlyArray<number>> = []
      const report = yield* TestHarness.run(
        Numbers,
        from.pipe(
          Pipeline.branch((n) => n > 0 ? "yes" : "no", {
            yes: (self) =>
              self.pipe(
                Pipeline.batch({ size: 2, within: "1 second" }, (values) => Effect.sync(() => batches.push(values)))
              ),
            no: (self) => self
          }),
          Pipeline.concurrency(3)
        ),
        [1, 0, 2]
      )
      assert.deepStrictEqual([batches, report.counts.handled], [[[1, 2]], 3])
    }).pipe(Effect.provide(TestHarness.layer)))
})

describe("batches of keys", () => {
  it.effect("fill at once, however many keys there are to a permit", () =>
    Effect.gen(function*() {
      for (const [keys, max] of [[3, 1], [50, 2]] as const) {
        const sizes: Array<number> = []
        const report = yield* TestHarness.run(
          Numbers,
          from.pipe(
            Pipeline.batch({ size: 10, within: "1 hour" }, (values) => Effect.sync(() => sizes.push(values.length))),
            Pipeline.concurrency({ max, key: ({ value }) => `${value % keys}` })
          ),
          upTo(keys * 10)
        )
        assert.deepStrictEqual(sizes, Array.from({ length: keys }, () => 10))
        assert.strictEqual(report.counts.handled, keys * 10)
      }
      assert.strictEqual(yield* Effect.clockWith((clock) => clock.currentTimeMillis), 0)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("fill when messages of the key are filtered out before them", () =>
    Effect.gen(function*() {
      const batches: Array<ReadonlyArray<number>> = []
      yield* TestHarness.run(
        Numbers,
        from.pipe(
          Pipeline.filter((n) => n % 3 !== 1),
          Pipeline.batch({ size: 4, within: "1 hour" }, (values) => Effect.sync(() => batches.push(values))),
          Pipeline.concurrency({ max: 1, key: () => "" })
        ),
        upTo(12)
      )
      assert.deepStrictEqual(batches, [[0, 2, 3, 5], [6, 8, 9, 11]])
      assert.strictEqual(yield* Effect.clockWith((clock) => clock.currentTimeMillis), 0)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("begin no second message of a key beside one that a middleware has taken from the batch", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const begun: Array<number> = []
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.tap((n) => Effect.sync(() => begun.push(n))),
          Pipeline.batch({ size: 10, within: "1 hour" }, () => Effect.void),
          Pipeline.middleware((handler) =>
            Effect.catchTag(Effect.timeout(handler, "1 second"), "TimeoutError", () => Effect.never)
          ),
          Pipeline.concurrency({ max: 4, key: () => "" })
        ))
      hand.deliver(delivery(1))
      yield* adjust("2 seconds")
      hand.deliver(delivery(2))
      yield* adjust("2 seconds")
      assert.deepStrictEqual(begun, [1])
    }))

  it.effect("count a message once that a middleware lets join again and again", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.tap((n) => n === 0 ? Effect.void : Effect.never),
          Pipeline.batch({ size: 10, within: "1 hour" }, () => Effect.void),
          Pipeline.middleware((handler) =>
            Effect.ignore(Effect.retry(Effect.timeout(handler, "1 second"), { times: 20 }))
          ),
          Pipeline.concurrency({ max: 1, key: ({ id }) => id })
        ), { prefetch: 0 })
      hand.deliver(delivery(0))
      yield* adjust("30 seconds")
      assert.deepStrictEqual(hand.said, ["0 Ack"])
      hand.deliver(delivery(1))
      yield* Wait.turns
      assert.strictEqual(hand.demands.at(-1)?.total, 9)
    }))

  it.effect("begin no second message of a key beside one on its way to the batch when a third is lost from it", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const begun: Array<number> = []
      const { running } = yield* on(hand, (from) =>
        from.pipe(
          Pipeline.mapPromise((n) => {
            begun.push(n)
            return n === 2 ? new Promise<number>(() => {}) : Promise.resolve(n)
          }),
          Pipeline.batch({ size: 10, within: "1 hour" }, () => Effect.void),
          Pipeline.concurrency({ max: 4, key: () => "" })
        ))
      const first = delivery(1)
      hand.deliver(first, delivery(2), delivery(3))
      yield* Wait.turns
      hand.lost.add(first)
      yield* adjust("1 minute")
      assert.strictEqual((yield* running.counts).lost, 1)
      assert.deepStrictEqual(begun, [1, 2])
    }))

  it.effect("fill behind another batch step, whose messages may be filtered out in between", () =>
    Effect.gen(function*() {
      const batches: Array<ReadonlyArray<number>> = []
      yield* TestHarness.run(
        Numbers,
        from.pipe(
          Pipeline.batch({ size: 2, within: "1 hour" }, () => Effect.void),
          Pipeline.filter((n) => n !== 2 && n !== 3),
          Pipeline.batch({ size: 4, within: "1 hour" }, (values) => Effect.sync(() => batches.push(values))),
          Pipeline.concurrency({ max: 4, key: () => "" })
        ),
        upTo(10)
      )
      assert.deepStrictEqual(batches, [[0, 1, 4, 5], [6, 7, 8, 9]])
      assert.strictEqual(yield* Effect.clockWith((clock) => clock.currentTimeMillis), 0)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("begin no second message of a key beside one that left its batch by a timeout and runs on", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const begun: Array<number> = []
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.tap((n) => Effect.sync(() => begun.push(n))),
          Pipeline.batch({ size: 10, within: "1 hour" }, () => Effect.void),
          Pipeline.timeout("1 second"),
          Pipeline.catchTag("TimeoutError", () => Effect.as(Effect.sleep("10 seconds"), 0)),
          Pipeline.concurrency({ max: 4, key: () => "" })
        ))
      hand.deliver(delivery(1))
      yield* adjust("2 seconds")
      hand.deliver(delivery(2))
      yield* adjust("5 seconds")
      assert.deepStrictEqual(begun, [1])
      yield* adjust("10 seconds")
      assert.deepStrictEqual(begun, [1, 2])
    }))

  it.effect("hold no more messages than maxBlocked beyond those of the permits", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const { running } = yield* on(hand, (from) =>
        from.pipe(
          Pipeline.batch({ size: 10, within: "1 hour" }, () => Effect.void),
          Pipeline.concurrency({ max: 2, key: ({ id }) => id })
        ), { prefetch: 0, maxBlocked: 5 })
      hand.deliver(...upTo(100).map((n) => delivery(n)))
      yield* Wait.turns
      assert.deepStrictEqual(yield* running.owned, { waiting: 0, running: 25 })
    }))
})

describe("batchEach", () => {
  // was: batchEach answering with something that is no Result leaks the permit
  it.effect("that answers with something that is no Result gives its permit back", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const { running } = yield* on(hand, (from) =>
        from.pipe(
          Pipeline.batchEach(
            { size: 2, within: "1 second" },
            () => Effect.succeed([undefined, undefined] as unknown as ReadonlyArray<Result.Result<number, string>>)
          )
        ))
      hand.deliver(delivery(1), delivery(2))
      yield* Wait.turns
      assert.strictEqual(running.limit.inUse, 0)
    }))
})

describe("a lost message", () => {
  // was: while draining, one lost message interrupts its whole batch and burns the others' attempts
  it.effect("of a running batch leaves the others alone while the pipeline drains", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const { drained, running } = yield* on(
        hand,
        (from) => from.pipe(Pipeline.batch({ size: 3, within: "1 hour" }, () => Effect.sleep("15 seconds"))),
        { drainTimeout: "1 minute" }
      )
      const second = delivery(2)
      hand.deliver(delivery(1), second, delivery(3))
      yield* Wait.turns
      hand.lost.add(second)
      yield* drained("10 seconds")
      yield* adjust("10 seconds")
      assert.strictEqual((yield* running.counts).retried, 0)
      assert.deepStrictEqual(hand.said, ["1 Ack", "3 Ack"])
    }))

  // was: a message lost from an open batch, and one from a running batch, harm nobody
  it.effect("leaves its open batch, and its running batch, alone", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const { drained, running } = yield* on(
        hand,
        (from) =>
          from.pipe(
            Pipeline.batch({ size: 3, within: "15 seconds" }, () => Effect.sleep("15 seconds")),
            Pipeline.concurrency(2)
          )
      )
      const second = delivery(2)
      const fifth = delivery(5)
      hand.deliver(delivery(1), second)
      yield* Wait.turns
      hand.lost.add(second)
      yield* adjust("10 seconds")
      hand.deliver(delivery(3), delivery(4), fifth, delivery(6))
      yield* Wait.turns
      hand.lost.add(fifth)
      for (let n = 0; n < 10; n++) yield* adjust("10 seconds")
      assert.deepStrictEqual([...hand.said].sort(), ["1 Ack", "3 Ack", "4 Ack", "6 Ack"])
      assert.deepStrictEqual([running.limit.inUse, (yield* running.owned).running, (yield* running.counts).lost], [
        0,
        0,
        2
      ])
      assert.isTrue(yield* drained("1 second"))
    }))
})
