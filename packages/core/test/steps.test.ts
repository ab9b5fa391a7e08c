import { assert, describe, it } from "@effect/vitest"
import { Pipeline, Topic, TransportAuthor } from "@millrace/core"
import { FakeTransport, TestHarness, Wait } from "@millrace/testing"
import { Effect, Result, Schedule, Schema, Scope } from "effect"
import { delivery, Numbers, survives } from "./fixtures/fake.ts"

const from = Pipeline.from(Numbers, { group: "test", startFrom: "beginning" })

describe("a step that throws", () => {
  // was: a thenable whose then throws kills the pipeline
  it.effect("fails its message when the then of a thenable throws", () =>
    survives((from) =>
      from.pipe(Pipeline.mapPromise((n) =>
        n === 1 ?
          {
            // oxlint-disable-next-line unicorn/no-thenable -- a thenable is what is tested
            then() {
              throw new Error("then")
            }
          } as any :
          Promise.resolve(n)
      ))
    ))

  // was: a thenable that answers twice ends its message twice
  it.effect("ends its message once when a thenable answers twice", () =>
    survives((from) =>
      from.pipe(Pipeline.mapPromise((n) =>
        n === 1 ?
          {
            // oxlint-disable-next-line unicorn/no-thenable -- a thenable is what is tested
            then(done: any) {
              setImmediate(() => {
                done(1)
                done(2)
              })
            }
          } as any :
          Promise.resolve(n)
      ))
    ))

  it.effect("fails its message when it throws a promise, whose rejection does not end the process", () =>
    Effect.gen(function*() {
      const rejections: Array<unknown> = []
      const listener = (error: unknown) => rejections.push(error)
      process.on("unhandledRejection", listener)
      for (const step of [Pipeline.map, Pipeline.mapPromise] as ReadonlyArray<any>) {
        yield* survives((from) =>
          from.pipe(step((n: number) => {
            if (n === 1) throw Promise.reject(new Error("thrown without await"))
            return step === Pipeline.map ? n : Promise.resolve(n)
          }))
        )
      }
      const rejected = async (): Promise<any> => {
        throw new Error("of an async function where none belongs")
      }
      const steps: ReadonlyArray<(from: any) => any> = [
        (from) => from.pipe(Pipeline.tap(() => Effect.suspend(() => Effect.fail(rejected())))),
        (from) => from.pipe(Pipeline.tap(() => Effect.die(rejected()))),
        (from) => from.pipe(Pipeline.batch({ size: 1, within: 1 }, () => Effect.fail(rejected()))),
        (from) => from.pipe(Pipeline.to(Numbers, rejected as any)),
        (from) => from.pipe(Pipeline.branch(rejected as any, { never: (self: any) => self } as any)),
        (from) => from.pipe(Pipeline.concurrency({ max: 2, key: rejected as any }))
      ]
      for (const step of steps) yield* survives(step, undefined, undefined, "1 Retry")
      yield* Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))
      process.off("unhandledRejection", listener)
      assert.deepStrictEqual(rejections, [])
    }))

  // was: extend of a transport's own source that throws does not harm the pipeline
  it.effect("fails its message when it is a transport's own extend", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const scope = yield* Scope.make()
      const running = yield* Scope.provide(
        Pipeline.start(TransportAuthor.fromTransport(Numbers, { group: "test" }, {
          transport: Effect.succeed(hand.transport),
          extend(message) {
            if (message.value === 1) throw new Error("extend")
            return message
          }
        })),
        scope
      )
      yield* Wait.turns
      hand.deliver(delivery(1))
      yield* Wait.turns
      hand.deliver(delivery(2))
      yield* Wait.turns
      assert.deepStrictEqual([running.limit.inUse, (yield* running.counts).handled], [0, 1])
    }))

  // was: mapEffect given a function that returns no Effect is a defect of its message
  it.effect("fails its message when mapEffect is given no Effect", () =>
    survives((from) =>
      from.pipe(Pipeline.mapEffect((n) => n === 1 ? undefined as unknown as Effect.Effect<void> : Effect.void))
    ))
})

it.effect("a step is not given a generator function, whose body nothing would run", () =>
  Effect.gen(function*() {
    const steps: ReadonlyArray<any> = [
      Pipeline.map,
      Pipeline.mapPromise,
      Pipeline.tapPromise,
      Pipeline.mapEffect,
      (f: never) => Pipeline.to(Numbers, f),
      (f: never) => Pipeline.batchPromise({ size: 1, within: 0 }, f)
    ]
    for (const step of steps) {
      for (const generator of [function*() {}, async function*() {}]) {
        const error = yield* Effect.flip(TestHarness.run(Numbers, from.pipe(step(generator)) as typeof from, []))
        assert.include(String(error), "is a generator function: nothing runs its body")
      }
    }
  }).pipe(Effect.provide(TestHarness.layer)))

