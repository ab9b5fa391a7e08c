import { assert, describe, it } from "@effect/vitest"
import { Message, Pipeline, Settlement, Topic, Transport } from "@millrace/core"
import { FakeTransport, TestHarness, Wait } from "@millrace/testing"
import { Deferred, Effect, Schedule, Schema, Scope } from "effect"
import { adjust, delivery, never, Numbers, on } from "./fixtures/fake.ts"

const Event = Schema.Struct({ key: Schema.String, n: Schema.Number })
type Event = typeof Event.Type
const Events = Topic.make("events", { schema: Event })
const from = Pipeline.from(Events, { group: "test", startFrom: "beginning" })
const byKey = (max: number) => <A, E, R>(self: Pipeline.Pipeline<Message.Message<Event>, A, E, R>) =>
  Pipeline.concurrency(self, { max, key: ({ value }) => value.key })

const interleaved = (keys: number, each: number) =>
  Array.from({ length: keys * each }, (_, i) => ({ key: `k${i % keys}`, n: Math.floor(i / keys) }))

const perKey = (values: ReadonlyArray<unknown>) =>
  Map.groupBy(values as ReadonlyArray<{ readonly key: string; readonly n: number }>, ({ key }) => key)

describe("keys", () => {
  it.effect("one key one at a time and in order, many keys at once", () =>
    Effect.gen(function*() {
      const running = new Map<string, number>()
      let total = 0
      let most = 0
      const report = yield* TestHarness.run(
        Events,
        from.pipe(
          Pipeline.tap(({ key }) =>
            Effect.acquireUseRelease(
              Effect.sync(() => {
                running.set(key, (running.get(key) ?? 0) + 1)
                most = Math.max(most, ++total)
                assert.strictEqual(running.get(key), 1)
              }),
              () => Effect.sleep(key === "k0" ? "30 millis" : "10 millis"),
              () =>
                Effect.sync(() => {
                  running.set(key, 0)
                  total--
                })
            )
          ),
          byKey(4)
        ),
        interleaved(8, 10)
      )
      assert.strictEqual(most, 4)
      for (const [, values] of perKey(report.handled.map(({ value }) => value))) {
        assert.deepStrictEqual(values.map(({ n }) => n), Array.from({ length: 10 }, (_, i) => i))
      }
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("order holds through retries: a failing head holds back only its own key, without a slot", () =>
    Effect.gen(function*() {
      const failures = new Map<string, number>()
      const order: Array<string> = []
      const report = yield* TestHarness.run(
        Events,
        from.pipe(
          Pipeline.tap(({ key, n }) =>
            Effect.suspend(() => {
              const seen = failures.get(`${key}${n}`) ?? 0
              failures.set(`${key}${n}`, seen + 1)
              order.push(`${key}${n}`)
              return key === "k0" && n === 1 && seen < 2 ? Effect.fail("not yet") : Effect.void
            })
          ),
          Pipeline.retry({ times: 5, schedule: Schedule.spaced("1 minute") }),
          byKey(1)
        ),
        interleaved(3, 4)
      )
      assert.strictEqual(report.handled.length, 12)
      for (const [, values] of perKey(report.handled.map(({ value }) => value))) {
        assert.deepStrictEqual(values.map(({ n }) => n), [0, 1, 2, 3])
      }
      // With a single slot, the other keys were all done before the first retry.
      assert.deepStrictEqual(order.slice(-4), ["k01", "k01", "k02", "k03"])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("a head that is dead-lettered makes way for the next of its key", () =>
    Effect.gen(function*() {
      const report = yield* TestHarness.run(
        Events,
        from.pipe(
          Pipeline.tap(({ n }) => n === 0 ? Effect.fail("never") : Effect.void),
          Pipeline.retry({ times: 2, schedule: Schedule.spaced("1 second") }),
          byKey(2)
        ),
        interleaved(2, 3)
      )
      assert.strictEqual(report.deadLettered.length, 2)
      assert.strictEqual(report.handled.length, 4)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("one stuck key does not idle the others, whatever stands behind it", () =>
    Effect.gen(function*() {
      const release = yield* Deferred.make<void>()
      const harness = yield* TestHarness.make(
        Events,
        Pipeline.from(Events, { group: "test", startFrom: "beginning", prefetch: 8 }).pipe(
          Pipeline.tap(({ key }) => key === "stuck" ? Deferred.await(release) : Effect.void),
          byKey(4)
        )
      )
      for (let n = 0; n < 500; n++) yield* harness.publish({ key: "stuck", n })
      for (let n = 0; n < 500; n++) yield* harness.publish({ key: `k${n}`, n })
      while ((yield* harness.running.counts).handled < 500) yield* Effect.yieldNow
      assert.strictEqual((yield* harness.running.owned).running, 1)
      yield* Deferred.succeed(release, undefined)
      const report = yield* harness.runUntilIdle()
      assert.strictEqual(report.handled.length, 1000)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("an undecodable message holds up no key", () =>
    Effect.gen(function*() {
      const harness = yield* TestHarness.make(Events, from.pipe(byKey(2)))
      yield* harness.publish({ key: "a", n: 0 })
      yield* harness.publishRaw("nonsense")
      yield* harness.publish({ key: "a", n: 1 })
      const report = yield* harness.runUntilIdle()
      assert.deepStrictEqual([report.handled.length, report.deadLettered.length], [2, 1])
    }).pipe(Effect.provide(TestHarness.layer)))
})

describe("a message of a key that is lost", () => {
  // was: a message lost while it stands behind its key lets the next one of the key run beside the head
  it.effect("behind the head of its key, it lets no other message run beside the head", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const begun: Array<number> = []
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.mapPromise((n) => {
            begun.push(n)
            return never()
          }),
          Pipeline.concurrency({ max: 4, key: () => "k" })
        ))
      const second = delivery(2)
      hand.deliver(delivery(1), second, delivery(3))
      yield* Wait.turns
      hand.lost.add(second)
      yield* adjust("10 seconds")
      assert.deepStrictEqual(begun, [1])
    }))

  /** The first runs, two wait behind it; the first two have been lost, and may return. */
  const twoLost = Effect.gen(function*() {
    const hand = FakeTransport.make()
    const begun: Array<number> = []
    yield* on(hand, (from) =>
      from.pipe(
        Pipeline.mapPromise((n) => {
          begun.push(n)
          return n === 1 && begun.length === 1 ? never() : Promise.resolve()
        }),
        Pipeline.concurrency({ max: 4, key: () => "k" })
      ))
    const [first, second] = [delivery(1, { mayReturn: true }), delivery(2, { mayReturn: true })]
    hand.deliver(first, second, delivery(3))
    yield* Wait.turns
    hand.lost.add(first).add(second)
    yield* adjust("10 seconds")
    assert.deepStrictEqual(begun, [1])
    return { hand, begun }
  })

  // was: a buffered retry that the broker delivered again lost its place: later messages of its key overtook it
  it.effect("keeps its place when it may return, begun or not, and whatever the order of return", () =>
    Effect.gen(function*() {
      const { begun, hand } = yield* twoLost
      hand.deliver(delivery(2, { redelivered: true }))
      yield* Wait.turns
      assert.deepStrictEqual(begun, [1])
      // A broker that was killed delivers as new what it had delivered.
      hand.deliver(delivery(1))
      yield* Wait.turns
      assert.deepStrictEqual(begun, [1, 1, 2, 3])
    }))

  it.effect("is not waited for any more once a peer has settled it", () =>
    Effect.gen(function*() {
      const { begun, hand } = yield* twoLost
      hand.settledByPeers.add("1").add("2")
      yield* adjust("4 seconds")
      assert.deepStrictEqual(begun, [1, 3])
    }))

  it.effect("is waited for while the transport holds it, then no longer than its lease and a margin", () =>
    Effect.gen(function*() {
      const { begun, hand } = yield* twoLost
      // What the transport has received does not count as missing.
      hand.held.add("1").add("2")
      for (let i = 0; i < 12; i++) yield* adjust("4 seconds")
      hand.held.clear()
      for (let i = 0; i < 9; i++) yield* adjust("4 seconds")
      assert.deepStrictEqual(begun, [1])
      yield* adjust("4 seconds")
      assert.deepStrictEqual(begun, [1, 3])
    }))

  it.effect("gives its place to the delivery that shows that its lease has ended", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const begun: Array<string> = []
      let finish = () => {}
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.mapPromise((n, { attempt }) => {
            begun.push(`${n} at ${attempt}`)
            return n === 1 ? new Promise<void>((resolve) => finish = resolve) : Promise.resolve()
          }),
          Pipeline.concurrency({ max: 4, key: () => "k" })
        ))
      hand.deliver(delivery(1), delivery(2), delivery(3), delivery(2, { redelivered: true, attempt: 2 }))
      yield* Wait.turns
      finish()
      yield* Wait.turns
      assert.deepStrictEqual(begun, ["1 at 1", "2 at 2", "3 at 1"])
    }))
})

describe("the key of a message", () => {
  // was: a key that reads the typed headers sees none: every message fails
  it.effect("is chosen by its typed headers, too", () =>
    Effect.gen(function*() {
      const Tenants = Topic.make("numbers", {
        schema: Schema.Number,
        headers: Schema.Struct({ tenant: Schema.String })
      } as any) as unknown as Topic.TopicWithHeaders<number, { readonly tenant: string }>
      const hand = FakeTransport.make()
      const scope = yield* Scope.make()
      const running = yield* Scope.provide(
        Pipeline.start(
          Pipeline.from(Tenants, { group: "test" }).pipe(
            Pipeline.concurrency({ max: 2, key: (message) => message.typedHeaders.tenant.toLowerCase() })
          )
        ),
        scope
      ).pipe(Effect.provideService(Transport.Transport, hand.transport))
      yield* Wait.turns
      hand.deliver(delivery(1, { headers: { tenant: "A" } }))
      yield* Wait.turns
      assert.deepStrictEqual((yield* running.counts).handled, 1, JSON.stringify(hand.said))
    }))
})

describe("a retry that is requested by hand", () => {
  // was: a retry asked for by hand lets the next message of the key overtake
  it.effect("holds up the next message of the key", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const done: Array<number> = []
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.tap((n, message) =>
            n === 1 && message.attempt === 1
              ? Message.settle(message, Settlement.retry("1 minute"))
              : Effect.sync(() => done.push(n) > 0)
          ),
          Pipeline.concurrency({ max: 4, key: () => "k" })
        ))
      hand.deliver(delivery(1), delivery(2))
      yield* adjust("1 second")
      assert.deepStrictEqual(done, [])
    }))
})

