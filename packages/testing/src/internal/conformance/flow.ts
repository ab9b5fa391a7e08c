import * as Pipeline from "@millrace/core/Pipeline"
import * as Topic from "@millrace/core/Topic"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import * as assert from "node:assert/strict"
import * as rig from "./rig.ts"

const { test } = rig

/** Handlers wait here until the test lets them go. */
const makeGate = () => {
  let open = false
  return {
    open: () => void (open = true),
    close: () => void (open = false),
    pass: Effect.whileLoop({ while: () => !open, body: () => Effect.sleep(5), step: () => {} })
  }
}

/** Counts what a subscription of this transport has handed over and was not told the end of. */
const counting = (transport: rig.Process["transport"]) => {
  const owned = { now: 0, most: 0, overdelivered: 0 }
  const counted: rig.Process["transport"] = {
    ...transport,
    subscribe: (options) =>
      Effect.map(transport.subscribe(options), (subscription) => ({
        ...subscription,
        pull: (demand) =>
          Effect.tap(subscription.pull(demand), ({ length }) =>
            Effect.sync(() => {
              owned.overdelivered = Math.max(owned.overdelivered, length - demand.total)
              owned.most = Math.max(owned.most, owned.now += length)
            })),
        settle: (batch) =>
          Effect.suspend(() => {
            owned.now -= batch.length
            return subscription.settle(batch)
          })
      }))
  }
  return { transport: counted, owned }
}

const keyed = (name: string) =>
  Topic.make(rig.fresh(name), {
    schema: Schema.Struct({ key: Schema.String, n: Schema.Number }),
    key: (value: { readonly key: string }) => value.key
  })

