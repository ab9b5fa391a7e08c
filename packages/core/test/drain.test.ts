import { assert, describe, it } from "@effect/vitest"
import { Pipeline, Publisher, Telemetry } from "@millrace/core"
import { FakeTransport, MemoryTransport, Wait } from "@millrace/testing"
import { Effect, Exit, Latch, Layer, Result, Scope } from "effect"
import { adjust, delivery, never, Numbers, on } from "./fixtures/fake.ts"

const from = Pipeline.from(Numbers, { group: "test", startFrom: "beginning" })

describe("what a drain waits for", () => {
  const unreachable: FakeTransport.FakeTransport["publish"] = (messages) =>
    Effect.succeed(
      messages.map(({ topic }) =>
        Result.fail(new Publisher.PublishError({ topic, reason: new Publisher.NotSent({ detail: "gone" }) }))
      )
    )

  // was: drain ends also after a message was lost while it was buffered
  it.effect("a drain ends after a buffered message was lost", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const { drained } = yield* on(hand, (from) => from.pipe(Pipeline.mapPromise(() => never())))
      const second = delivery(2)
      hand.deliver(delivery(1), second)
      yield* Wait.turns
      hand.lost.add(second)
      yield* adjust("10 seconds")
      assert.isTrue(yield* drained("2 seconds"))
    }))

  it.effect("ends although a dead letter cannot be written", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      hand.publish = unreachable
      const { drained } = yield* on(hand, (from) =>
        from.pipe(Pipeline.mapEffect(() => Effect.fail("no")), Pipeline.retry({ times: 0 })))
      hand.deliver(delivery(1))
      yield* Wait.turns
      assert.isTrue(yield* drained("10 seconds"))
    }))

  it.effect("ends although the broker cannot be told", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      hand.settle = () => Effect.fail(new Error("gone") as any)
      const { drained } = yield* on(hand, (from) => from)
      hand.deliver(delivery(1))
      yield* Wait.turns
      assert.isTrue(yield* drained("10 seconds"))
    }))

  it.effect("ends although a handler cannot be interrupted", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const { drained } = yield* on(hand, (from) => from.pipe(Pipeline.tap(() => Effect.uninterruptible(Effect.never))))
      hand.deliver(delivery(1))
      yield* Wait.turns
      assert.isTrue(yield* drained("10 seconds"))
    }))

  // was: drainTimeout that is no duration is found only while draining: nothing is handed back
  it.effect("a drainTimeout that is no duration is refused at start", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const exit = yield* Effect.exit(on(hand, (from) => from, { drainTimeout: "soon" as any }))
      assert.isTrue(Exit.isFailure(exit))
    }))
})

describe("at the deadline", () => {
  // was: an undecodable message whose dead letter is being written at the deadline ends once
  it.effect("an undecodable message whose dead letter is being written ends once", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      hand.publish = () => Effect.delay(Effect.succeed([Result.succeed({ id: "1", duplicate: false })]), "5 seconds")
      const { drained, running } = yield* on(hand, (from) => from)
      hand.deliver(delivery(1, { body: new TextEncoder().encode("nonsense") }))
      yield* Wait.turns
      yield* drained("2 seconds")
      yield* adjust("10 seconds")
      assert.deepStrictEqual([running.limit.inUse, (yield* running.owned).running], [0, 0])
    }))

  // was: at the deadline burns an attempt of all messages of a batch but the first
  it.effect("every message of a running batch is released, without counting an attempt", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const { drained, running } = yield* on(hand, (from) =>
        from.pipe(Pipeline.batch({ size: 3, within: "1 hour" }, () => Effect.never)))
      hand.deliver(delivery(1), delivery(2), delivery(3))
      yield* Wait.turns
      assert.strictEqual((yield* running.owned).running, 3)
      yield* drained("10 seconds")
      assert.deepStrictEqual([...hand.said].sort(), ["1 Release", "2 Release", "3 Release"])
    }))

  // was: on-receive: interrupted before the broker confirmed the ack, it is not run after its end
  it.effect("on-receive: a message whose acknowledgement is not confirmed is not run", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      hand.settle = () => Effect.delay(Effect.succeed([]), "5 seconds")
      let handled = 0
      const { drained, running } = yield* on(
        hand,
        (from) => from.pipe(Pipeline.map(() => handled++), Pipeline.ackPolicy("on-receive"))
      )
      hand.deliver(delivery(1))
      yield* Wait.turns
      yield* drained("3 seconds")
      const before = running.limit.inUse
      yield* adjust("10 seconds")
      assert.deepStrictEqual([before, handled, running.limit.inUse], [0, 0, 0])
    }))

  // was: on-receive: a failure whose dead letter is interrupted by drain is gone without a word
  it.effect("on-receive: a failure whose dead letter is interrupted has an outcome", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const outcomes: Array<string> = []
      hand.publish = () => Effect.delay(Effect.succeed([Result.succeed({ id: "1", duplicate: false })]), "1500 millis")
      const { drained } = yield* Effect.provideService(
        on(hand, (from) => from.pipe(Pipeline.tap(() => Effect.fail("no")), Pipeline.ackPolicy("on-receive"))),
        Telemetry.Observer,
        ({ _tag }) => outcomes.push(_tag)
      )
      hand.deliver(delivery(1))
      yield* Wait.turns
      yield* drained("10 seconds")
      assert.isAbove(outcomes.length, 0)
    }))
})

describe("what a drain releases", () => {
  // was: manual: what is handled and unsettled is not handed back
  it.effect("manual: a handled message that is not settled is released", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const { drained } = yield* on(hand, (from) => from.pipe(Pipeline.ackPolicy("manual")))
      hand.deliver(delivery(1))
      yield* Wait.turns
      assert.isTrue(yield* drained("10 seconds"))
      assert.deepStrictEqual(hand.said, ["1 Release"])
    }))

  // was: withdraws the open request between two pulls, and takes nothing that arrives later
  it.effect("withdraws the open request, and takes nothing that arrives later", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const { drained } = yield* on(hand, (from) => from.pipe(Pipeline.mapPromise(() => never())), { prefetch: 0 })
      hand.deliver(delivery(1))
      yield* Wait.turns
      assert.deepStrictEqual(hand.demands.map(({ total }) => total), [1])
      hand.queue.push(delivery(2))
      assert.isTrue(yield* drained("10 seconds"))
      assert.deepStrictEqual([hand.demands.map(({ total }) => total), hand.withdrawn], [[1], 1])
      assert.deepStrictEqual(hand.said, ["1 Release"])
    }))
})

describe("a pipeline as a Layer", () => {
  it.effect("toLayer: a pipeline stops before the layers it stands on, and after those that stand on it", () =>
    Effect.gen(function*() {
      const events: Array<string> = []
      const [begun, end] = [yield* Latch.make(), yield* Latch.make()]
      const pipeline = Pipeline.toLayer(
        from.pipe(
          Pipeline.tap(() => Effect.andThen(begun.open, end.await)),
          Pipeline.tap(() => Effect.sync(() => events.push("handled")))
        )
      )
      const closing = (name: string) =>
        Layer.effectDiscard(Effect.addFinalizer(() => Effect.andThen(Effect.sync(() => events.push(name)), end.open)))
      const [above, below] = [closing("above closed"), closing("below closed")]
      const scope = yield* Scope.make()
      yield* Layer.buildWithScope(above.pipe(Layer.provide(pipeline), Layer.provide(below)), scope)
      yield* Publisher.publish(Numbers, 1)
      yield* begun.await
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(events, ["above closed", "handled", "below closed"])
    }).pipe(Effect.provide(MemoryTransport.layer())))
})
