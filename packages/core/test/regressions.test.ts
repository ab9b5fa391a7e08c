import { assert, describe, it } from "@effect/vitest"
import {
  Concurrency,
  DeadLetter,
  Message,
  Pipeline,
  Publisher,
  Settlement,
  Telemetry,
  Topic,
  Transport
} from "@millrace/core"
import { MemoryTransport, TestHarness } from "@millrace/testing"
import { Clock, Context, Data, Duration, Effect, Exit, Option, Result, Schedule, Schema, Scope, Stream } from "effect"
import { TestClock } from "effect/testing"

const Numbers = Topic.make("numbers", { schema: Schema.Number })

type From = Pipeline.Open<Message.Message<number>, number>

const delivery = (n: number, over?: Partial<Transport.Delivery>): Transport.Delivery => ({
  id: String(n),
  origin: "hand",
  topic: "numbers",
  key: undefined,
  headers: {},
  attempt: 1,
  redelivered: false,
  suspect: false,
  publishedAt: 0,
  body: new TextEncoder().encode(JSON.stringify(n)),
  ...over
})

/** Lets everything happen that needs no time. */
const turns = Effect.promise(async () => {
  for (let n = 0; n < 80; n++) await new Promise((resolve) => setImmediate(resolve))
})

const adjust = (duration: Duration.Input) => Effect.andThen(Effect.andThen(turns, TestClock.adjust(duration)), turns)

/** A broker of which each answer is made by the test. */
class Hand {
  readonly queue: Array<Transport.Delivery> = []
  readonly settled: Array<Transport.Settling> = []
  readonly published: Array<Transport.Outgoing> = []
  readonly lost = new Set<Transport.Delivery>()
  readonly asked: Array<number> = []
  readonly extended: Array<ReadonlyArray<string>> = []
  maxOwned = 0
  pulling = 0
  withdrawn = 0
  wake: (() => void) | undefined
  limit = Concurrency.make(Infinity)
  extendTakes: Duration.Input = 0
  settle: Transport.Subscription["settle"] = (batch) =>
    Effect.sync(() => {
      this.settled.push(...batch)
      return batch.filter(({ delivery }) => this.lost.has(delivery)).map(({ delivery }) => delivery)
    })
  publish: Transport.Transport["Service"]["publish"] = (messages) =>
    Effect.sync(() => {
      this.published.push(...messages)
      return messages.map(() => Result.succeed({ id: "1", duplicate: false }))
    })
  pull: Transport.Subscription["pull"] = ({ total }) =>
    Effect.callback((resume) => {
      this.asked.push(total)
      const answer = () => {
        if (this.queue.length === 0) return
        this.wake = undefined
        resume(Effect.succeed(this.queue.splice(0, total) as any))
      }
      this.wake = answer
      answer()
      return Effect.sync(() => this.wake = undefined)
    })
  deliver(...deliveries: ReadonlyArray<Transport.Delivery>) {
    this.queue.push(...deliveries)
    this.wake?.()
  }
  /** What was said of each, by id. */
  get said() {
    return this.settled.map(({ delivery, settlement }) => `${delivery.id} ${settlement._tag}`)
  }
  readonly transport: Transport.Transport["Service"] = {
    name: "hand",
    address: "hand",
    nameRemedy: () => undefined,
    get: () => Effect.succeed(Option.none()),
    groups: () => Effect.succeed([]),
    capabilities: {
      deduplication: true,
      delayedPublish: true,
      uncountedRelease: true,
      ownership: true,
      maxBody: undefined
    },
    limit: this.limit,
    health: Effect.succeed({ state: "consuming", since: 0 }),
    declare: () => Effect.void,
    subscribe: (options) =>
      Effect.sync(() => {
        this.maxOwned = options.maxOwned
        return {
          pull: (demand) => this.pull(demand),
          withdraw: Effect.sync(() => void this.withdrawn++),
          begin: () => Effect.succeed(true),
          settle: (batch) => this.settle(batch),
          extend: (deliveries) =>
            Effect.suspend(() => {
              this.extended.push(deliveries.map(({ id }) => id))
              return Effect.map(
                Effect.sleep(this.extendTakes),
                () => deliveries.filter((delivery) => this.lost.has(delivery))
              )
            }),
          lease: Duration.seconds(30),
          health: Effect.succeed({ state: "consuming", since: 0 })
        }
      }),
    publish: (messages) => this.publish(messages),
    browse: () => Stream.empty,
    remove: () => Effect.succeed(0)
  }
}

/** Starts a pipeline on it; its scope is closed by hand, for a drain that hangs must not hang the test. */
const on = <M extends Message.Any, A, E, R>(
  hand: Hand,
  grow: (from: From) => Pipeline.Pipeline<M, A, E, R>,
  options?: Partial<Pipeline.FromOptions>
) =>
  Effect.gen(function*() {
    const scope = yield* Scope.make()
    const from = Pipeline.fromTransport(
      Numbers,
      { group: "test", prefetch: 10, drainTimeout: "1 second", ...options },
      {
        transport: Effect.succeed(hand.transport)
      }
    )
    const running = yield* Scope.provide(Pipeline.start(grow(from)), scope)
    yield* turns
    /** Closes the scope; whether that had ended `duration` later. */
    const drained = (duration: Duration.Input) =>
      Effect.gen(function*() {
        const fiber = Effect.runForkWith(yield* Effect.context<never>())(Scope.close(scope, Exit.void))
        yield* adjust(duration)
        return fiber.pollUnsafe() !== undefined
      })
    return { running, scope, drained }
  })

