import { assert, describe, it } from "@effect/vitest"
import { Pipeline } from "@millrace/core"
import { FakeTransport, MemoryTransport, TestHarness, Wait } from "@millrace/testing"
import { Clock, type Duration, Effect, Result, Scope } from "effect"
import { adjust, delivery, never, Numbers, on } from "./fixtures/fake.ts"

const from = Pipeline.from(Numbers, { group: "test", startFrom: "beginning" })

describe("a timeout", () => {
  // was: each round of timeouts leaks a timer
  it.effect("leaves no timer behind, however often it passes", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      let sleeping = 0
      const clock = yield* Clock.clockWith(Effect.succeed)
      const watched: Clock.Clock = Object.assign(Object.create(clock) as Clock.Clock, {
        sleep: (duration: Duration.Duration) =>
          Effect.suspend(() => {
            sleeping++
            return Effect.ensuring(clock.sleep(duration), Effect.sync(() => sleeping--))
          })
      })
      yield* Effect.provideService(
        on(hand, (from) => from.pipe(Pipeline.mapPromise(() => never()), Pipeline.timeout("1 second")), {
          prefetch: 100
        }),
        Clock.Clock,
        watched
      )
      hand.deliver(...Array.from({ length: 100 }, (_, i) => delivery(i)))
      for (let second = 0; second < 20; second++) yield* adjust("1 second")
      // The heartbeat, one for the step, and three for all retries and the prefetch.
      assert.isAtMost(sleeping, 5)
    }))

  // was: an undecodable message whose dead letter takes longer than the timeout is released, uncounted, for ever
  it.effect("does not concern the dead letter of an undecodable message", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      hand.publish = (messages) =>
        Effect.delay(
          Effect.sync(() => {
            hand.published.push(...messages)
            return [Result.succeed({ id: "1", duplicate: false })]
          }),
          "5 seconds"
        )
      const { running } = yield* on(hand, (from) => from.pipe(Pipeline.timeout("1 second")))
      hand.deliver(delivery(1, { body: new TextEncoder().encode("nonsense") }))
      yield* adjust("1 second")
      yield* adjust("10 seconds")
      assert.deepStrictEqual([hand.said, running.limit.inUse], [["1 Terminate"], 0])
    }))

  // was: a signal first read after the timeout is not aborted
  it.effect("has aborted the signal, also when it is first read afterwards", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const seen: Array<boolean> = []
      let go = () => {}
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.mapPromise(async (_, message) => {
            await new Promise<void>((resolve) => go = resolve)
            seen.push(message.signal.aborted)
          }),
          Pipeline.timeout("1 second")
        ))
      hand.deliver(delivery(1))
      yield* adjust("2 seconds")
      go()
      yield* Wait.turns
      assert.deepStrictEqual(seen, [true])
    }))

  // was: what recovers from a timeout is given a signal that is aborted already
  it.effect("gives the step that recovers from it a signal that is not aborted", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const seen: Array<boolean> = []
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.mapPromise((_, { signal }) => signal.aborted ? Promise.resolve() : never()),
          Pipeline.timeout("1 second"),
          Pipeline.catchTag("TimeoutError", (_, { signal }) => Effect.sync(() => void seen.push(signal.aborted)))
        ))
      hand.deliver(delivery(1))
      yield* adjust("2 seconds")
      assert.deepStrictEqual(seen, [false])
    }))

  // was: a defect whose dead letter takes longer than what is left of the timeout is released, uncounted
  it.effect("does not concern the dead letter of a defect", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      hand.publish = () => Effect.delay(Effect.succeed([Result.succeed({ id: "1", duplicate: false })]), "5 seconds")
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.map((): number => {
            throw new Error("defect")
          }),
          Pipeline.timeout("1 second"),
          Pipeline.retry({ times: 0 })
        ))
      hand.deliver(delivery(1))
      yield* adjust("2 seconds")
      yield* adjust("10 seconds")
      assert.deepStrictEqual(hand.said, ["1 Terminate"])
    }))
})

describe("the scope of an attempt", () => {
  it.effect("its finalizers run before the message is settled, and learn how it ended", () =>
    Effect.gen(function*() {
      const order: Array<string> = []
      const memory = yield* MemoryTransport.MemoryTransport
      const report = yield* TestHarness.run(
        Numbers,
        from.pipe(
          Pipeline.tap((n) =>
            Effect.addFinalizer((exit) =>
              Effect.map(memory.settled, ({ length }) => order.push(`${n} ${exit._tag}, ${length} settled`))
            )
          ),
          Pipeline.tap((n) => n === 2 ? Effect.fail("declined") : Effect.void),
          Pipeline.retry({ times: 0 })
        ),
        [1, 2]
      )
      assert.deepInclude(report.counts, { handled: 1, deadLettered: 1 })
      assert.deepStrictEqual(order, ["1 Success, 0 settled", "2 Failure, 0 settled"])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("keeps the message for as long as its finalizers run", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      yield* on(hand, (from) => from.pipe(Pipeline.tap(() => Effect.addFinalizer(() => Effect.sleep("25 seconds")))))
      hand.deliver(delivery(1))
      yield* adjust("20 seconds")
      assert.deepStrictEqual([hand.extended, hand.said], [[["1"], ["1"]], []])
      yield* adjust("5 seconds")
      assert.deepStrictEqual(hand.said, ["1 Ack"])
    }))

  it.effect("closes also when nothing has used it: a finalizer that is added later runs at once", () =>
    Effect.gen(function*() {
      const scopes: Array<Scope.Scope> = []
      yield* TestHarness.run(
        Numbers,
        Pipeline.tap(from, () => Effect.map(Effect.scope, (scope) => scopes.push(scope))),
        [1]
      )
      let released = 0
      yield* Scope.addFinalizer(scopes[0]!, Effect.sync(() => released++))
      assert.strictEqual(released, 1)
    }).pipe(Effect.provide(TestHarness.layer)))
})
