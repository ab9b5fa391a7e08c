import { assert, describe, it } from "@effect/vitest"
import {
  type Codec,
  Concurrency,
  DeadLetter,
  LimitAlgorithm,
  Millrace,
  Pipeline,
  Publisher,
  Settlement,
  Telemetry,
  Topic
} from "@millrace/core"
import { FakeTransport, MemoryTransport, TestHarness, Wait } from "@millrace/testing"
import { Cause, Effect, Exit, Layer, Logger, Result, Schema, Stream } from "effect"
import { runInNewContext } from "node:vm"
import { adjust, delivery, Numbers, on, survives } from "./fixtures/fake.ts"

const from = Pipeline.from(Numbers, { group: "g", startFrom: "beginning" })

const rejecting = async (): Promise<never> => {
  throw new Error("of an async function where none belongs")
}

/** Runs `effect`, then the rejections that nothing had handled by its end. */
const unhandledIn = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const rejections: Array<unknown> = []
    const listener = (error: unknown) => rejections.push(error)
    process.on("unhandledRejection", listener)
    yield* effect
    yield* Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))
    process.off("unhandledRejection", listener)
    return rejections
  })

const codecOf = (codec: object) =>
  Topic.make("numbers", {
    codec: {
      contentType: "x",
      decode: () => Effect.succeed(1),
      encode: () => Effect.succeed({ body: new Uint8Array(1) }),
      ...codec
    } as Codec.Codec<number>
  })

describe("a promise where none is waited for ends no process", () => {
  it.effect("from the decode of a codec: it fails its message, with and without a key", () =>
    Effect.gen(function*() {
      const topic = codecOf({ decode: rejecting })
      for (const policy of [Pipeline.concurrency(1), Pipeline.concurrency({ max: 1, key: () => "" })]) {
        const pipeline: typeof from = (Pipeline.from(topic, { group: "g" }) as any).pipe(
          Pipeline.retry({ times: 0 }),
          policy
        )
        const rejections = yield* unhandledIn(
          Effect.gen(function*() {
            const { deadLettered } = yield* TestHarness.run(topic, pipeline, [1])
            assert.include(deadLettered[0]!.record.error.message, "the codec's decode returned a Promise")
          }).pipe(Effect.provide(TestHarness.layer))
        )
        assert.deepStrictEqual(rejections, [])
      }
    }))

  it.effect("from the encode of a codec or the key of a topic: the publish fails", () =>
    Effect.gen(function*() {
      const keyed = Topic.make("numbers", { schema: Schema.Number, key: rejecting as never })
      const rejections = yield* unhandledIn(
        Effect.gen(function*() {
          const encoded = yield* Effect.exit(Publisher.publish(codecOf({ encode: rejecting }), 1))
          assert.include(String(encoded), "the codec's encode returned a Promise")
          assert.include(String(yield* Effect.exit(Publisher.publish(keyed, 1))), "a key is a text")
        }).pipe(Effect.provide(MemoryTransport.layer()))
      )
      assert.deepStrictEqual(rejections, [])
    }))

  it.effect("from the algorithm of a limit: the limit stays, and the log says so once", () =>
    Effect.gen(function*() {
      const lines: Array<string> = []
      const logger = Logger.make(({ message }) => void lines.push(String(message)))
      const limit = Concurrency.makeAdaptive({ max: 4, min: 2, window: 0, algorithm: { next: rejecting as never } })
      const hand = FakeTransport.make()
      const rejections = yield* unhandledIn(
        Effect.gen(function*() {
          const { running } = yield* on(hand, (from) => from.pipe(Pipeline.concurrency(limit)))
          hand.deliver(...Array.from({ length: 50 }, (_, i) => delivery(i)))
          yield* Wait.until("all are handled", Effect.map(running.counts, ({ handled }) => handled === 50))
        }).pipe(Effect.provide(Logger.layer([logger])))
      )
      assert.deepStrictEqual(rejections, [])
      assert.strictEqual(limit.max, 2)
      assert.strictEqual(lines.filter((line) => line.includes("the algorithm of its limit failed")).length, 1)
    }))

  it.effect("of another realm", () =>
    Effect.gen(function*() {
      const foreign = runInNewContext("async () => { throw new Error('foreign') }")
      assert.deepStrictEqual(yield* unhandledIn(survives((from) => from.pipe(Pipeline.map(foreign)))), [])
    }))
})