const never = () => new Promise<never>(() => {})

// --- 1 lost ownership

describe("lost ownership", () => {
  it.effect("a message lost while it is buffered gives back a permit it never had: the limit is exceeded", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      let most = 0
      let inFlight = 0
      const { running } = yield* on(hand, (from) =>
        from.pipe(Pipeline.mapPromise(() => {
          most = Math.max(most, ++inFlight)
          return never()
        })))
      const second = delivery(2)
      hand.deliver(delivery(1), second, delivery(3), delivery(4))
      yield* turns
      hand.lost.add(second)
      yield* adjust("10 seconds")
      assert.deepStrictEqual([most, (yield* running.owned).running, running.limit.inUse], [1, 1, 1])
    }))

  it.effect("drain ends also after a message was lost while it was buffered", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const { drained } = yield* on(hand, (from) => from.pipe(Pipeline.mapPromise(() => never())))
      const second = delivery(2)
      hand.deliver(delivery(1), second)
      yield* turns
      hand.lost.add(second)
      yield* adjust("10 seconds")
      assert.isTrue(yield* drained("2 seconds"))
    }))

  it.effect("a message lost while it stands behind its key lets the next one of the key run beside the head", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const begun: Array<number> = []
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.mapPromise((n) => {
            begun.push(n)
            return never()
          }),
          Pipeline.concurrency({ max: 4, key: () => "k" })
        ))
      const second = delivery(2)
      hand.deliver(delivery(1), second, delivery(3))
      yield* turns
      hand.lost.add(second)
      yield* adjust("10 seconds")
      assert.deepStrictEqual(begun, [1])
    }))

  it.effect("a message lost while its dead letter is written gives its permit back once", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      hand.publish = () => Effect.delay(Effect.succeed([Result.succeed({ id: "1", duplicate: false })]), "15 seconds")
      const { running } = yield* on(hand, (from) => from)
      const bad = delivery(1, { body: new TextEncoder().encode("nonsense") })
      hand.deliver(bad)
      yield* turns
      hand.lost.add(bad)
      yield* adjust("10 seconds")
      yield* adjust("10 seconds")
      assert.deepStrictEqual([(yield* running.owned).running, running.limit.inUse], [0, 0])
    }))

  it.effect("a suspect that is lost while it waits to run alone stalls the pipeline for ever", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const { running } = yield* on(
        hand,
        (from) => from.pipe(Pipeline.tap((n) => n === 1 ? Effect.sleep("15 seconds") : Effect.void))
      )
      const suspect = delivery(2, { suspect: true, attempt: 2 })
      hand.deliver(delivery(1))
      yield* turns
      hand.deliver(suspect)
      yield* turns
      hand.lost.add(suspect)
      yield* adjust("10 seconds")
      yield* adjust("10 seconds")
      hand.deliver(delivery(3))
      yield* adjust("1 minute")
      assert.strictEqual((yield* running.counts).handled, 2)
    }))

  it.effect("a process that stood still began what a peer had long handled", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      let gap = 0
      const begun: Array<number> = []
      const finish: Array<() => void> = []
      const clock = yield* Clock.clockWith(Effect.succeed)
      const jumping: Clock.Clock = Object.assign(Object.create(clock) as Clock.Clock, {
        currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + gap
      })
      const { running } = yield* Effect.provideService(
        on(hand, (from) =>
          from.pipe(Pipeline.mapPromise((n) => {
            begun.push(n)
            return new Promise<void>((resolve) => finish.push(resolve))
          }))),
        Clock.Clock,
        jumping
      )
      const [second, third] = [delivery(2), delivery(3)]
      hand.deliver(delivery(1), second, third)
      yield* turns
      gap = 60_000
      hand.lost.add(second)
      finish[0]!()
      yield* turns
      assert.deepStrictEqual(begun, [1, 3])
      assert.strictEqual((yield* running.counts).lost, 1)
    }))

  it.effect("a process that stood still while it had nothing began what it found in its socket and a peer had handled", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      let gap = 0
      const begun: Array<number> = []
      const clock = yield* Clock.clockWith(Effect.succeed)
      const jumping: Clock.Clock = Object.assign(Object.create(clock) as Clock.Clock, {
        currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + gap
      })
      const { running } = yield* Effect.provideService(
        on(hand, (from) => from.pipe(Pipeline.map((n) => void begun.push(n)))),
        Clock.Clock,
        jumping
      )
      yield* adjust("10 seconds")
      gap = 60_000
      const [first, second] = [delivery(1), delivery(2)]
      hand.lost.add(first)
      hand.deliver(first, second)
      yield* turns
      assert.deepStrictEqual(begun, [2])
      assert.strictEqual((yield* running.counts).lost, 1)
      yield* adjust("10 seconds")
      hand.deliver(delivery(3))
      yield* turns
      assert.deepStrictEqual(begun, [2, 3])
    }))

  it.effect("a message that was acknowledged while its extension was on its way was counted as lost", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      let finish = () => {}
      const { running } = yield* on(
        hand,
        (from) => from.pipe(Pipeline.mapPromise(() => new Promise<void>((resolve) => finish = resolve)))
      )
      const first = delivery(1)
      hand.extendTakes = "1 second"
      hand.deliver(first)
      yield* turns
      yield* adjust("10 seconds") // the extension is on its way
      finish()
      yield* turns
      hand.lost.add(first)
      yield* adjust("1 second")
      assert.deepInclude(yield* running.counts, { handled: 1, lost: 0 })
    }))
})

