import { assert, describe, it } from "@effect/vitest"
import {
  Codec,
  Concurrency,
  DeadLetter,
  Message,
  Pipeline,
  Publisher,
  Settlement,
  Telemetry,
  Topic
} from "@millrace/core"
import { Transport } from "@millrace/core/Transport"
import { FakeTransport, MemoryTransport, Wait } from "@millrace/testing"
import { Deferred, Effect, Fiber, Result, Schedule, Schema, Scope, Stream } from "effect"
import { adjust, delivery, Numbers, on } from "./fixtures/fake.ts"

const from = Pipeline.from(Numbers, { group: "test", startFrom: "beginning", drainTimeout: 0 })
const Out = Topic.make("out", { schema: Schema.Number })

/** No property of it can be read. */
const revoked = (): object => {
  const { proxy, revoke } = Proxy.revocable({}, {})
  revoke()
  return proxy
}

const unreadable: ReadonlyArray<readonly [string, () => unknown]> = [
  ["a revoked Proxy", revoked],
  ["getters that throw", () => ({
    get _tag(): string {
      throw new Error("no tag")
    },
    get message(): string {
      throw new Error("no message")
    }
  })],
  ["a Proxy that claims to have every property", () =>
    new Proxy({}, {
      has: () => true,
      get: (_, name) => {
        throw new Error(`no ${String(name)}`)
      }
    })],
  ["undefined", () => undefined]
]

const method = "then"

const raise = (thrown: () => unknown, n: number): number => {
  if (n === 1) throw thrown()
  return n
}

/** Each makes a pipeline that throws, fails with or returns `thrown()` for the message 1. Types refuse some of it. */
const places: Record<string, (thrown: () => any) => Pipeline.Pipeline<any, any, any, Transport>> = {
  map: (thrown) => from.pipe(Pipeline.map((n) => raise(thrown, n))),
  filter: (thrown) => from.pipe(Pipeline.filter((n) => raise(thrown, n) > 0)),
  filterMap: (thrown) => from.pipe(Pipeline.filterMap((n) => Result.succeed(raise(thrown, n)))),
  "an Effect's function": (thrown) => from.pipe(Pipeline.tap((n) => Effect.succeed(raise(thrown, n)))),
  "an Effect": (thrown) => from.pipe(Pipeline.tap((n) => n === 1 ? Effect.fail(thrown()) : Effect.void)),
  "something else than an Effect": (thrown) => from.pipe(Pipeline.tap((n) => n === 1 ? thrown() : Effect.void)),
  "a promise": (thrown) => from.pipe(Pipeline.mapPromise(async (n) => raise(thrown, n))),
  "a Proxy of a promise": () =>
    from.pipe(Pipeline.mapPromise((n) => n === 1 ? new Proxy(Promise.resolve(n), {}) : Promise.resolve(n))),
  "a promise whose `then` throws": (thrown) =>
    from.pipe(Pipeline.mapPromise((n) => {
      const promise = Promise.resolve(n)
      if (n === 1) Reflect.set(promise, method, () => raise(thrown, n))
      return promise
    })),
  "what a rejection means": (thrown) =>
    from.pipe(Pipeline.mapPromise({
      try: async (n) => raise(() => "bad", n),
      catch: () => {
        throw thrown()
      }
    })),
  to: (thrown) => from.pipe(Pipeline.to(Out, (n) => raise(thrown, n))),
  "an output": (thrown) => from.pipe(Pipeline.to(Out, (n) => n === 1 ? thrown() : n)),
  "the key of an output": (thrown) =>
    from.pipe(Pipeline.to(Topic.make("keyed", { schema: Schema.Number, key: (n) => String(raise(thrown, n)) }))),
  branch: (thrown) =>
    from.pipe(Pipeline.branch((n) => raise(thrown, n) > 0 ? "all" : "all", { all: (pipeline) => pipeline })),
  middleware: (thrown) =>
    from.pipe(
      Pipeline.map((n) => n),
      Pipeline.middleware((handler, message) => Effect.as(handler, raise(thrown, message.value)))
    ),
  batch: (thrown) => from.pipe(Pipeline.batch({ size: 1, within: 0 }, ([n]) => Effect.succeed(raise(thrown, n)))),
  "results of a batch": (thrown) =>
    from.pipe(
      Pipeline.batchEach({ size: 1, within: 0 }, ([n]) => Effect.succeed(n === 1 ? thrown() : [Result.succeed(n)]))
    ),
  "a result of a batch": (thrown) =>
    from.pipe(
      Pipeline.batchEach({ size: 1, within: 0 }, ([n]) => Effect.succeed([n === 1 ? thrown() : Result.succeed(n)]))
    ),
  "a finalizer": (thrown) =>
    from.pipe(Pipeline.tap((n) => Effect.addFinalizer(() => Effect.succeed(raise(thrown, n))))),
  key: (thrown) => from.pipe(Pipeline.concurrency({ max: 2, key: (message) => String(raise(thrown, message.value)) })),
  catchTag: (thrown) =>
    from.pipe(
      Pipeline.tap((n) => n === 1 ? Effect.fail({ _tag: "Bad" as const }) : Effect.void),
      Pipeline.catchTag("Bad", () => {
        throw thrown()
      })
    )
} as Record<string, (thrown: () => any) => any>

