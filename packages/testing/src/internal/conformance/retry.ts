import * as DeadLetter from "@millrace/core/DeadLetter"
import * as Pipeline from "@millrace/core/Pipeline"
import { NotSent, PublishError, Refused } from "@millrace/core/Publisher"
import * as Settlement from "@millrace/core/Settlement"
import * as Topic from "@millrace/core/Topic"
import { type Delivery, type Outgoing, type Settling, Transport } from "@millrace/core/Transport"
import { OperationFailed, TransportError } from "@millrace/core/TransportError"
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as assert from "node:assert/strict"
import * as rig from "./rig.ts"

const { test } = rig

class Declined extends Data.TaggedError("Declined")<{ readonly why: string }> {
  override get message(): string {
    return `declined: ${this.why}`
  }
}

const recordOf = (letter: Delivery): DeadLetter.Record => {
  const record = DeadLetter.fromHeaders(letter.headers)
  if (Exit.isSuccess(record)) return record.value
  throw new Error(`no record of a dead letter: ${JSON.stringify(letter.headers)}`)
}

const deadLetters = (transport: rig.Process["transport"], topic: { readonly name: string }) =>
  rig.browse(transport, `${topic.name}.dead`)

/** A transport through which the test sees, and may change, what is published and settled. */
const through = (transport: rig.Process["transport"], options: {
  readonly publish?: (message: Outgoing) => PublishError["reason"] | undefined
  readonly published?: (message: Outgoing) => void
  readonly settling?: (settling: Settling) => Effect.Effect<void>
}): rig.Process["transport"] => ({
  ...transport,
  publish: (messages) =>
    Effect.suspend(() => {
      const [message] = messages
      const reason = options.publish?.(message)
      if (reason !== undefined) return Effect.succeed([Result.fail(new PublishError({ topic: message.topic, reason }))])
      return Effect.tap(transport.publish(messages), () =>
        Effect.sync(() => messages.forEach((m) => options.published?.(m))))
    }),
  subscribe: (wish) =>
    Effect.map(transport.subscribe(wish), (subscription) => ({
      ...subscription,
      settle: (batch) =>
        Effect.andThen(
          Effect.forEach(batch, (settling) => options.settling?.(settling) ?? Effect.void, { discard: true }),
          Effect.suspend(() => subscription.settle(batch))
        )
    }))
})

