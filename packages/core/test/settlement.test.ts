import { assert, describe, it } from "@effect/vitest"
import { Message, Pipeline, Publisher, Settlement, Topic, type Transport } from "@millrace/core"
import { MemoryTransport, TestHarness } from "@millrace/testing"
import { Effect, Exit, Latch, Layer, Result, Schedule, Schema, Scope } from "effect"
import { TestClock } from "effect/testing"

const Numbers = Topic.make("numbers", { schema: Schema.Number })
const from = Pipeline.from(Numbers, { group: "test", startFrom: "beginning" })

/** Lets what needs no time happen. */
const until = (condition: Effect.Effect<boolean>): Effect.Effect<void> =>
  Effect.andThen(Effect.yieldNow, condition).pipe(Effect.repeat({ until: (holds) => holds }), Effect.asVoid)

describe("law 1: the first settlement is final", () => {
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

  it.effect("manual: success settles nothing; what is forgotten is reported and redelivered", () =>
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
      yield* until(Effect.map(running.counts, ({ handled }) => handled === 2))
      yield* TestClock.adjust("4 seconds")
      assert.strictEqual((yield* running.counts).unsettled, 0)
      assert.strictEqual((yield* memory.settled).length, 1)
      yield* TestClock.adjust("1 second")
      yield* until(Effect.map(running.counts, ({ unsettled }) => unsettled === 1))
    }).pipe(Effect.provide(MemoryTransport.layer({ history: true, minIdle: "30 seconds" }))))
})

describe("law 2: attempts are counted at the broker", () => {
  /** A process that dies: its scope is never closed, it settles nothing more. */
  const crash = Effect.gen(function*() {
    const memory = yield* MemoryTransport.MemoryTransport
    const scope = yield* Scope.make()
    const transport = yield* Scope.provide(memory.connect, scope)
    return transport
  })

  it.effect("a message that kills its process is dead-lettered after its limit and takes no neighbour with it", () =>
    Effect.gen(function*() {
      const memory = yield* MemoryTransport.MemoryTransport
      for (let n = 0; n < 100; n++) yield* Publisher.publish(Numbers, n)
      const handled = new Set<number>()
      const kills: Array<number> = []
      let dead = 0
      for (let life = 0; life < 20 && dead === 0; life++) {
        // What runs in this life belongs to a transport that goes silent when the killer runs.
        let alive = true
        const transport = yield* crash
        const mortal = {
          ...transport,
          subscribe: (options: Parameters<typeof transport.subscribe>[0]) =>
            Effect.map(transport.subscribe(options), (subscription) => ({
              ...subscription,
              pull: (demand: Transport.Demand) =>
                Effect.suspend(() => alive ? subscription.pull(demand) : Effect.never),
              settle: (batch: Parameters<typeof subscription.settle>[0]) =>
                Effect.suspend(() => alive ? subscription.settle(batch) : Effect.never),
              extend: (deliveries: Parameters<typeof subscription.extend>[0]) =>
                Effect.suspend(() => alive ? subscription.extend(deliveries) : Effect.never)
            }))
        }
        const pipeline = Pipeline.fromTransport(
          Numbers,
          { group: "test", startFrom: "beginning" },
          { transport: Effect.succeed(mortal) }
        ).pipe(
          Pipeline.mapEffect((n, message) =>
            Effect.suspend(() => {
              if (!alive) return Effect.never
              if (n === 50) {
                kills.push(message.attempt)
                alive = false
                return Effect.never
              }
              return Effect.as(Effect.sleep("1 millis"), handled.add(n))
            })
          ),
          Pipeline.concurrency(16),
          Pipeline.retry({ times: 3 })
        )
        const life$ = yield* Scope.make()
        const running = yield* Scope.provide(Pipeline.start(pipeline), life$)
        for (let second = 0; alive && second < 300 && (yield* running.counts).deadLettered === 0; second++) {
          yield* TestClock.adjust("1 second")
        }
        for (let second = 0; alive && second < 60; second++) yield* TestClock.adjust("1 second")
        dead += (yield* running.counts).deadLettered
      }
      const sizes = yield* memory.sizes
      assert.deepStrictEqual(kills, [1, 2, 3, 4])
      assert.strictEqual(sizes.get("numbers.dead"), 1)
      assert.strictEqual(handled.size, 99)
      assert.deepStrictEqual((yield* memory.groups).map(({ lag, pending }) => [lag, pending.length]), [[0, 0]])
    }).pipe(Effect.provide(MemoryTransport.layer())))
})