// --- 2 drain

describe("drain", () => {
  const unreachable: Hand["publish"] = (messages) =>
    Effect.succeed(
      messages.map(({ topic }) =>
        Result.fail(new Publisher.PublishError({ topic, reason: new Publisher.NotSent({ detail: "gone" }) }))
      )
    )

  it.effect("ends although a dead letter cannot be written", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      hand.publish = unreachable
      const { drained } = yield* on(hand, (from) =>
        from.pipe(Pipeline.mapEffect(() => Effect.fail("no")), Pipeline.retry({ times: 0 })))
      hand.deliver(delivery(1))
      yield* turns
      assert.isTrue(yield* drained("10 seconds"))
    }))

  it.effect("an undecodable message whose dead letter is being written at the deadline ends once", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      hand.publish = () => Effect.delay(Effect.succeed([Result.succeed({ id: "1", duplicate: false })]), "5 seconds")
      const { drained, running } = yield* on(hand, (from) => from)
      hand.deliver(delivery(1, { body: new TextEncoder().encode("nonsense") }))
      yield* turns
      yield* drained("2 seconds")
      yield* adjust("10 seconds")
      assert.deepStrictEqual([running.limit.inUse, (yield* running.owned).running], [0, 0])
    }))

  it.effect("ends although the broker cannot be told", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      hand.settle = () => Effect.fail(new Error("gone") as any)
      const { drained } = yield* on(hand, (from) => from)
      hand.deliver(delivery(1))
      yield* turns
      assert.isTrue(yield* drained("10 seconds"))
    }))

  it.effect("ends although a handler cannot be interrupted", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const { drained } = yield* on(hand, (from) => from.pipe(Pipeline.tap(() => Effect.uninterruptible(Effect.never))))
      hand.deliver(delivery(1))
      yield* turns
      assert.isTrue(yield* drained("10 seconds"))
    }))

  it.effect("at the deadline burns an attempt of all messages of a batch but the first", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const { drained, running } = yield* on(hand, (from) =>
        from.pipe(Pipeline.batch({ size: 3, within: "1 hour" }, () => Effect.never)))
      hand.deliver(delivery(1), delivery(2), delivery(3))
      yield* turns
      assert.strictEqual((yield* running.owned).running, 3)
      yield* drained("10 seconds")
      assert.deepStrictEqual([...hand.said].sort(), ["1 Release", "2 Release", "3 Release"])
    }))

  it.effect("on-receive: interrupted before the broker confirmed the ack, it is not run after its end", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      hand.settle = () => Effect.delay(Effect.succeed([]), "5 seconds")
      let handled = 0
      const { drained, running } = yield* on(
        hand,
        (from) => from.pipe(Pipeline.map(() => handled++), Pipeline.ackPolicy("on-receive"))
      )
      hand.deliver(delivery(1))
      yield* turns
      yield* drained("3 seconds")
      const before = running.limit.inUse
      yield* adjust("10 seconds")
      assert.deepStrictEqual([before, handled, running.limit.inUse], [0, 0, 0])
    }))

  it.effect("manual: what is handled and unsettled is not handed back", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const { drained } = yield* on(hand, (from) => from.pipe(Pipeline.ackPolicy("manual")))
      hand.deliver(delivery(1))
      yield* turns
      assert.isTrue(yield* drained("10 seconds"))
      assert.deepStrictEqual(hand.said, ["1 Release"])
    }))

  it.effect("withdraws the open request between two pulls, and takes nothing that arrives later", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const { drained } = yield* on(hand, (from) => from.pipe(Pipeline.mapPromise(() => never())), { prefetch: 0 })
      hand.deliver(delivery(1))
      yield* turns
      assert.deepStrictEqual(hand.asked, [1])
      hand.queue.push(delivery(2))
      assert.isTrue(yield* drained("10 seconds"))
      assert.deepStrictEqual([hand.asked, hand.withdrawn], [[1], 1])
      assert.deepStrictEqual(hand.said, ["1 Release"])
    }))
})

// --- 3 the user's functions

