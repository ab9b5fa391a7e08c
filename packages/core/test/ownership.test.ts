import { assert, describe, it } from "@effect/vitest"
import { Message, Pipeline, Publisher, Settlement, type Transport, TransportAuthor } from "@millrace/core"
import { FakeTransport, MemoryTransport, Wait } from "@millrace/testing"
import { Clock, Context, Deferred, Effect, Result } from "effect"
import { TestClock } from "effect/testing"
import { adjust, delivery, never, Numbers, on } from "./fixtures/fake.ts"

const from = Pipeline.from(Numbers, { group: "test", startFrom: "beginning" })

/** A process whose connection is cut when the test says so: it is not told what becomes of what it has taken. */
const onWire = (transport: Transport.Transport["Service"], wire: { isCut: boolean }) =>
  TransportAuthor.fromTransport(Numbers, { group: "test", startFrom: "beginning", prefetch: 10 }, {
    transport: Effect.succeed({
      ...transport,
      subscribe: (options) =>
        Effect.map(transport.subscribe(options), (subscription) => ({
          ...subscription,
          extend: (deliveries) => Effect.suspend(() => wire.isCut ? Effect.never : subscription.extend(deliveries))
        }))
    })
  })

describe("a message that a peer owns", () => {
  // was: a message lost while it is buffered gives back a permit it never had: the limit is exceeded
  it.effect("gives back no permit when it was only buffered", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      let most = 0
      let inFlight = 0
      const { running } = yield* on(hand, (from) =>
        from.pipe(Pipeline.mapPromise(() => {
          most = Math.max(most, ++inFlight)
          return never()
        })))
      const second = delivery(2)
      hand.deliver(delivery(1), second, delivery(3), delivery(4))
      yield* Wait.turns
      hand.lost.add(second)
      yield* adjust("10 seconds")
      assert.deepStrictEqual([most, (yield* running.owned).running, running.limit.inUse], [1, 1, 1])
    }))

  // was: a message lost while its dead letter is written gives its permit back once
  it.effect("gives its permit back once when its dead letter is being written", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      hand.publish = () => Effect.delay(Effect.succeed([Result.succeed({ id: "1", duplicate: false })]), "15 seconds")
      const { running } = yield* on(hand, (from) => from)
      const bad = delivery(1, { body: new TextEncoder().encode("nonsense") })
      hand.deliver(bad)
      yield* Wait.turns
      hand.lost.add(bad)
      yield* adjust("10 seconds")
      yield* adjust("10 seconds")
      assert.deepStrictEqual([(yield* running.owned).running, running.limit.inUse], [0, 0])
    }))

  // was: a message that was acknowledged while its extension was on its way was counted as lost
  it.effect("is not counted as lost when it was acknowledged while its extension was under way", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      let finish = () => {}
      const { running } = yield* on(
        hand,
        (from) => from.pipe(Pipeline.mapPromise(() => new Promise<void>((resolve) => finish = resolve)))
      )
      const first = delivery(1)
      const { extend } = hand
      hand.extend = (deliveries) => Effect.andThen(Effect.sleep("1 second"), extend(deliveries))
      hand.deliver(first)
      yield* Wait.turns
      yield* adjust("10 seconds") // the extension is on its way
      finish()
      yield* Wait.turns
      hand.lost.add(first)
      yield* adjust("1 second")
      assert.deepInclude(yield* running.counts, { handled: 1, lost: 0 })
    }))

  // was: an acknowledgement by a former owner does not stand once the message waits for a retry (memory)
  it.effect("stays acknowledged by its former owner while it waits for a retry (memory)", () =>
    Effect.gen(function*() {
      const memory = yield* MemoryTransport.MemoryTransport
      const subscribe = {
        topic: "numbers",
        group: "g",
        startFrom: "beginning",
        maxOwned: 1,
        isolateFrom: Infinity,
        timeout: undefined,
        settings: Context.empty()
      } as const
      const one: Transport.Demand = { total: 1, fresh: 1, suspects: 1, bytes: Infinity }
      const a = yield* (yield* memory.connect).subscribe(subscribe)
      const b = yield* (yield* memory.connect).subscribe(subscribe)
      yield* Publisher.publish(Numbers, 1)
      const [first] = yield* a.pull(one)
      yield* TestClock.adjust("31 seconds")
      const [second] = yield* b.pull(one)
      yield* b.settle([{ delivery: second, settlement: Settlement.retry("1 second").settlement }])
      assert.deepStrictEqual(yield* a.settle([{ delivery: first, settlement: Settlement.ack }]), [])
      assert.strictEqual((yield* memory.groups)[0]!.delayed.length, 0)
    }).pipe(Effect.provide(MemoryTransport.layer())))

  // was: settled by hand as no longer ours, the handler that goes on is not told by its signal
  it.effect("aborts the signal of its handler when a settlement by hand tells so", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      let signal: AbortSignal | undefined
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.tap((_, message) => {
            signal = message.signal
            return Message.settle(message, Settlement.release)
          }),
          Pipeline.mapPromise(() => never())
        ))
      const first = delivery(1)
      hand.lost.add(first)
      hand.deliver(first)
      yield* Wait.turns
      assert.isTrue(signal?.aborted)
    }))
})