it.effect("a key that is no text fails its message: keys that only look alike would break the order in silence", () =>
  Effect.gen(function*() {
    for (const key of [["a"], { id: 1 }, 1n, 1, null, Symbol("a")]) {
      const pipeline = from.pipe(
        Pipeline.retry({ times: 0 }),
        Pipeline.concurrency({ max: 2, key: () => key as never })
      )
      const { deadLettered } = yield* TestHarness.run(Numbers, pipeline, [1])
      assert.include(deadLettered[0]!.record.error.message, "a key is a text, or undefined for none")
    }
  }).pipe(Effect.provide(TestHarness.layer)))

it.effect("a pause of any length shows in the health", () =>
  Effect.gen(function*() {
    const hand = FakeTransport.make()
    const { running } = yield* on(hand, (from) =>
      from.pipe(Pipeline.map((): number => {
        throw Settlement.retry(Number.MAX_VALUE, { pausesPipeline: true })
      })))
    hand.deliver(delivery(1))
    yield* adjust(1)
    assert.strictEqual((yield* running.health).state, "paused")
  }))

describe("a number of a policy that cannot be meant", () => {
  const bad = [NaN, -1, "0.5", null, 1n, -Infinity]
  const aimd = (options: object) =>
    Pipeline.concurrency(from, Concurrency.makeAdaptive({ max: 2, algorithm: LimitAlgorithm.aimd(options) }))
  const gradient = (options: object) =>
    Pipeline.concurrency(from, Concurrency.makeAdaptive({ max: 2, algorithm: LimitAlgorithm.gradient(options) }))
  const cases: ReadonlyArray<readonly [string, (value: never) => unknown, ReadonlyArray<unknown>]> = [
    ["aimd.backoff", (backoff) => aimd({ backoff }), [...bad.filter((n) => n !== null), 2]],
    ["aimd.latency", (latency) => aimd({ latency }), [NaN, -1, "soon"]],
    ["aimd.backof", (backof) => aimd({ backof }), [0.5]],
    ["gradient.tolerance", (tolerance) => gradient({ tolerance }), [NaN, -1, 0.5, "2", 2n, Infinity]],
    [
      "adaptive.failures",
      (failures) => Pipeline.concurrency(from, Concurrency.makeAdaptive({ max: 2, failures })),
      bad
    ],
    ["spans.sampleRatio", (sampleRatio) => Pipeline.middleware(from, Telemetry.spans({ sampleRatio })), bad],
    ["spans.relation", (relation) => Pipeline.middleware(from, Telemetry.spans({ relation })), ["parents"]],
    [
      "spans.sampleRatio",
      (sampleRatio) =>
        Pipeline.batch(from, { size: 1, within: 1, middleware: Telemetry.spans({ sampleRatio }) }, () => Effect.void),
      [NaN]
    ]
  ]
  it.effect("does not start, by name", () =>
    Effect.gen(function*() {
      for (const [option, make, values] of cases) {
        for (const value of values) {
          const error = yield* Effect.flip(Effect.scoped(Pipeline.start(make(value as never) as typeof from)))
          assert.include(error.message, `memory: ${option} is `)
        }
      }
    }).pipe(Effect.provide(MemoryTransport.layer())))

  it.effect("is a defect of the Layer that takes it, by name", () =>
    Effect.gen(function*() {
      const layers: ReadonlyArray<readonly [string, Layer.Layer<never>]> = [
        ...[NaN, -1, "soon" as never].map((longRunning) =>
          ["layerLogs.longRunning", Telemetry.layerLogs({ longRunning })] as const
        ),
        ...[NaN, -1, 1.5, "10" as never].map((perMinute) =>
          ["layerLogs.perMinute", Telemetry.layerLogs({ perMinute })] as const
        ),
        ["layerLogs.perSecond", Telemetry.layerLogs({ perSecond: 1 } as never)],
        ...[NaN, 0, -1, "soon" as never].map((interval) =>
          ["layerPolledMetrics.interval", Telemetry.layerPolledMetrics(interval)] as const
        )
      ]
      for (const [option, layer] of layers) {
        const exit = yield* Effect.exit(Effect.scoped(Layer.build(layer)))
        assert.isTrue(Exit.isFailure(exit))
        assert.include(String(Cause.squash((exit as Exit.Failure<unknown, unknown>).cause)), `core: ${option} is `)
      }
    }))
})