describe("functions that throw", () => {
  const survives = (
    grow: (from: From) => Pipeline.Pipeline<any, any, any, never>,
    first: Transport.Delivery = delivery(1),
    provide: <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R> = (self) => self,
    firstSaid?: string
  ) =>
    Effect.gen(function*() {
      const hand = new Hand()
      const { running } = yield* provide(on(hand, grow))
      hand.deliver(first)
      yield* turns
      hand.deliver(delivery(2))
      yield* turns
      assert.deepStrictEqual(
        [running.limit.inUse, (yield* running.owned).running, hand.said.some((said) => said.startsWith("2 "))],
        [0, 0, true]
      )
      if (firstSaid !== undefined) assert.strictEqual(hand.said[0], firstSaid)
    })

  it.effect("an observer that throws does not harm the pipeline", () => {
    let first = true
    return survives(
      (from) => from,
      delivery(1),
      Effect.provideService(Telemetry.Observer, () => {
        if (first) {
          first = false
          throw new Error("observer")
        }
      })
    )
  })

  it.effect("an observer that throws on a retry leaks no permit", () =>
    survives(
      (from) => from.pipe(Pipeline.tap((n) => n === 1 ? Effect.fail("no") : Effect.void)),
      delivery(1),
      Effect.provideService(Telemetry.Observer, (outcome) => {
        if (outcome._tag === "Retried") throw new Error("observer")
      })
    ))

  it.effect("an error whose message is no string is released uncounted for ever instead of dead-lettered", () => {
    class Http extends Data.TaggedError("Http")<{ readonly message: any }> {}
    return survives(
      (from) =>
        from.pipe(
          Pipeline.tap((n) => n === 1 ? Effect.fail(new Http({ message: { status: 500 } })) : Effect.void),
          Pipeline.retry({ times: 0 })
        ),
      delivery(1),
      undefined,
      "1 Terminate"
    )
  })

  it.effect("an error that cannot be shown (BigInt, no prototype) is released uncounted for ever", () =>
    survives(
      (from) =>
        from.pipe(
          Pipeline.tap((n) => n === 1 ? Effect.fail(Object.assign(Object.create(null), { n: 1n })) : Effect.void),
          Pipeline.retry({ times: 0 })
        ),
      delivery(1),
      undefined,
      "1 Terminate"
    ))

  it.effect("an error whose message throws is dead-lettered all the same", () => {
    class Spiteful extends Error {
      readonly _tag = "Spiteful"
      override get message(): string {
        throw new Error("no message for you")
      }
    }
    return survives(
      (from) =>
        from.pipe(
          Pipeline.tap((n) => n === 1 ? Effect.fail(new Spiteful()) : Effect.void),
          Pipeline.retry({ times: 0 })
        ),
      delivery(1),
      undefined,
      "1 Terminate"
    )
  })

  it.effect("the same with on-receive is an uncaught exception, which ends the process", () =>
    survives((from) =>
      from.pipe(
        Pipeline.map((n) => {
          if (n === 1) throw Object.assign(new Error(), { message: 500 })
        }),
        Pipeline.ackPolicy("on-receive")
      )
    ))

  it.effect("a thenable whose then throws kills the pipeline", () =>
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

  it.effect("a thenable that answers twice ends its message twice", () =>
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

  it.effect("extend of a transport's own source that throws does not harm the pipeline", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const scope = yield* Scope.make()
      const running = yield* Scope.provide(
        Pipeline.start(Pipeline.fromTransport(Numbers, { group: "test" }, {
          transport: Effect.succeed(hand.transport),
          extend(message) {
            if (message.value === 1) throw new Error("extend")
            return message
          }
        })),
        scope
      )
      yield* turns
      hand.deliver(delivery(1))
      yield* turns
      hand.deliver(delivery(2))
      yield* turns
      assert.deepStrictEqual([running.limit.inUse, (yield* running.counts).handled], [0, 1])
    }))

  it.effect("mapEffect given a function that returns no Effect is a defect of its message", () =>
    survives((from) =>
      from.pipe(Pipeline.mapEffect((n) => n === 1 ? undefined as unknown as Effect.Effect<void> : Effect.void))
    ))

  it.effect("batchEach answering with something that is no Result leaks the permit", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const { running } = yield* on(hand, (from) =>
        from.pipe(
          Pipeline.batchEach(
            { size: 2, within: "1 second" },
            () => Effect.succeed([undefined, undefined] as unknown as ReadonlyArray<Result.Result<number, string>>)
          )
        ))
      hand.deliver(delivery(1), delivery(2))
      yield* turns
      assert.strictEqual(running.limit.inUse, 0)
    }))

  it.effect("an adaptive limit's algorithm that throws leaks the permit", () => {
    let n = 0
    return Effect.gen(function*() {
      const hand = new Hand()
      const limit = Concurrency.makeAdaptive({
        min: 1,
        max: 4,
        window: 0,
        algorithm: {
          next(limit) {
            if (n++ === 0) throw new Error("algorithm")
            return limit
          }
        }
      })
      const { running } = yield* on(
        hand,
        (from) => from.pipe(Pipeline.tap(() => Effect.yieldNow), Pipeline.concurrency(limit))
      )
      hand.deliver(...Array.from({ length: 30 }, (_, i) => delivery(i)))
      yield* turns
      assert.strictEqual((yield* running.counts).handled, 30)
    })
  })

  it.effect("a key that reads the typed headers sees none: every message fails", () =>
    Effect.gen(function*() {
      const Tenants = Topic.make("numbers", {
        schema: Schema.Number,
        headers: Schema.Struct({ tenant: Schema.String })
      } as any) as unknown as Topic.TopicWithHeaders<number, { readonly tenant: string }>
      const hand = new Hand()
      const scope = yield* Scope.make()
      const running = yield* Scope.provide(
        Pipeline.start(
          Pipeline.from(Tenants, { group: "test" }).pipe(
            Pipeline.concurrency({ max: 2, key: (message) => message.typedHeaders.tenant.toLowerCase() })
          )
        ),
        scope
      ).pipe(Effect.provideService(Transport.Transport, hand.transport))
      yield* turns
      hand.deliver(delivery(1, { headers: { tenant: "A" } }))
      yield* turns
      assert.deepStrictEqual((yield* running.counts).handled, 1, JSON.stringify(hand.said))
    }))
})