describe("a message that is released by hand", () => {
  it.effect("keeps its place in its key until it comes again", () =>
    Effect.gen(function*() {
      const begun: Array<string> = []
      let releases = 0
      const report = yield* TestHarness.run(
        Numbers,
        Pipeline.from(Numbers, { group: "test" }).pipe(
          Pipeline.tap((n, message) => {
            begun.push(`${n}#${message.attempt}`)
            return n === 2 && releases++ < 2 ? Message.settle(message, Settlement.release) : Effect.void
          }),
          Pipeline.concurrency({ max: 4, key: () => "k" })
        ),
        [1, 2, 3, 4]
      )
      assert.deepStrictEqual(begun, ["1#1", "2#1", "2#1", "2#1", "3#1", "4#1"])
      assert.deepStrictEqual([report.counts.handled, report.counts.released], [4, 2])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("is waited for no longer than a retry when it does not come", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.tap((n, message) => n === 1 ? Message.settle(message, Settlement.release) : Effect.void),
          Pipeline.concurrency({ max: 4, key: () => "k" })
        ))
      hand.deliver(delivery(1), delivery(2))
      yield* adjust("10 seconds")
      assert.deepStrictEqual(hand.said, ["1 Release"])
      for (let n = 0; n < 6; n++) yield* adjust("10 seconds")
      assert.deepStrictEqual(hand.said, ["1 Release", "2 Ack"])
    }))
})

