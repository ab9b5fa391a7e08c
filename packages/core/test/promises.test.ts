import { assert, describe, it } from "@effect/vitest"
import {
  Codec,
  Concurrency,
  DeadLetter,
  Message,
  Pipeline,
  Publisher,
  Settlement,
  Topic,
  type Transport
} from "@millrace/core"
import { MemoryTransport, TestHarness } from "@millrace/testing"
import { Cause, Data, Effect, Logger, Schema, Stream } from "effect"

const Numbers = Topic.make("numbers", { schema: Schema.Int })
const numbers = Pipeline.from(Numbers, { group: "g" })
const once = <M extends Message.Any, A, E, R>(self: Pipeline.Pipeline<M, A, E, R>) => Pipeline.retry(self, { times: 0 })

const report = <E, R>(
  pipeline: Pipeline.Pipeline<Message.Message<number>, unknown, E, R>,
  values: ReadonlyArray<number>
) => TestHarness.run(Numbers, pipeline, values).pipe(Effect.provide(TestHarness.layer))

class Odd extends Data.TaggedError("Odd")<{ readonly n: number }> {}

describe("steps with async functions", () => {
  it.effect("tapPromise waits and passes the value on", () =>
    Effect.gen(function*() {
      const seen: Array<number> = []
      const { handled } = yield* report(numbers.pipe(Pipeline.tapPromise(async (n) => seen.push(n))), [1, 2])
      assert.deepStrictEqual(handled.map(({ value }) => value), [1, 2])
      assert.deepStrictEqual(seen, [1, 2])
    }))

  it.effect("a rejection keeps its message, whatever was thrown", () =>
    Effect.gen(function*() {
      const thrown = [new TypeError("no such account"), "just a text", undefined, { code: 42 }]
      const failing = numbers.pipe(Pipeline.tapPromise(async (n) => Promise.reject(thrown[n])), once)
      const { deadLettered } = yield* report(failing, [0, 1, 2, 3])
      assert.deepStrictEqual(deadLettered.map(({ record }) => record.error.message), [
        "no such account",
        "just a text",
        "rejected with undefined",
        "{\"code\":42}"
      ])
    }))

  it.effect("`catch` gives the rejections of tapPromise a type", () =>
    Effect.gen(function*() {
      const failing = numbers.pipe(
        Pipeline.tapPromise({
          try: async (n) => {
            if (n % 2 === 1) throw new Error("odd")
          },
          catch: () => new Odd({ n: 1 })
        }),
        Pipeline.catchTagPromise("Odd", async ({ n }) => n * 100)
      )
      assert.deepStrictEqual((yield* report(failing, [1, 2])).handled.map(({ value }) => value), [100, 2])
    }))

  it.effect("batchPromise takes a batch whole", () =>
    Effect.gen(function*() {
      const batches: Array<ReadonlyArray<number>> = []
      const pipeline = numbers.pipe(
        Pipeline.batchPromise({ size: 2, within: "1 second" }, async (values) => batches.push(values)),
        Pipeline.concurrency(4)
      )
      assert.strictEqual((yield* report(pipeline, [1, 2, 3, 4])).handled.length, 4)
      assert.deepStrictEqual(batches, [[1, 2], [3, 4]])
    }))

  it.effect("batchEachPromise answers for each as Promise.allSettled does", () =>
    Effect.gen(function*() {
      const double = async (n: number) => n === 2 ? Promise.reject(new Error("not two")) : n * 2
      const pipeline = numbers.pipe(
        Pipeline.batchEachPromise(
          { size: 3, within: "1 second" },
          (values) => Promise.allSettled(values.map(double))
        ),
        once
      )
      const { deadLettered, handled } = yield* report(pipeline, [1, 2, 3])
      assert.deepStrictEqual(handled.map(({ value }) => value), [2, 6])
      assert.deepStrictEqual(deadLettered.map(({ record }) => record.error.message), ["not two"])
    }))

  it.effect("a settlement may be thrown in every one of them", () =>
    Effect.gen(function*() {
      const no = async () => {
        throw Settlement.terminate("no use")
      }
      const batch = { size: 1, within: "1 second" } as const
      for (
        const pipeline of [
          numbers.pipe(Pipeline.tapPromise(no)),
          numbers.pipe(Pipeline.batchPromise(batch, no)),
          numbers.pipe(Pipeline.batchEachPromise(batch, () => Promise.allSettled([no()]))),
          numbers.pipe(Pipeline.middlewarePromise(no)),
          numbers.pipe(Pipeline.mapEffect((n) => Effect.fail(new Odd({ n }))), Pipeline.catchTagPromise("Odd", no))
        ]
      ) {
        const { deadLettered } = yield* report(pipeline, [1])
        assert.deepStrictEqual(deadLettered.map(({ record }) => record.reason), ["terminated"])
      }
    }))

  it.effect("middlewarePromise sees value and failure of what it wraps, and leaves the failure its type", () =>
    Effect.gen(function*() {
      const seen: Array<unknown> = []
      const pipeline = numbers.pipe(
        Pipeline.filter((n) => n !== 3),
        Pipeline.mapEffect((n) => n === 2 ? Effect.fail(new Odd({ n })) : Effect.succeed(n * 10)),
        Pipeline.middlewarePromise(async (next, message) => {
          try {
            const value = await next()
            seen.push([message.id !== "", value])
            return value + 1
          } catch (error) {
            seen.push(error instanceof Odd ? "odd" : "filtered")
            throw error
          }
        }),
        Pipeline.catchTag("Odd", () => Effect.succeed(0))
      )
      const { filtered, handled } = yield* report(pipeline, [1, 2, 3])
      assert.deepStrictEqual(handled.map(({ value }) => value), [11, 0])
      assert.strictEqual(filtered.length, 1)
      assert.deepStrictEqual(seen, [[true, 10], "odd", "filtered"])
    }))

  it.effect("middlewarePromise is interrupted with its handler", () =>
    Effect.gen(function*() {
      let aborted = false
      const pipeline = numbers.pipe(
        Pipeline.mapEffect(() =>
          Effect.onInterrupt(Effect.never, () =>
            Effect.sync(() => {
              aborted = true
            }))
        ),
        Pipeline.middlewarePromise((next) => next()),
        Pipeline.timeout("1 second"),
        once
      )
      assert.strictEqual((yield* report(pipeline, [1])).deadLettered[0]!.record.error.tag, "TimeoutError")
      assert.isTrue(aborted)
    }))
})