describe("law 8: only the owner may settle", () => {
  it.effect("a consumer paused beyond its claim loses the message: its signal aborts and it says nothing more", () =>
    Effect.gen(function*() {
      const memory = yield* MemoryTransport.MemoryTransport
      const transport = yield* memory.connect
      // Its heartbeats do not go out, as in a paused process.
      let paused = true
      const zombie = {
        ...transport,
        subscribe: (options: Parameters<typeof transport.subscribe>[0]) =>
          Effect.map(transport.subscribe(options), (subscription) => ({
            ...subscription,
            extend: (deliveries: Parameters<typeof subscription.extend>[0]) =>
              paused ? Effect.succeed([]) : subscription.extend(deliveries)
          }))
      }
      let aborted = false
      const running = yield* Pipeline.start(
        Pipeline.fromTransport(
          Numbers,
          { group: "test", startFrom: "beginning", drainTimeout: 0 },
          { transport: Effect.succeed(zombie) }
        ).pipe(Pipeline.mapPromise((_, { signal }) => {
          signal.addEventListener("abort", () => aborted = true)
          return new Promise<void>(() => {})
        }))
      )
      yield* Publisher.publish(Numbers, 1)
      while ((yield* running.owned).running === 0) yield* Effect.yieldNow
      yield* TestClock.adjust("29 seconds")
      const attempts: Array<number> = []
      const peer = yield* Pipeline.start(from.pipe(Pipeline.map((_, message) => attempts.push(message.attempt))))
      yield* TestClock.adjust("5 seconds")
      assert.deepStrictEqual(attempts, [2])
      paused = false
      yield* TestClock.adjust("10 seconds")
      assert.isTrue(aborted)
      assert.deepInclude(yield* running.counts, { lost: 1, handled: 0, retried: 0 })
      assert.strictEqual((yield* peer.counts).handled, 1)
      assert.deepStrictEqual((yield* memory.settled).map(({ settlement }) => settlement._tag), ["Ack"])
    }).pipe(Effect.provide(MemoryTransport.layer({ history: true }))))

  it.effect("a long handler keeps its message: ten claim times do not run it twice", () =>
    Effect.gen(function*() {
      let runs = 0
      const slow = from.pipe(Pipeline.tap(() => Effect.andThen(Effect.sync(() => runs++), Effect.sleep("5 minutes"))))
      const running = yield* Pipeline.start(slow)
      yield* Pipeline.start(slow)
      yield* Publisher.publish(Numbers, 1)
      yield* TestClock.adjust("6 minutes")
      assert.strictEqual(runs, 1)
      assert.strictEqual((yield* running.counts).lost, 0)
    }).pipe(Effect.provide(MemoryTransport.layer())))
})

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
        report.published.slice(2).map(({ body, id, topic }) => [topic, new TextDecoder().decode(body), id]),
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

