import { assert, describe, it } from "@effect/vitest"
import { Pipeline, TransportError } from "@millrace/core"
import { FakeTransport, Wait } from "@millrace/testing"
import { Effect, Logger } from "effect"
import { adjust, delivery, on } from "./fixtures/fake.ts"

describe("a settlement", () => {
  // was: settlements are dropped without a word when a transport's settle dies
  it.effect("is sent again when the settle of a transport dies", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const settle = hand.settle
      let died = false
      hand.settle = (batch) => {
        if (died) return settle(batch)
        died = true
        return Effect.die(new Error("transport"))
      }
      const { running } = yield* on(hand, (from) => from.pipe(Pipeline.ackPolicy("on-receive")))
      hand.deliver(delivery(1))
      yield* adjust("10 seconds")
      assert.strictEqual(running.limit.inUse, 0)
    }))

  // was: settlements are sent again for ever after drain has given up and closed the subscription
  it.effect("is not sent again after the drain has given up", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      let sent = 0
      hand.settle = () => Effect.suspend(() => (sent++, Effect.fail(new Error("gone") as any)))
      const { drained } = yield* on(hand, (from) => from)
      hand.deliver(delivery(1))
      yield* Wait.turns
      assert.isTrue(yield* drained("10 seconds"))
      yield* adjust("10 seconds")
      const before = sent
      yield* adjust("1 minute")
      assert.strictEqual(sent, before)
    }))
})

describe("a broker that confirms no settlement", () => {
  it.effect("is told again until it confirms: a line when that begins, and one when it ends", () => {
    const lines: Array<string> = []
    return Effect.gen(function*() {
      const hand = FakeTransport.make()
      const { settle } = hand
      const reason = new TransportError.OperationFailed({ operation: "settling" })
      const gone = () => Effect.fail(new TransportError.TransportError({ transport: "fake", reason }))
      yield* on(hand, (from) => from)
      for (const n of [1, 2]) {
        hand.settle = gone
        hand.deliver(delivery(n))
        yield* adjust("1 minute")
        hand.settle = settle
        yield* adjust("10 seconds")
      }
      assert.deepStrictEqual(hand.said, ["1 Ack", "2 Ack"])
      const why =
        "numbers/test cannot consume: the broker does not confirm settlements: 1 wait (TransportError: fake: settling failed)"
      const episode = [`fake: ${why}`, "fake: consuming again after 1m (1 pipeline affected)"]
      assert.deepStrictEqual(lines.slice(1), [...episode, ...episode])
    }).pipe(Effect.provide(Logger.layer([Logger.make(({ message }) => void lines.push(String(message)))])))
  })
})

describe("many settlements", () => {
  // was: each waited for the confirmation of the one before; a few do not, and a drain waits for them all
  it.effect("are under way at once, at most four of them, and a drain waits for all", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const confirmations: Array<() => void> = []
      hand.settle = (batch) =>
        Effect.callback((resume) => {
          hand.settled.push(...batch)
          confirmations.push(() => resume(Effect.succeed([])))
        })
      const { drained } = yield* on(hand, (from) => from)
      for (const n of [1, 2, 3, 4, 5, 6]) {
        hand.deliver(delivery(n))
        yield* Wait.turns
      }
      assert.deepStrictEqual(hand.said, ["1 Ack", "2 Ack", "3 Ack", "4 Ack"])
      confirmations[2]!()
      yield* Wait.turns
      assert.deepStrictEqual(hand.said.slice(4), ["5 Ack", "6 Ack"])
      for (const n of [1, 3, 4]) confirmations[n]!()
      assert.isFalse(yield* drained("100 millis"), "the first is not confirmed")
      confirmations[0]!()
      yield* Wait.turns
    }))
})