describe("input that the types refuse and a cast lets through", () => {
  const loose = Pipeline as unknown as Record<string, (...args: ReadonlyArray<unknown>) => any>
  const source = numbers as any
  const starting: ReadonlyArray<readonly [string, any, string]> = [
    ["no options", loose["from"]!(Numbers), "from is undefined"],
    ["no group", loose["from"]!(Numbers, { group: undefined }), "group is undefined"],
    ["no topic", loose["from"]!(undefined, { group: "g" }), "topic is undefined"],
    ["an unknown option", loose["from"]!(Numbers, { group: "g", concurrency: 5 }), "from.concurrency is 5"],
    ["a misspelt start", loose["from"]!(Numbers, { group: "g", startFrom: "begining" }), "startFrom is \"begining\""],
    ["a drainTimeout", loose["from"]!(Numbers, { group: "g", drainTimeout: "5s" }), "drainTimeout is \"5s\""],
    ["a timeout", source.pipe(loose["timeout"]!("5s")), "timeout is \"5s\""],
    ["a negative timeout", source.pipe(loose["timeout"]!(-5)), "timeout is -5"],
    ["an option of retry", source.pipe(loose["retry"]!({ attempts: 3 })), "retry.attempts is 3"],
    ["a batch", source.pipe(loose["batch"]!({ size: 2 }, () => Effect.void)), "batch.within is undefined"],
    ["a concurrency", source.pipe(loose["concurrency"]!("5")), "concurrency is \"5\""],
    ["a keyed concurrency", source.pipe(loose["concurrency"]!({ max: 2, by: "id" })), "concurrency.by is given"],
    ["an ack policy", source.pipe(loose["ackPolicy"]!("never")), "ackPolicy is \"never\""],
    ["no function", source.pipe(loose["map"]!("upper")), "map is \"upper\""],
    ["no async function", source.pipe(loose["tapPromise"]!(undefined)), "tapPromise is undefined"],
    ["a promise", source.pipe(loose["mapPromise"]!(Promise.resolve())), "mapPromise is an instance of Promise"],
    ["{ try } alone", source.pipe(loose["mapPromise"]!({ try: async () => 1 })), "mapPromise is an object"],
    ["no batch function", source.pipe(loose["batchPromise"]!({ size: 1, within: 1 })), "batchPromise is undefined"],
    ["no recovery", source.pipe(loose["catchTagPromise"]!("Odd", undefined)), "catchTagPromise is undefined"],
    ["no middleware", source.pipe(loose["middlewarePromise"]!(undefined)), "middleware is undefined"],
    ["no topic to publish to", source.pipe(loose["to"]!("receipts")), "to is \"receipts\""],
    ["no topic at all", source.pipe(loose["to"]!(undefined)), "to is undefined"],
    ["a schedule", source.pipe(loose["retry"]!({ schedule: "5 seconds" })), "retry.schedule is \"5 seconds\""],
    ["a condition", source.pipe(loose["retry"]!({ while: true })), "retry.while is true"],
    ["a dead-letter topic", source.pipe(loose["deadLetter"]!({})), "deadLetter is an object"],
    ["a key", source.pipe(loose["concurrency"]!({ max: 2, key: "id" })), "concurrency.key is \"id\""],
    ["options as a text", loose["from"]!(Numbers, "redis://app:s3cr3t@localhost"), "from is a text"],
    ["no cases", source.pipe(loose["branch"]!(() => "a")), "branch.cases is undefined"],
    [
      "a case that is no function",
      source.pipe(loose["branch"]!(() => "a", { a: 5 })),
      "branch.cases is an object"
    ],
    [
      "a step in a branch",
      source.pipe(loose["branch"]!(() => "a", { a: (self: any) => self.pipe(loose["timeout"]!("5s")) })),
      "timeout is \"5s\""
    ],
    ["handlers by tag", source.pipe(loose["catchTag"]!({ Odd: () => Effect.void })), "catchTag is an object"],
    ["a name", loose["from"]!(Numbers, { group: "g", name: "" }), "name is \"\""],
    [
      "an algorithm",
      source.pipe(loose["concurrency"]!((Concurrency.makeAdaptive as any)({ max: 2, algorithm: "aimd" }))),
      "adaptive.algorithm is \"aimd\""
    ],
    ["no limit", source.pipe(loose["concurrency"]!((Concurrency.makeAdaptive as any)())), "adaptive is undefined"],
    [
      "a topic without schema",
      loose["from"]!((Topic.make as any)("numbers", {}), { group: "g" }),
      "topic numbers: schema is undefined"
    ],
    [
      "a schema as the options of a topic",
      loose["from"]!((Topic.make as any)("numbers", Schema.Int), { group: "g" }),
      "options of topic numbers is a schema"
    ],
    [
      "a codec of what is no schema",
      loose["from"]!(Topic.make("numbers", { codec: (Codec.json as any)({}) }), { group: "g" }),
      "Codec.json is an object"
    ],
    [
      "a codec of another library's schema",
      loose["from"]!(Topic.make("numbers", { codec: (Codec.fields as any)({ "~standard": {} }) }), { group: "g" }),
      "Codec.fields is of another library"
    ],
    [
      "a key of a topic",
      loose["from"]!((Topic.make as any)("numbers", { schema: Schema.Int, key: "id" }), { group: "g" }),
      "topic numbers: key is \"id\""
    ],
    [
      "an option of a topic",
      loose["from"]!((Topic.make as any)("numbers", { schema: Schema.Int, keys: 1 }), { group: "g" }),
      "topic numbers.keys is 1"
    ]
  ]
  for (const [name, pipeline, sentence] of starting) {
    it.effect(`${name}: start fails with option, value and remedy`, () =>
      Effect.gen(function*() {
        const error: any = yield* Effect.flip(Effect.scoped(Pipeline.start(pipeline as typeof numbers)))
        assert.strictEqual(error.reason._tag, "InvalidOption")
        assert.include(error.message, `memory: ${sentence}: `)
      }).pipe(Effect.provide(MemoryTransport.layer())))
  }

  type Loose = (...args: ReadonlyArray<unknown>) => Effect.Effect<unknown, Error, Transport.Transport>
  const publishing: ReadonlyArray<readonly [string, ReadonlyArray<unknown>, string]> = [
    ["an option", [Numbers, 1, { delya: 5 }], "publish.delya is 5"],
    ["options as a text", [Numbers, 1, "id"], "publish is a text"],
    ["headers", [Numbers, 1, { headers: "a" }], "headers is \"a\""],
    ["a header that is no text", [Numbers, 1, { headers: { a: 5 } }], "header \"a\" is 5"],
    ["an id", [Numbers, 1, { id: 5 }], "id is 5"],
    ["a delay", [Numbers, 1, { delay: "5 sec" }], "delay is \"5 sec\""],
    ["a date as a delay", [Numbers, 1, { delay: new Date(0) }], "delay is an instance of Date"],
    ["a misspelt unit", [Numbers, 1, { delay: { secs: 5 } }], "delay is an object"],
    ["a numeric key", [(Topic.make as any)("numbers", { schema: Schema.Int, key: (n: number) => n }), 1], "key is 1"]
  ]
  for (const [name, args, sentence] of publishing) {
    it.effect(`${name}: publish fails with option, value and remedy`, () =>
      Effect.gen(function*() {
        const publish: Loose = Publisher.publish as any
        const error = yield* Effect.flip(publish(...args))
        assert.include(error.message, `publish to numbers: ${sentence}: `)
      }).pipe(Effect.provide(MemoryTransport.layer())))
  }

  it.effect("publishAll of no values, which would publish none, is refused", () =>
    Effect.gen(function*() {
      const publishAll: Loose = Publisher.publishAll as any
      const one = yield* Effect.flip(publishAll(Numbers, { n: 1 }))
      assert.include(one.message, "values of publishAll is an object")
      const options = yield* Effect.flip(publishAll(Numbers, [1], { id: "a" }))
      assert.include(options.message, "options of publishAll is an object")
    }).pipe(Effect.provide(MemoryTransport.layer())))

  it.effect("dead letters are neither listed nor redriven with options that there are not", () =>
    Effect.gen(function*() {
      const cases: ReadonlyArray<readonly [Effect.Effect<unknown, any, Transport.Transport>, string]> = [
        [Stream.runDrain((DeadLetter.list as any)({})), "topic is an object"],
        [Stream.runDrain((DeadLetter.list as any)("numbers.dead", { max: 5 })), "options.max is 5"],
        [(DeadLetter.redrive as any)(undefined), "topic is undefined"],
        [(DeadLetter.redrive as any)("numbers.dead", { filter: true }), "filter is true"],
        [(DeadLetter.redrive as any)("numbers.dead", { to: "numbers" }), "to is \"numbers\""],
        [(DeadLetter.discard as any)("numbers.dead", { rate: 5 }), "options.rate is 5"]
      ]
      for (const [effect, sentence] of cases) {
        assert.include((yield* Effect.flip(effect)).message, `memory: ${sentence}: `)
      }
    }).pipe(Effect.provide(MemoryTransport.layer())))

  it("a settlement that cannot be meant is an error where it is made", () => {
    const { retry, terminate } = Settlement as any
    assert.throws(() => retry("5 sec"), /after of Settlement.retry is "5 sec": write a duration/)
    assert.throws(() => retry(NaN), /after of Settlement.retry is NaN/)
    assert.throws(() => retry(Infinity), /after of Settlement.retry is Infinity/)
    assert.throws(() => retry(new Date(0)), /after of Settlement.retry is an instance of Date/)
    assert.throws(() => retry({ secs: 5 }), /after of Settlement.retry is an object/)
    assert.throws(
      () => retry(1, { countAttempt: false }),
      /Settlement.retry.countAttempt is false: there is no such option/
    )
    assert.throws(() => retry(1, { countsAttempt: "no" }), /Settlement.retry.countsAttempt is "no"/)
    assert.throws(() => retry({ secs: undefined }), /after of Settlement.retry is an object/)
    assert.deepStrictEqual(retry({ minutes: 1, seconds: undefined }), retry("1 minute"))
    assert.throws(() => terminate(new Error("no use")), /reason of Settlement.terminate is Error: no use/)
  })

  const returning: ReadonlyArray<readonly [string, any, string]> = [
    ["map", () => Effect.sync(() => 1), "Pipeline.map returned an Effect, which nothing runs"],
    ["map", async () => 1, "Pipeline.map returned a Promise: use Pipeline.mapPromise"],
    ["map", () => Settlement.retry(), "returned a settlement: throw it"],
    ["mapPromise", async () => Settlement.retry(), "returned a settlement: throw it"],
    ["tapPromise", async () => Settlement.terminate("no use"), "returned a settlement: throw it"],
    ["tapPromise", async () => Effect.fail("lost"), "returned an Effect, which nothing runs"],
    ["tapPromise", () => Effect.sleep("1 second"), "returned an Effect, which nothing runs"],
    ["tap", async () => 1, "Pipeline.tap returned a Promise: return an Effect, or use Pipeline.tapPromise"],
    ["mapEffect", (n: number) => n, "Pipeline.mapEffect returned something that is no Effect"]
  ]
  for (const [step, f, sentence] of returning) {
    it.effect(`${step}: "${sentence}" is the error of the message`, () =>
      Effect.gen(function*() {
        const { deadLettered } = yield* report(source.pipe(loose[step]!(f), once) as typeof numbers, [1])
        assert.include(deadLettered[0]!.record.error.message, sentence)
      }))
  }

  it.effect("a plain function is as good as an async one", () =>
    Effect.gen(function*() {
      const batch = { size: 1, within: "1 second" }
      for (const step of [loose["tapPromise"]!(() => {}), loose["batchPromise"]!(batch, () => {})]) {
        const pipeline: typeof numbers = source.pipe(step)
        assert.strictEqual((yield* report(pipeline, [1])).handled.length, 1)
      }
      const values: typeof numbers = source.pipe(
        loose["batchEachPromise"]!(batch, async (values: unknown) => values),
        once
      )
      const { deadLettered } = yield* report(values, [1])
      assert.include(deadLettered[0]!.record.error.message, "as Promise.allSettled does")
    }))

  it("a pipeline of another copy of the package is named as such", () => {
    const foreign = Object.assign(Object.create(Object.getPrototypeOf(numbers)), { name: "theirs" })
    assert.throws(() => Pipeline.map(foreign, (n) => n), /pipeline is "theirs": another copy of @millrace\/core/)
    assert.throws(() => Pipeline.map({} as typeof numbers, (n) => n), /start with Pipeline.from/)
  })

  it("guards tell values apart and never throw", () => {
    const hostile = new Proxy({}, {
      has() {
        throw new Error("no")
      }
    })
    for (const u of [undefined, null, 1, "a", {}, hostile]) {
      assert.isFalse(Pipeline.isPipeline(u))
      assert.isFalse(Topic.isTopic(u))
      assert.isFalse(Message.isMessage(u))
    }
    assert.isTrue(Pipeline.isPipeline(numbers))
    assert.isTrue(Topic.isTopic(Numbers))
  })
})