describe("an extension that has no answer", () => {
  it.effect("does not stop the ones after it", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      hand.extend = () => Effect.never
      yield* on(hand, (from) => from.pipe(Pipeline.mapPromise(() => never())))
      hand.deliver(delivery(1))
      for (const n of [1, 2, 3, 4, 5]) {
        yield* adjust("10 seconds")
        assert.deepStrictEqual(hand.extended, Array.from({ length: n }, () => ["1"]))
      }
    }))
})

describe("a process that stood still", () => {
  // was: a process that stood still began what a peer had long handled
  it.effect("asks before it begins what it has buffered", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      let gap = 0
      const begun: Array<number> = []
      const finish: Array<() => void> = []
      const clock = yield* Clock.clockWith(Effect.succeed)
      const jumping: Clock.Clock = Object.assign(Object.create(clock) as Clock.Clock, {
        currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + gap
      })
      const { running } = yield* Effect.provideService(
        on(hand, (from) =>
          from.pipe(Pipeline.mapPromise((n) => {
            begun.push(n)
            return new Promise<void>((resolve) => finish.push(resolve))
          }))),
        Clock.Clock,
        jumping
      )
      const [second, third] = [delivery(2), delivery(3)]
      hand.deliver(delivery(1), second, third)
      yield* Wait.turns
      gap = 60_000
      hand.lost.add(second)
      finish[0]!()
      yield* Wait.turns
      assert.deepStrictEqual(begun, [1, 3])
      assert.strictEqual((yield* running.counts).lost, 1)
    }))

  // was: a process that stood still while it had nothing began what it found in its socket and a peer had handled
  it.effect("asks before it begins messages that waited in its socket", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      let gap = 0
      const begun: Array<number> = []
      const clock = yield* Clock.clockWith(Effect.succeed)
      const jumping: Clock.Clock = Object.assign(Object.create(clock) as Clock.Clock, {
        currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + gap
      })
      const { running } = yield* Effect.provideService(
        on(hand, (from) => from.pipe(Pipeline.map((n) => void begun.push(n)))),
        Clock.Clock,
        jumping
      )
      yield* adjust("10 seconds")
      gap = 60_000
      const [first, second] = [delivery(1), delivery(2)]
      hand.lost.add(first)
      hand.deliver(first, second)
      yield* Wait.turns
      assert.deepStrictEqual(begun, [2])
      assert.strictEqual((yield* running.counts).lost, 1)
      yield* adjust("10 seconds")
      hand.deliver(delivery(3))
      yield* Wait.turns
      assert.deepStrictEqual(begun, [2, 3])
    }))

  // was: a process whose clock was set back began what a peer had long handled
  it.effect("asks before it begins anything when its clock was set back, too", () =>
    Effect.gen(function*() {
      const memory = yield* MemoryTransport.MemoryTransport
      const clock = yield* Clock.clockWith(Effect.succeed)
      let skew = 0
      const skewed: Clock.Clock = Object.assign(Object.create(clock) as Clock.Clock, {
        currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + skew
      })
      const wire = { isCut: false }
      const finish = yield* Deferred.make<void>()
      const begun: Array<number> = []
      yield* Pipeline.start(
        onWire(yield* memory.connect, wire).pipe(
          Pipeline.tap((n) => Effect.suspend(() => (begun.push(n), n === 1 ? Deferred.await(finish) : Effect.void)))
        )
      ).pipe(Effect.provideService(Clock.Clock, skewed))
      yield* Publisher.publishAll(Numbers, [1, 2])
      yield* TestClock.adjust("1 second")
      wire.isCut = true
      skew = -60_000
      const peer: Array<number> = []
      yield* Pipeline.start(
        Pipeline.from(Numbers, { group: "test" }).pipe(Pipeline.tap((n) => Effect.sync(() => peer.push(n))))
      )
      yield* TestClock.adjust("40 seconds")
      assert.deepStrictEqual([begun, peer], [[1], [1, 2]])
      yield* Deferred.succeed(finish, undefined)
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(begun, [1])
    }).pipe(Effect.provide(MemoryTransport.layer())))

  // was: a process that stood still before it had ever had anything began what a peer had handled meanwhile
  it.effect("asks before it begins the first messages it ever had", () =>
    Effect.gen(function*() {
      const memory = yield* MemoryTransport.MemoryTransport
      const transport = yield* memory.connect
      const clock = yield* Clock.clockWith(Effect.succeed)
      const socket = yield* Deferred.make<void>()
      const begun: Array<number> = []
      const running = yield* Pipeline.start(
        TransportAuthor.fromTransport(Numbers, { group: "test" }, {
          transport: Effect.succeed({
            ...transport,
            subscribe: (options) =>
              Effect.map(transport.subscribe(options), (subscription) => ({
                ...subscription,
                pull: (max) => Effect.tap(subscription.pull(max), Deferred.await(socket))
              }))
          })
        }).pipe(Pipeline.tap((n) => Effect.sync(() => begun.push(n))))
      ).pipe(Effect.provideService(Clock.Clock, Object.assign(Object.create(clock), { sleep: () => Effect.never })))
      yield* Wait.turns
      yield* Publisher.publish(Numbers, 1)
      const peer: Array<number> = []
      yield* Pipeline.start(
        Pipeline.from(Numbers, { group: "test" }).pipe(Pipeline.tap((n) => Effect.sync(() => peer.push(n))))
      )
      yield* TestClock.adjust("40 seconds")
      yield* Deferred.succeed(socket, undefined)
      yield* Wait.turns
      assert.deepStrictEqual([begun, peer, (yield* running.counts).lost], [[], [1], 1])
    }).pipe(Effect.provide(MemoryTransport.layer())))
})