describe("order", () => {
  // was: a key's order breaks when no slot comes free between a retry's due time and 30 s after it
  it.effect("holds when no slot is free from the due time of a retry on", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const begun: Array<string> = []
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.tap((n, { attempt }) => {
            begun.push(`${n}#${attempt}`)
            return n === 1 && attempt === 1 ? Effect.fail("no") : Effect.sleep("1 minute")
          }),
          Pipeline.retry({ times: 3, schedule: Schedule.spaced("1 second") }),
          Pipeline.concurrency({ max: 1, key: ({ value }) => String(value % 2) })
        ), { prefetch: 0 })
      hand.deliver(delivery(1))
      yield* Wait.turns
      hand.deliver(delivery(3), delivery(2))
      yield* adjust("2 seconds")
      hand.deliver(delivery(1, { attempt: 2 })) // due, and nobody asks
      for (let n = 0; n < 30; n++) yield* adjust("10 seconds")
      assert.deepStrictEqual(begun, ["1#1", "2#1", "1#2", "3#1"])
    }))

  // was: a key whose head waited for its retry stood still for ever, once as many as may wait stood behind it
  it.effect("holds, and the key goes on, with as many messages behind its head as may wait", () =>
    Effect.gen(function*() {
      const report = yield* TestHarness.run(
        Numbers,
        Pipeline.from(Numbers, { group: "test", waiting: 5 }).pipe(
          Pipeline.tap((n, { attempt }) => n === 0 && attempt === 1 ? Effect.fail("once") : Effect.void),
          Pipeline.concurrency({ max: 4, key: () => "" })
        ),
        Array.from({ length: 20 }, (_, n) => n)
      )
      assert.deepStrictEqual(report.handled.map(({ value }) => value), Array.from({ length: 20 }, (_, n) => n))
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("holds for a message that fails again while a later one of its key, of an earlier process, is not due yet", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const begun: Array<string> = []
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.tap((n, { attempt }) => {
            begun.push(`${n}#${attempt}`)
            return n === 1 && attempt < 3 ? Effect.fail("no") : Effect.void
          }),
          Pipeline.retry({ times: 3, schedule: Schedule.spaced("1 minute") }),
          Pipeline.concurrency({ max: 4, key: () => "k" })
        ))
      hand.deliver(delivery(1))
      yield* Wait.turns
      hand.deliver(delivery(2, { attempt: 2, redelivered: true, due: 65_000 }), delivery(3))
      yield* adjust("1 minute")
      hand.deliver(delivery(1, { attempt: 2, redelivered: true }))
      yield* adjust("1 minute")
      assert.deepStrictEqual(begun, ["1#1", "1#2"])
      hand.deliver(delivery(1, { attempt: 3, redelivered: true }))
      yield* adjust("1 second")
      assert.deepStrictEqual(begun, ["1#1", "1#2", "1#3", "2#2", "3#1"])
    }))

  it.effect("does not let a message wait for one that came after it and is not due yet", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const begun: Array<number> = []
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.tap((n) => {
            begun.push(n)
            return Effect.sleep("1 second")
          }),
          Pipeline.concurrency({ max: 4, key: () => "k" })
        ))
      hand.deliver(delivery(1), delivery(2), delivery(3, { attempt: 2, redelivered: true, due: 60_000 }))
      yield* adjust("1 second")
      assert.deepStrictEqual(begun, [1, 2])
      yield* adjust("1 minute")
      assert.deepStrictEqual(begun, [1, 2, 3])
    }))
})