export const retry: ReadonlyArray<rig.Test> = [
  test("R1", "law 2", "attempts are numbered 1 to times + 1, and then it is dead-lettered once", function*() {
    const { claimAfter, transport } = yield* rig.Rig
    const topic = rig.numbers("r1")
    const attempts: Array<number> = []
    const { running, stop } = yield* rig.start(
      rig.from(transport, topic).pipe(
        Pipeline.mapEffect((n, { attempt }) => {
          if (n === 1) attempts.push(attempt)
          return n === 1 ? Effect.fail(new Declined({ why: `attempt ${attempt}` })) : Effect.succeed(n)
        }),
        Pipeline.retry({ times: 3, schedule: rig.after(20) })
      )
    )
    yield* rig.publish(transport, topic, [0, 1, 2])
    yield* rig.eventually("it is dead-lettered", running.counts, ({ deadLettered }) => deadLettered === 1)
    yield* rig.pass(2 * claimAfter)
    const { deadLettered, handled, retried } = yield* running.counts
    yield* stop
    assert.deepEqual(attempts, [1, 2, 3, 4])
    assert.deepEqual({ deadLettered, handled, retried }, { deadLettered: 1, handled: 2, retried: 3 })
    const letters = yield* deadLetters(transport, topic)
    assert.deepEqual(rig.texts(letters), ["1"])
    const record = recordOf(letters[0]!)
    assert.deepEqual({ attempts: record.attempts, reason: record.reason }, { attempts: 4, reason: "exhausted" })
  }),

  test("R2", "law 2", "attempts survive the process, those that it retried itself included", function*() {
    const topic = rig.numbers("r2")
    const attempts: Array<number> = []
    const process = (transport: rig.Process["transport"], handle: (attempt: number) => Effect.Effect<void, string>) =>
      rig.start(
        rig.from(transport, topic, { drainTimeout: 0 }).pipe(
          Pipeline.tap((_, { attempt }) => {
            attempts.push(attempt)
            return handle(attempt)
          }),
          Pipeline.retry({ times: 3, schedule: rig.after(20) })
        )
      )
    for (const begun of [2, 3]) {
      const mortal = yield* rig.connect
      yield* process(mortal.transport, (attempt) => attempt === 1 ? Effect.fail("once") : Effect.never)
      if (begun === 2) yield* rig.publish(mortal.transport, topic, [1])
      yield* rig.until(`attempt ${begun} begins`, () => attempts.length === begun)
      yield* mortal.crash
    }
    const last = yield* rig.connect
    const { running, stop } = yield* process(last.transport, () => Effect.fail("at last"))
    yield* rig.eventually("it is dead-lettered", running.counts, ({ deadLettered }) => deadLettered === 1)
    yield* stop
    assert.deepEqual(attempts, [1, 2, 3, 4])
    assert.equal(recordOf((yield* deadLetters(last.transport, topic))[0]!).attempts, 4)
  }, { needs: ["connect"] }),

  test(
    "R3",
    "law 2",
    "the delay before attempt n is the schedule's n-th, and no slot is held while it waits",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = rig.numbers("r3")
      const at: Array<number> = []
      const others: Array<number> = []
      const { stop } = yield* rig.start(
        rig.from(transport, topic).pipe(
          Pipeline.mapEffect((n) =>
            Effect.gen(function*() {
              if (n !== 1) return others.push(at.length)
              at.push(yield* Clock.currentTimeMillis)
              return at.length < 4 ? yield* Effect.fail("again") : 0
            })
          ),
          Pipeline.retry({ times: 3, schedule: Schedule.exponential(100, 2) })
        )
      )
      yield* rig.publish(transport, topic, [1, 2, 3])
      yield* rig.until("four attempts", () => at.length === 4)
      yield* stop
      assert.deepEqual(others, [1, 1], "the others are handled while it waits for its second attempt")
      const delays = at.slice(1).map((time, i) => time - at[i]!)
      for (const [i, least] of [100, 200, 400].entries()) {
        assert.ok(delays[i]! >= least - 10, `delays ${delays.join(", ")}`)
      }
    }
  ),

  test("R4", "law 2", "what while rejects, and what asks for it, is dead-lettered at attempt 1", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("r4")
    const asked: Array<string> = []
    const { running, stop } = yield* rig.start(
      rig.from(transport, topic).pipe(
        Pipeline.mapEffect((n, { attempt }): Effect.Effect<void, Declined | Settlement.SettlementRequested> =>
          n === 0
            ? Effect.fail(new Declined({ why: "never" }))
            : n === 1
            ? Effect.fail(Settlement.terminate("no use"))
            : attempt === 1
            ? Effect.fail(new Declined({ why: "again" }))
            : Effect.void
        ),
        Pipeline.retry({
          times: 3,
          schedule: rig.after(20),
          while: ({ why }) => {
            asked.push(why)
            return why !== "never"
          }
        })
      )
    )
    yield* rig.publish(transport, topic, [0, 1, 2])
    yield* rig.eventually(
      "all are settled",
      running.counts,
      ({ deadLettered, handled }) => deadLettered === 2 && handled === 1
    )
    yield* stop
    const records = (yield* deadLetters(transport, topic)).map(recordOf)
    assert.deepEqual(records.map(({ attempts, reason }) => `${reason} at ${attempts}`).toSorted(), [
      "rejected at 1",
      "terminated at 1"
    ])
    assert.deepEqual(asked, ["never", "again"], "a settlement that a handler asks for is not a failure to judge")
  }),

  test("R5", "law 4", "a dead letter is the message untouched, and everything needed to understand it", function*() {
    const { transport } = yield* rig.Rig
    const Order = Schema.Struct({ id: Schema.String, total: Schema.Number })
    const topic = Topic.make(rig.fresh("r5"), { schema: Order, key: (order) => order.id })
    const dead = `${topic.name}.buried`
    const { running, stop } = yield* rig.start(
      rig.from(transport, topic, { group: "billing", name: "charge orders" }).pipe(
        Pipeline.mapEffect(() =>
          Effect.fail(Object.assign(new Declined({ why: "no funds" }), { cause: new TypeError("deep down") }))
        ),
        Pipeline.retry({ times: 1, schedule: rig.after(20) }),
        Pipeline.deadLetter(dead)
      )
    )
    const before = yield* Clock.currentTimeMillis
    const [published] = yield* rig.publish(
      transport,
      topic,
      [{ id: "ö 1", total: 5 }],
      () => ({ headers: { tenant: "t-1" } })
    )
    yield* rig.eventually("it is dead-lettered", running.counts, ({ deadLettered }) => deadLettered === 1)
    const after = yield* Clock.currentTimeMillis
    yield* stop
    const [letter] = yield* rig.browse(transport, dead)
    assert.equal(rig.textOf(letter!), "{\"id\":\"ö 1\",\"total\":5}")
    assert.equal(letter!.key, "ö 1")
    assert.equal(letter!.headers["tenant"], "t-1")
    assert.equal(letter!.headers["content-type"], "application/json")
    const record = recordOf(letter!)
    assert.deepEqual(
      {
        topic: record.topic,
        id: record.id,
        group: record.group,
        pipeline: record.pipeline,
        reason: record.reason,
        attempts: record.attempts,
        tag: record.error.tag,
        message: record.error.message,
        causes: record.error.causes
      },
      {
        topic: topic.name,
        id: published!.id,
        group: "billing",
        pipeline: "charge orders",
        reason: "exhausted",
        attempts: 2,
        tag: "Declined",
        message: "declined: no funds",
        causes: ["TypeError: deep down"]
      }
    )
    assert.match(record.error.stack ?? "", /Declined/)
    assert.ok(Math.abs(record.publishedAt - before) < 60_000)
    assert.ok(record.failedAt >= before && record.failedAt <= after, `failed at ${record.failedAt}`)
  }),

  test(
    "R6",
    "law 4",
    "the dead letter is stored before the source is settled; while it cannot be, the source stays",
    function*() {
      const { claimAfter, transport } = yield* rig.Rig
      const topic = rig.numbers("r6")
      const peer = yield* rig.connect
      let refusing = true
      let refused = 0
      const storedBefore: Array<boolean> = []
      const settled: Array<string> = []
      const watched = (transport: rig.Process["transport"]) =>
        through(transport, {
          publish: () => {
            if (!refusing) return undefined
            refused++
            return new Refused({ detail: "full" })
          },
          settling: ({ settlement }) =>
            Effect.gen(function*() {
              settled.push(settlement._tag)
              if (settlement._tag !== "Terminate") return
              const letters = yield* Effect.orDie(deadLetters(transport, topic))
              storedBefore.push(letters.length === 1)
            }).pipe(Effect.provide(context))
        })
      const context = yield* Effect.context<rig.Rig>()
      const failing = (transport: rig.Process["transport"]) =>
        rig.start(
          rig.from(watched(transport), topic).pipe(
            Pipeline.mapEffect(() => Effect.fail("never good")),
            Pipeline.retry({ times: 0 })
          )
        )
      const first = yield* failing(transport)
      yield* rig.publish(transport, topic, [1])
      yield* rig.until("the dead letter is refused", () => refused > 0)
      yield* rig.pass(100)
      assert.deepEqual(
        settled.filter((tag) => tag === "Ack" || tag === "Terminate"),
        [],
        "a source whose dead letter was refused is not settled for good"
      )
      refusing = false
      const second = yield* failing(peer.transport)
      yield* rig.until("the source is settled", () => storedBefore.length > 0)
      yield* rig.pass(2 * claimAfter)
      yield* first.stop
      yield* second.stop
      assert.deepEqual(storedBefore, [true])
      assert.deepEqual(rig.texts(yield* deadLetters(transport, topic)), ["1"])
    },
    { needs: ["connect"] }
  ),

  test(
    "R7",
    "law 4",
    "a crash between dead letter and settlement makes no second dead letter; another group does",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = rig.numbers("r7")
      const mortal = yield* rig.connect
      let written = 0
      const failing = (transport: rig.Process["transport"], group: string) =>
        rig.start(
          rig.from(transport, topic, { group, drainTimeout: 0 }).pipe(
            Pipeline.mapEffect(() => Effect.fail("never good")),
            Pipeline.retry({ times: 0 })
          )
        )
      yield* failing(
        through(mortal.transport, {
          published: () => written++,
          settling: () => Effect.andThen(mortal.crash, Effect.never)
        }),
        "g"
      )
      yield* rig.publish(transport, topic, [1])
      yield* rig.until("the dead letter is written", () => written === 1)
      const survivor = yield* failing(transport, "g")
      yield* rig.eventually(
        "it is dead-lettered again",
        survivor.running.counts,
        ({ deadLettered }) => deadLettered === 1
      )
      yield* survivor.stop
      assert.equal((yield* deadLetters(transport, topic)).length, 1)
      const other = yield* failing(transport, "h")
      yield* rig.eventually("the other group's", other.running.counts, ({ deadLettered }) => deadLettered === 1)
      yield* other.stop
      assert.deepEqual((yield* deadLetters(transport, topic)).map(recordOf).map(({ group }) => group), ["g", "h"])
    },
    { needs: ["connect", "deduplication"] }
  ),

  test("R8", "law 4", "redrive takes what its filter and limit say, at its rate; a dry run only says so", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("r8")
    const dead = `${topic.name}.dead`
    let fixed = false
    const handled: Array<number> = []
    const { running, stop } = yield* rig.start(
      rig.from(transport, topic).pipe(
        Pipeline.mapEffect((n) => fixed ? Effect.sync(() => handled.push(n)) : Effect.fail("not yet")),
        Pipeline.retry({ times: 0 })
      )
    )
    yield* rig.publish(transport, topic, rig.range(8))
    yield* rig.eventually("all are dead", running.counts, ({ deadLettered }) => deadLettered === 8)
    fixed = true
    const redrive = (options: DeadLetter.RedriveOptions) =>
      rig.bounded("a redrive", Effect.provideService(DeadLetter.redrive(dead, options), Transport, transport))
    const even = ({ message }: DeadLetter.DeadLetter) => Number(rig.textOf(message)) % 2 === 0
    assert.deepEqual(yield* redrive({ filter: even, dryRun: true }), { redriven: 4, capped: 0 })
    assert.equal((yield* rig.browse(transport, dead)).length, 8)
    assert.deepEqual(yield* redrive({ filter: even, limit: 1 }), { redriven: 1, capped: 0 })
    yield* rig.until("it is handled", () => handled.length === 1)
    assert.deepEqual({ handled, dead: rig.texts(yield* rig.browse(transport, dead)) }, {
      handled: [0],
      dead: ["1", "2", "3", "4", "5", "6", "7"]
    })
    const since = yield* Clock.currentTimeMillis
    assert.deepEqual(yield* redrive({ rate: 5 }), { redriven: 7, capped: 0 })
    const elapsed = (yield* Clock.currentTimeMillis) - since
    yield* rig.until("all are handled", () => handled.length === 8)
    yield* stop
    assert.ok(elapsed >= 390, `seven at five a second took ${elapsed} ms`)
    assert.deepEqual(handled, rig.range(8))
    assert.deepEqual(yield* rig.browse(transport, dead), [])
  }),

  test(
    "R9",
    "law 4",
    "a redrive that was cut short and is repeated delivers each message once, for its group only",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = rig.numbers("r9")
      const dead = `${topic.name}.dead`
      let fixed = false
      const handled: Array<number> = []
      const { running, stop } = yield* rig.start(
        rig.from(transport, topic).pipe(
          Pipeline.mapEffect((n) => fixed ? Effect.sync(() => handled.push(n)) : Effect.fail("not yet")),
          Pipeline.retry({ times: 0 })
        )
      )
      const others: Array<number> = []
      const other = yield* rig.start(
        rig.from(transport, topic, { group: "other" }).pipe(Pipeline.map((n) => others.push(n)))
      )
      yield* rig.publish(transport, topic, rig.range(4))
      yield* rig.eventually("all are dead", running.counts, ({ deadLettered }) => deadLettered === 4)
      fixed = true
      // The third is published again and its process dies before it is deleted.
      let removals = 0
      const lost = new TransportError({
        transport: transport.name,
        reason: new OperationFailed({ operation: "remove" })
      })
      const dying: typeof transport = {
        ...transport,
        remove: (...args) => removals++ === 2 ? Effect.fail(lost) : transport.remove(...args)
      }
      const redrive = (transport: rig.Process["transport"]) =>
        rig.bounded("a redrive", Effect.exit(Effect.provideService(DeadLetter.redrive(dead), Transport, transport)))
      assert.ok(Exit.isFailure(yield* redrive(dying)))
      assert.deepEqual(yield* redrive(transport), Exit.succeed({ redriven: 2, capped: 0 }))
      assert.deepEqual(yield* redrive(transport), Exit.succeed({ redriven: 0, capped: 0 }))
      yield* rig.eventually("all are handled", running.counts, ({ handled }) => handled === 4)
      yield* rig.eventually("the other group passes over them", other.running.counts, ({ filtered }) => filtered === 4)
      yield* stop
      yield* other.stop
      assert.deepEqual({ handled, others }, { handled: rig.range(4), others: rig.range(4) })
    },
    { needs: ["deduplication"] }
  ),

  test("R10", "law 4", "a message is redriven cap times and then stays, with the history of its failures", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("r10")
    const dead = `${topic.name}.dead`
    const attempts: Array<number> = []
    const { running, stop } = yield* rig.start(
      rig.from(transport, topic).pipe(
        Pipeline.mapEffect((_, { attempt }) => {
          attempts.push(attempt)
          return Effect.fail(new Declined({ why: `${attempts.length}` }))
        }),
        Pipeline.retry({ times: 1, schedule: rig.after(10) })
      )
    )
    yield* rig.publish(transport, topic, [1])
    for (const deaths of [1, 2, 3]) {
      yield* rig.eventually(`death ${deaths}`, running.counts, ({ deadLettered }) => deadLettered === deaths)
      const answer = yield* rig.bounded(
        "a redrive",
        Effect.provideService(DeadLetter.redrive(dead, { cap: 2 }), Transport, transport)
      )
      assert.deepEqual(answer, deaths <= 2 ? { redriven: 1, capped: 0 } : { redriven: 0, capped: 1 })
    }
    yield* stop
    assert.deepEqual(attempts, [1, 2, 1, 2, 1, 2])
    const letters = yield* rig.browse(transport, dead)
    assert.deepEqual(
      letters.map(recordOf).map(({ attempts, history }) => ({ attempts, history: history.map(({ error }) => error) })),
      [
        { attempts: 2, history: ["Declined: declined: 2", "Declined: declined: 4"] }
      ]
    )
  }),

  test("R11", "law 2", "a publish that cannot be sent is not an attempt: it waits for the connection", function*() {
    const { claimAfter, transport } = yield* rig.Rig
    const topic = rig.numbers("r11")
    const out = rig.rename(topic, `${topic.name}.out`)
    let down = true
    let tries = 0
    const attempts: Array<number> = []
    const { running, stop } = yield* rig.start(
      rig.from(
        through(transport, {
          publish: () => {
            tries++
            return down ? new NotSent({ detail: "no connection" }) : undefined
          }
        }),
        topic
      ).pipe(
        Pipeline.tap((_, { attempt }) => Effect.sync(() => attempts.push(attempt))),
        Pipeline.to(out),
        Pipeline.retry({ times: 0 })
      )
    )
    yield* rig.publish(transport, topic, [1])
    yield* rig.until("it is tried", () => tries > 1)
    yield* rig.pass(2 * claimAfter)
    down = false
    yield* rig.eventually("it is handled", running.counts, ({ handled }) => handled === 1)
    yield* stop
    assert.deepEqual(attempts, [1])
    assert.deepEqual(rig.texts(yield* rig.browse(transport, out.name)), ["1"])
    assert.deepEqual(yield* deadLetters(transport, topic), [])
  }),

  test("R12", "law 2", "a step that publishes stores its message once, also when a later step is retried", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("r12")
    const out = rig.rename(topic, `${topic.name}.out`)
    const { running, stop } = yield* rig.start(
      rig.from(transport, topic).pipe(
        Pipeline.to(out, (n) => [n, n + 100]),
        Pipeline.mapEffect((_, { attempt }) => attempt < 3 ? Effect.fail("again") : Effect.void),
        Pipeline.retry({ times: 3, schedule: rig.after(20) })
      )
    )
    yield* rig.publish(transport, topic, [1, 2])
    yield* rig.eventually("both are handled", running.counts, ({ handled }) => handled === 2)
    yield* stop
    assert.deepEqual(rig.texts(yield* rig.browse(transport, out.name)).toSorted(), ["1", "101", "102", "2"])
  }, { needs: ["deduplication"] }),

  test(
    "R13",
    "law 4",
    "a dead letter that is refused for a while is written later, and its handler does not run again",
    function*() {
      const { claimAfter, transport } = yield* rig.Rig
      const topic = rig.numbers("r13")
      let refusing = true
      let refused = 0
      const attempts: Array<number> = []
      const { running, stop } = yield* rig.start(
        rig.from(
          through(transport, {
            publish: () => {
              if (!refusing) return undefined
              refused++
              return new Refused({ detail: "full" })
            }
          }),
          topic
        ).pipe(
          Pipeline.tap((_, { attempt }) => {
            attempts.push(attempt)
            return Effect.fail("never good")
          }),
          Pipeline.retry({ times: 1, schedule: rig.after(20) })
        )
      )
      yield* rig.publish(transport, topic, [1])
      yield* rig.until("the dead letter is refused", () => refused > 0)
      yield* rig.pass(3 * claimAfter)
      refusing = false
      yield* rig.eventually("it is written", running.counts, ({ deadLettered }) => deadLettered === 1)
      yield* stop
      assert.deepEqual(attempts, [1, 2])
      assert.deepEqual(rig.texts(yield* deadLetters(transport, topic)), ["1"])
    }
  )
]
