import { assert, describe, it } from "@effect/vitest"
import { Codec, type Message, Pipeline, Publisher, Settlement, Topic, type Transport } from "@millrace/core"
import { TestHarness } from "@millrace/testing"
import { Cause, Context, Data, Deferred, Duration, Effect, Exit, Fiber, Result, Schedule, Schema } from "effect"
import { TestClock } from "effect/testing"

const Order = Schema.Struct({ id: Schema.String, total: Schema.Number })
const Orders = Topic.make("orders", { schema: Order, key: (order) => order.id })
const Receipts = Topic.make("receipts", { schema: Schema.Struct({ order: Schema.String }) })
const from = Pipeline.from(Orders, { group: "test", startFrom: "beginning" })

const orders = (n: number) => Array.from({ length: n }, (_, i) => ({ id: `o${i}`, total: i }))

class Declined extends Data.TaggedError("Declined")<{ readonly why: string }> {}

describe("steps", () => {
  it.effect("plain functions, promises and Effects run in the order they stand", () =>
    Effect.gen(function*() {
      const report = yield* TestHarness.run(
        Orders,
        from.pipe(
          Pipeline.map((order) => order.total),
          Pipeline.mapPromise(async (n) => n + 1),
          Pipeline.mapEffect((n) => Effect.as(Effect.sleep("1 second"), n * 10)),
          Pipeline.mapEffect((n) => Effect.succeed(n + 0.5)),
          Pipeline.tap(() => Effect.void),
          Pipeline.map((n, message) => `${message.id}:${n}:${message.attempt}:${message.key}`)
        ),
        orders(2)
      )
      assert.deepStrictEqual(report.handled.map(({ value }) => value), ["1:10.5:1:o0", "2:20.5:1:o1"])
      assert.deepStrictEqual(report.settled.map(({ settlement }) => settlement._tag), ["Ack", "Ack"])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("what a filter rejects is acknowledged and counted, not handled", () =>
    Effect.gen(function*() {
      const report = yield* TestHarness.run(
        Orders,
        from.pipe(
          Pipeline.filter((order) => order.total > 0),
          Pipeline.filterMap((order) => order.total % 2 === 0 ? Result.succeed(order.total) : Result.fail("odd"))
        ),
        orders(5)
      )
      assert.deepStrictEqual(report.handled.map(({ value }) => value), [2, 4])
      assert.strictEqual(report.counts.filtered, 3)
      assert.strictEqual(report.settled.length, 5)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("to publishes the value, or several, under ids that a retry derives again", () =>
    Effect.gen(function*() {
      let failures = 1
      const report = yield* TestHarness.run(
        Orders,
        from.pipe(
          Pipeline.to(Receipts, (order) => [{ order: order.id }, { order: `${order.id}-copy` }]),
          Pipeline.mapEffect((order) =>
            failures-- > 0 ? Effect.fail(new Declined({ why: "once" })) : Effect.succeed(order)
          )
        ),
        orders(1)
      )
      assert.strictEqual(report.handled.length, 1)
      const receipts = report.published.filter(({ topic }) => topic === "receipts")
      assert.deepStrictEqual(receipts.map(({ id }) => id?.replace(/^memory-\d+\/orders\/0\//, "")), [
        "orders/test/1/0/0",
        "orders/test/1/0/1"
      ])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("a map that returns a Promise after all is a defect that says what to use", () =>
    Effect.gen(function*() {
      const sneaky: (order: { readonly id: string }) => string = (async () => "later") as any
      const report = yield* TestHarness.run(
        Orders,
        from.pipe(Pipeline.map(sneaky), Pipeline.retry({ times: 0 })),
        orders(1)
      )
      assert.include(report.deadLettered[0]!.record.error.message, "use Pipeline.mapPromise")
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("catchTag recovers from what stands above it", () =>
    Effect.gen(function*() {
      const report = yield* TestHarness.run(
        Orders,
        from.pipe(
          Pipeline.mapEffect((order) =>
            order.total === 0 ? Effect.fail(new Declined({ why: "nothing to pay" })) : Effect.succeed("paid")
          ),
          Pipeline.catchTag("Declined", (error, message) => Effect.succeed(`${message.id}: ${error.why}`)),
          Pipeline.map((text) => text.toUpperCase())
        ),
        orders(2)
      )
      assert.deepStrictEqual(report.handled.map(({ value }) => value), ["1: NOTHING TO PAY", "PAID"])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("timeout fails the attempt, interrupts the Effect and aborts the signal", () =>
    Effect.gen(function*() {
      let interrupted = 0
      let aborted = 0
      const report = yield* TestHarness.run(
        Orders,
        from.pipe(
          Pipeline.mapPromise((order, { signal }) =>
            order.total === 0
              ? new Promise<number>(() => signal.addEventListener("abort", () => aborted++))
              : Promise.resolve(1)
          ),
          Pipeline.mapEffect(() => Effect.onInterrupt(Effect.never, () => Effect.sync(() => interrupted++))),
          Pipeline.timeout("3 seconds"),
          Pipeline.retry({ times: 0 })
        ),
        orders(2)
      )
      assert.deepStrictEqual(report.deadLettered.map(({ record }) => record.error.tag), [
        "TimeoutError",
        "TimeoutError"
      ])
      assert.deepStrictEqual([interrupted, aborted], [1, 1])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("a timeout does not concern what stands below it", () =>
    Effect.gen(function*() {
      const report = yield* TestHarness.run(
        Orders,
        from.pipe(
          Pipeline.mapEffect(() => Effect.as(Effect.sleep("2 seconds"), "above")),
          Pipeline.timeout("3 seconds"),
          Pipeline.tap(() => Effect.sleep("1 hour"))
        ),
        orders(1)
      )
      assert.deepStrictEqual(report.handled.map(({ value }) => value), ["above"])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("each attempt has a scope of its own", () =>
    Effect.gen(function*() {
      const events: Array<string> = []
      let failures = 1
      yield* TestHarness.run(
        Orders,
        from.pipe(
          Pipeline.tap((_, { attempt }) =>
            Effect.acquireRelease(
              Effect.sync(() => events.push(`open ${attempt}`)),
              () => Effect.sync(() => events.push(`close ${attempt}`))
            )
          ),
          Pipeline.tap(() => failures-- > 0 ? Effect.fail("once") : Effect.sync(() => events.push("done")))
        ),
        orders(1)
      )
      assert.deepStrictEqual(events, ["open 1", "close 1", "open 2", "done", "close 2"])
    }).pipe(Effect.provide(TestHarness.layer)))
})

describe("failure", () => {
  it.effect("attempts are numbered 1 to n, the schedule says the delays, then the dead letter is written", () =>
    Effect.gen(function*() {
      const report = yield* TestHarness.run(
        Orders,
        from.pipe(
          Pipeline.mapEffect((order) => Effect.fail(new Declined({ why: order.id }))),
          Pipeline.retry({ times: 3, schedule: Schedule.exponential("1 second", 2) })
        ),
        orders(1)
      )
      assert.deepStrictEqual(report.retried.map(({ attempt, delay }) => [attempt, delay]), [[1, 1000], [2, 2000], [
        3,
        4000
      ]])
      assert.deepStrictEqual(report.settled.map(({ settlement }) => settlement._tag), [
        "Retry",
        "Retry",
        "Retry",
        "Terminate"
      ])
      const [{ letter, record }] = report.deadLettered as [TestHarness.Report["deadLettered"][number]]
      assert.strictEqual(letter.topic, "orders.dead")
      assert.strictEqual(new TextDecoder().decode(letter.body), "{\"id\":\"o0\",\"total\":0}")
      assert.strictEqual(letter.key, "o0")
      assert.deepInclude({ ...record }, { topic: "orders", group: "test", id: "1", attempts: 4, reason: "exhausted" })
      assert.deepInclude(record.error, { tag: "Declined" })
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("a pipeline that says nothing about failure makes 5 attempts over about 6 minutes", () =>
    Effect.gen(function*() {
      const before = yield* Effect.clockWith((clock) => clock.currentTimeMillis)
      const report = yield* TestHarness.run(Orders, from.pipe(Pipeline.mapEffect(() => Effect.fail("no"))), orders(1))
      const minutes = ((yield* Effect.clockWith((clock) => clock.currentTimeMillis)) - before) / 60_000
      assert.strictEqual(report.deadLettered[0]!.record.attempts, 5)
      assert.isTrue(minutes > 4.5 && minutes < 7.2, `${minutes} minutes`)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("what `while` rejects is dead-lettered at attempt 1; a defect is retried without asking it", () =>
    Effect.gen(function*() {
      const report = yield* TestHarness.run(
        Orders,
        from.pipe(
          Pipeline.mapEffect((order) =>
            order.total === 0 ? Effect.die(new Error("a bug")) : Effect.fail(new Declined({ why: "final" }))
          ),
          Pipeline.retry({ times: 2, schedule: Schedule.spaced("1 second"), while: (error) => error.why !== "final" })
        ),
        orders(2)
      )
      assert.deepStrictEqual(
        report.deadLettered.map(({ record }) => [record.id, record.attempts, record.reason]),
        [["2", 1, "rejected"], ["1", 3, "exhausted"]]
      )
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("a handler asks for its own delay, or for the end, by failing with a settlement", () =>
    Effect.gen(function*() {
      const report = yield* TestHarness.run(
        Orders,
        from.pipe(
          Pipeline.mapPromise(async (order, { attempt }) => {
            if (order.total === 0 && attempt === 1) throw Settlement.retry("7 seconds")
            if (order.total === 1) throw Settlement.terminate("closed account")
            return order.id
          })
        ),
        orders(2)
      )
      assert.deepStrictEqual(report.retried.map(({ delay }) => delay), [7000])
      assert.deepStrictEqual(report.handled.map(({ value }) => value), ["o0"])
      assert.deepStrictEqual(
        report.deadLettered.map(({ record }) => [record.reason, record.error.message]),
        [["terminated", "closed account"]]
      )
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("undecodable bytes do not stop the pipeline: they are dead-lettered at attempt 1 as they were", () =>
    Effect.gen(function*() {
      const harness = yield* TestHarness.make(Orders, from)
      const bad = [
        "not json",
        "{\"id\":1}",
        "",
        new Uint8Array([0xff, 0x00, 0x80]),
        new Uint8Array([0x22, 0xff, 0xfe, 0x22])
      ]
      for (const body of bad) yield* harness.publishRaw(body, { custom: "kept" })
      yield* harness.publish({ id: "good", total: 1 })
      const report = yield* harness.runUntilIdle()
      assert.strictEqual(report.handled.length, 1)
      assert.deepStrictEqual(
        report.deadLettered.map(({ record }) => [record.reason, record.attempts]),
        bad.map(() => ["undecodable", 1])
      )
      assert.deepStrictEqual(
        report.deadLettered.map(({ letter }) => letter.body),
        bad.map((body) => typeof body === "string" ? new TextEncoder().encode(body) : body)
      )
      assert.isTrue(report.deadLettered.every(({ letter }) => letter.headers["custom"] === "kept"))
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("a decoding that needs services follows the retry policy", () =>
    Effect.gen(function*() {
      let down = 2
      class Keys
        extends Context.Service<Keys, { readonly open: (text: string) => Effect.Effect<string, "locked"> }>()("Keys")
      {}
      const Sealed = Topic.make("sealed", {
        codec: {
          contentType: "text/plain",
          decode: (wire) => Keys.use((keys) => Effect.orDie(keys.open(new TextDecoder().decode(wire.body)))),
          encode: (value: string) => Exit.succeed({ body: new TextEncoder().encode(value) })
        } satisfies Codec.Codec<string, Keys>
      })
      const report = yield* TestHarness.run(
        Sealed,
        Pipeline.from(Sealed, { group: "test", startFrom: "beginning" }),
        ["x"]
      ).pipe(Effect.provideService(Keys, {
        open: (text) => down-- > 0 ? Effect.fail("locked" as const) : Effect.succeed(`${text} open`)
      }))
      assert.deepStrictEqual(report.handled.map(({ value }) => value), ["x open"])
      assert.strictEqual(report.counts.retried, 2)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("discard throws away, but only because it is written down", () =>
    Effect.gen(function*() {
      const report = yield* TestHarness.run(
        Orders,
        from.pipe(Pipeline.mapEffect(() => Effect.fail("no")), Pipeline.retry({ times: 0 }), Pipeline.discard),
        orders(1)
      )
      assert.deepStrictEqual([report.deadLettered.length, report.counts.discarded], [0, 1])
    }).pipe(Effect.provide(TestHarness.layer)))
})

describe("concurrency", () => {
  it.effect("never more handlers than the limit, and all of it is used", () =>
    Effect.gen(function*() {
      let running = 0
      let most = 0
      const report = yield* TestHarness.run(
        Orders,
        from.pipe(
          Pipeline.tap(() =>
            Effect.acquireUseRelease(
              Effect.sync(() => most = Math.max(most, ++running)),
              () => Effect.sleep("300 millis"),
              () => Effect.sync(() => running--)
            )
          ),
          Pipeline.concurrency(5)
        ),
        orders(50)
      )
      assert.strictEqual(report.handled.length, 50)
      assert.strictEqual(most, 5)
      assert.strictEqual(yield* Effect.clockWith((clock) => clock.currentTimeMillis), 3000)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("concurrency 1 keeps the order", () =>
    Effect.gen(function*() {
      const report = yield* TestHarness.run(
        Orders,
        from.pipe(Pipeline.mapPromise((order) => Promise.resolve(order.total))),
        orders(200)
      )
      assert.deepStrictEqual(report.handled.map(({ value }) => value), orders(200).map(({ total }) => total))
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("pause stops taking, resume loses none", () =>
    Effect.gen(function*() {
      const harness = yield* TestHarness.make(Orders, from.pipe(Pipeline.map((order) => order.id)))
      yield* harness.publish({ id: "before", total: 1 })
      yield* harness.runUntilIdle()
      yield* harness.running.pause
      assert.strictEqual((yield* harness.running.health).state, "paused")
      yield* harness.publish({ id: "meanwhile", total: 1 })
      const paused = yield* Effect.flip(harness.runUntilIdle())
      assert.strictEqual(paused.groups[0]!.lag, 1)
      yield* harness.running.resume
      const report = yield* harness.runUntilIdle()
      assert.deepStrictEqual(report.handled.map(({ value }) => value), ["before", "meanwhile"])
    }).pipe(Effect.provide(TestHarness.layer)))
})

describe("drain", () => {
  it.effect("running handlers finish, and messages that have not begun are released without counting an attempt", () =>
    Effect.gen(function*() {
      const scope = yield* Effect.scope
      const begun = yield* Deferred.make<void>()
      const finish = yield* Deferred.make<void>()
      const harness = yield* TestHarness.make(
        Orders,
        Pipeline.from(Orders, { group: "test", startFrom: "beginning", prefetch: 10 }).pipe(
          Pipeline.tap(() => Effect.andThen(Deferred.succeed(begun, undefined), Deferred.await(finish)))
        )
      ).pipe(Effect.forkIn(scope), Effect.flatMap(Fiber.join))
      for (const order of orders(5)) yield* harness.publish(order)
      yield* Deferred.await(begun)
      assert.deepStrictEqual(yield* harness.running.owned, { waiting: 4, running: 1 })
      yield* Deferred.succeed(finish, undefined)
    }).pipe(Effect.scoped, Effect.provide(TestHarness.layer)))

  it.effect("a handler that outlives drainTimeout is interrupted and its message released", () =>
    Effect.gen(function*() {
      let interrupted = 0
      let released = 0
      const pipeline = Pipeline.from(Orders, { group: "test", startFrom: "beginning", drainTimeout: "30 seconds" })
        .pipe(
          Pipeline.tap(() => Effect.onInterrupt(Effect.never, () => Effect.sync(() => interrupted++)))
        )
      const begun = yield* Effect.scoped(Effect.gen(function*() {
        const running = yield* Pipeline.start(pipeline)
        yield* Publisher.publish(Orders, { id: "stuck", total: 1 })
        while ((yield* running.owned).running === 0) yield* Effect.yieldNow
        yield* Effect.addFinalizer(() => Effect.forkDetach(TestClock.adjust(Duration.seconds(30))))
        return running
      }))
      released = (yield* begun.counts).released
      assert.deepStrictEqual([interrupted, released], [1, 1])
      // A peer gets it as its first attempt.
      const report = yield* TestHarness.run(
        Orders,
        from.pipe(Pipeline.map((_, message) => [message.attempt, message.redelivered])),
        []
      )
      assert.deepStrictEqual(report.handled.map(({ value }) => value), [[1, true]])
    }).pipe(Effect.provide(TestHarness.layer)))
})

describe("bad input", () => {
  const start = <M extends Message.Any, A, E>(pipeline: Pipeline.Pipeline<M, A, E, Transport.Transport>) =>
    Effect.flip(Effect.scoped(Pipeline.start(pipeline)))

  it.effect("names option, value and remedy", () =>
    Effect.gen(function*() {
      const cases = [
        [Pipeline.from(Topic.make("" as string, { schema: Order }), { group: "g" }), "topic is \"\""],
        [Pipeline.from(Orders, { group: "" }), "group is \"\""],
        [from.pipe(Pipeline.concurrency(0)), "concurrency is 0"],
        [from.pipe(Pipeline.concurrency(NaN)), "concurrency is NaN"],
        [from.pipe(Pipeline.retry({ times: -1 })), "retry.times is -1"],
        [Pipeline.from(Orders, { group: "g", prefetch: 0.5 }), "prefetch is 0.5"],
        [Pipeline.from(Orders, { group: "g", waiting: 0 }), "waiting is 0"],
        [Pipeline.from(Orders, { group: "g", maxBlocked: 0 }), "maxBlocked is 0"],
        [from.pipe(Pipeline.deadLetter("orders")), "deadLetter is \"orders\""]
      ] as const
      for (const [pipeline, text] of cases) {
        const error = yield* start(pipeline)
        assert.strictEqual(error.reason._tag, "InvalidOption")
        assert.include(error.message, text)
      }
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("publishing: a value that does not fit, a header that cannot travel, a body over the limit", () =>
    Effect.gen(function*() {
      const wrong: any = { id: 1 }
      const errors = yield* Effect.forEach([
        Publisher.publish(Orders, wrong),
        Publisher.publish(Orders, { id: "a", total: 1 }, { headers: { "millrace-x": "1" } }),
        Publisher.publish(Orders, { id: "a", total: 1 }, { headers: { "a b": "1" } }),
        Publisher.publish(Orders, { id: "a", total: 1 }, { headers: { a: "1\r\n2" } }),
        Publisher.publish(Topic.make("blobs", { codec: Codec.bytes }), new Uint8Array(1_048_577)),
        Publisher.publish(Topic.make("" as string, { codec: Codec.bytes }), new Uint8Array(1))
      ], (publish) => Effect.flip(publish))
      assert.deepStrictEqual(errors.map(({ reason }) => reason._tag), [
        "Unencodable",
        "InvalidOption",
        "InvalidOption",
        "InvalidOption",
        "TooLarge",
        "InvalidOption"
      ])
      yield* Publisher.publish(Topic.make("blobs", { codec: Codec.bytes }), new Uint8Array(1_048_000))
    }).pipe(Effect.provide(TestHarness.layer)))
})

it("Cause of a rejected promise keeps the original error", async () => {
  const boom = new Error("boom")
  const report = await Effect.runPromise(
    TestHarness.run(
      Orders,
      from.pipe(
        Pipeline.mapPromise(() => Promise.reject(boom)),
        Pipeline.retry({ times: 0, while: (error) => Cause.isUnknownError(error) && error.cause === boom }),
        Pipeline.discard
      ),
      orders(1)
    ).pipe(Effect.provide(TestHarness.layer))
  )
  assert.strictEqual(report.counts.discarded, 1)
})
