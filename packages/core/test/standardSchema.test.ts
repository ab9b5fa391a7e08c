import { assert, describe, it } from "@effect/vitest"
import { Pipeline, Publisher, Topic } from "@millrace/core"
import { MemoryTransport, TestHarness } from "@millrace/testing"
import { type } from "arktype"
import { Effect } from "effect"
import { runInNewContext } from "node:vm"
import * as v from "valibot"
import { z } from "zod"

interface Order {
  readonly id: string
  readonly total: number
}

const topics: Record<string, Topic.Topic<Order>> = {
  zod: Topic.make("orders", { schema: z.object({ id: z.string(), total: z.number() }), key: ({ id }) => id }),
  valibot: Topic.make("orders", { schema: v.object({ id: v.string(), total: v.number() }), key: ({ id }) => id }),
  arktype: Topic.make("orders", { schema: type({ id: "string", total: "number" }), key: ({ id }) => id })
}

for (const [library, Orders] of Object.entries(topics)) {
  describe(`a schema of ${library}`, () => {
    it.effect("values go through it in both directions, with their key", () =>
      Effect.gen(function*() {
        const pipeline = Pipeline.from(Orders, { group: "g" }).pipe(Pipeline.map((order) => order.total))
        const report = yield* TestHarness.run(Orders, pipeline, [{ id: "a", total: 1 }])
        assert.deepStrictEqual(report.handled.map(({ message, value }) => [value, message.key]), [[1, "a"]])
      }).pipe(Effect.provide(TestHarness.layer)))

    it.effect("what does not fit is dead-lettered at attempt 1, with the place", () =>
      Effect.gen(function*() {
        const harness = yield* TestHarness.make(Orders, Pipeline.from(Orders, { group: "g" }))
        yield* harness.publishRaw("{\"id\":\"a\",\"total\":\"much\"}")
        yield* harness.publishRaw("no json")
        const { deadLettered } = yield* harness.runUntilIdle()
        assert.deepStrictEqual(deadLettered.map(({ record }) => [record.reason, record.attempts]), [
          ["undecodable", 1],
          ["undecodable", 1]
        ])
        assert.include(deadLettered[0]!.record.error.message, "total")
      }).pipe(Effect.scoped, Effect.provide(TestHarness.layer)))

    it.effect("a value that a consumer could not read is not published", () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(Publisher.publish(Orders, { id: "a", total: "much" as never }))
        assert.strictEqual(error.reason._tag, "Unencodable")
      }).pipe(Effect.provide(MemoryTransport.layer())))
  })
}

describe("other schemas of that kind", () => {
  it.effect("one that checks asynchronously decodes inside the attempt", () =>
    Effect.gen(function*() {
      const Names = Topic.make("names", { schema: z.string().refine(async (name) => name !== "nobody") })
      const report = yield* TestHarness.run(Names, Pipeline.from(Names, { group: "g" }), ["ada"])
      assert.deepStrictEqual(report.handled.map(({ value }) => value), ["ada"])
      const error = yield* Effect.flip(Publisher.publish(Names, "nobody"))
      assert.strictEqual(error.reason._tag, "Unencodable")
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("one that changes the type is refused on publish: its own output would not be read back", () =>
    Effect.gen(function*() {
      const Lengths = Topic.make("lengths", { schema: z.string().transform((text) => text.length) })
      const error = yield* Effect.flip(Publisher.publish(Lengths, 3))
      assert.strictEqual(error.reason._tag, "Unencodable")
    }).pipe(Effect.provide(MemoryTransport.layer())))

  it.effect("one that breaks is a typed error of its publisher", () =>
    Effect.gen(function*() {
      const broken = async () => {
        throw new Error("kaputt")
      }
      // A promise of another realm is none of ours.
      const foreign = () => runInNewContext("Promise.reject(new Error('kaputt'))")
      const validators = [broken, foreign]
      for (const validate of validators) {
        const schema = { "~standard": { version: 1, vendor: "mine", validate: validate as () => never } } as const
        const error = yield* Effect.flip(Publisher.publish(Topic.make("broken", { schema }), 1))
        assert.match(error.message, /Expected a value that mine accepts: Error: kaputt/)
      }
    }).pipe(Effect.provide(MemoryTransport.layer())))

  it.effect("one that coerces reads its own output", () =>
    Effect.gen(function*() {
      const Days = Topic.make("days", { schema: z.coerce.date() })
      const day = new Date("2026-11-27T00:00:00Z")
      const report = yield* TestHarness.run(Days, Pipeline.from(Days, { group: "g" }), [day])
      assert.deepStrictEqual(report.handled.map(({ value }) => value), [day])
    }).pipe(Effect.provide(TestHarness.layer)))
})