describe("what a handler throws or returns is an error of its message alone", () => {
  for (const [place, make] of Object.entries(places)) {
    for (const [what, thrown] of unreadable) {
      it.live(`${place}: ${what}`, () =>
        Effect.gen(function*() {
          yield* Publisher.publishAll(Numbers, [1, 2])
          const running = yield* Pipeline.start(make(thrown).pipe(Pipeline.retry({ times: 0 })))
          yield* Wait.eventually("both messages have ended", running.counts, (counts) =>
            counts.deadLettered + counts.handled === 2)
          assert.deepInclude(yield* running.counts, { deadLettered: 1, handled: 1 })
          assert.strictEqual((yield* running.health).state, "consuming")
        }).pipe(Effect.scoped, Effect.provide(MemoryTransport.layer())))
    }
  }

  it.live("a Promise that a plain function returns is a defect, and its rejection is not unhandled", () =>
    Effect.gen(function*() {
      yield* Publisher.publish(Numbers, 1)
      const rejects: any = async () => {
        throw new Error("late")
      }
      const steps: Array<any> = [Pipeline.map(rejects), Pipeline.filter(rejects), Pipeline.filterMap(rejects)]
      for (const [index, step] of steps.entries()) {
        const own: any = Pipeline.from(Numbers, { group: `step ${index}`, startFrom: "beginning" })
        const pipeline: typeof from = own.pipe(step, Pipeline.retry({ times: 0 }))
        const running = yield* Pipeline.start(pipeline)
        yield* Wait.eventually("it is dead-lettered", running.counts, ({ deadLettered }) => deadLettered === 1)
      }
    }).pipe(Effect.scoped, Effect.provide(MemoryTransport.layer())))
})

describe("a settlement that a function throws is requested, wherever it is thrown", () => {
  const terminate = (n: number): number => {
    if (n === 1) throw Settlement.terminate("asked for")
    return n
  }
  const throwing: Record<string, () => any> = {
    "in an Effect": () => from.pipe(Pipeline.tap((n) => Effect.sync(() => terminate(n)))),
    "in a batch": () => from.pipe(Pipeline.batch({ size: 1, within: 0 }, ([n]) => Effect.succeed(terminate(n)))),
    "in a key": () =>
      from.pipe(Pipeline.concurrency({ max: 2, key: (message) => String(terminate(message.value as number)) }))
  }
  for (const [where, make] of Object.entries(throwing)) {
    it.live(where, () =>
      Effect.gen(function*() {
        yield* Publisher.publish(Numbers, 1)
        const pipeline: typeof from = make()
        const running = yield* Pipeline.start(pipeline)
        yield* Wait.eventually("it has ended", running.counts, ({ deadLettered }) => deadLettered === 1)
        const [letter] = yield* Stream.runCollect(DeadLetter.list("numbers.dead"))
        assert.deepInclude(letter!.record, { reason: "terminated", attempts: 1 })
      }).pipe(Effect.scoped, Effect.provide(MemoryTransport.layer())))
  }
})