describe("dead letters are chosen as their caller means it", () => {
  const filled = Effect.gen(function*() {
    const failing = from.pipe(
      Pipeline.map((): number => Result.getOrThrow(Result.fail("no"))),
      Pipeline.retry({ times: 0 })
    )
    yield* TestHarness.run(Numbers, failing, [1, 2, 3])
  })
  const left = Effect.map(Stream.runCollect(DeadLetter.list("numbers.dead")), ({ length }) => length)

  it.effect("an option of another type is refused by name, and nothing is deleted or redriven", () =>
    Effect.gen(function*() {
      yield* filled
      const cases: ReadonlyArray<readonly [string, unknown]> = [
        ["dryRun", "true"],
        ["dryRun", 1],
        ["ids", [1]],
        ["ids", [Symbol("1")]]
      ]
      for (const [option, value] of cases) {
        for (const act of [DeadLetter.discard, DeadLetter.redrive]) {
          const error = yield* Effect.flip<unknown, any, any>(act("numbers.dead", { [option]: value }) as any)
          assert.deepInclude((error as any).reason, { _tag: "InvalidOption", option })
        }
      }
      for (const options of [{ after: 5 }, { before: {} }, { reverse: "no" }]) {
        const error = yield* Effect.flip(Stream.runDrain(DeadLetter.list("numbers.dead", options as never)))
        assert.deepInclude(error.reason, { _tag: "InvalidOption", option: Object.keys(options)[0] })
      }
      assert.strictEqual(yield* left, 3)
    }).pipe(Effect.provide(TestHarness.layer)))

  it("a criterion that does not exist, or of another type, throws: it would match every letter", () => {
    const matching = DeadLetter.matching as (criteria: unknown) => unknown
    assert.throws(() => matching({ reson: "exhausted" }), /DeadLetter.matching.reson is given: there is no such option/)
    assert.throws(() => matching({ text: 5 }), /DeadLetter.matching.text is 5: give a text/)
    assert.throws(() => matching({ ids: "1-0" }), /DeadLetter.matching.ids is "1-0": give an array of ids/)
    assert.throws(() => matching({ failedFrom: NaN }), /DeadLetter.matching.failedFrom is "NaN"/)
    assert.throws(() => matching({ failedUntil: "2026-01-01" }), /DeadLetter.matching.failedUntil is "2026-01-01"/)
    assert.throws(() => matching(undefined), /DeadLetter.matching is undefined/)
  })

  it.effect("progress is told by an Effect, or by a function that returns nothing; another result is refused", () =>
    Effect.gen(function*() {
      yield* filled
      const wrong = [rejecting, () => 5]
      const rejections = yield* unhandledIn(Effect.gen(function*() {
        for (const onProgress of wrong) {
          const error = yield* Effect.flip(
            DeadLetter.discard("numbers.dead", { limit: 1, onProgress: onProgress as never })
          )
          assert.deepInclude(error.reason, { _tag: "InvalidOption", option: "onProgress" })
        }
      }))
      assert.deepStrictEqual(rejections, [])
      const told: Array<number> = []
      const onProgress = (n: number) => void told.push(n)
      assert.strictEqual(yield* DeadLetter.discard("numbers.dead", { onProgress: onProgress as never }), 1)
      assert.deepStrictEqual([told, yield* left], [[1], 0])
    }).pipe(Effect.provide(TestHarness.layer)))
})

it.effect("the fields of another program's entry are in its letter, also when the broker refused the letter at first", () =>
  Effect.gen(function*() {
    const hand = FakeTransport.make()
    let refusals = 2
    const { publish } = hand
    hand.publish = (messages) =>
      refusals-- > 0
        ? Effect.succeed(messages.map(() =>
          Result.fail(
            new Publisher.PublishError({ topic: "numbers.dead", reason: new Publisher.Refused({ detail: "OOM" }) })
          )
        ))
        : publish(messages)
    yield* on(hand, (from) => from.pipe(Pipeline.retry({ times: 0 })))
    const fields = new Map([["user", new TextEncoder().encode("7")]])
    hand.deliver(delivery(1, { body: new Uint8Array(), fields, headers: { user: "7" } }))
    yield* Wait.turns
    // Its message comes again, as the broker would deliver it.
    hand.deliver(delivery(1, { body: new Uint8Array(), fields, headers: { user: "7" }, attempt: 2, redelivered: true }))
    yield* Wait.turns
    assert.deepStrictEqual(hand.published.map((letter) => letter.fields?.get("user")), [fields.get("user")])
  }))

it("`stop` resolves when a Layer fails to close, and `start` starts again", async () => {
  const mine = Layer.effectDiscard(Effect.acquireRelease(Effect.void, () => Effect.die(new Error("not closed"))))
  const broker = Layer.mergeAll(MemoryTransport.layer(), mine)
  const millrace = await Millrace.run(from, { broker, signals: false })
  await millrace.stop()
  await millrace.closed
  assert.strictEqual((await millrace.health()).state, "stopped")
  await millrace.start()
  await millrace.stop()
})
