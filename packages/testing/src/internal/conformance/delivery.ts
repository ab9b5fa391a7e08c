import * as Codec from "@millrace/core/Codec"
import * as Pipeline from "@millrace/core/Pipeline"
import * as Topic from "@millrace/core/Topic"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as assert from "node:assert/strict"
import * as rig from "./rig.ts"

const { test } = rig

const bytesEqual = (actual: Uint8Array, expected: Uint8Array) => Buffer.compare(actual, expected) === 0

export const delivery: ReadonlyArray<rig.Test> = [
  test(
    "D1",
    "contract",
    "body, headers, key and id arrive as they were published, binary, empty and a megabyte",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = Topic.make(rig.fresh("d1"), {
        codec: Codec.bytes,
        key: (body) => body.length === 256 ? "k 1/ä" : undefined
      })
      const bodies = [
        Uint8Array.from({ length: 256 }, (_, i) => i),
        new Uint8Array(0),
        new TextEncoder().encode("grün\r\n"),
        new Uint8Array(1_000_000).fill(255)
      ]
      const before = yield* Clock.currentTimeMillis
      const published = yield* rig.publish(
        transport,
        topic,
        bodies,
        (body) => body.length === 256 ? { headers: { "X-Note": "a: b, c=\"d\"", "x-empty": "" } } : {}
      )
      const subscription = yield* rig.subscribe(transport, topic.name)
      const taken = yield* rig.take(subscription, 4)
      bodies.forEach((body, i) =>
        assert.ok(bytesEqual(taken[i]!.body, body), `body ${i} of ${body.length} bytes is another`)
      )
      assert.deepEqual(
        taken.map(({ id }) => id),
        published.map(({ id }) => id)
      )
      assert.deepEqual(published.map(({ duplicate }) => duplicate), [false, false, false, false])
      const [first, second] = taken
      assert.equal(first!.key, "k 1/ä")
      assert.equal(second!.key, undefined)
      assert.equal(first!.headers["x-note"], "a: b, c=\"d\"")
      assert.equal(first!.headers["x-empty"], "")
      assert.equal(first!.headers["content-type"], "application/octet-stream")
      for (const { attempt, publishedAt, redelivered, suspect, topic: name } of taken) {
        assert.deepEqual({ attempt, redelivered, suspect, name }, {
          attempt: 1,
          redelivered: false,
          suspect: false,
          name: topic.name
        })
        assert.ok(Math.abs(publishedAt - before) < 60_000, `published at ${publishedAt}, and it is ${before}`)
      }
      yield* rig.settle(subscription, taken, { _tag: "Ack" })
    }
  ),

  test(
    "D2",
    "contract",
    "a message of one topic is never seen on another, whatever their names have in common",
    function*() {
      const { transport } = yield* rig.Rig
      const base = rig.numbers("d2")
      const topics = [base, rig.rename(base, `${base.name}.more`), rig.rename(base, `${base.name}-more`)]
      const seen: Array<ReadonlyArray<number>> = []
      for (const [i, topic] of topics.entries()) yield* rig.publish(transport, topic, [10 * i, 10 * i + 1])
      for (const topic of topics) {
        const subscription = yield* rig.subscribe(transport, topic.name)
        const taken = yield* rig.take(subscription, 2)
        assert.deepEqual(taken.map((delivery) => delivery.topic), [topic.name, topic.name])
        yield* rig.settle(subscription, taken, { _tag: "Ack" })
        const later = yield* rig.gather(subscription, 50)
        seen.push([...taken, ...later].map((delivery) => Number(rig.textOf(delivery))))
      }
      assert.deepEqual(seen, [[0, 1], [10, 11], [20, 21]])
    }
  ),

  test("D3", "contract", "two groups each get every message, whatever the other does with it", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("d3")
    yield* rig.publish(transport, topic, rig.range(20))
    const first = yield* rig.subscribe(transport, topic.name, { group: "first" })
    const second = yield* rig.subscribe(transport, topic.name, { group: "second" })
    const taken = yield* rig.take(first, 20)
    yield* rig.settle(first, taken.slice(0, 10), { _tag: "Ack" })
    yield* rig.settle(first, taken.slice(10), { _tag: "Release" })
    const others = yield* rig.take(second, 20)
    assert.deepEqual(others.map(({ attempt }) => attempt), rig.range(20).map(() => 1))
    assert.deepEqual(rig.texts(others), rig.texts(taken))
    yield* rig.settle(second, others, { _tag: "Ack" })
    assert.equal((yield* rig.gather(first, 60_000, 10)).length, 10)
  }),

  test("D4", "law 1", "competing consumers share the work and handle no message twice", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("d4")
    const handled: Array<{ readonly by: string; readonly n: number }> = []
    const workers = new Set<string>()
    let bothWork = false
    const worker = (name: string, transport: rig.Process["transport"]) =>
      rig.start(
        rig.from(transport, topic, { prefetch: 2 }).pipe(
          Pipeline.tap((n) =>
            Effect.gen(function*() {
              handled.push({ by: name, n })
              workers.add(name)
              // Until both have begun, each holds on to what it has.
              while (!bothWork) yield* Effect.sleep(5)
            })
          ),
          Pipeline.concurrency(4)
        )
      )
    const peer = yield* rig.connect
    const started = [yield* worker("a", transport), yield* worker("b", peer.transport)]
    yield* rig.publish(transport, topic, rig.range(200))
    yield* rig.until("both consumers are given work", () => workers.size === 2)
    bothWork = true
    yield* rig.until("all 200 are handled", () => handled.length >= 200)
    yield* Effect.forEach(started, ({ stop }) => stop, { concurrency: "unbounded" })
    assert.deepEqual(handled.map(({ n }) => n).sort((a, b) => a - b), rig.range(200))
  }, { needs: ["connect"] }),

  test(
    "D5",
    "contract",
    "a new group begins where startFrom says; one that exists goes on where it stands",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = rig.numbers("d5")
      yield* rig.publish(transport, topic, [1, 2])
      const fromNew = yield* rig.subscribe(transport, topic.name, { group: "new", startFrom: "new" })
      const fromBeginning = yield* rig.subscribe(transport, topic.name, { group: "old", startFrom: "beginning" })
      yield* rig.publish(transport, topic, [3])
      assert.deepEqual(rig.texts(yield* rig.gather(fromNew, 60_000, 1)), ["3"])
      assert.deepEqual(rig.texts(yield* rig.gather(fromBeginning, 60_000, 3)), ["1", "2", "3"])
      yield* fromNew.close
      yield* fromBeginning.close
      yield* rig.publish(transport, topic, [4])
      const again = yield* rig.subscribe(transport, topic.name, { group: "new", startFrom: "beginning" })
      const anew = yield* rig.subscribe(transport, topic.name, { group: "old", startFrom: "new" })
      assert.deepEqual(rig.texts(yield* rig.gather(again, 60_000, 1)), ["4"])
      assert.deepEqual(rig.texts(yield* rig.gather(anew, 60_000, 1)), ["4"])
    }
  ),

  test(
    "D6",
    "contract",
    "a late group reads what others have long acknowledged, in the order of publishing",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = rig.numbers("d6")
      const early = yield* rig.subscribe(transport, topic.name, { group: "early" })
      yield* rig.publish(transport, topic, rig.range(50))
      assert.equal((yield* rig.gather(early, 60_000, 50)).length, 50)
      yield* early.close
      const late = yield* rig.subscribe(transport, topic.name, { group: "late" })
      assert.deepEqual(rig.texts(yield* rig.gather(late, 60_000, 50)), rig.range(50).map(String))
    }
  ),

  test("D7", "law 3", "five pipelines one after the other handle every message once, at attempt 1", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("d7")
    const handled: Array<{ readonly n: number; readonly attempt: number }> = []
    const pipeline = rig.from(transport, topic, { prefetch: 10 }).pipe(
      Pipeline.tap((n, { attempt }) =>
        Effect.andThen(Effect.sleep(10), Effect.sync(() => handled.push({ n, attempt })))
      ),
      Pipeline.concurrency(4)
    )
    for (const round of rig.range(5)) {
      yield* rig.publish(transport, topic, rig.range(20).map((n) => 20 * round + n))
      const { stop } = yield* rig.start(pipeline)
      yield* rig.until(`round ${round}`, () => handled.length >= 20 * round + 10)
      yield* stop
    }
    const { stop } = yield* rig.start(pipeline)
    yield* rig.until("the rest", () => new Set(handled.map(({ n }) => n)).size === 100)
    yield* stop
    assert.equal(handled.length, 100)
    assert.deepEqual([...new Set(handled.map(({ attempt }) => attempt))], [1])
  }),

  test("D8", "law 1", "without a fault no message is handled twice, also when retries and keys are about", function*() {
    const { claimAfter, transport } = yield* rig.Rig
    const topic = rig.numbers("d8")
    const successes = new Map<number, number>()
    const attempts: Array<number> = []
    const { running, stop } = yield* rig.start(
      rig.from(transport, topic).pipe(
        Pipeline.mapEffect((n, { attempt }) =>
          Effect.gen(function*() {
            attempts.push(attempt)
            yield* Effect.sleep(n % 4)
            if (n % 10 === 0 && attempt === 1) return yield* Effect.fail("once")
            successes.set(n, (successes.get(n) ?? 0) + 1)
          })
        ),
        Pipeline.retry({ times: 1, schedule: rig.after(20) }),
        Pipeline.concurrency({ max: 16, key: (message) => message.id.at(-1) })
      )
    )
    yield* rig.publish(transport, topic, rig.range(300))
    yield* rig.until("all 300 are handled", () => successes.size === 300)
    yield* rig.pass(2 * claimAfter)
    const counts = yield* running.counts
    yield* stop
    assert.deepEqual([...successes].filter(([, times]) => times > 1), [])
    assert.equal(attempts.length, 330)
    assert.deepEqual({ handled: counts.handled, retried: counts.retried, lost: counts.lost }, {
      handled: 300,
      retried: 30,
      lost: 0
    })
  }),

  test(
    "D9",
    "contract",
    "with concurrency 1, the default, messages are handled in the order of publishing",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = rig.numbers("d9")
      yield* rig.publish(transport, topic, rig.range(100))
      const handled: Array<number> = []
      const { stop } = yield* rig.start(rig.from(transport, topic).pipe(Pipeline.map((n) => handled.push(n))))
      yield* rig.publish(transport, topic, rig.range(100).map((n) => n + 100))
      yield* rig.until("all 200 are handled", () => handled.length >= 200)
      yield* stop
      assert.deepEqual(handled, rig.range(200))
    }
  ),

  test("D10", "contract", "an id is taken once, and the second publisher is told so", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("d10")
    const [first] = yield* rig.publish(transport, topic, [1], () => ({ id: "same" }))
    const [second] = yield* rig.publish(transport, topic, [2], () => ({ id: "same" }))
    const [other] = yield* rig.publish(transport, topic, [3], () => ({ id: "other" }))
    assert.deepEqual([first, second, other].map((published) => published!.duplicate), [false, true, false])
    assert.equal(second!.id, first!.id)
    const subscription = yield* rig.subscribe(transport, topic.name)
    assert.deepEqual(rig.texts(yield* rig.gather(subscription, 60_000, 2)), ["1", "3"])
  }, { needs: ["deduplication"] }),

  test("D11", "contract", "a message published with a delay is not delivered before it", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("d11")
    const subscription = yield* rig.subscribe(transport, topic.name)
    const since = yield* Clock.currentTimeMillis
    yield* rig.publish(transport, topic, [1], () => ({ delay: "700 millis" }))
    yield* rig.publish(transport, topic, [2])
    const taken: Array<string> = []
    let elapsed = 0
    for (let i = 0; i < 2; i++) {
      taken.push(rig.textOf(yield* rig.one(subscription)))
      if (taken[i] === "1") elapsed = (yield* Clock.currentTimeMillis) - since
    }
    assert.deepEqual(taken.toSorted(), ["1", "2"])
    assert.ok(elapsed >= 650, `it came after ${elapsed} ms`)
  }, { needs: ["delayedPublish"] }),

  test("D12", "contract", "a body over the limit is TooLarge, by name, and does not hurt its neighbours", function*() {
    const { capabilities: { maxBody }, transport } = yield* rig.Rig
    const topic = rig.fresh("d12")
    yield* rig.bounded("the topic is declared", transport.declare(topic, "output"))
    const results = yield* rig.bounded(
      "publishing",
      transport.publish([
        rig.outgoing(topic, "small"),
        rig.outgoing(topic, new Uint8Array(maxBody! + 1)),
        rig.outgoing(topic, "small too")
      ])
    )
    assert.deepEqual(
      results.map((result) => Result.isSuccess(result) ? "stored" : result.failure.reason._tag),
      ["stored", "TooLarge", "stored"]
    )
    const subscription = yield* rig.subscribe(transport, topic)
    assert.deepEqual(rig.texts(yield* rig.gather(subscription, 60_000, 2)), ["small", "small too"])
  }, { needs: ["maxBody"] }),

  test(
    "D13",
    "contract",
    "publishing many gives one answer each, in order; browsing shows them oldest first and ends",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = rig.numbers("d13")
      assert.deepEqual(yield* rig.browse(transport, topic.name), [])
      const published = yield* rig.publish(transport, topic, rig.range(1500))
      assert.equal(published.length, 1500)
      const subscription = yield* rig.subscribe(transport, topic.name)
      yield* rig.settle(subscription, yield* rig.take(subscription, 10), { _tag: "Ack" })
      const all = yield* rig.browse(transport, topic.name)
      assert.deepEqual(rig.texts(all), rig.range(1500).map(String))
      assert.deepEqual(all.map(({ id }) => id), published.map(({ id }) => id))
    }
  ),

  test(
    "D14",
    "contract",
    "a subscription to an empty topic is ready at once, and what is published later arrives",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = rig.numbers("d14")
      const subscription = yield* rig.subscribe(transport, topic.name, { startFrom: "new" })
      assert.equal(
        (yield* rig.eventually("messages can be consumed", subscription.health, ({ state }) => state === "consuming"))
          .state,
        "consuming"
      )
      const pulling = yield* Effect.forkChild(rig.one(subscription), { startImmediately: true })
      yield* rig.pass(100)
      yield* rig.publish(transport, topic, [1])
      yield* rig.until("it arrives while a pull waits", () => pulling.pollUnsafe() !== undefined)
      assert.equal(rig.textOf(yield* pulling.pollUnsafe()!), "1")
      assert.ok(subscription.lease === undefined || Duration.toMillis(subscription.lease) > 0)
    }
  ),

  test("D15", "contract", "publishedAt is when the message was published, also on redelivery", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("d15")
    yield* rig.publish(transport, topic, [1])
    const published = yield* Clock.currentTimeMillis
    yield* rig.pass(500)
    const subscription = yield* rig.subscribe(transport, topic.name)
    const first = yield* rig.one(subscription)
    // The clock of a server may not be exactly ours.
    assert.ok(first.publishedAt <= published + 100, `${first.publishedAt - published} ms after it was published`)
    yield* rig.settle(subscription, first, rig.retry(20))
    const second = yield* rig.one(subscription)
    assert.equal(second.publishedAt, first.publishedAt)
    yield* rig.settle(subscription, second, { _tag: "Ack" })
  }),

  test("D16", "contract", "an id belongs to its topic: the same id in two topics is two messages", function*() {
    const { transport } = yield* rig.Rig
    const topics = [rig.numbers("d16"), rig.numbers("d16")]
    for (const [n, topic] of topics.entries()) {
      const [published] = yield* rig.publish(transport, topic, [n], () => ({ id: "same" }))
      assert.equal(published!.duplicate, false)
      const subscription = yield* rig.subscribe(transport, topic.name)
      assert.deepEqual(rig.texts(yield* rig.gather(subscription, 60_000, 1)), [String(n)])
    }
  }, { needs: ["deduplication"] }),

  test("D17", "contract", "origin and id name one message, in every delivery of it and in no other", function*() {
    const { transport } = yield* rig.Rig
    const topics = [rig.numbers("d17"), rig.numbers("d17")]
    const names = new Set<string>()
    for (const topic of topics) {
      yield* rig.publish(transport, topic, [1, 2])
      const subscription = yield* rig.subscribe(transport, topic.name)
      const other = yield* rig.subscribe(transport, topic.name, { group: "other" })
      const taken = yield* rig.take(subscription, 2)
      const name = ({ id, origin }: typeof taken[number]) => `${origin} ${id}`
      assert.deepEqual((yield* rig.take(other, 2)).map(name), taken.map(name))
      assert.deepEqual((yield* rig.browse(transport, topic.name)).map(name), taken.map(name))
      yield* rig.settle(subscription, taken, rig.retry(20))
      assert.deepEqual((yield* rig.take(subscription, 2)).map(name).toSorted(), taken.map(name).toSorted())
      assert.equal(new Set(taken.map(({ origin }) => origin)).size, 1)
      for (const delivery of taken) names.add(name(delivery))
    }
    assert.equal(names.size, 4)
  }),

  test(
    "D18",
    "contract",
    "browsing goes from and to an id, forwards and back, and no further than its limit",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = rig.numbers("d18")
      const ids = (yield* rig.publish(transport, topic, rig.range(8))).map(({ id }) => id)
      const shown = (options: Parameters<typeof transport.browse>[1]) =>
        Effect.map(rig.browse(transport, topic.name, options), (all) => rig.texts(all).join(" "))
      assert.deepEqual(
        {
          after: yield* shown({ after: ids[5] }),
          before: yield* shown({ before: ids[2] }),
          between: yield* shown({ after: ids[1], before: ids[4] }),
          limit: yield* shown({ limit: 3 }),
          page: yield* shown({ after: ids[2], limit: 2 }),
          last: yield* shown({ reverse: true, limit: 2 }),
          back: yield* shown({ reverse: true, before: ids[4], limit: 2 }),
          backTo: yield* shown({ reverse: true, after: ids[5] })
        },
        {
          after: "6 7",
          before: "0 1",
          between: "2 3",
          limit: "0 1 2",
          page: "3 4",
          last: "7 6",
          back: "3 2",
          backTo: "7 6"
        }
      )
      yield* rig.bounded("removing", transport.remove(topic.name, [ids[3]!]))
      assert.equal(yield* shown({ after: ids[3] }), "4 5 6 7", "a bound need not exist any more")
    }
  ),

  test(
    "D19",
    "contract",
    "one stored message is read by its id; none is there under an id that was removed",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = rig.numbers("d19")
      const [, second] = yield* rig.publish(transport, topic, [1, 2, 3], () => ({ headers: { note: "kept" } }))
      const get = (name: string, id: string) => rig.bounded("reading a message", transport.get(name, id))
      const found = yield* get(topic.name, second!.id)
      assert.ok(Option.isSome(found))
      assert.deepEqual(
        { id: found.value.id, value: rig.textOf(found.value), note: found.value.headers["note"] },
        { id: second!.id, value: "2", note: "kept" }
      )
      yield* rig.bounded("removing", transport.remove(topic.name, [second!.id]))
      assert.ok(Option.isNone(yield* get(topic.name, second!.id)))
      assert.ok(Option.isNone(yield* get(rig.fresh("d19-none"), second!.id)))
    }
  ),

  test("D20", "contract", "the groups of a topic say what is left to do, and nothing that is not known", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("d20")
    assert.deepEqual(yield* rig.bounded("asking for groups", transport.groups(topic.name)), [])
    const before = yield* Clock.currentTimeMillis
    yield* rig.publish(transport, topic, rig.range(6))
    const first = yield* rig.subscribe(transport, topic.name, { group: "first" })
    yield* rig.subscribe(transport, topic.name, { group: "second" })
    const [acked, retried] = yield* rig.take(first, 3)
    yield* rig.settle(first, acked!, { _tag: "Ack" })
    yield* rig.settle(first, retried!, rig.retry("1 minute"))
    const expected = [{ group: "first", lag: 3, pending: 2 }, { group: "second", lag: 6, pending: 0 }]
    const groups = yield* rig.eventually(
      "both groups say what is left",
      Effect.map(transport.groups(topic.name), (groups) => groups.toSorted((a, b) => a.group.localeCompare(b.group))),
      (groups) =>
        groups.length === 2 &&
        groups.every(({ group, lag, pending }, i) => {
          const right = expected[i]!
          return group === right.group && (lag ?? right.lag) === right.lag &&
            (pending ?? right.pending) === right.pending
        })
    )
    for (const { consumers, lag, oldest, pending } of groups) {
      assert.ok(lag !== undefined || pending !== undefined, "neither lag nor pending is known")
      if (oldest !== undefined) assert.ok(Math.abs(oldest - before) < 60_000, `the oldest is of ${oldest}`)
      for (const { idle } of consumers ?? []) assert.ok(idle >= 0)
    }
  })
]