describe("outcomes", () => {
  const observed = (outcomes: Array<string>) =>
    Effect.provideService(Telemetry.Observer, (outcome) => void outcomes.push(outcome._tag))

  it.live("an observer that is async and rejects ends nothing", () =>
    Effect.gen(function*() {
      yield* Publisher.publishAll(Numbers, [1, 2])
      const running = yield* Pipeline.start(from.pipe(Pipeline.map((n) => n)))
      yield* Wait.eventually("both are handled", running.counts, ({ handled }) => handled === 2)
    }).pipe(
      Effect.scoped,
      Effect.provide(MemoryTransport.layer()),
      Effect.provideService(Telemetry.Observer, async () => {
        throw revoked()
      })
    ))

  it.live("on-receive, interrupted at the drain's deadline: discarded", () => {
    const outcomes: Array<string> = []
    return Effect.gen(function*() {
      yield* Publisher.publish(Numbers, 1)
      yield* Effect.scoped(Effect.gen(function*() {
        const begun = yield* Deferred.make<void>()
        yield* Pipeline.start(from.pipe(
          Pipeline.tap(() => Effect.andThen(Deferred.succeed(begun, undefined), Effect.never)),
          Pipeline.ackPolicy("on-receive")
        ))
        yield* Deferred.await(begun)
      }))
      assert.deepStrictEqual(outcomes, ["Discarded"])
    }).pipe(Effect.provide(MemoryTransport.layer()), observed(outcomes))
  })

  it.live("acknowledged by hand, interrupted at the drain's deadline: failed after it was settled", () => {
    const outcomes: Array<string> = []
    return Effect.gen(function*() {
      yield* Publisher.publish(Numbers, 1)
      yield* Effect.scoped(Effect.gen(function*() {
        const begun = yield* Deferred.make<void>()
        yield* Pipeline.start(from.pipe(Pipeline.tap((_, message) =>
          Message.settle(message, Settlement.ack).pipe(
            Effect.andThen(Deferred.succeed(begun, undefined)),
            Effect.andThen(Effect.never)
          )
        )))
        yield* Deferred.await(begun)
      }))
      assert.deepStrictEqual(outcomes, ["FailedAfterSettle"])
    }).pipe(Effect.provide(MemoryTransport.layer()), observed(outcomes))
  })
})

