import { assert, describe, it } from "@effect/vitest"
import { Message, Pipeline, Publisher, Settlement, TransportAuthor } from "@millrace/core"
import { FakeTransport, MemoryTransport, TestHarness, Wait } from "@millrace/testing"
import { Duration, Effect, Exit } from "effect"
import { adjust, delivery, Numbers, on } from "./fixtures/fake.ts"

const from = Pipeline.from(Numbers, { group: "test", startFrom: "beginning" })

describe("the first settlement is final", () => {
  it.effect("a second settlement is a no-op that reports itself", () =>
    Effect.gen(function*() {
      const answers: Array<boolean> = []
      const report = yield* TestHarness.run(
        Numbers,
        from.pipe(
          Pipeline.tap((_, message) =>
            Effect.map(Message.settle(message, Settlement.ack), (first) => answers.push(first))
          ),
          Pipeline.tap((_, message) =>
            Effect.map(Message.settle(message, Settlement.retry("1 second")), (second) => answers.push(second))
          )
        ),
        [1]
      )
      assert.deepStrictEqual(answers, [true, false])
      assert.deepStrictEqual(report.settled.map(({ settlement }) => settlement._tag), ["Ack"])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("a handler that fails after it is counted, neither retried nor dead-lettered", () =>
    Effect.gen(function*() {
      const report = yield* TestHarness.run(
        Numbers,
        from.pipe(
          Pipeline.tap((_, message) => Message.settle(message, Settlement.ack)),
          Pipeline.tap(() => Effect.fail("too late"))
        ),
        [1]
      )
      assert.deepInclude(report.counts, { failedAfterSettle: 1, retried: 0, deadLettered: 0 })
    }).pipe(Effect.provide(TestHarness.layer)))
})

it.effect("refuses what is no settlement, and leaves the message to the policies", () =>
  Effect.gen(function*() {
    const unreadable = Object.defineProperty({}, "_tag", {
      get() {
        throw new Error("unreadable")
      }
    })
    const given: ReadonlyArray<unknown> = [
      { _tag: "Retry", after: Duration.infinity },
      { _tag: "Retry", after: "soon" },
      { _tag: "Terminate" },
      { _tag: "Later" },
      unreadable,
      undefined
    ]
    const errors: Array<unknown> = []
    const report = yield* TestHarness.run(
      Numbers,
      from.pipe(
        Pipeline.tap((n, message) =>
          Effect.catchDefect(
            Message.settle(message, given[n] as Settlement.Settlement),
            (error) => Effect.sync(() => errors.push(error))
          )
        )
      ),
      given.map((_, n) => n)
    )
    assert.deepStrictEqual(
      errors.map((error) => String(error).includes("settlement of Message.settle is")),
      given.map(() => true)
    )
    assert.deepStrictEqual(report.settled.map(({ settlement }) => settlement._tag), given.map(() => "Ack"))
    assert.strictEqual(report.counts.handled, given.length)
  }).pipe(Effect.provide(TestHarness.layer)))

describe("ack policies", () => {
  it.effect("on-receive acknowledges before the handler; a failure is dead-lettered once", () =>
    Effect.gen(function*() {
      const order: Array<string> = []
      const memory = yield* MemoryTransport.MemoryTransport
      const report = yield* TestHarness.run(
        Numbers,
        from.pipe(
          Pipeline.tap((n) =>
            Effect.flatMap(memory.settled, (settled) => {
              order.push(`${n}: ${settled.length}`)
              return n === 2 ? Effect.fail("lost once") : Effect.void
            })
          ),
          Pipeline.ackPolicy("on-receive")
        ),
        [1, 2]
      )
      assert.deepStrictEqual(order, ["1: 1", "2: 2"])
      assert.deepInclude(report.counts, { handled: 1, deadLettered: 1, retried: 0, failedAfterSettle: 0 })
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("on-receive beside retry is refused", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(
        TestHarness.run(Numbers, from.pipe(Pipeline.ackPolicy("on-receive"), Pipeline.retry({ times: 1 })), [])
      )
      assert.include(error.message, "drop the retry")
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("manual: success settles nothing; a forgotten message is counted, and retried as a failure", () =>
    Effect.gen(function*() {
      const memory = yield* MemoryTransport.MemoryTransport
      const running = yield* Pipeline.start(
        from.pipe(
          Pipeline.tap((n, message) =>
            n === 1 || message.attempt > 1 ? Message.settle(message, Settlement.ack) : Effect.void
          ),
          Pipeline.ackPolicy("manual", { settleWithin: "5 seconds" })
        )
      )
      yield* Publisher.publish(Numbers, 1)
      yield* Publisher.publish(Numbers, 2)
      yield* Wait.eventually("the first is settled", memory.settled, ({ length }) => length === 1)
      yield* adjust("4 seconds")
      assert.deepInclude(yield* running.counts, { handled: 1, unsettled: 0, retried: 0 })
      yield* Wait.eventually("the second is reported", running.counts, ({ unsettled }) => unsettled === 1)
      yield* Wait.eventually("it is handled again", running.counts, ({ handled }) => handled === 2)
      assert.deepInclude(yield* running.counts, { unsettled: 1, retried: 1 })
    }).pipe(Effect.provide(MemoryTransport.layer({ history: true, minIdle: "30 seconds" }))))
})

describe("a message that was handled, with manual", () => {
  const handled = (hand: FakeTransport.FakeTransport) =>
    Effect.gen(function*() {
      const messages: Array<Message.Message<number>> = []
      const started = yield* on(
        hand,
        (from) =>
          from.pipe(
            Pipeline.tap((_, message) => Effect.sync(() => messages.push(message))),
            Pipeline.ackPolicy("manual", { settleWithin: "5 minutes" })
          ),
        { prefetch: 0 }
      )
      hand.deliver(delivery(1), delivery(2))
      yield* Wait.turns
      return { ...started, messages }
    })

  it.effect("is counted and gives its place up when an operation of the broker settles it", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const { messages, running } = yield* handled(hand)
      assert.strictEqual(messages.length, 1)
      const received = TransportAuthor.received(messages[0]!)!
      assert.isTrue(received.claim())
      received.settled()
      yield* Wait.turns
      assert.deepStrictEqual(messages.map(({ value }) => value), [1, 2])
      assert.deepInclude(yield* running.counts, { handled: 1, unsettled: 0 })
    }))

  it.effect("is counted as handled when the pipeline stops while such an operation is under way", () =>
    Effect.gen(function*() {
      const { drained, messages, running } = yield* handled(FakeTransport.make())
      assert.isTrue(TransportAuthor.received(messages[0]!)!.claim())
      assert.isTrue(yield* drained("1 second"))
      assert.deepInclude(yield* running.counts, { handled: 1, failedAfterSettle: 0 })
    }))

  it.effect("fails to be settled when the pipeline stops before the broker answers", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      hand.settle = () => Effect.never
      const { drained, messages } = yield* handled(hand)
      const settling = yield* Effect.forkChild(Effect.flip(Message.settle(messages[0]!, Settlement.ack)))
      yield* Wait.turns
      assert.isTrue(yield* drained("1 minute"))
      const exit = settling.pollUnsafe()
      assert.isTrue(exit !== undefined && Exit.isSuccess(exit))
    }))
})
