import { assert, describe, it } from "@effect/vitest"
import { type Message, Pipeline, Publisher, Settlement, Topic, type Transport } from "@millrace/core"
import { MemoryTransport, TestHarness } from "@millrace/testing"
import { Clock, Context, Deferred, Effect, Exit, Schema, Scope } from "effect"
import { TestClock } from "effect/testing"

const Numbers = Topic.make("numbers", { schema: Schema.Number })

/** Lets everything happen that needs no time. */
const turns = Effect.promise(async () => {
  for (let n = 0; n < 80; n++) await new Promise((resolve) => setImmediate(resolve))
})

/** A process whose connection is cut when the test says so: it is not told what becomes of what it has taken. */
const onWire = (transport: Transport.Transport["Service"], wire: { isCut: boolean }) =>
  Pipeline.fromTransport(Numbers, { group: "test", startFrom: "beginning", prefetch: 10 }, {
    transport: Effect.succeed({
      ...transport,
      subscribe: (options) =>
        Effect.map(transport.subscribe(options), (subscription) => ({
          ...subscription,
          extend: (deliveries) => Effect.suspend(() => wire.isCut ? Effect.never : subscription.extend(deliveries))
        }))
    })
  })

describe("found by simulation", () => {
  it.effect("a process whose clock was set back began what a peer had long handled", () =>
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

  it.effect("a suspect that had stood behind its key ran alone, and what was asked for went on coming", () =>
    Effect.gen(function*() {
      const memory = yield* MemoryTransport.MemoryTransport
      yield* Publisher.publishAll(Numbers, [1, 2])
      // A process takes both, hands the first back and dies of the second.
      const mortal = yield* Scope.make()
      const subscription = yield* Effect.flatMap(memory.connect, (transport) =>
        transport.subscribe({
          topic: "numbers",
          group: "test",
          startFrom: "beginning",
          maxOwned: 2,
          isolateFrom: Infinity,
          timeout: undefined,
          settings: Context.empty()
        })).pipe(Scope.provide(mortal))
      const [first] = yield* subscription.pull({ total: 2, fresh: 2, suspects: 2, bytes: Infinity })
      yield* subscription.settle([{ delivery: first, settlement: Settlement.release }])
      yield* Scope.close(mortal, Exit.void)

      const begun: Array<number> = []
      const handle = (n: number, message: Message.Any) =>
        Effect.suspend(() => {
          begun.push(n)
          if (n === 1 && message.attempt === 1) return Effect.fail(Settlement.retry("1 minute"))
          return n === 2 ? Effect.never : Effect.sleep("1 second")
        })
      yield* Pipeline.start(
        Pipeline.from(Numbers, { group: "test", drainTimeout: 0 }).pipe(
          Pipeline.tap(handle),
          Pipeline.concurrency({ max: 4, key: () => "" })
        )
      )
      yield* turns
      yield* TestClock.adjust("2 minutes")
      yield* turns
      assert.deepStrictEqual(begun, [1, 1, 2])
      // The suspect runs alone: were it to end the process, the third message would go with it.
      yield* Publisher.publish(Numbers, 3)
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual((yield* memory.groups).map(({ lag, pending }) => [lag, pending.length]), [[1, 1]])
    }).pipe(Effect.provide(MemoryTransport.layer())))

  it.effect("a key whose head waited for its retry stood still for ever, once as many as may wait stood behind it", () =>
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

  it.effect("a process that stood still before it had ever had anything began what a peer had handled meanwhile", () =>
    Effect.gen(function*() {
      const memory = yield* MemoryTransport.MemoryTransport
      const transport = yield* memory.connect
      const clock = yield* Clock.clockWith(Effect.succeed)
      const socket = yield* Deferred.make<void>()
      const begun: Array<number> = []
      const running = yield* Pipeline.start(
        Pipeline.fromTransport(Numbers, { group: "test" }, {
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
      yield* turns
      yield* Publisher.publish(Numbers, 1)
      const peer: Array<number> = []
      yield* Pipeline.start(
        Pipeline.from(Numbers, { group: "test" }).pipe(Pipeline.tap((n) => Effect.sync(() => peer.push(n))))
      )
      yield* TestClock.adjust("40 seconds")
      yield* Deferred.succeed(socket, undefined)
      yield* turns
      assert.deepStrictEqual([begun, peer, (yield* running.counts).lost], [[], [1], 1])
    }).pipe(Effect.provide(MemoryTransport.layer())))
})