describe("shared limits", () => {
  it.effect("a layer's concurrency is one pool for all its pipelines", () =>
    Effect.gen(function*() {
      let running = 0
      let most = 0
      const busy = Pipeline.tap(() =>
        Effect.acquireUseRelease(
          Effect.sync(() => most = Math.max(most, ++running)),
          () => Effect.sleep("1 second"),
          () => Effect.sync(() => running--)
        )
      )
      const other = Pipeline.from(Numbers, { group: "other", startFrom: "beginning" })
      yield* Effect.scoped(Effect.gen(function*() {
        const a = yield* Pipeline.start(from.pipe(busy, Pipeline.concurrency(5)))
        const b = yield* Pipeline.start(other.pipe(busy, Pipeline.concurrency(5)))
        for (let n = 0; n < 12; n++) yield* Publisher.publish(Numbers, n)
        yield* TestClock.adjust("20 seconds")
        assert.strictEqual((yield* a.counts).handled + (yield* b.counts).handled, 24)
      }))
      assert.strictEqual(most, 3)
    }).pipe(Effect.provide(MemoryTransport.layer({ concurrency: 3 }))))

  it.effect("a limit changes while it is in use", () =>
    Effect.gen(function*() {
      const running = yield* Pipeline.start(
        Pipeline.from(Numbers, { group: "test", startFrom: "beginning", drainTimeout: 0 }).pipe(
          Pipeline.tap(() => Effect.sleep("1 second")),
          Pipeline.concurrency(1)
        )
      )
      for (let n = 0; n < 20; n++) yield* Publisher.publish(Numbers, n)
      yield* TestClock.adjust("2 seconds")
      assert.strictEqual((yield* running.owned).running, 1)
      running.limit.resizeUnsafe(6)
      yield* TestClock.adjust("10 millis")
      assert.strictEqual((yield* running.owned).running, 6)
      running.limit.resizeUnsafe(2)
      yield* TestClock.adjust("2 seconds")
      assert.strictEqual((yield* running.owned).running, 2)
    }).pipe(Effect.provide(MemoryTransport.layer())))
})

it.effect("toLayer: a pipeline is one Layer among others: it stops before what it stands on, after what stands on it", () =>
  Effect.gen(function*() {
    const events: Array<string> = []
    const [begun, end] = [yield* Latch.make(), yield* Latch.make()]
    const pipeline = Pipeline.toLayer(
      from.pipe(
        Pipeline.tap(() => Effect.andThen(begun.open, end.await)),
        Pipeline.tap(() => Effect.sync(() => events.push("handled")))
      )
    )
    const closing = (name: string) =>
      Layer.effectDiscard(Effect.addFinalizer(() => Effect.andThen(Effect.sync(() => events.push(name)), end.open)))
    const [above, below] = [closing("above closed"), closing("below closed")]
    const scope = yield* Scope.make()
    yield* Layer.buildWithScope(above.pipe(Layer.provide(pipeline), Layer.provide(below)), scope)
    yield* Publisher.publish(Numbers, 1)
    yield* begun.await
    yield* Scope.close(scope, Exit.void)
    assert.deepStrictEqual(events, ["above closed", "handled", "below closed"])
  }).pipe(Effect.provide(MemoryTransport.layer())))

describe("each attempt has a Scope of its own", () => {
  it.effect("its finalizers run before the message is settled, and learn how it ended", () =>
    Effect.gen(function*() {
      const order: Array<string> = []
      const memory = yield* MemoryTransport.MemoryTransport
      const report = yield* TestHarness.run(
        Numbers,
        from.pipe(
          Pipeline.tap((n) =>
            Effect.addFinalizer((exit) =>
              Effect.map(memory.settled, ({ length }) => order.push(`${n} ${exit._tag}, ${length} settled`))
            )
          ),
          Pipeline.tap((n) => n === 2 ? Effect.fail("declined") : Effect.void),
          Pipeline.retry({ times: 0 })
        ),
        [1, 2]
      )
      assert.deepInclude(report.counts, { handled: 1, deadLettered: 1 })
      assert.deepStrictEqual(order, ["1 Success, 0 settled", "2 Failure, 0 settled"])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("a scope that nobody had used stayed open: what was added to it later was never released", () =>
    Effect.gen(function*() {
      const scopes: Array<Scope.Scope> = []
      yield* TestHarness.run(
        Numbers,
        Pipeline.tap(from, () => Effect.map(Effect.scope, (scope) => scopes.push(scope))),
        [1]
      )
      let released = 0
      yield* Scope.addFinalizer(scopes[0]!, Effect.sync(() => released++))
      assert.strictEqual(released, 1)
    }).pipe(Effect.provide(TestHarness.layer)))
})
