import { assert, describe, it } from "@effect/vitest"
import { Pipeline, Publisher, Topic, type Transport } from "@millrace/core"
import { MemoryTransport } from "@millrace/testing"
import { Clock, Deferred, Effect, Schema } from "effect"
import { TestClock } from "effect/testing"

const Numbers = Topic.make("numbers", { schema: Schema.Number })

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

describe("clocks", () => {
  // Found by Simulation, seed 180.
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
})