describe("settling by hand", () => {
  /** Dead letters wait for `gate`, and are refused when it fails. */
  const gated = <A, E>(
    gate: Deferred.Deferred<void, Publisher.PublishError>,
    program: Effect.Effect<A, E, Transport | Scope.Scope>
  ) =>
    Effect.gen(function*() {
      const transport = yield* Transport
      return yield* Effect.provideService(program, Transport, {
        ...transport,
        publish: (messages) =>
          messages[0].topic === "numbers.dead"
            ? Effect.matchEffect(Deferred.await(gate), {
              onFailure: (error) => Effect.succeed([Result.fail(error)]),
              onSuccess: () => transport.publish(messages)
            })
            : transport.publish(messages)
      })
    }).pipe(Effect.scoped, Effect.provide(MemoryTransport.layer()))
  const refusal = new Publisher.PublishError({
    topic: "numbers.dead",
    reason: new Publisher.Refused({ detail: "full" })
  })

  for (const how of ["succeeded", "failed"] as const) {
    it.live(`a dead letter that is refused after the handler has ${how} leaves the message to the policies`, () =>
      Effect.gen(function*() {
        const gate = yield* Deferred.make<void, Publisher.PublishError>()
        yield* gated(
          gate,
          Effect.gen(function*() {
            yield* Publisher.publish(Numbers, 1)
            const settled = yield* Deferred.make<Fiber.Fiber<boolean, Settlement.SettleError>>()
            const running = yield* Pipeline.start(from.pipe(
              Pipeline.tap((_, message) =>
                Effect.flatMap(
                  Effect.forkDetach(Message.settle(message, Settlement.terminate("no use")), {
                    startImmediately: true
                  }),
                  (fiber) => Deferred.succeed(settled, fiber)
                )
              ),
              Pipeline.tap(() => how === "failed" ? Effect.fail("too") : Effect.void),
              Pipeline.retry({ times: 1, schedule: Schedule.spaced("1 hour") })
            ))
            const fiber = yield* Deferred.await(settled)
            yield* Wait.turns
            assert.deepInclude(yield* running.counts, { handled: 0, retried: 0, deadLettered: 0, failedAfterSettle: 0 })
            yield* Deferred.fail(gate, refusal)
            const error = yield* Effect.flip(Fiber.join(fiber))
            assert.instanceOf(error, Settlement.SettleError)
            assert.strictEqual(error.cause, refusal)
            yield* Wait.eventually(
              "the policies have settled",
              running.counts,
              ({ handled, retried }) => handled + retried === 1
            )
            assert.deepInclude(yield* running.counts, how === "failed" ? { retried: 1 } : { handled: 1 })
          })
        )
      }))
  }

  it.live("a dead letter that is written after the handler has ended is the only outcome", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void, Publisher.PublishError>()
      yield* gated(
        gate,
        Effect.gen(function*() {
          yield* Publisher.publish(Numbers, 1)
          const running = yield* Pipeline.start(from.pipe(
            Pipeline.tap((_, message) =>
              Effect.forkDetach(Message.settle(message, Settlement.terminate("no use")), { startImmediately: true })
            )
          ))
          yield* Wait.eventually("it runs", running.owned, ({ running }) => running === 1)
          yield* Wait.turns
          yield* Deferred.succeed(gate, undefined)
          yield* Wait.eventually("it has left", running.owned, ({ running }) => running === 0)
          assert.deepInclude(yield* running.counts, { deadLettered: 1, handled: 0, failedAfterSettle: 0, lost: 0 })
        })
      )
    }))

  it.effect("a retry pauses the pipeline when it says so", () =>
    Effect.gen(function*() {
      const hand = FakeTransport.make()
      const begun: Array<number> = []
      yield* on(hand, (from) =>
        from.pipe(Pipeline.tap((n, message) => {
          begun.push(n)
          return n === 1
            ? Message.settle(message, Settlement.retry("30 seconds", { pausesPipeline: true }))
            : Effect.void
        })))
      hand.deliver(delivery(1), delivery(2))
      yield* adjust("29 seconds")
      assert.deepStrictEqual([begun, hand.withdrawn], [[1], 1])
      yield* adjust("2 seconds")
      assert.deepStrictEqual(begun, [1, 2])
    }))

  it.live("a retry at once keeps its place in front of its key while its handler goes on", () =>
    Effect.gen(function*() {
      const seen: Array<string> = []
      yield* Publisher.publishAll(Numbers, [1, 2])
      const running = yield* Pipeline.start(from.pipe(
        Pipeline.tap((n, message) =>
          Effect.gen(function*() {
            seen.push(`${n}#${message.attempt}`)
            if (n === 2 || message.attempt > 1) return
            yield* Message.settle(message, Settlement.retry(0))
            const memory = yield* MemoryTransport.MemoryTransport
            yield* Wait.eventually("the retry is here", memory.groups, ([group]) =>
              group!.delayed.length === 0 && group!.pending.some(({ attempts }) =>
                attempts === 2
              ))
          })
        ),
        Pipeline.concurrency({ max: 4, key: () => "" })
      ))
      yield* Wait.eventually("both are handled", running.counts, ({ handled }) => handled >= 2)
      assert.deepStrictEqual(seen, ["1#1", "1#2", "2#1"])
    }).pipe(Effect.scoped, Effect.provide(MemoryTransport.layer())))

  it.live("a retry that does not count, requested while the pipeline drains, is released", () =>
    Effect.gen(function*() {
      const memory = yield* MemoryTransport.MemoryTransport
      yield* Publisher.publish(Numbers, 1)
      const begun = yield* Deferred.make<void>()
      const go = yield* Deferred.make<void>()
      const scope = yield* Scope.make()
      const pipeline = Pipeline.from(Numbers, { group: "test", startFrom: "beginning" }).pipe(
        Pipeline.tap(() =>
          Deferred.succeed(begun, undefined).pipe(
            Effect.andThen(Deferred.await(go)),
            Effect.andThen(Effect.fail(Settlement.retry("1 hour", { countsAttempt: false })))
          )
        )
      )
      const running = yield* Scope.provide(Pipeline.start(pipeline), scope)
      yield* Deferred.await(begun)
      const closing = yield* Effect.forkChild(Scope.close(scope, yield* Effect.exit(Effect.void)))
      yield* Wait.eventually("it drains", running.health, ({ state }) => state === "draining")
      yield* Deferred.succeed(go, undefined)
      yield* Fiber.join(closing)
      const [group] = yield* memory.groups
      assert.deepStrictEqual(group!.pending.map(({ attempts }) => attempts), [0])
      assert.deepInclude(yield* running.counts, { released: 1 })
    }).pipe(Effect.provide(MemoryTransport.layer())))
})

