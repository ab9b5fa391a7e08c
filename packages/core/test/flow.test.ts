import { assert, describe, it } from "@effect/vitest"
import { Concurrency, type Message, Pipeline, Publisher, Topic, type Transport, TransportAuthor } from "@millrace/core"
import { MemoryTransport, TestHarness } from "@millrace/testing"
import { Clock, Data, Effect, Schedule, Schema } from "effect"
import { TestClock } from "effect/testing"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"

class Refused extends Data.TaggedError("Refused") {}

const Numbers = Topic.make("numbers", { schema: Schema.Number })
const Done = Topic.make("done", { schema: Schema.Number })
const from = Pipeline.from(Numbers, { group: "test", startFrom: "beginning" })
const upTo = (n: number) => Array.from({ length: n }, (_, i) => i)

/** Lets everything happen that needs no time. */
const turns = Effect.promise(async () => {
  for (let n = 0; n < 80; n++) await new Promise((resolve) => setImmediate(resolve))
})

/** Time passes in small steps: a settlement waits for turns of the loop, and a slot for the settlement before it. */
const pass = (millis: number, step = 10) =>
  Effect.gen(function*() {
    for (let at = 0; at < millis; at += step) {
      yield* TestClock.adjust(step)
      yield* turns
    }
  })

describe("sharing", () => {
  it.effect("two workers share a backlog of slow tasks, and none outlives its claim", () =>
    Effect.gen(function*() {
      const memory = yield* MemoryTransport.MemoryTransport
      yield* Publisher.publishAll(Numbers, upTo(200))
      const worker = Effect.gen(function*() {
        const transport = yield* memory.connect
        return yield* Pipeline.start(
          TransportAuthor.fromTransport(Numbers, { group: "test", startFrom: "beginning" }, {
            transport: Effect.succeed(transport)
          }).pipe(Pipeline.tap(() => Effect.sleep("300 millis")), Pipeline.concurrency(4))
        )
      })
      const workers = [yield* worker, yield* worker]
      yield* pass(200 * 300 / 8 + 600, 100)
      const counts = yield* Effect.forEach(workers, (running) => running.counts)
      assert.strictEqual(counts[0]!.handled + counts[1]!.handled, 200)
      for (const { handled, lost } of counts) {
        assert.strictEqual(lost, 0)
        assert.isAtLeast(handled, 80)
      }
    }).pipe(Effect.provide(MemoryTransport.layer({ minIdle: "2 seconds" }))))

  /** The handlers of one turn of the loop, and the turns that a neighbour waits for its message. */
  it.live("a trickle beside a full-speed neighbour of 50 µs handlers has its turn", () =>
    Effect.gen(function*() {
      // A clock that only the handlers move: how fast the machine is makes no difference.
      let micros = 0
      const clock = yield* Clock.clockWith(Effect.succeed)
      const ofHandlers: Clock.Clock = Object.assign(Object.create(clock) as Clock.Clock, {
        currentTimeMillisUnsafe: () => Math.floor(micros / 1000),
        monotonicTimeNanosUnsafe: () => BigInt(micros) * 1000n
      })
      let handlers = 0
      let mostHandlers = 0
      let turn = 0
      const fast = yield* Pipeline.start(from.pipe(
        Pipeline.map((n) => {
          micros += 50
          mostHandlers = Math.max(mostHandlers, ++handlers)
          return n
        }),
        Pipeline.concurrency(64)
      )).pipe(Effect.provideService(Clock.Clock, ofHandlers))
      const Trickle = Topic.make("trickle", { schema: Schema.Number })
      const waits: Array<number> = []
      yield* Pipeline.start(
        Pipeline.from(Trickle, { group: "test" }).pipe(Pipeline.map((at) => void waits.push(turn - at)))
      ).pipe(Effect.provideService(Clock.Clock, ofHandlers))
      const tick = () => {
        turn++
        handlers = 0
        ticking = setImmediate(tick)
      }
      let ticking = setImmediate(tick)
      yield* Effect.addFinalizer(() => Effect.sync(() => clearImmediate(ticking)))
      yield* Publisher.publishAll(Numbers, upTo(20_000))
      while ((yield* fast.counts).handled < 20_000) {
        yield* Effect.suspend(() => Publisher.publish(Trickle, turn))
        for (const since = turn; turn - since < 20;) yield* Effect.yieldNow
      }
      assert.isAtLeast(waits.length, 10)
      // A millisecond is 20 handlers, and the clock is looked at after at most 16.
      assert.isAtMost(mostHandlers, 20 + 16)
      assert.isAtMost(Math.max(...waits), 20)
    }).pipe(Effect.provide(MemoryTransport.layer())))

  it.effect("a slow publish slows consumption: messages that cannot begin stay at the broker", () =>
    Effect.gen(function*() {
      const memory = yield* MemoryTransport.MemoryTransport
      const transport = yield* memory.connect
      const slow: Transport.Transport["Service"] = {
        ...transport,
        publish: (messages) => Effect.delay(transport.publish(messages), "1 second")
      }
      yield* Publisher.publishAll(Numbers, upTo(200))
      const running = yield* Pipeline.start(
        TransportAuthor.fromTransport(Numbers, { group: "test", startFrom: "beginning", drainTimeout: 0 }, {
          transport: Effect.succeed(slow)
        }).pipe(Pipeline.to(Done), Pipeline.concurrency(4))
      )
      yield* pass(10_050, 50)
      assert.strictEqual((yield* running.counts).handled, 40)
      const { running: begun, waiting } = yield* running.owned
      assert.strictEqual(begun, 4)
      assert.isAtMost(waiting, 4)
      assert.strictEqual((yield* memory.groups)[0]!.lag, 200 - 40 - begun - waiting)
    }).pipe(Effect.provide(MemoryTransport.layer())))
})

