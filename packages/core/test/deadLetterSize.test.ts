import { assert, describe, it } from "@effect/vitest"
import { DeadLetter, Pipeline, Publisher, Topic } from "@millrace/core"
import { MemoryTransport, TestHarness } from "@millrace/testing"
import { Effect, Schema, Stream } from "effect"

const Texts = Topic.make("texts", { schema: Schema.String })
const from = Pipeline.from(Texts, { group: "g", startFrom: "beginning" })

const failing = (text: string) => {
  const error = new Error(text)
  return from.pipe(Pipeline.mapEffect(() => Effect.fail(error)), Pipeline.retry({ times: 0 }))
}

/** The broker takes 4,000 bytes, headers included. */
const small = MemoryTransport.layer({ maxBody: 4000, history: true })

describe("a dead letter that is too large shrinks until it fits", () => {
  const cases = [
    { what: "a long error", body: "x".repeat(1000), headers: {}, error: "e".repeat(2000), pieces: 1 },
    { what: "a body near the limit", body: "x".repeat(3800), headers: {}, error: "e", pieces: 2 },
    { what: "headers near the limit", body: "x", headers: { a: "y".repeat(3800) }, error: "e", pieces: 2 },
    { what: "body and headers", body: "x".repeat(1900), headers: { a: "y".repeat(1900) }, error: "e", pieces: 2 }
  ]
  for (const { body, error, headers, pieces, what } of cases) {
    it.effect(`${what}: message and headers are read back whole, and its handler ran once`, () =>
      Effect.gen(function*() {
        const harness = yield* TestHarness.make(Texts, failing(error))
        yield* harness.publish(body, { headers })
        const report = yield* harness.runUntilIdle()
        assert.strictEqual(report.counts.deadLettered, 1)
        assert.strictEqual(report.counts.unsettled, 0)
        const [letter] = yield* Stream.runCollect(DeadLetter.list("texts.dead"))
        assert.strictEqual(letter!.ids.length, pieces)
        assert.strictEqual(JSON.parse(new TextDecoder().decode(letter!.message.body)), body)
        for (const [name, text] of Object.entries(headers)) assert.strictEqual(letter!.message.headers[name], text)
        assert.strictEqual((yield* DeadLetter.redrive("texts.dead", { dryRun: true })).redriven, 1)
      }).pipe(Effect.provide(small)))
  }

  it.effect("a message that was redriven is published with less of its history when there is no room", () =>
    Effect.gen(function*() {
      const harness = yield* TestHarness.make(Texts, failing("no"))
      yield* harness.publish("x".repeat(3800))
      yield* harness.runUntilIdle()
      assert.strictEqual((yield* DeadLetter.redrive("texts.dead")).redriven, 1)
      const report = yield* harness.runUntilIdle()
      assert.strictEqual(report.counts.deadLettered, 2)
    }).pipe(Effect.provide(small)))

  it.effect("a publish of the same size succeeds", () =>
    Publisher.publish(Texts, "x".repeat(3800)).pipe(Effect.provide(small)))
})
