import { assert, describe, it } from "@effect/vitest"
import {
  Concurrency,
  type Message,
  Pipeline,
  Publisher,
  Settlement,
  type Transport,
  TransportAuthor
} from "@millrace/core"
import { FakeTransport, MemoryTransport, Wait } from "@millrace/testing"
import { Context, Duration, Effect, Exit, Schedule, Scope } from "effect"
import { TestClock } from "effect/testing"
import { adjust, delivery, Numbers, on } from "./fixtures/fake.ts"

/** A process that dies: its scope is never closed, and it settles nothing more. */
const crash = Effect.gen(function*() {
  const memory = yield* MemoryTransport.MemoryTransport
  const scope = yield* Scope.make()
  const transport = yield* Scope.provide(memory.connect, scope)
  return transport
})

describe("a suspect", () => {
  // was: a suspect that is lost while it waits to run alone stalls the pipeline for ever
  it.effect("that is lost while it waits to run alone lets the others go on", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const { running } = yield* on(
        hand,
        (from) => from.pipe(Pipeline.tap((n) => n === 1 ? Effect.sleep("15 seconds") : Effect.void))
      )
      const suspect = delivery(2, { suspect: true, attempt: 2 })
      hand.deliver(delivery(1))
      yield* Wait.turns
      hand.deliver(suspect)
      yield* Wait.turns
      hand.lost.add(suspect)
      yield* adjust("10 seconds")
      yield* adjust("10 seconds")
      hand.deliver(delivery(3))
      yield* adjust("1 minute")
      assert.strictEqual((yield* running.counts).handled, 2)
    }))

  // was: a suspect that finds no permit when it may run alone stalls the pipeline for ever
  it.effect("that finds no permit when it may run alone runs when one is free", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const limit = Concurrency.make(1)
      assert.isTrue(limit.tryTakeUnsafe()) // another pipeline's handler
      const { running } = yield* on(hand, (from) => from.pipe(Pipeline.concurrency(limit)))
      hand.deliver(delivery(1, { suspect: true, attempt: 2 }))
      yield* Wait.turns
      limit.releaseUnsafe()
      yield* adjust("1 minute")
      assert.strictEqual((yield* running.counts).handled, 1)
    }))

  it.effect("begins when nothing can arrive any more, however long the broker takes to cancel the open request", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const { subscribe } = hand.transport
      Object.assign(hand.transport, {
        subscribe: (options: Transport.SubscribeOptions) =>
          Effect.map(
            subscribe(options),
            (subscription) => ({ ...subscription, withdraw: Effect.sleep("2 seconds") })
          )
      })
      const begun: Array<number> = []
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.map((n) => void begun.push(n))
        ))
      hand.deliver(delivery(1, { suspect: true, redelivered: true, attempt: 4 }))
      yield* adjust("1500 millis")
      assert.deepStrictEqual(begun, [])
      yield* adjust("1 second")
      assert.deepStrictEqual(begun, [1])
    }))

  it.effect("is alone, with manual, until its handler has ended, not until it is settled", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const begun: Array<number> = []
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.map((n) => void begun.push(n)),
          Pipeline.ackPolicy("manual", { settleWithin: "5 minutes" })
        ))
      hand.deliver(delivery(1, { suspect: true, redelivered: true, attempt: 4 }))
      yield* adjust("1 second")
      hand.deliver(delivery(2))
      yield* adjust("1 second")
      assert.deepStrictEqual(begun, [1, 2])
    }))

  it.effect("waits, with manual, until the user has settled what was handled, or has not in time", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const begun: Array<number> = []
      const { running } = yield* on(hand, (from) =>
        from.pipe(
          Pipeline.map((n) => void begun.push(n)),
          Pipeline.ackPolicy("manual", { settleWithin: "5 seconds" })
        ))
      hand.deliver(delivery(1))
      yield* Wait.turns
      hand.deliver(delivery(2, { suspect: true, attempt: 4 }))
      yield* adjust("4 seconds")
      assert.deepStrictEqual(begun, [1])
      yield* adjust("1 minute")
      assert.deepStrictEqual([begun, (yield* running.counts).unsettled], [[1, 2], 2])
    }))
})

