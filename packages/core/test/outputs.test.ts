import { assert, describe, it } from "@effect/vitest"
import { Pipeline, Publisher, Topic } from "@millrace/core"
import { FakeTransport, Wait } from "@millrace/testing"
import { Effect, Result, Schema } from "effect"
import { Outputs } from "../src/internal/outputs.ts"
import { adjust, delivery, on } from "./fixtures/fake.ts"

const Doubled = Topic.make("doubled", { schema: Schema.Number })

const deliverAll = (hand: FakeTransport.FakeTransport, ids: ReadonlyArray<number>) =>
  Effect.suspend(() => {
    hand.deliver(...ids.map((id) => delivery(id)))
    return Wait.turns
  })

describe("outputs of a turn", () => {
  it.effect("are published together and in order, each under its own id, and their messages acknowledged", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const { publish } = hand
      const sizes: Array<number> = []
      hand.publish = (messages) => (sizes.push(messages.length), publish(messages))
      yield* on(hand, (from) => from.pipe(Pipeline.to(Doubled, (n) => n * 2), Pipeline.concurrency(4)))
      yield* deliverAll(hand, [1, 2, 3])
      assert.deepStrictEqual(sizes, [3])
      assert.deepStrictEqual(hand.published.map(({ body }) => new TextDecoder().decode(body)), ["2", "4", "6"])
      assert.strictEqual(new Set(hand.published.map(({ id }) => id)).size, 3)
      assert.deepStrictEqual(hand.said, ["1 Ack", "2 Ack", "3 Ack"])
    }).pipe(Effect.scoped))

  it.effect("are published in two halves where they are many, in order", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const { publish } = hand
      const sizes: Array<number> = []
      hand.publish = (messages) => (sizes.push(messages.length), publish(messages))
      yield* on(hand, (from) => from.pipe(Pipeline.to(Doubled), Pipeline.concurrency(100)))
      const ids = Array.from({ length: 100 }, (_, i) => i)
      yield* deliverAll(hand, ids)
      assert.strictEqual(sizes[0], 50)
      assert.deepStrictEqual(hand.published.map(({ body }) => new TextDecoder().decode(body)), ids.map(String))
    }).pipe(Effect.scoped))

  it.effect("fail alone, and one that was not answered is published again alone, under the same id", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const { publish } = hand
      const calls: Array<ReadonlyArray<string | undefined>> = []
      const failing = (reason: Publisher.PublishErrorReason) =>
        Result.fail(new Publisher.PublishError({ topic: "doubled", reason }))
      hand.publish = (messages) => {
        calls.push(messages.map(({ id }) => id))
        return Effect.map(publish(messages), (results) =>
          calls.length > 1 ? results : [
            failing(new Publisher.OutcomeUnknown({ detail: "no answer" })),
            failing(new Publisher.Refused({ detail: "no" })),
            results[2]!
          ])
      }
      yield* on(
        hand,
        (from) =>
          from.pipe(Pipeline.to(Doubled), Pipeline.retry({ times: 0 }), Pipeline.discard, Pipeline.concurrency(4))
      )
      yield* deliverAll(hand, [1, 2, 3])
      assert.deepStrictEqual(hand.said.toSorted(), ["2 Terminate", "3 Ack"])
      yield* adjust("1 second")
      assert.deepStrictEqual(calls.slice(1), [[calls[0]![0]]])
      assert.include(hand.said, "1 Ack")
    }).pipe(Effect.scoped))

  it.effect("whose message was stopped before the turn ends are not published", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const tasks: Array<() => void> = []
      const outputs = new Outputs({
        transport: hand.transport,
        source: {} as never,
        step: { _tag: "To", topic: Doubled as never, f: undefined, transport: undefined },
        path: "0",
        context: yield* Effect.context<never>(),
        scheduler: { scheduleTask: (task) => void tasks.push(task), flush() {} }
      })
      const output = (id: string) => ({ topic: "doubled", body: new Uint8Array(), headers: {}, key: undefined, id })
      const ended: Array<string> = []
      const stop = outputs.add({ ...output("a"), fields: undefined, delay: undefined }, () => ended.push("a"))
      outputs.add({ ...output("b"), fields: undefined, delay: undefined }, () => ended.push("b"))
      stop(() => ended.push("stopped"))
      for (const task of tasks) task()
      yield* Wait.turns
      assert.deepStrictEqual(hand.published.map(({ id }) => id), ["b"])
      assert.deepStrictEqual(ended, ["stopped", "b"])
    }))
})