describe("numbers and texts that cannot work are refused", () => {
  const bad = [NaN, 0, -1, 2.5, -Infinity]

  it.effect("in a limit, in a layer's limit, in an adaptive one", () =>
    Effect.gen(function*() {
      for (const max of bad) {
        const limits = [
          Concurrency.make(max),
          Concurrency.makeAdaptive({ max }),
          Concurrency.makeAdaptive({ min: max, max: 8 })
        ]
        for (const limit of limits) {
          const error = yield* Effect.flip(Pipeline.start(from.pipe(Pipeline.concurrency(limit))))
          assert.strictEqual(error.reason._tag, "InvalidOption")
          assert.include(error.message, String(max))
        }
      }
      const error = yield* Effect.flip(
        Pipeline.start(from.pipe(Pipeline.concurrency(Concurrency.makeAdaptive({ min: 8, max: 2 }))))
      )
      assert.include(error.message, "give at most max")
    }).pipe(Effect.scoped, Effect.provide(MemoryTransport.layer())))

  for (const concurrency of bad) {
    it.effect(`in a layer: concurrency ${concurrency}`, () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(Pipeline.start(from.pipe(Pipeline.map((n) => n))))
        assert.strictEqual(error.reason._tag, "InvalidOption")
      }).pipe(Effect.scoped, Effect.provide(MemoryTransport.layer({ concurrency }))))
  }

  it.effect("in resize, which then changes nothing", () =>
    Effect.gen(function*() {
      const limit = Concurrency.make(4)
      for (const max of bad) {
        const error = yield* Effect.flip(limit.resize(max))
        assert.strictEqual(error.reason._tag, "InvalidOption")
        assert.throws(() => limit.resizeUnsafe(max))
      }
      assert.strictEqual(limit.max, 4)
      yield* limit.resize(Infinity)
      assert.strictEqual(limit.max, Infinity)
    }))

  it.effect("in an id, a key and a delay", () =>
    Effect.gen(function*() {
      const Keyed = Topic.make("keyed", { schema: Schema.String, key: (text) => text })
      const errors = yield* Effect.all([
        Effect.flip(Publisher.publish(Numbers, 1, { id: "a\r\nb" })),
        Effect.flip(Publisher.publish(Numbers, 1, { id: "\ud800" })),
        Effect.flip(Publisher.publish(Keyed, "\ud800")),
        Effect.flip(Publisher.publish(Numbers, 1, { delay: Infinity })),
        Effect.flip(Publisher.publish(Numbers, 1, { delay: NaN })),
        Effect.flip(Publisher.publish(Numbers, 1, { delay: "soon" as never }))
      ])
      assert.deepStrictEqual(errors.map(({ reason }) => reason._tag), errors.map(() => "InvalidOption"))
    }).pipe(Effect.provide(MemoryTransport.layer())))

  it.live("the headers of a message can be forwarded as they are", () =>
    Effect.gen(function*() {
      const memory = yield* MemoryTransport.MemoryTransport
      yield* Publisher.publish(Numbers, 1, { headers: { tenant: "acme" } })
      const running = yield* Pipeline.start(
        from.pipe(Pipeline.tap((n, { headers }) => Publisher.publish(Out, n, { headers })))
      )
      yield* Wait.eventually("it is handled", running.counts, ({ handled }) => handled === 1)
      const [, forwarded] = yield* memory.published
      assert.deepInclude(forwarded!.headers, { tenant: "acme", "content-type": "application/json" })
    }).pipe(Effect.scoped, Effect.provide(MemoryTransport.layer({ history: true }))))
})

describe("a redriven entry of fields", () => {
  it.effect("has none of our headers in its value", () =>
    Effect.gen(function*() {
      const codec = Codec.fields(Schema.Record(Schema.String, Schema.FiniteFromString))
      const text = new TextEncoder()
      const fields = new Map([["score", text.encode("7")], ["millrace-group", text.encode("g")]])
      assert.deepStrictEqual(yield* codec.decode({ body: new Uint8Array(), fields }), { score: 7 })
    }))
})