describe("middleware and branches", () => {
  it.effect("a middleware wraps all that stands above it, as one Effect that it may run again", () =>
    Effect.gen(function*() {
      let failures = 2
      const log: Array<string> = []
      const report = yield* TestHarness.run(
        Numbers,
        from.pipe(
          Pipeline.filter((n) => n > 0),
          Pipeline.map((n) => n + 1),
          Pipeline.mapPromise(async (n) => n * 10),
          Pipeline.mapEffect((n) => failures-- > 0 ? Effect.fail("flaky") : Effect.succeed(n)),
          Pipeline.middleware((handler, message) =>
            handler.pipe(
              Effect.retry({ times: 3, while: (error) => error === "flaky" }),
              Effect.tap((value) => Effect.sync(() => log.push(`${message.id} -> ${value}`)))
            )
          ),
          Pipeline.map((n) => `${n}!`)
        ),
        [0, 1]
      )
      assert.deepStrictEqual(report.handled.map(({ value }) => value), ["20!"])
      assert.deepStrictEqual(log, ["2 -> 20"])
      assert.deepInclude(report.counts, { filtered: 1, retried: 0 })
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("a middleware that retries all failures and recovers from them leaves filtered messages alone", () =>
    Effect.gen(function*() {
      let asked = 0
      const report = yield* TestHarness.run(
        Numbers,
        from.pipe(
          Pipeline.filter((n) => ++asked > 0 && n > 0),
          Pipeline.mapEffect((n) => n === 2 ? Effect.fail("flaky") : Effect.succeed(n)),
          Pipeline.middleware((handler) => Effect.retry(handler, { times: 3 })),
          Pipeline.middleware((handler) => Effect.catch(handler, () => Effect.succeed(-1)))
        ),
        [0, 1, 2]
      )
      assert.deepStrictEqual(report.handled.map(({ value }) => value), [1, -1])
      assert.strictEqual(report.counts.filtered, 1)
      assert.strictEqual(asked, 1 + 1 + 4)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("one message, several outputs, settled once all are published", () =>
    Effect.gen(function*() {
      const Small = Topic.make("small", { schema: Schema.Number })
      const Large = Topic.make("large", { schema: Schema.Number })
      const report = yield* TestHarness.run(
        Numbers,
        from.pipe(
          Pipeline.branch((n) => n < 10 ? "small" : "large", {
            small: (self) => self.pipe(Pipeline.to(Small)),
            large: (self) => self.pipe(Pipeline.to(Large), Pipeline.to(Small, (n) => n % 10))
          }),
          Pipeline.retry({ times: 1, schedule: Schedule.spaced("1 second") })
        ),
        [1, 15]
      )
      assert.deepStrictEqual(
        report.published.slice(2).map(({ body, id, topic }) => [
          topic,
          new TextDecoder().decode(body),
          id?.replace(/^memory-\d+\/numbers\/0\//, "")
        ]),
        [
          ["small", "1", "numbers/test/1/0.small.0"],
          ["large", "15", "numbers/test/2/0.large.0"],
          ["small", "5", "numbers/test/2/0.large.1"]
        ]
      )
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("branchTag goes by tag, and a filter in a branch filters", () =>
    Effect.gen(function*() {
      const Shape = Schema.Union([
        Schema.TaggedStruct("Circle", { r: Schema.Number }),
        Schema.TaggedStruct("Square", { a: Schema.Number })
      ])
      const Shapes = Topic.make("shapes", { schema: Shape })
      const report = yield* TestHarness.run(
        Shapes,
        Pipeline.from(Shapes, { group: "test", startFrom: "beginning" }).pipe(
          Pipeline.branchTag({
            Circle: (self) =>
              self.pipe(
                Pipeline.filterMap((circle) => circle.r > 0 ? Result.succeed(`r${circle.r}`) : Result.fail("flat"))
              ),
            Square: (self) => self.pipe(Pipeline.mapEffect((square) => Effect.as(Effect.sleep("1 second"), square.a)))
          })
        ),
        [{ _tag: "Circle", r: 1 }, { _tag: "Circle", r: 0 }, { _tag: "Square", a: 2 }]
      )
      assert.deepStrictEqual(report.handled.map(({ value }) => value), ["r1", 2])
      assert.strictEqual(report.counts.filtered, 1)
    }).pipe(Effect.provide(TestHarness.layer)))
})