// --- 4 suspects

describe("suspects", () => {
  it.effect("a suspect that finds no permit when it may run alone stalls the pipeline for ever", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const limit = Concurrency.make(1)
      assert.isTrue(limit.tryTakeUnsafe()) // another pipeline's handler
      const { running } = yield* on(hand, (from) => from.pipe(Pipeline.concurrency(limit)))
      hand.deliver(delivery(1, { suspect: true, attempt: 2 }))
      yield* turns
      limit.releaseUnsafe()
      yield* adjust("1 minute")
      assert.strictEqual((yield* running.counts).handled, 1)
    }))

  it.effect("with manual, a suspect waits for ever behind a message that nobody settles", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const { running } = yield* on(hand, (from) =>
        from.pipe(Pipeline.ackPolicy("manual", { settleWithin: "5 seconds" })))
      hand.deliver(delivery(1))
      yield* turns
      hand.deliver(delivery(2, { suspect: true, attempt: 2 }))
      yield* adjust("1 minute")
      assert.strictEqual((yield* running.counts).handled, 2)
    }))

  it.effect("a suspect behind a retrying head of its key stops all keys until patience ends", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const done: Array<number> = []
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.tap((n, { attempt }) =>
            n === 1 && attempt === 1 ? Effect.fail("no") : Effect.sync(() => done.push(n))
          ),
          Pipeline.retry({ times: 3, schedule: Schedule.spaced("1 minute") }),
          Pipeline.concurrency({ max: 4, key: ({ value }) => String(value % 2) })
        ))
      hand.deliver(delivery(1))
      yield* turns
      hand.deliver(delivery(3, { suspect: true, attempt: 2 }))
      yield* turns
      hand.deliver(delivery(2)) // another key
      yield* adjust("30 seconds")
      assert.deepStrictEqual(done, [2])
      yield* adjust("30 seconds")
      hand.deliver(delivery(1, { attempt: 2 })) // the retry is due
      yield* adjust("1 second")
      assert.deepStrictEqual(done, [2, 1, 3])
    }))

  it.effect("a suspect makes the pipeline forget which keys wait for a retry: their order breaks", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const done: Array<number> = []
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.tap((n, { attempt }) =>
            n === 1 && attempt === 1 ? Effect.fail("no") : Effect.sync(() => done.push(n))
          ),
          Pipeline.retry({ times: 3, schedule: Schedule.spaced("1 minute") }),
          Pipeline.concurrency({ max: 4, key: ({ value }) => String(value % 2) })
        ))
      hand.deliver(delivery(1))
      yield* turns
      hand.deliver(delivery(2, { suspect: true, attempt: 2 }), delivery(4))
      yield* adjust("1 second")
      hand.deliver(delivery(3))
      yield* adjust("1 second")
      assert.notInclude(done, 3)
    }))
})

// --- 5 time

describe("time", () => {
  it.effect("a clock that is set back stalls the pipeline for ever", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      let offset = 10_000_000
      const clock = yield* Clock.clockWith(Effect.succeed)
      const setBack: Clock.Clock = Object.assign(Object.create(clock) as Clock.Clock, {
        currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + offset
      })
      const { running } = yield* Effect.provideService(
        on(hand, (from) => from.pipe(Pipeline.tap(() => Effect.sync(() => offset === 0 || (offset = 0)))), {
          prefetch: undefined
        }),
        Clock.Clock,
        setBack
      )
      hand.deliver(delivery(1))
      yield* adjust("1 second")
      hand.deliver(delivery(2))
      yield* adjust("1 minute")
      assert.strictEqual((yield* running.counts).handled, 2)
    }))

  it.effect("each round of timeouts leaks a timer", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      let sleeping = 0
      const clock = yield* Clock.clockWith(Effect.succeed)
      const watched: Clock.Clock = Object.assign(Object.create(clock) as Clock.Clock, {
        sleep: (duration: Duration.Duration) =>
          Effect.suspend(() => {
            sleeping++
            return Effect.ensuring(clock.sleep(duration), Effect.sync(() => sleeping--))
          })
      })
      yield* Effect.provideService(
        on(hand, (from) => from.pipe(Pipeline.mapPromise(() => never()), Pipeline.timeout("1 second")), {
          prefetch: 100
        }),
        Clock.Clock,
        watched
      )
      hand.deliver(...Array.from({ length: 100 }, (_, i) => delivery(i)))
      yield* turns
      const before = sleeping
      for (let second = 0; second < 20; second++) yield* adjust("1 second")
      assert.isAtMost(sleeping, before)
    }))

  it.effect("an undecodable message whose dead letter takes longer than the timeout is released, uncounted, for ever", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      hand.publish = (messages) =>
        Effect.delay(
          Effect.sync(() => {
            hand.published.push(...messages)
            return [Result.succeed({ id: "1", duplicate: false })]
          }),
          "5 seconds"
        )
      const { running } = yield* on(hand, (from) => from.pipe(Pipeline.timeout("1 second")))
      hand.deliver(delivery(1, { body: new TextEncoder().encode("nonsense") }))
      yield* adjust("1 second")
      yield* adjust("10 seconds")
      assert.deepStrictEqual([hand.said, running.limit.inUse], [["1 Terminate"], 0])
    }))

  it.effect("a signal first read after the timeout is not aborted", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const seen: Array<boolean> = []
      let go = () => {}
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.mapPromise(async (_, message) => {
            await new Promise<void>((resolve) => go = resolve)
            seen.push(message.signal.aborted)
          }),
          Pipeline.timeout("1 second")
        ))
      hand.deliver(delivery(1))
      yield* adjust("2 seconds")
      go()
      yield* turns
      assert.deepStrictEqual(seen, [true])
    }))

  it.effect("what recovers from a timeout is given a signal that is aborted already", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const seen: Array<boolean> = []
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.mapPromise((_, { signal }) => signal.aborted ? Promise.resolve() : never()),
          Pipeline.timeout("1 second"),
          Pipeline.catchTag("TimeoutError", (_, { signal }) => Effect.sync(() => void seen.push(signal.aborted)))
        ))
      hand.deliver(delivery(1))
      yield* adjust("2 seconds")
      assert.deepStrictEqual(seen, [false])
    }))

  it.effect("a retry schedule by the calendar counts from 1970", () =>
    Effect.gen(function*() {
      yield* TestClock.setTime(Date.UTC(2026, 0, 1, 10, 45))
      const hand = new Hand()
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.tap(() => Effect.fail("no")),
          Pipeline.retry({ times: 2, schedule: Schedule.cron("0 * * * *") as any })
        ))
      hand.deliver(delivery(1))
      yield* turns
      const [retry] = hand.settled.map(({ settlement }) => settlement)
      assert.strictEqual(retry?._tag === "Retry" && Duration.toMinutes(retry.after!), 15)
    }))
})