describe("keys", () => {
  const gc: () => void = (setFlagsFromString("--expose-gc"), runInNewContext("gc"))
  const heap = () => {
    gc()
    return process.memoryUsage().heapUsed
  }

  it.live("100,000 distinct keys leave nothing behind", () =>
    Effect.gen(function*() {
      const running = yield* Pipeline.start(
        from.pipe(
          Pipeline.tap((n) => n % 100 === 0 ? Effect.fail("once") : Effect.void),
          Pipeline.retry({ times: 0 }),
          Pipeline.discard,
          Pipeline.concurrency({ max: 64, key: ({ value }) => `${value}`.padEnd(500, "-") })
        )
      )
      const handle = (least: number, most: number) =>
        Effect.gen(function*() {
          for (let n = least; n < most; n += 1000) {
            yield* Publisher.publishAll(Numbers, upTo(1000).map((i) => n + i))
            while ((yield* running.counts).handled + (yield* running.counts).discarded < n + 1000) yield* turns
          }
        })
      yield* handle(0, 20_000)
      const before = heap()
      yield* handle(20_000, 100_000)
      // Were each key remembered, it would be 40 MB.
      assert.isBelow(heap() - before, 10_000_000)
    }).pipe(Effect.provide(MemoryTransport.layer({ retention: "until-acked" }))))

  it.effect("one stuck key leaves at least 95 % of the other slots in use", () =>
    Effect.gen(function*() {
      const running = yield* Pipeline.start(
        Pipeline.from(Numbers, { group: "test", startFrom: "beginning", drainTimeout: 0 }).pipe(
          Pipeline.tap((n) => n % 20 === 0 ? Effect.never : Effect.sleep("100 millis")),
          Pipeline.concurrency({ max: 20, key: ({ value }) => `${value % 20}` })
        )
      )
      // One message in twenty is of the key that is stuck.
      yield* Publisher.publishAll(Numbers, upTo(1000))
      yield* pass(950 / 19 * 100 / 0.95, 20)
      assert.deepInclude(yield* running.counts, { handled: 950 })
    }).pipe(Effect.provide(MemoryTransport.layer())))

  it.effect("one key for all is strict order, through retries", () =>
    Effect.gen(function*() {
      const report = yield* TestHarness.run(
        Numbers,
        from.pipe(
          Pipeline.tap((n, { attempt }) => n % 3 === 0 && attempt < 3 ? Effect.fail("not yet") : Effect.void),
          Pipeline.retry({ times: 3, schedule: Schedule.spaced("1 minute") }),
          Pipeline.concurrency({ max: 8, key: () => "" })
        ),
        upTo(12)
      )
      assert.deepStrictEqual(report.handled.map(({ value }) => value), upTo(12))
    }).pipe(Effect.provide(TestHarness.layer)))
})

