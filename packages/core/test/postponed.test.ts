import { assert, describe, it } from "@effect/vitest"
import { Pipeline, Settlement, Topic } from "@millrace/core"
import { FakeTransport, TestHarness, Wait } from "@millrace/testing"
import { Clock, Duration, Effect, Schedule, Schema } from "effect"
import { adjust, delivery, on } from "./fixtures/fake.ts"

const Prompts = Topic.make("prompts", { schema: Schema.Struct({ user: Schema.String, n: Schema.Int }) })
const prompts = Pipeline.from(Prompts, { group: "answers" })
const values = (count: number) => Array.from({ length: count }, (_, n) => ({ user: "ada", n }))
const later = (options: Settlement.RetryOptions) => Settlement.retry("30 seconds", options)

describe("a retry that does not count", () => {
  it.effect("leaves the attempts as they are, waits as long as it was told, and says why", () =>
    Effect.gen(function*() {
      let refusals = 6
      const seen: Array<readonly [number, number]> = []
      const answering = prompts.pipe(
        Pipeline.tap((_, { attempt }) =>
          Effect.flatMap(Clock.currentTimeMillis, (now) => {
            seen.push([attempt, now])
            return refusals-- > 0 ? Effect.fail(later({ reason: "429", countsAttempt: false })) : Effect.void
          })
        ),
        Pipeline.retry({ times: 1, schedule: Schedule.spaced("1 second") })
      )
      const { deadLettered, handled, retried } = yield* TestHarness.run(Prompts, answering, values(1))
      assert.strictEqual(handled.length, 1)
      assert.strictEqual(deadLettered.length, 0)
      assert.deepStrictEqual(seen, [0, 1, 2, 3, 4, 5, 6].map((n) => [1, n * 30_000]))
      assert.include(String((retried[0]!.error as Error).message), "429")
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("counts from the bound on, so that a message does not go on without end", () =>
    Effect.gen(function*() {
      let runs = 0
      const hopeless = prompts.pipe(
        Pipeline.tap(() => {
          runs++
          return Effect.fail(later({ reason: "429", countsAttempt: false }))
        }),
        Pipeline.retry({ times: 2, uncounted: 5 })
      )
      const { deadLettered } = yield* TestHarness.run(Prompts, hopeless, values(1))
      assert.deepStrictEqual(deadLettered.map(({ record }) => [record.reason, record.attempts]), [["exhausted", 3]])
      assert.include(deadLettered[0]!.record.error.message, "429")
      assert.isAtMost(runs, 3 * 6)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("holds no slot meanwhile, and keeps the order of its key", () =>
    Effect.gen(function*() {
      const ended: Array<string> = []
      let refusals = 1
      const keyed = prompts.pipe(
        Pipeline.tap(({ n, user }) =>
          Effect.suspend(() => {
            if (n === 0 && user === "ada" && refusals-- > 0) return Effect.fail(later({ countsAttempt: false }))
            ended.push(`${user}${n}`)
            return Effect.void
          })
        ),
        Pipeline.concurrency({ max: 1, key: ({ value }) => (value as { readonly user: string }).user })
      )
      const all = [...values(2), { user: "bob", n: 0 }]
      yield* TestHarness.run(Prompts, keyed, all)
      assert.deepStrictEqual(ended, ["bob0", "ada0", "ada1"])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("is released uncounted when the pipeline stops", () =>
    Effect.gen(function*() {
      const harness = yield* TestHarness.make(
        Prompts,
        prompts.pipe(Pipeline.tap(() => Effect.fail(later({ countsAttempt: false }))))
      ).pipe(Effect.tap((harness) => harness.publish({ user: "ada", n: 1 })))
      yield* Effect.flip(harness.runUntilIdle("10 seconds"))
      return harness.running.counts
    }).pipe(
      Effect.scoped,
      Effect.flatten,
      Effect.map((counts) => assert.strictEqual(counts.released, 1)),
      Effect.provide(TestHarness.layer)
    ))
})

describe("a retry that does not count, beside a suspect", () => {
  it.effect("of the suspect itself runs alone like its first run", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const begun: Array<readonly [number, number]> = []
      let refusals = 1
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.tap((n) =>
            Effect.flatMap(Clock.currentTimeMillis, (now) => {
              begun.push([n, now / 1000])
              if (n === 2) return Effect.sleep("60 seconds")
              return refusals-- > 0 ? Effect.fail(later({ countsAttempt: false })) : Effect.void
            })
          ),
          Pipeline.concurrency(4)
        ))
      hand.deliver(delivery(1, { attempt: 4, redelivered: true, suspect: true }))
      yield* adjust("10 seconds")
      hand.deliver(delivery(2))
      yield* adjust("2 minutes")
      assert.deepStrictEqual(begun, [[1, 0], [2, 10], [1, 70]])
    }))

  it.effect("of a neighbour keeps its delay and its place in its key when it comes back early", () =>
    Effect.gen(function*() {
      for (const keyed of [true, false]) {
        const hand = FakeTransport.make()
        const begun: Array<readonly [number, number]> = []
        yield* on(hand, (from) =>
          from.pipe(
            Pipeline.tap((n) =>
              Effect.flatMap(Clock.currentTimeMillis, (now) => {
                begun.push([n, (now - startedAt) / 1000])
                if (n === 8) return Effect.sleep("5 seconds")
                return n === 1 && begun.length === 1 ? Effect.fail(later({ countsAttempt: false })) : Effect.void
              })
            ),
            Pipeline.concurrency({ max: 4, key: ({ value }) => keyed ? String(value as number % 2) : undefined })
          ))
        const startedAt = yield* Clock.currentTimeMillis
        hand.deliver(delivery(1))
        yield* Wait.turns
        hand.deliver(delivery(8, { attempt: 4, redelivered: true, suspect: true }))
        yield* adjust("5 seconds")
        hand.deliver(delivery(1, { redelivered: true }), delivery(3))
        yield* adjust("24 seconds")
        assert.deepStrictEqual(begun.map(([n]) => n), keyed ? [1, 8] : [1, 8, 3])
        yield* adjust("1 second")
        const rest = begun.slice(keyed ? 2 : 3)
        assert.deepStrictEqual(rest, keyed ? [[1, 30], [3, 30]] : [[1, 30]])
      }
    }))

  it.effect("of a neighbour is released before the suspect begins", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const begun: Array<readonly [number, number]> = []
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.tap((n) =>
            Effect.flatMap(Clock.currentTimeMillis, (now) => {
              begun.push([n, now / 1000])
              return n === 2 ? Effect.never : Effect.delay(Effect.fail(later({ countsAttempt: false })), "5 seconds")
            })
          ),
          Pipeline.concurrency(4)
        ))
      hand.deliver(delivery(1))
      yield* adjust("1 second")
      hand.deliver(delivery(2, { attempt: 4, redelivered: true, suspect: true }))
      yield* adjust("1 minute")
      assert.deepStrictEqual(begun, [[1, 0], [2, 5]])
      assert.deepStrictEqual(hand.said, ["1 Release"])
    }))
})

describe("a handler that pauses its pipeline", () => {
  it.effect("nothing else begins in this process until the time has passed", () =>
    Effect.gen(function*() {
      let refusals = 1
      const begun: Array<number> = []
      const answering = prompts.pipe(
        Pipeline.tap(() =>
          Effect.flatMap(Clock.currentTimeMillis, (now) => {
            begun.push(now)
            return refusals-- > 0
              ? Effect.fail(later({ countsAttempt: false, pausesPipeline: true }))
              : Effect.void
          })
        )
      )
      const { counts } = yield* TestHarness.run(Prompts, answering, values(3))
      assert.strictEqual(counts.handled, 3)
      assert.deepStrictEqual(begun, [0, 30_000, 30_000, 30_000])
      assert.strictEqual(Duration.toSeconds(Duration.millis(begun[1]!)), 30)
    }).pipe(Effect.provide(TestHarness.layer)))

  /** A message joins a batch; then another one pauses the pipeline for 30 seconds. */
  const pausedBatch = Effect.gen(function*() {
    const hand = FakeTransport.make()
    const batches: Array<readonly [ReadonlyArray<number>, number]> = []
    const pipeline = yield* on(hand, (from) =>
      from.pipe(
        Pipeline.tap((n) => n === 2 ? Effect.fail(later({ pausesPipeline: true })) : Effect.void),
        Pipeline.batch({ size: 10, within: "1 second" }, (values) =>
          Effect.map(Clock.currentTimeMillis, (now) => {
            batches.push([values, now / 1000])
          })),
        Pipeline.concurrency(4)
      ))
    hand.deliver(delivery(1))
    yield* Wait.turns
    hand.deliver(delivery(2))
    yield* adjust("10 seconds")
    assert.deepStrictEqual(batches, [])
    return { ...pipeline, hand, batches }
  })

  it.effect("a batch that is ready does not begin either", () =>
    Effect.gen(function*() {
      const { batches } = yield* pausedBatch
      yield* adjust("30 seconds")
      assert.deepStrictEqual(batches.map(([values, at]) => [values, Math.floor(at)]), [[[1], 30]])
    }))

  it.effect("a batch that is ready is released when the pipeline stops", () =>
    Effect.gen(function*() {
      const { batches, drained, hand } = yield* pausedBatch
      assert.isTrue(yield* drained("100 millis"))
      assert.deepStrictEqual(hand.said, ["2 Retry", "1 Release"])
      assert.deepStrictEqual(batches, [])
    }))
})