// --- 6 demand

describe("demand", () => {
  it.effect("a limit that is resized upwards owns more than the subscription was told", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const { running } = yield* on(hand, (from) => from.pipe(Pipeline.mapPromise(() => never())), { prefetch: 0 })
      running.limit.resizeUnsafe(100)
      hand.deliver(...Array.from({ length: 200 }, (_, i) => delivery(i)))
      yield* turns
      const { running: begun, waiting } = yield* running.owned
      assert.isAtMost(begun + waiting, hand.maxOwned)
    }))

  it.effect("a limit resized to Infinity asks the broker for Infinity", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const { running } = yield* on(hand, (from) => from)
      running.limit.resizeUnsafe(Infinity)
      hand.deliver(delivery(1))
      yield* turns
      assert.isTrue(hand.asked.every(Number.isSafeInteger), hand.asked.join())
    }))

  it.effect("a pipeline takes what the layer's shared limit gives it no permit for", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      hand.limit.resizeUnsafe(1)
      const { running } = yield* on(
        hand,
        (from) => from.pipe(Pipeline.mapPromise(() => never()), Pipeline.concurrency(64)),
        { prefetch: 0 }
      )
      hand.deliver(...Array.from({ length: 64 }, (_, i) => delivery(i)))
      yield* turns
      assert.isAtMost((yield* running.owned).waiting, 1)
    }))
})

// --- 7 settling