describe("the heartbeat", () => {
  // was: one defect of a transport's extend ends all heartbeats, without a word
  it.effect("goes on after a defect of a transport's extend", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      yield* on(hand, (from) => from.pipe(Pipeline.mapPromise(() => never())))
      hand.deliver(delivery(1))
      yield* Wait.turns
      hand.lost.has = () => {
        throw new Error("extend")
      }
      yield* adjust("10 seconds")
      const before = hand.extended.length
      yield* adjust("30 seconds")
      assert.isAbove(hand.extended.length, before)
    }))
})

describe("a claim", () => {
  it.effect("that has ended loses the message: its signal aborts and nothing more is settled", () =>
    Effect.gen(function*() {
      const memory = yield* MemoryTransport.MemoryTransport
      const transport = yield* memory.connect
      // Its heartbeats do not go out, as in a paused process.
      let paused = true
      const zombie = {
        ...transport,
        subscribe: (options: Parameters<typeof transport.subscribe>[0]) =>
          Effect.map(transport.subscribe(options), (subscription) => ({
            ...subscription,
            extend: (deliveries: Parameters<typeof subscription.extend>[0]) =>
              paused ? Effect.succeed([]) : subscription.extend(deliveries)
          }))
      }
      let aborted = false
      const running = yield* Pipeline.start(
        TransportAuthor.fromTransport(
          Numbers,
          { group: "test", startFrom: "beginning", drainTimeout: 0 },
          { transport: Effect.succeed(zombie) }
        ).pipe(Pipeline.mapPromise((_, { signal }) => {
          signal.addEventListener("abort", () => aborted = true)
          return new Promise<void>(() => {})
        }))
      )
      yield* Publisher.publish(Numbers, 1)
      while ((yield* running.owned).running === 0) yield* Effect.yieldNow
      yield* TestClock.adjust("29 seconds")
      const attempts: Array<number> = []
      const peer = yield* Pipeline.start(from.pipe(Pipeline.map((_, message) => attempts.push(message.attempt))))
      yield* TestClock.adjust("5 seconds")
      assert.deepStrictEqual(attempts, [2])
      paused = false
      yield* TestClock.adjust("10 seconds")
      assert.isTrue(aborted)
      assert.deepInclude(yield* running.counts, { lost: 1, handled: 0, retried: 0 })
      assert.strictEqual((yield* peer.counts).handled, 1)
      assert.deepStrictEqual((yield* memory.settled).map(({ settlement }) => settlement._tag), ["Ack"])
    }).pipe(Effect.provide(MemoryTransport.layer({ history: true }))))

  it.effect("is kept for a long handler: ten claim times do not run it twice", () =>
    Effect.gen(function*() {
      let runs = 0
      const slow = from.pipe(Pipeline.tap(() => Effect.andThen(Effect.sync(() => runs++), Effect.sleep("5 minutes"))))
      const running = yield* Pipeline.start(slow)
      yield* Pipeline.start(slow)
      yield* Publisher.publish(Numbers, 1)
      yield* TestClock.adjust("6 minutes")
      assert.strictEqual(runs, 1)
      assert.strictEqual((yield* running.counts).lost, 0)
    }).pipe(Effect.provide(MemoryTransport.layer())))
})