describe("told when a pipeline starts", () => {
  const logged = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    Effect.suspend(() => {
      const lines: Array<string> = []
      const logger = Logger.make(({ logLevel, message }) => void lines.push(`${logLevel} ${String(message)}`))
      return effect.pipe(Effect.exit, Effect.provide(Logger.layer([logger])), Effect.map((exit) => ({ exit, lines })))
    })
  const error = (exit: { readonly _tag: string }) =>
    exit._tag === "Failure" ? Cause.pretty((exit as unknown as { readonly cause: Cause.Cause<unknown> }).cause) : "none"

  it.effect("two pipelines of one group with other steps: the second is refused", () =>
    Effect.gen(function*() {
      const both = Effect.gen(function*() {
        yield* Pipeline.start(numbers.pipe(Pipeline.map((n) => n + 1)))
        yield* Pipeline.start(numbers.pipe(Pipeline.map((n) => n - 1)))
      }).pipe(Effect.scoped, Effect.provide(MemoryTransport.layer()))
      assert.include(error((yield* logged(both)).exit), "give this pipeline another group")
    }))

  it.effect("several readers of the same code, one after the other, and other groups are fine", () =>
    Effect.gen(function*() {
      const worker = (add: number) => numbers.pipe(Pipeline.map((n) => n + add))
      const all = Effect.gen(function*() {
        yield* Effect.scoped(Pipeline.start(numbers))
        yield* Pipeline.start(worker(1))
        yield* Pipeline.start(worker(2))
        yield* Pipeline.start(Pipeline.from(Numbers, { group: "other" }))
      }).pipe(Effect.scoped, Effect.provide(MemoryTransport.layer()))
      assert.strictEqual(error((yield* logged(all)).exit), "none")
    }))

  it.effect("a topic with a key under a concurrency without one: said once", () =>
    Effect.gen(function*() {
      const Keyed = Topic.make("keyed", { schema: Schema.String, key: (text) => text })
      const pipeline = Pipeline.from(Keyed, { group: "g" }).pipe(Pipeline.concurrency(64))
      const start = Effect.scoped(Pipeline.start(pipeline)).pipe(Effect.provide(MemoryTransport.layer()))
      const about = (lines: ReadonlyArray<string>) => lines.filter((line) => line.includes("has a key"))
      assert.strictEqual(about((yield* logged(start)).lines).length, 1)
      assert.strictEqual(about((yield* logged(start)).lines).length, 0)
      const keyed = Pipeline.from(Keyed, { group: "h" }).pipe(Pipeline.concurrency({ max: 64, key: ({ key }) => key }))
      const other = Effect.scoped(Pipeline.start(keyed)).pipe(Effect.provide(MemoryTransport.layer()))
      assert.strictEqual(about((yield* logged(other)).lines).length, 0)
    }))

  it.effect("a scope that ends with the start: warned about", () =>
    Effect.gen(function*() {
      const wrong = Effect.scoped(Pipeline.start(numbers)).pipe(Effect.provide(MemoryTransport.layer()))
      const { lines } = yield* logged(wrong)
      assert.include(lines.join("\n"), "stopped as soon as it had started and handled nothing")
    }))
})