describe("settling", () => {
  it.effect("a retry asked for by hand lets the next message of the key overtake", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const done: Array<number> = []
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.tap((n, message) =>
            n === 1 && message.attempt === 1
              ? Message.settle(message, Settlement.retry("1 minute"))
              : Effect.sync(() => done.push(n) > 0)
          ),
          Pipeline.concurrency({ max: 4, key: () => "k" })
        ))
      hand.deliver(delivery(1), delivery(2))
      yield* adjust("1 second")
      assert.deepStrictEqual(done, [])
    }))

  it.effect("settlements are dropped without a word when a transport's settle dies", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const settle = hand.settle
      let died = false
      hand.settle = (batch) => {
        if (died) return settle(batch)
        died = true
        return Effect.die(new Error("transport"))
      }
      const { running } = yield* on(hand, (from) => from.pipe(Pipeline.ackPolicy("on-receive")))
      hand.deliver(delivery(1))
      yield* adjust("10 seconds")
      assert.strictEqual(running.limit.inUse, 0)
    }))

  it.effect("a redriven message of another group that this one cannot decode is dead-lettered", () =>
    Effect.gen(function*() {
      const harness = yield* TestHarness.make(
        Numbers,
        Pipeline.from(Numbers, { group: "test", startFrom: "beginning" })
      )
      yield* harness.publishRaw("nonsense", { "millrace-group": "other" })
      const report = yield* harness.runUntilIdle()
      assert.deepStrictEqual([report.counts.filtered, report.counts.deadLettered], [1, 0])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("a message close to the largest size can never be dead-lettered: it comes back for ever", () =>
    Effect.gen(function*() {
      const Text = Topic.make("text", { schema: Schema.String })
      const memory = yield* MemoryTransport.MemoryTransport
      const running = yield* Pipeline.start(
        Pipeline.from(Text, { group: "test", startFrom: "beginning" }).pipe(
          Pipeline.tap(() => Effect.fail("no")),
          Pipeline.retry({ times: 0 })
        )
      )
      const text = "x".repeat(900)
      yield* Publisher.publish(Text, text)
      yield* adjust("1 minute")
      assert.strictEqual((yield* running.counts).deadLettered, 1)
      const [letter] = yield* Stream.runCollect(DeadLetter.list("text.dead"))
      assert.strictEqual(yield* DeadLetter.decode(letter!, Text), text)
      assert.strictEqual(yield* DeadLetter.discard("text.dead"), 1)
      assert.strictEqual((yield* memory.sizes).get("text.dead"), 0)
      assert.strictEqual((yield* memory.groups)[0]!.pending.length, 0)
    }).pipe(Effect.provide(MemoryTransport.layer({ maxBody: 1000, minIdle: Duration.infinity }))))

  it.effect("resume during a pause starts a second reader: two pulls at once", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      let pulling = 0
      let most = 0
      const pull = hand.pull
      hand.pull = (max) =>
        Effect.acquireUseRelease(
          Effect.sync(() => most = Math.max(most, ++pulling)),
          () => pull(max),
          // It takes the asking back, which takes a moment.
          () => Effect.andThen(Effect.sleep("1 second"), Effect.sync(() => pulling--))
        )
      const { running } = yield* on(hand, (from) => from)
      const runFork = Effect.runForkWith(yield* Effect.context<never>())
      runFork(running.pause)
      runFork(running.resume)
      yield* adjust("2 seconds")
      assert.strictEqual(most, 1)
    }))

  it.effect("a pipeline whose reader has ended says that it consumes", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      hand.pull = () => Effect.die(new Error("pull"))
      const { running } = yield* on(hand, (from) => from)
      assert.notStrictEqual((yield* running.health).state, "consuming")
    }))

  it.effect("an acknowledgement by a former owner does not stand once the message waits for a retry (memory)", () =>
    Effect.gen(function*() {
      const memory = yield* MemoryTransport.MemoryTransport
      const subscribe = {
        topic: "numbers",
        group: "g",
        startFrom: "beginning",
        maxOwned: 1,
        isolateFrom: Infinity,
        timeout: undefined,
        settings: Context.empty()
      } as const
      const one: Transport.Demand = { total: 1, fresh: 1, suspects: 1, bytes: Infinity }
      const a = yield* (yield* memory.connect).subscribe(subscribe)
      const b = yield* (yield* memory.connect).subscribe(subscribe)
      yield* Publisher.publish(Numbers, 1)
      const [first] = yield* a.pull(one)
      yield* TestClock.adjust("31 seconds")
      const [second] = yield* b.pull(one)
      yield* b.settle([{ delivery: second, settlement: Settlement.retry("1 second").settlement }])
      assert.deepStrictEqual(yield* a.settle([{ delivery: first, settlement: Settlement.ack }]), [])
      assert.strictEqual((yield* memory.groups)[0]!.delayed.length, 0)
    }).pipe(Effect.provide(MemoryTransport.layer())))

  it.effect("drainTimeout that is no duration is found only while draining: nothing is handed back", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const exit = yield* Effect.exit(on(hand, (from) => from, { drainTimeout: "soon" as any }))
      assert.isTrue(Exit.isFailure(exit))
    }))
})

