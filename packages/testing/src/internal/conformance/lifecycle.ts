import * as DeadLetter from "@millrace/core/DeadLetter"
import * as Pipeline from "@millrace/core/Pipeline"
import * as Settlement from "@millrace/core/Settlement"
import * as Topic from "@millrace/core/Topic"
import { TransportError } from "@millrace/core/TransportError"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as assert from "node:assert/strict"
import * as process from "node:process"
import * as rig from "./rig.ts"

const { test } = rig

interface Seen {
  readonly n: number
  readonly attempt: number
  readonly redelivered: boolean
}

/** What the event loop holds on to. */
const resources = () => {
  const counts: Record<string, number> = {}
  for (const name of process.getActiveResourcesInfo()) counts[name] = (counts[name] ?? 0) + 1
  return { sockets: counts["TCPSocketWrap"] ?? 0, timers: counts["Timeout"] ?? 0 }
}

export const lifecycle: ReadonlyArray<rig.Test> = [
  test("L1", "law 3", "drain lets running handlers finish, and what they finish is settled", function*() {
    const { claimAfter, transport } = yield* rig.Rig
    const topic = rig.numbers("l1")
    const handled: Array<number> = []
    let begun = 0
    const { running, stop } = yield* rig.start(
      rig.from(transport, topic, { prefetch: 0 }).pipe(
        Pipeline.tap((n) =>
          Effect.suspend(() => {
            begun++
            return Effect.andThen(Effect.sleep(300), Effect.sync(() => handled.push(n)))
          })
        ),
        Pipeline.concurrency(4)
      )
    )
    yield* rig.publish(transport, topic, rig.range(4))
    yield* rig.until("four handlers run", () => begun === 4)
    yield* stop
    const counts = yield* running.counts
    assert.deepEqual({ begun, handled: counts.handled, released: counts.released }, {
      begun: 4,
      handled: 4,
      released: 0
    })
    const other = yield* rig.subscribe(transport, topic.name)
    assert.deepEqual(rig.texts(yield* rig.gather(other, 2 * claimAfter)), [])
  }),

  test(
    "L2",
    "law 3",
    "at the deadline the unfinished and the unstarted go to a peer, as the same attempt, and nothing is lost",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = rig.numbers("l2")
      const peer = yield* rig.connect
      let begun = 0
      let interrupted = 0
      let aborted = 0
      const { running, stop } = yield* rig.start(
        rig.from(transport, topic, { prefetch: 6, drainTimeout: 100 }).pipe(
          Pipeline.tap((_, { signal }) =>
            Effect.suspend(() => {
              begun++
              signal.addEventListener("abort", () => aborted++)
              return Effect.onInterrupt(Effect.never, () => Effect.sync(() => interrupted++))
            })
          ),
          Pipeline.concurrency(4)
        )
      )
      yield* rig.publish(transport, topic, rig.range(10))
      yield* rig.until("four handlers run", () => begun === 4)
      const seen: Array<Seen> = []
      const other = yield* rig.start(
        rig.from(peer.transport, topic).pipe(
          Pipeline.map((n, { attempt, redelivered }) => seen.push({ n, attempt, redelivered })),
          Pipeline.concurrency(10)
        )
      )
      yield* stop
      const { deadLettered, released } = yield* running.counts
      yield* rig.until("the peer has all", () => seen.length >= 10)
      yield* other.stop
      assert.deepEqual({ interrupted, aborted, deadLettered }, { interrupted: 4, aborted: 4, deadLettered: 0 })
      assert.deepEqual(
        seen.toSorted((a, b) => a.n - b.n).map(({ attempt, n }) => ({ n, attempt })),
        rig.range(10).map((n) => ({ n, attempt: 1 }))
      )
      const redelivered = seen.filter((one) => one.redelivered).length
      assert.ok(redelivered >= released, `${released} released, ${redelivered} delivered again and said so`)
      assert.ok(released >= 4)
    },
    { needs: ["connect", "uncountedRelease"] }
  ),

  test(
    "L3",
    "law 3",
    "shutdowns never burn an attempt nor dead-letter, however often one message meets them",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = rig.numbers("l3")
      const attempts: Array<number> = []
      let deaths = 0
      yield* rig.publish(transport, topic, [1])
      for (const round of rig.range(6)) {
        const before = attempts.length
        const { running, stop } = yield* rig.start(
          rig.from(transport, topic, { drainTimeout: 0 }).pipe(
            Pipeline.tap((_, { attempt }) => {
              attempts.push(attempt)
              return round === 5 ? Effect.void : Effect.never
            }),
            Pipeline.retry({ times: 0 })
          )
        )
        yield* rig.until(`round ${round}`, () => attempts.length > before)
        yield* stop
        deaths += (yield* running.counts).deadLettered
      }
      assert.deepEqual({ attempts, deaths }, { attempts: [1, 1, 1, 1, 1, 1], deaths: 0 })
    },
    { needs: ["uncountedRelease"] }
  ),

  test(
    "L4",
    "contract",
    "connecting where no broker answers fails soon, with a typed error that shows no password",
    function*() {
      const { unreachable } = yield* rig.Rig
      const exit = yield* rig.bounded("connecting fails", Effect.exit(unreachable))
      assert.ok(Exit.isFailure(exit), "it did not fail")
      const [reason] = exit.cause.reasons
      assert.ok(reason?._tag === "Fail" && reason.error instanceof TransportError, String(exit.cause))
      assert.equal(reason.error.reason._tag, "Unreachable")
      assert.doesNotMatch(JSON.stringify(reason.error) + String(reason.error), /secret/)
    },
    { needs: ["unreachable"] }
  ),

  test(
    "L5",
    "contract",
    "pipelines of one connection close together, and twice; the connection still publishes",
    function*() {
      const { transport } = yield* rig.Rig
      const topics = rig.range(3).map(() => rig.numbers("l5"))
      const scopes: Array<Scope.Closeable> = []
      let handled = 0
      for (const topic of topics) {
        const scope = yield* Scope.fork(yield* Effect.scope)
        scopes.push(scope)
        const pipeline = rig.from(transport, topic).pipe(Pipeline.map(() => handled++))
        yield* rig.bounded("it starts", Effect.provideService(Pipeline.start(pipeline), Scope.Scope, scope))
        yield* rig.publish(transport, topic, [1, 2])
      }
      yield* rig.until("all are handled", () => handled === 6)
      yield* rig.bounded(
        "all close, each twice",
        Effect.forEach([...scopes, ...scopes], (scope) => Scope.close(scope, Exit.void), {
          concurrency: "unbounded",
          discard: true
        })
      )
      const [published] = yield* rig.publish(transport, topics[0]!, [3])
      assert.equal(published!.duplicate, false)
      assert.equal(handled, 6)
    }
  ),

  test(
    "L6",
    "contract",
    "ten connections, each with a pipeline that retries, leave no socket and no timer behind",
    function*() {
      const { connect } = yield* rig.Rig
      const topic = rig.numbers("l6")
      const once = Effect.scoped(Effect.gen(function*() {
        const transport = yield* rig.bounded("it connects", connect)
        let handled = 0
        const { stop } = yield* rig.start(
          rig.from(transport, topic).pipe(
            Pipeline.mapEffect((_, { attempt }) => attempt === 1 ? Effect.fail("once") : Effect.sync(() => handled++)),
            Pipeline.retry({ times: 1, schedule: rig.after(10) })
          )
        )
        yield* rig.publish(transport, topic, [1])
        yield* rig.until("it is handled", () => handled === 1)
        yield* stop
      }))
      yield* once
      const before = resources()
      for (const _ of rig.range(10)) yield* once
      yield* rig.until(
        "what was opened is closed",
        () => {
          const { sockets, timers } = resources()
          return sockets <= before.sockets && timers <= before.timers + 1
        }
      ).pipe(
        Effect.catchDefect((defect) =>
          Effect.die(new Error(`${String(defect)}: ${JSON.stringify({ before, after: resources() })}`))
        )
      )
    },
    { needs: ["connect"], alone: true }
  ),

  test("L7", "law 1", "a handler that throws, dies or rejects concerns its own message only", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("l7")
    const handled: Array<number> = []
    const { running, stop } = yield* rig.start(
      rig.from(transport, topic).pipe(
        Pipeline.map((n) => {
          if (n === 3) throw new Error("thrown")
          return n
        }),
        Pipeline.mapEffect((n) => n === 5 ? Effect.die("died") : Effect.succeed(n)),
        Pipeline.mapPromise((n) => n === 7 ? Promise.reject(new Error("rejected")) : Promise.resolve(n)),
        Pipeline.tap((n, { attempt }) =>
          Effect.andThen(Effect.sleep(1), Effect.sync(() => attempt === 1 ? handled.push(n) : 0))
        ),
        Pipeline.retry({ times: 0 }),
        Pipeline.concurrency(4)
      )
    )
    yield* rig.publish(transport, topic, rig.range(12))
    yield* rig.eventually(
      "all are settled",
      running.counts,
      ({ deadLettered, handled }) => deadLettered + handled === 12
    )
    yield* stop
    assert.deepEqual(handled.toSorted((a, b) => a - b), [0, 1, 2, 4, 6, 8, 9, 10, 11])
    assert.deepEqual(rig.texts(yield* rig.browse(transport, `${topic.name}.dead`)).toSorted(), ["3", "5", "7"])
  }),

  test(
    "L8",
    "law 1",
    "a function that throws where none may, at any stage, ends in a dead letter and not in a pipeline",
    function*() {
      const { transport } = yield* rig.Rig
      const stages = ["key", "filter", "map", "tap", "catchTag", "batch", "while"] as const
      const Stage = Schema.Literals([...stages, "none"])
      const topic = Topic.make(rig.fresh("l8"), { schema: Stage })
      const throwAt = (stage: typeof stages[number], value: typeof Stage.Type) => {
        if (value === stage) throw new Error(`thrown by ${stage}`)
      }
      const handled: Array<string> = []
      const { running, stop } = yield* rig.start(
        rig.from<typeof Stage.Type>(transport, topic).pipe(
          Pipeline.filter((value) => (throwAt("filter", value), true)),
          Pipeline.map((value) => (throwAt("map", value), value)),
          Pipeline.tap((value) => (throwAt("tap", value), Effect.void)),
          Pipeline.mapEffect((value) =>
            value === "catchTag" || value === "while" ? Effect.fail({ _tag: value } as const) : Effect.succeed(value)
          ),
          Pipeline.catchTag("catchTag", (): Effect.Effect<typeof Stage.Type> => {
            throw new Error("thrown by catchTag")
          }),
          Pipeline.batch({ size: 1, within: "1 second" }, ([value]) => (throwAt("batch", value), Effect.void)),
          Pipeline.map((value) => handled.push(value)),
          Pipeline.retry({
            times: 1,
            schedule: rig.after(10),
            while: () => {
              throw new Error("thrown by while")
            }
          }),
          Pipeline.concurrency({
            max: 2,
            key: ({ value }) => (throwAt("key", value), undefined)
          })
        )
      )
      yield* rig.publish(transport, topic, ["none", ...stages, "none"])
      yield* rig.eventually(
        "all are settled",
        running.counts,
        ({ deadLettered, handled }) => deadLettered === 7 && handled === 2
      )
      yield* stop
      assert.deepEqual(handled, ["none", "none"])
      assert.deepEqual(
        rig.texts(yield* rig.browse(transport, `${topic.name}.dead`)).toSorted(),
        stages.map((stage) => JSON.stringify(stage)).toSorted()
      )
    }
  ),

  test(
    "L9",
    "law 3",
    "a retry that waits when its process drains is handed over with its due time and its count",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = rig.numbers("l9")
      const peer = yield* rig.connect
      const attempts: Array<number> = []
      const failing = (transport: rig.Process["transport"]) =>
        rig.start(
          rig.from(transport, topic).pipe(
            Pipeline.mapEffect((_, { attempt }) => {
              attempts.push(attempt)
              return attempt < 3 ? Effect.fail("again") : Effect.void
            }),
            Pipeline.retry({ times: 3, schedule: rig.after(800) })
          )
        )
      const first = yield* failing(transport)
      const since = yield* Clock.currentTimeMillis
      yield* rig.publish(transport, topic, [1])
      yield* rig.eventually("it waits", first.running.counts, ({ retried }) => retried === 1)
      yield* first.stop
      const second = yield* failing(peer.transport)
      yield* rig.until("a peer makes the second attempt", () => attempts.length === 2)
      const elapsed = (yield* Clock.currentTimeMillis) - since
      yield* rig.eventually("it is handled", second.running.counts, ({ handled }) => handled === 1)
      yield* second.stop
      assert.deepEqual(attempts, [1, 2, 3])
      assert.ok(elapsed >= 790, `the second attempt was made after ${elapsed} ms`)
    },
    { needs: ["connect"] }
  ),

  test(
    "L10",
    "law 3",
    "consumers replaced again and again under load: nothing lost, no attempt burned, no dead letter",
    function*() {
      const { connect, transport } = yield* rig.Rig
      const topic = rig.numbers("l10")
      const handled = new Map<number, number>()
      const attempts = new Set<number>()
      const dead: Array<string> = []
      const isOver = () => handled.size + dead.length >= 90
      yield* rig.publish(transport, topic, rig.range(90))
      const replace = Effect.scoped(Effect.gen(function*() {
        const other = yield* rig.bounded("it connects", connect)
        const before = handled.size
        const { outcomes, stop } = yield* rig.start(
          rig.from(other, topic, { prefetch: 10, drainTimeout: 0 }).pipe(
            Pipeline.tap((n, { attempt }) =>
              Effect.gen(function*() {
                attempts.add(attempt)
                yield* Effect.sleep(10)
                handled.set(n, (handled.get(n) ?? 0) + 1)
              })
            ),
            Pipeline.retry({ times: 0 }),
            Pipeline.concurrency(4)
          )
        )
        yield* rig.until(
          "it handles some",
          () => handled.size >= before + 8 || isOver() || outcomes.some(({ _tag }) => _tag === "DeadLettered")
        )
        yield* stop
        for (const outcome of outcomes) if (outcome._tag === "DeadLettered") dead.push(rig.textOf(outcome.delivery))
      }))
      const worker = Effect.whileLoop({ while: () => !isOver(), body: () => replace, step: () => {} })
      yield* Effect.all([worker, worker], { concurrency: "unbounded" })
      const letters = yield* rig.browse(transport, `${topic.name}.dead`)
      assert.deepEqual(letters.map(({ headers }) => headers[DeadLetter.header]), [])
      assert.deepEqual([...handled].filter(([, times]) => times > 1), [])
      assert.deepEqual([...attempts], [1])
    },
    { needs: ["connect", "uncountedRelease"] }
  ),

  test("L11", "law 3", "closing a subscription hands back what it had fetched and nobody had pulled", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("l11")
    const peer = yield* rig.connect
    const subscription = yield* rig.subscribe(transport, topic.name)
    const pulling = yield* Effect.forkChild(subscription.pull(rig.demand(50)), { startImmediately: true })
    yield* rig.publish(transport, topic, rig.range(50))
    yield* rig.until("some have come", () => pulling.pollUnsafe() !== undefined)
    const first = yield* pulling.pollUnsafe()!
    yield* rig.settle(subscription, first, Settlement.ack)
    yield* subscription.close
    const other = yield* rig.subscribe(peer.transport, topic.name)
    const rest = yield* rig.gather(other, 60_000, 50 - first.length)
    assert.equal(rest.length + first.length, 50)
    assert.deepEqual([...new Set(rest.map(({ attempt }) => attempt))].filter((attempt) => attempt !== 1), [])
  }, { needs: ["connect", "uncountedRelease"] })
]