describe("under failure", () => {
  /** Each fails in another way at its first attempt. */
  const failing = (n: number, { attempt }: Message.Any) => {
    if (attempt > 1) return Effect.void
    switch (n % 5) {
      case 0: {
        return Effect.fail(new Refused())
      }
      case 1: {
        return Effect.die(new Error("defect"))
      }
      case 2: {
        return Effect.never // until the timeout
      }
      case 3: {
        return Effect.interrupt
      }
      default: {
        throw new Error("thrown")
      }
    }
  }

  const modes: Record<string, Parameters<typeof Pipeline.concurrency<Message.Message<number>>>[0]> = {
    "one at a time": 1,
    "a number": 8,
    "a shared limit": Concurrency.make(8),
    "an adaptive limit": Concurrency.makeAdaptive({ min: 2, max: 8, eventLoopDelay: Infinity }),
    "by key": { max: 8, key: ({ value }) => `${value % 10}` }
  }
  for (const [name, mode] of Object.entries(modes)) {
    it.effect(`${name}: never too many, all handled, and every slot is free in the end`, () =>
      Effect.gen(function*() {
        let running = 0
        let most = 0
        const harness = yield* TestHarness.make(
          Numbers,
          from.pipe(
            Pipeline.tap((n, message) =>
              Effect.acquireUseRelease(
                Effect.sync(() => most = Math.max(most, ++running)),
                () => Effect.suspend(() => failing(n, message)),
                () => Effect.sync(() => running--)
              )
            ),
            Pipeline.timeout("1 second"),
            Pipeline.retry({ times: 1, schedule: Schedule.spaced("10 seconds") }),
            Pipeline.concurrency(mode)
          )
        )
        for (const n of upTo(100)) yield* harness.publish(n)
        const report = yield* harness.runUntilIdle()
        assert.deepInclude(report.counts, { handled: 100, retried: 100, deadLettered: 0, lost: 0 })
        assert.isAtMost(most, harness.running.limit.ceiling)
        assert.strictEqual(harness.running.limit.inUse, 0)
      }).pipe(Effect.provide(TestHarness.layer)))
  }

  it.effect("one at a time: a message that fails falls behind, the others keep their order", () =>
    Effect.gen(function*() {
      const report = yield* TestHarness.run(
        Numbers,
        from.pipe(
          Pipeline.tap((n, { attempt }) => n === 2 && attempt === 1 ? Effect.fail("once") : Effect.void),
          Pipeline.retry({ times: 1, schedule: Schedule.spaced("1 minute") })
        ),
        upTo(6)
      )
      assert.deepStrictEqual(report.handled.map(({ value }) => value), [0, 1, 3, 4, 5, 2])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("a shared limit: what waits for its retry holds no slot of the neighbour's", () =>
    Effect.gen(function*() {
      const limit = Concurrency.make(4)
      const failing = yield* Pipeline.start(
        from.pipe(
          Pipeline.tap(() => Effect.fail("always")),
          Pipeline.retry({ times: 10, schedule: Schedule.spaced("1 hour") }),
          Pipeline.concurrency(limit)
        )
      )
      const neighbour = yield* Pipeline.start(
        Pipeline.from(Numbers, { group: "neighbour", startFrom: "beginning" }).pipe(
          Pipeline.tap(() => Effect.sleep("1 second")),
          Pipeline.concurrency(limit)
        )
      )
      yield* Publisher.publishAll(Numbers, upTo(40))
      yield* pass(11_000, 100)
      assert.strictEqual((yield* failing.counts).retried, 40)
      assert.strictEqual((yield* neighbour.counts).handled, 40)
    }).pipe(Effect.provide(MemoryTransport.layer())))

  it.effect("an adaptive limit: falls while handlers fail, grows when they succeed again, and loses none", () =>
    Effect.gen(function*() {
      let isDown = false
      const limit = Concurrency.makeAdaptive({ max: 16, eventLoopDelay: Infinity })
      const running = yield* Pipeline.start(
        from.pipe(
          Pipeline.tap(() =>
            Effect.andThen(
              Effect.sleep("20 millis"),
              Effect.suspend(() => isDown ? Effect.fail(new Refused()) : Effect.void)
            )
          ),
          Pipeline.retry({ times: 100, schedule: Schedule.spaced("1 second") }),
          Pipeline.concurrency(limit)
        )
      )
      yield* Publisher.publishAll(Numbers, upTo(4000))
      yield* pass(3000)
      assert.strictEqual(limit.max, 16)
      isDown = true
      yield* pass(6000)
      assert.isAtMost(limit.max, 2)
      isDown = false
      yield* pass(12_000)
      assert.strictEqual(limit.max, 16)
      while ((yield* running.counts).handled < 4000) yield* pass(500)
      assert.deepInclude(yield* running.counts, { deadLettered: 0, lost: 0 })
    }).pipe(Effect.provide(MemoryTransport.layer())))
})