describe("a suspect with keys", () => {
  // was: a suspect behind a retrying head of its key stops all keys until patience ends
  it.effect("behind a head that waits for its retry holds up no other key", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const done: Array<number> = []
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.tap((n, { attempt }) =>
            n === 1 && attempt === 1 ? Effect.fail("no") : Effect.sync(() => done.push(n))
          ),
          Pipeline.retry({ times: 3, schedule: Schedule.spaced("1 minute") }),
          Pipeline.concurrency({ max: 4, key: ({ value }) => String(value % 2) })
        ))
      hand.deliver(delivery(1))
      yield* Wait.turns
      hand.deliver(delivery(3, { suspect: true, attempt: 2 }))
      yield* Wait.turns
      hand.deliver(delivery(2)) // another key
      yield* adjust("30 seconds")
      assert.deepStrictEqual(done, [2])
      yield* adjust("30 seconds")
      hand.deliver(delivery(1, { attempt: 2 })) // the retry is due
      yield* adjust("1 second")
      assert.deepStrictEqual(done, [2, 1, 3])
    }))

  it.effect("leaves no key stuck of which messages are released for it", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const done: Array<number> = []
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.tap((n) => Effect.as(n === 20 ? Effect.sleep("5 seconds") : Effect.void, done.push(n))),
          Pipeline.concurrency({ max: 1, key: ({ value }) => value < 10 ? "low" : String(value) })
        ))
      // The first message holds the permit, the second is ready, the third waits behind it, the fourth is not due yet.
      hand.deliver(delivery(20), delivery(1), delivery(3), delivery(5, { attempt: 2, redelivered: true, due: 60_000 }))
      yield* Wait.turns
      hand.deliver(delivery(30, { suspect: true, redelivered: true, attempt: 4 }))
      yield* adjust("10 seconds")
      assert.deepStrictEqual(done, [20, 30])
      hand.deliver(delivery(1, { redelivered: true }), delivery(3, { redelivered: true }))
      yield* adjust("1 second")
      assert.deepStrictEqual(done, [20, 30, 1, 3])
    }))

  // was: a suspect makes the pipeline forget which keys wait for a retry: their order breaks
  it.effect("leaves the order of keys that wait for a retry as it was", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const done: Array<number> = []
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.tap((n, { attempt }) =>
            n === 1 && attempt === 1 ? Effect.fail("no") : Effect.sync(() => done.push(n))
          ),
          Pipeline.retry({ times: 3, schedule: Schedule.spaced("1 minute") }),
          Pipeline.concurrency({ max: 4, key: ({ value }) => String(value % 2) })
        ))
      hand.deliver(delivery(1))
      yield* Wait.turns
      hand.deliver(delivery(2, { suspect: true, attempt: 2 }), delivery(4))
      yield* adjust("1 second")
      hand.deliver(delivery(3))
      yield* adjust("1 second")
      assert.notInclude(done, 3)
    }))

  // was: a suspect that had stood behind its key ran alone, and what was asked for went on coming
  it.effect("runs alone, and no other message is taken meanwhile", () =>
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
          Pipeline.retry({ times: 1 }),
          Pipeline.concurrency({ max: 4, key: () => "" })
        )
      )
      yield* Wait.turns
      yield* TestClock.adjust("2 minutes")
      yield* Wait.turns
      assert.deepStrictEqual(begun, [1, 1, 2])
      // The suspect runs alone: were it to end the process, the third message would go with it.
      yield* Publisher.publish(Numbers, 3)
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual((yield* memory.groups).map(({ lag, pending }) => [lag, pending.length]), [[1, 1]])
    }).pipe(Effect.provide(MemoryTransport.layer())))
})