export const flow: ReadonlyArray<rig.Test> = [
  test(
    "F1",
    "contract",
    "handlers never exceed the limit, what is owned never exceeds limit and prefetch, a pull never its max",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = rig.numbers("f1")
      yield* rig.publish(transport, topic, rig.range(200))
      const watched = counting(transport)
      let running = 0
      let most = 0
      let handled = 0
      const { stop } = yield* rig.start(
        rig.from(watched.transport, topic, { prefetch: 5 }).pipe(
          Pipeline.tap(() =>
            Effect.gen(function*() {
              most = Math.max(most, ++running)
              yield* Effect.sleep(2)
              running--
              handled++
            })
          ),
          Pipeline.concurrency(3)
        )
      )
      yield* rig.until("all 200 are handled", () => handled === 200)
      yield* stop
      assert.equal(most, 3)
      assert.ok(watched.owned.most <= 8, `it owned ${watched.owned.most}`)
      assert.ok(watched.owned.overdelivered <= 0, `a pull gave ${watched.owned.overdelivered} more than its max`)
    }
  ),

  test(
    "F2",
    "law 8",
    "a consumer whose slots are all taken for twice the claim time keeps its messages, and goes on",
    function*() {
      const { claimAfter, transport } = yield* rig.Rig
      const topic = rig.numbers("f2")
      const gate = makeGate()
      const begun: Array<number> = []
      const { running, stop } = yield* rig.start(
        rig.from(transport, topic, { prefetch: 4 }).pipe(
          Pipeline.tap((n) => Effect.andThen(Effect.sync(() => begun.push(n)), gate.pass)),
          Pipeline.concurrency(4)
        )
      )
      yield* rig.publish(transport, topic, rig.range(50))
      yield* rig.until("all slots are taken", () => begun.length === 4)
      yield* rig.pass(2 * claimAfter)
      assert.equal(begun.length, 4)
      gate.open()
      yield* rig.eventually("all are handled", running.counts, ({ handled }) => handled === 50)
      const { lost } = yield* running.counts
      yield* stop
      assert.deepEqual({ begun: begun.toSorted((a, b) => a - b), lost }, { begun: rig.range(50), lost: 0 })
    }
  ),

  test(
    "F3",
    "contract",
    "a slow consumer holds a handful of a backlog of a thousand; the rest stays at the broker",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = rig.numbers("f3")
      const peer = yield* rig.connect
      yield* rig.publish(transport, topic, rig.range(1000))
      const gate = makeGate()
      const watched = counting(transport)
      const slow: Array<number> = []
      const { stop } = yield* rig.start(
        rig.from(watched.transport, topic, { prefetch: 3 }).pipe(
          Pipeline.tap((n) => Effect.andThen(Effect.sync(() => slow.push(n)), gate.pass)),
          Pipeline.concurrency(2)
        )
      )
      yield* rig.until("its slots are taken", () => slow.length === 2)
      const other = yield* rig.subscribe(peer.transport, topic.name)
      const rest = yield* rig.gather(other, 60_000, 995)
      assert.ok(rest.length >= 995, `a peer gets all that the slow consumer has not asked for, but got ${rest.length}`)
      assert.ok(watched.owned.most <= 5, `it owned ${watched.owned.most}`)
      gate.open()
      yield* rig.until("it handles what it holds", () => slow.length + rest.length === 1000)
      yield* stop
    },
    { needs: ["connect"] }
  ),

  test(
    "F4",
    "contract",
    "a batch is handed over when it is full, or when its time is up; drain hands over the remainder",
    function*() {
      const { claimAfter, transport } = yield* rig.Rig
      const topic = rig.numbers("f4")
      const sizes: Array<number> = []
      const { running, stop } = yield* rig.start(
        rig.from(transport, topic).pipe(
          Pipeline.batch({ size: 10, within: "1 second" }, (values) => Effect.sync(() => sizes.push(values.length)))
        )
      )
      yield* rig.publish(transport, topic, rig.range(20))
      yield* rig.eventually("two full batches", running.counts, ({ handled }) => handled === 20)
      assert.deepEqual(sizes, [10, 10])
      yield* rig.publish(transport, topic, rig.range(5))
      yield* rig.eventually("the remainder, when its time is up", running.counts, ({ handled }) => handled === 25)
      assert.deepEqual(sizes, [10, 10, 5])
      yield* rig.publish(transport, topic, rig.range(3))
      yield* rig.eventually("three wait for a batch", running.owned, ({ running, waiting }) => running + waiting === 3)
      yield* stop
      assert.deepEqual(sizes, [10, 10, 5, 3])
      const again = yield* rig.subscribe(transport, topic.name)
      assert.deepEqual(rig.texts(yield* rig.gather(again, 2 * claimAfter)), [])
    }
  ),

  test(
    "F6",
    "contract",
    "a paused pipeline takes nothing, its peers do; resumed, it takes again and loses nothing",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = rig.numbers("f6")
      const peer = yield* rig.connect
      const mine: Array<number> = []
      const theirs: Array<number> = []
      const first = yield* rig.start(rig.from(transport, topic).pipe(Pipeline.map((n) => mine.push(n))))
      yield* rig.publish(transport, topic, [0])
      yield* rig.until("it works", () => mine.length === 1)
      yield* rig.bounded("it pauses", first.running.pause)
      assert.equal((yield* first.running.health).state, "paused")
      const second = yield* rig.start(rig.from(peer.transport, topic).pipe(Pipeline.map((n) => theirs.push(n))))
      yield* rig.publish(transport, topic, rig.range(20).map((n) => n + 1))
      yield* rig.until("a peer takes all", () => theirs.length === 20)
      assert.deepEqual(mine, [0])
      yield* second.stop
      yield* rig.publish(transport, topic, rig.range(20).map((n) => n + 21))
      yield* rig.bounded("it resumes", first.running.resume)
      yield* rig.until("it takes all", () => mine.length === 21)
      yield* first.stop
      assert.deepEqual([...mine, ...theirs].sort((a, b) => a - b), rig.range(41))
    },
    { needs: ["connect"] }
  ),

  test(
    "F7",
    "law 7",
    "a stuck key holds one slot; what waits behind it keeps no other key from being handled",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = keyed("f7")
      const gate = makeGate()
      const handled: Array<string> = []
      const { stop } = yield* rig.start(
        rig.from(transport, topic).pipe(
          Pipeline.tap(({ key, n }) =>
            Effect.andThen(key === "stuck" ? gate.pass : Effect.void, Effect.sync(() => handled.push(`${key} ${n}`)))
          ),
          Pipeline.concurrency({ max: 3, key: (message) => message.key })
        )
      )
      yield* rig.publish(transport, topic, rig.range(30).map((n) => ({ key: "stuck", n })))
      yield* rig.publish(transport, topic, rig.range(60).map((n) => ({ key: `k${n % 6}`, n })))
      yield* rig.until("all other keys are handled", () => handled.length === 60)
      assert.ok(handled.every((text) => !text.startsWith("stuck")))
      gate.open()
      yield* rig.until("the stuck key is handled", () => handled.length === 90)
      yield* stop
      assert.deepEqual(handled.slice(60), rig.range(30).map((n) => `stuck ${n}`))
    }
  ),

  test("F8", "law 7", "each key keeps its order through retries, and never has two messages in flight", function*() {
    const { transport } = yield* rig.Rig
    const topic = keyed("f8")
    const done = new Map<string, Array<number>>()
    const inFlight = new Set<string>()
    let overlaps = 0
    let failures = 0
    const { running, stop } = yield* rig.start(
      rig.from(transport, topic).pipe(
        Pipeline.mapEffect(({ key, n }, { attempt }) =>
          Effect.gen(function*() {
            if (inFlight.has(key)) overlaps++
            inFlight.add(key)
            yield* Effect.sleep(n % 3)
            inFlight.delete(key)
            if (n % 5 === 2 && attempt <= 2) {
              failures++
              return yield* Effect.fail("again")
            }
            done.set(key, [...done.get(key) ?? [], n])
          })
        ),
        Pipeline.retry({ times: 3, schedule: rig.after(30) }),
        Pipeline.concurrency({ max: 8, key: (message) => message.key })
      )
    )
    yield* rig.publish(transport, topic, rig.range(100).map((n) => ({ key: `k${n % 5}`, n: Math.floor(n / 5) })))
    yield* rig.eventually("all are handled", running.counts, ({ handled }) => handled === 100)
    yield* stop
    assert.deepEqual({ overlaps, failures }, { overlaps: 0, failures: 40 })
    assert.deepEqual([...done.values()], rig.range(5).map(() => rig.range(20)))
  }),

  test(
    "F9",
    "contract",
    "a withdrawn pull takes nothing away: later messages go to a peer, or to the next pull",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = rig.numbers("f9")
      const peer = yield* rig.connect
      const subscription = yield* rig.subscribe(transport, topic.name)
      const seen: Array<number> = []
      for (const n of rig.range(20)) {
        const pulling = yield* Effect.forkChild(subscription.pull(rig.demand(10)), { startImmediately: true })
        if (n % 2 === 0) yield* rig.publish(transport, topic, [n])
        yield* Effect.yieldNow
        pulling.interruptUnsafe()
        yield* rig.until("the pull is interrupted", () => pulling.pollUnsafe() !== undefined)
        yield* rig.bounded("the request is cancelled", subscription.withdraw)
        const exit = pulling.pollUnsafe()!
        if (exit._tag === "Success") {
          seen.push(...exit.value.map((delivery) => Number(rig.textOf(delivery))))
          yield* rig.settle(subscription, exit.value, { _tag: "Ack" })
        }
        if (n % 2 === 1) yield* rig.publish(transport, topic, [n])
      }
      const other = yield* rig.subscribe(peer.transport, topic.name)
      const since = yield* Clock.currentTimeMillis
      while (seen.length < 20 && (yield* Clock.currentTimeMillis) - since < 20_000) {
        for (const each of [other, subscription]) {
          seen.push(...(yield* rig.gather(each, 100)).map((delivery) => Number(rig.textOf(delivery))))
        }
      }
      assert.deepEqual(seen.sort((a, b) => a - b), rig.range(20))
    },
    { needs: ["connect"] }
  ),

  test("F10", "contract", "no more retries wait than the bound allows, and due ones still come", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("f10")
    const failedAt: Array<number> = []
    const { running, stop } = yield* rig.start(
      rig.from(transport, topic, { waiting: 5, prefetch: 0 }).pipe(
        Pipeline.mapEffect((_, { attempt }) =>
          Effect.gen(function*() {
            if (attempt > 1) return
            failedAt.push(yield* Clock.currentTimeMillis)
            return yield* Effect.fail("once")
          })
        ),
        Pipeline.retry({ times: 1, schedule: rig.after(400) })
      )
    )
    yield* rig.publish(transport, topic, rig.range(12))
    yield* rig.eventually("all are handled", running.counts, ({ handled }) => handled === 12)
    yield* stop
    assert.equal(failedAt.length, 12)
    // One more may fail while the fifth is being recorded.
    const waiting = failedAt.map((time) => failedAt.filter((other) => other <= time && other > time - 390).length)
    assert.ok(Math.max(...waiting) <= 6, `waiting at each failure: ${waiting.join(" ")}`)
  }),

  test("F11", "contract", "a pull without fresh demand returns due retries only", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("f11")
    yield* rig.publish(transport, topic, [1, 2])
    const subscription = yield* rig.subscribe(transport, topic.name)
    const first = yield* rig.one(subscription)
    const since = yield* Clock.currentTimeMillis
    yield* rig.settle(subscription, first, rig.retry(200))
    const given = yield* rig.bounded("a message comes", subscription.pull({ ...rig.demand(5), fresh: 0 }))
    assert.ok((yield* Clock.currentTimeMillis) >= since + 190, "a message came before the retry was due")
    // A broker that chooses by itself may send another message for the retry.
    assert.equal(given.length, 1)
    yield* rig.settle(subscription, given, { _tag: "Ack" })
    const [other] = yield* rig.gather(subscription, 60_000, 1)
    const seen = [...given, other!].map((delivery) => `${rig.textOf(delivery)} at ${delivery.attempt}`)
    assert.deepEqual(seen.toSorted(), ["1 at 2", "2 at 1"])
  }),

  test("F5", "contract", "a limit that is raised or lowered takes effect, and a drain under it ends", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("f5")
    const gate = makeGate()
    let inFlight = 0
    const { running, stop } = yield* rig.start(
      rig.from(transport, topic, { prefetch: 0, drainTimeout: 100 }).pipe(
        Pipeline.tap(() => Effect.andThen(Effect.sync(() => inFlight++), gate.pass)),
        Pipeline.tap(() => Effect.sync(() => inFlight--)),
        Pipeline.concurrency(2)
      )
    )
    yield* rig.publish(transport, topic, rig.range(40))
    yield* rig.until("two run", () => inFlight === 2)
    yield* rig.pass(300)
    assert.equal(inFlight, 2)
    yield* running.limit.resize(8)
    yield* rig.until("eight run", () => inFlight === 8)
    yield* rig.pass(300)
    assert.equal(inFlight, 8)
    gate.open()
    yield* rig.eventually("all are handled", running.counts, ({ handled }) => handled === 40)
    gate.close()
    yield* running.limit.resize(1)
    yield* rig.publish(transport, topic, rig.range(4))
    yield* rig.until("one runs", () => inFlight === 1)
    yield* rig.pass(300)
    assert.equal(inFlight, 1)
    yield* stop
  }),

  test("F12", "contract", "once withdrawn, a request takes nothing: the next message is a peer's at once", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("f12")
    const peer = yield* rig.connect
    const subscription = yield* rig.subscribe(transport, topic.name)
    const other = yield* rig.subscribe(peer.transport, topic.name)
    for (const n of rig.range(5)) {
      const pulling = yield* Effect.forkChild(subscription.pull(rig.demand(10)), { startImmediately: true })
      yield* rig.pass(20)
      yield* Fiber.interrupt(pulling)
      yield* rig.bounded("the request is cancelled", subscription.withdraw)
      yield* rig.publish(transport, topic, [n])
      const [delivery] = yield* rig.gather(other, 60_000, 1)
      assert.deepEqual([rig.textOf(delivery!), delivery!.attempt, delivery!.redelivered], [String(n), 1, false])
    }
  }, { needs: ["connect"] }),

  test("F13", "law 7", "released messages come before unread ones, in their order", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("f13")
    for (const n of [0, 4]) {
      yield* rig.publish(transport, topic, rig.range(4).map((i) => n + i))
      const subscription = yield* rig.subscribe(transport, topic.name)
      const taken = yield* rig.take(subscription, 4)
      assert.deepEqual(rig.texts(taken), rig.range(4).map(String))
      yield* rig.settle(subscription, taken, { _tag: "Release" })
      yield* subscription.close
    }
    const last = yield* rig.subscribe(transport, topic.name)
    assert.deepEqual(rig.texts(yield* rig.gather(last, 60_000, 8)), rig.range(8).map(String))
  }, { needs: ["uncountedRelease"] }),

  test("F14", "law 7", "a key keeps its order while the only process is restarted again and again", function*() {
    const { transport } = yield* rig.Rig
    const topic = keyed("f14")
    const done = new Map<string, Array<number>>()
    let handled = 0
    const pipeline = rig.from(transport, topic, { drainTimeout: 0 }).pipe(
      Pipeline.tap(({ key, n }) =>
        Effect.andThen(
          Effect.sleep(5),
          Effect.sync(() => {
            handled++
            done.set(key, [...done.get(key) ?? [], n])
          })
        )
      ),
      Pipeline.concurrency({ max: 4, key: (message) => message.key })
    )
    yield* rig.publish(transport, topic, rig.range(120).map((n) => ({ key: `k${n % 3}`, n })))
    for (let round = 0; handled < 120; round++) {
      const before = handled
      const { stop } = yield* rig.start(pipeline)
      yield* rig.until("it goes on", () => handled >= Math.min(120, before + 10))
      yield* stop
    }
    for (const ns of done.values()) assert.deepEqual(ns, ns.toSorted((a, b) => a - b))
  }, { needs: ["uncountedRelease", "orderedRelease"] }),

  test(
    "F15",
    "law 7",
    "a key keeps its order when the only process is restarted while the head of the key waits for its retry",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = rig.numbers("f15")
      const begun: Array<string> = []
      const pipeline = rig.from(transport, topic).pipe(
        Pipeline.tap((n, { attempt }) => {
          begun.push(`${n}#${attempt}`)
          return n === 1 && attempt === 1 ? Effect.fail("once") : Effect.void
        }),
        Pipeline.retry({ times: 3, schedule: rig.after(600) }),
        Pipeline.concurrency({ max: 4, key: () => "" })
      )
      const first = yield* rig.start(pipeline)
      yield* rig.publish(transport, topic, [1, 2, 3])
      yield* rig.eventually("the head waits", first.running.counts, ({ retried }) => retried === 1)
      yield* rig.pass(100)
      yield* first.stop
      const second = yield* rig.start(pipeline)
      yield* rig.until("all are handled", () => begun.length >= 4)
      yield* second.stop
      assert.deepEqual(begun, ["1#1", "1#2", "2#1", "3#1"])
    },
    { needs: ["uncountedRelease"] }
  )
]