describe("second round", () => {
  it.effect("a defect whose dead letter takes longer than what is left of the timeout is released, uncounted", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      hand.publish = () => Effect.delay(Effect.succeed([Result.succeed({ id: "1", duplicate: false })]), "5 seconds")
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.map((): number => {
            throw new Error("defect")
          }),
          Pipeline.timeout("1 second"),
          Pipeline.retry({ times: 0 })
        ))
      hand.deliver(delivery(1))
      yield* adjust("2 seconds")
      yield* adjust("10 seconds")
      assert.deepStrictEqual(hand.said, ["1 Terminate"])
    }))

  it.effect("settlements are sent again for ever after drain has given up and closed the subscription", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      let sent = 0
      hand.settle = () => Effect.suspend(() => (sent++, Effect.fail(new Error("gone") as any)))
      const { drained } = yield* on(hand, (from) => from)
      hand.deliver(delivery(1))
      yield* turns
      assert.isTrue(yield* drained("10 seconds"))
      yield* adjust("10 seconds")
      const before = sent
      yield* adjust("1 minute")
      assert.strictEqual(sent, before)
    }))

  it.effect("on-receive: a failure whose dead letter is interrupted by drain is gone without a word", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const outcomes: Array<string> = []
      hand.publish = () => Effect.delay(Effect.succeed([Result.succeed({ id: "1", duplicate: false })]), "1500 millis")
      const { drained } = yield* Effect.provideService(
        on(hand, (from) => from.pipe(Pipeline.tap(() => Effect.fail("no")), Pipeline.ackPolicy("on-receive"))),
        Telemetry.Observer,
        ({ _tag }) => outcomes.push(_tag)
      )
      hand.deliver(delivery(1))
      yield* turns
      yield* drained("10 seconds")
      assert.isAbove(outcomes.length, 0)
    }))

  it.effect("a key's order breaks when no slot comes free between a retry's due time and 30 s after it", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const begun: Array<string> = []
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.tap((n, { attempt }) => {
            begun.push(`${n}#${attempt}`)
            return n === 1 && attempt === 1 ? Effect.fail("no") : Effect.sleep("1 minute")
          }),
          Pipeline.retry({ times: 3, schedule: Schedule.spaced("1 second") }),
          Pipeline.concurrency({ max: 1, key: ({ value }) => String(value % 2) })
        ), { prefetch: 0 })
      hand.deliver(delivery(1))
      yield* turns
      hand.deliver(delivery(3), delivery(2))
      yield* adjust("2 seconds")
      hand.deliver(delivery(1, { attempt: 2 })) // due, and nobody asks
      for (let n = 0; n < 30; n++) yield* adjust("10 seconds")
      assert.deepStrictEqual(begun, ["1#1", "2#1", "1#2", "3#1"])
    }))

  it.effect("while draining, one lost message interrupts its whole batch and burns the others' attempts", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const { drained, running } = yield* on(
        hand,
        (from) => from.pipe(Pipeline.batch({ size: 3, within: "1 hour" }, () => Effect.sleep("15 seconds"))),
        { drainTimeout: "1 minute" }
      )
      const second = delivery(2)
      hand.deliver(delivery(1), second, delivery(3))
      yield* turns
      hand.lost.add(second)
      yield* drained("10 seconds")
      yield* adjust("10 seconds")
      assert.strictEqual((yield* running.counts).retried, 0)
      assert.deepStrictEqual(hand.said, ["1 Ack", "3 Ack"])
    }))

  it.effect("a promise that takes 50 ms of real time makes the harness say that it is not idle", () =>
    Effect.gen(function*() {
      const report = yield* TestHarness.run(
        Numbers,
        Pipeline.from(Numbers, { group: "test", startFrom: "beginning" }).pipe(
          Pipeline.mapPromise((n) => new Promise<number>((resolve) => setTimeout(() => resolve(n), 50)))
        ),
        [1]
      )
      assert.strictEqual(report.handled.length, 1)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("one defect of a transport's extend ends all heartbeats, without a word", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      yield* on(hand, (from) => from.pipe(Pipeline.mapPromise(() => never())))
      hand.deliver(delivery(1))
      yield* turns
      hand.lost.has = () => {
        throw new Error("extend")
      }
      yield* adjust("10 seconds")
      const before = hand.extended.length
      yield* adjust("30 seconds")
      assert.isAbove(hand.extended.length, before)
    }))

  it.effect("settled by hand as no longer ours, the handler that goes on is not told by its signal", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      let signal: AbortSignal | undefined
      yield* on(hand, (from) =>
        from.pipe(
          Pipeline.tap((_, message) => {
            signal = message.signal
            return Message.settle(message, Settlement.release)
          }),
          Pipeline.mapPromise(() => never())
        ))
      const first = delivery(1)
      hand.lost.add(first)
      hand.deliver(first)
      yield* turns
      assert.isTrue(signal?.aborted)
    }))

  it.effect("a message lost from an open batch, and one from a running batch, harm nobody", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const { drained, running } = yield* on(
        hand,
        (from) =>
          from.pipe(
            Pipeline.batch({ size: 3, within: "15 seconds" }, () => Effect.sleep("15 seconds")),
            Pipeline.concurrency(2)
          )
      )
      const second = delivery(2)
      const fifth = delivery(5)
      hand.deliver(delivery(1), second)
      yield* turns
      hand.lost.add(second)
      yield* adjust("10 seconds")
      hand.deliver(delivery(3), delivery(4), fifth, delivery(6))
      yield* turns
      hand.lost.add(fifth)
      for (let n = 0; n < 10; n++) yield* adjust("10 seconds")
      assert.deepStrictEqual([...hand.said].sort(), ["1 Ack", "3 Ack", "4 Ack", "6 Ack"])
      assert.deepStrictEqual([running.limit.inUse, (yield* running.owned).running, (yield* running.counts).lost], [
        0,
        0,
        2
      ])
      assert.isTrue(yield* drained("1 second"))
    }))

  it.effect("two pipelines on one limit, one drained while it waits for a permit: the other goes on", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const other = new Hand()
      const limit = Concurrency.make(1)
      const a = yield* on(
        hand,
        (from) => from.pipe(Pipeline.tap(() => Effect.sleep("1 second")), Pipeline.concurrency(limit))
      )
      const b = yield* on(
        other,
        (from) => from.pipe(Pipeline.tap(() => Effect.sleep("1 second")), Pipeline.concurrency(limit))
      )
      hand.deliver(...[1, 2, 3].map((n) => delivery(n)))
      other.deliver(...[1, 2, 3].map((n) => delivery(n)))
      yield* adjust("500 millis")
      assert.isTrue(yield* b.drained("1 second"))
      for (let n = 0; n < 5; n++) yield* adjust("1 second")
      assert.deepStrictEqual([(yield* a.running.counts).handled, limit.inUse], [3, 0])
    }))
})

describe("settlements under way", () => {
  it.effect("each waited for the confirmation of the one before; a few do not, and a drain waits for them all", () =>
    Effect.gen(function*() {
      const hand = new Hand()
      const confirmations: Array<() => void> = []
      hand.settle = (batch) =>
        Effect.callback((resume) => {
          hand.settled.push(...batch)
          confirmations.push(() => resume(Effect.succeed([])))
        })
      const { drained } = yield* on(hand, (from) => from)
      for (const n of [1, 2, 3, 4, 5, 6]) {
        hand.deliver(delivery(n))
        yield* turns
      }
      assert.deepStrictEqual(hand.said, ["1 Ack", "2 Ack", "3 Ack", "4 Ack"])
      confirmations[2]!()
      yield* turns
      assert.deepStrictEqual(hand.said.slice(4), ["5 Ack", "6 Ack"])
      for (const n of [1, 3, 4]) confirmations[n]!()
      assert.isFalse(yield* drained("100 millis"), "the first is not confirmed")
      confirmations[0]!()
      yield* turns
    }))
})