describe("a suspect on its last attempt, beside another pipeline of its process", () => {
  const suspect = delivery(1, { suspect: true, redelivered: true, attempt: 5 })

  /** Two pipelines of one transport: handlers of the second one take `seconds`. */
  const two = (seconds: number) =>
    Effect.gen(function*() {
      const [hand, other] = [FakeTransport.make(), FakeTransport.make()]
      const begun: Array<string> = []
      const handle = (name: string, seconds: number) => (n: number) =>
        Effect.andThen(Effect.sync(() => begun.push(`${name}${n}`)), Effect.sleep(Duration.seconds(seconds)))
      const { drained } = yield* on(hand, (from) => from.pipe(Pipeline.tap(handle("a", 4))))
      Object.assign(hand.transport, { subscribe: other.transport.subscribe })
      yield* on(hand, (from) => from.pipe(Pipeline.tap(handle("b", seconds)), Pipeline.concurrency(2)), { group: "b" })
      return { hand, other, begun, drained }
    })

  it.effect("runs when no handler of that one runs, and none begins meanwhile", () =>
    Effect.gen(function*() {
      const { begun, hand, other } = yield* two(3)
      other.deliver(delivery(1))
      yield* Wait.turns
      hand.deliver(suspect)
      yield* Wait.turns
      other.deliver(delivery(2))
      yield* adjust("2 seconds")
      assert.deepStrictEqual(begun, ["b1"])
      yield* adjust("2 seconds")
      assert.deepStrictEqual(begun, ["b1", "a1"])
      yield* adjust("4 seconds")
      assert.deepStrictEqual(begun, ["b1", "a1", "b2"])
    }))

  it.effect("waits for handlers of that one, and holds them up, for 30 seconds at most", () =>
    Effect.gen(function*() {
      const { begun, hand, other } = yield* two(3600)
      other.deliver(delivery(1))
      yield* Wait.turns
      hand.deliver(suspect)
      yield* Wait.turns
      other.deliver(delivery(2))
      yield* adjust("29 seconds")
      assert.deepStrictEqual(begun, ["b1"])
      yield* adjust("2 seconds")
      assert.sameMembers(begun, ["b1", "a1", "b2"])
    }))

  it.effect("holds it up no more when its own pipeline stops", () =>
    Effect.gen(function*() {
      const { begun, drained, hand, other } = yield* two(20)
      other.deliver(delivery(1))
      yield* Wait.turns
      hand.deliver(suspect)
      yield* Wait.turns
      other.deliver(delivery(2))
      assert.isTrue(yield* drained("1 second"))
      assert.deepStrictEqual([begun, hand.said], [["b1", "b2"], ["1 Release"]])
    }))
})

describe("a message that kills its process", () => {
  it.effect("is dead-lettered after its limit and takes no neighbour with it", () =>
    Effect.gen(function*() {
      const memory = yield* MemoryTransport.MemoryTransport
      for (let n = 0; n < 100; n++) yield* Publisher.publish(Numbers, n)
      const handled = new Set<number>()
      const kills: Array<number> = []
      let dead = 0
      for (let life = 0; life < 20 && dead === 0; life++) {
        // What runs in this life belongs to a transport that goes silent when the killer runs.
        let alive = true
        const transport = yield* crash
        const mortal = {
          ...transport,
          subscribe: (options: Parameters<typeof transport.subscribe>[0]) =>
            Effect.map(transport.subscribe(options), (subscription) => ({
              ...subscription,
              pull: (demand: Transport.Demand) =>
                Effect.suspend(() => alive ? subscription.pull(demand) : Effect.never),
              settle: (batch: Parameters<typeof subscription.settle>[0]) =>
                Effect.suspend(() => alive ? subscription.settle(batch) : Effect.never),
              extend: (deliveries: Parameters<typeof subscription.extend>[0]) =>
                Effect.suspend(() => alive ? subscription.extend(deliveries) : Effect.never)
            }))
        }
        const pipeline = TransportAuthor.fromTransport(
          Numbers,
          { group: "test", startFrom: "beginning" },
          { transport: Effect.succeed(mortal) }
        ).pipe(
          Pipeline.mapEffect((n, message) =>
            Effect.suspend(() => {
              if (!alive) return Effect.never
              if (n === 50) {
                kills.push(message.attempt)
                alive = false
                return Effect.never
              }
              return Effect.as(Effect.sleep("1 millis"), handled.add(n))
            })
          ),
          Pipeline.concurrency(16),
          Pipeline.retry({ times: 3 })
        )
        const life$ = yield* Scope.make()
        const running = yield* Scope.provide(Pipeline.start(pipeline), life$)
        for (let second = 0; alive && second < 300 && (yield* running.counts).deadLettered === 0; second++) {
          yield* TestClock.adjust("1 second")
        }
        for (let second = 0; alive && second < 60; second++) yield* TestClock.adjust("1 second")
        dead += (yield* running.counts).deadLettered
      }
      const sizes = yield* memory.sizes
      assert.deepStrictEqual(kills, [1, 2, 3, 4])
      assert.strictEqual(sizes.get("numbers.dead"), 1)
      assert.strictEqual(handled.size, 99)
      assert.deepStrictEqual((yield* memory.groups).map(({ lag, pending }) => [lag, pending.length]), [[0, 0]])
    }).pipe(Effect.provide(MemoryTransport.layer())))
})
