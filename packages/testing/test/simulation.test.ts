import { assert, describe, it } from "@effect/vitest"
import { Pipeline, Topic } from "@millrace/core"
import { Simulation } from "@millrace/testing"
import { Clock, Effect, Exit, Schedule, Schema } from "effect"
import { type Broker, type Mutant, mutants } from "./mutants.ts"

const Event = Schema.Struct({ key: Schema.String, n: Schema.Number })
const Events = Topic.make("events", { schema: Event, key: ({ key }) => key })
const Done = Topic.make("done", { schema: Schema.Number })
const values = Array.from({ length: 24 }, (_, n) => ({ key: `k${n % 4}`, n }))

const troubled = Pipeline.from(Events, { group: "test" }).pipe(
  Pipeline.tap((_, message) => Simulation.trouble(message)),
  Pipeline.map(({ n }) => n),
  Pipeline.to(Done)
)
const policy = { times: 4, schedule: Schedule.exponential("1 second", 3).pipe(Schedule.jittered) }
const plain = troubled.pipe(Pipeline.retry(policy), Pipeline.concurrency(4))
const keyed = troubled.pipe(
  Pipeline.retry(policy),
  Pipeline.concurrency({ max: 4, key: ({ value }) => value.key })
)
const ofKeys = { values, keepsKeys: true, attempts: 5 }

describe("simulation", () => {
  it.live("the same seed is the same run, event by event, and another seed another", () =>
    Effect.gen(function*() {
      const run = yield* Simulation.run(Events, keyed, { ...ofKeys, seed: 7 })
      assert.deepStrictEqual(yield* Simulation.run(Events, keyed, { ...ofKeys, seed: 7 }), run)
      assert.isAbove(run.trace.length, 100)
      assert.notDeepEqual((yield* Simulation.run(Events, keyed, { ...ofKeys, seed: 8 })).trace, run.trace)
    }))

  it.live("no law is violated: many at once", () =>
    Simulation.check(Events, plain, { values, attempts: 5, seeds: 100 }))

  it.live("no law is violated: keys in order", () => Simulation.check(Events, keyed, { ...ofKeys, seeds: 100 }))

  it.live("no law is violated: keys in order, and few messages may wait", () =>
    Simulation.check(
      Events,
      Pipeline.from(Events, { group: "test", waiting: 2, prefetch: 3 }).pipe(
        Pipeline.tap((_, message) => Simulation.trouble(message)),
        Pipeline.retry(policy),
        Pipeline.concurrency({ max: 4, key: ({ value }) => value.key })
      ),
      { ...ofKeys, seeds: 50 }
    ))

  it.live("no law is violated: batches", () =>
    Simulation.check(
      Events,
      troubled.pipe(
        Pipeline.batch({ size: 5, within: "1 second" }, () => Effect.sleep("100 millis")),
        Pipeline.retry(policy),
        Pipeline.concurrency(2)
      ),
      { values, attempts: 5, seeds: 50 }
    ))

  it.live("every kind of fault happens, and with none there is no trouble", () =>
    Effect.gen(function*() {
      const traces: Array<string> = []
      for (let seed = 1; seed <= 10; seed++) {
        traces.push(...(yield* Simulation.run(Events, keyed, { ...ofKeys, seed })).trace)
      }
      const seen = [
        "crash",
        "told to stop",
        "freeze",
        "cut",
        "pause",
        "clock",
        "killed",
        "Retried",
        "Released",
        "Lost",
        "undecodable",
        "exhausted",
        "crashed"
      ].filter((text) => !traces.some((line) => line.includes(text)))
      assert.deepStrictEqual(seen, [])
      const calm = yield* Simulation.run(Events, keyed, { ...ofKeys, faults: [], seed: 1 })
      assert.deepStrictEqual(calm.trace.filter((line) => /Retried|Released|Lost|DeadLettered/.test(line)), [])
      assert.strictEqual(calm.trace.filter((line) => line.endsWith("Handled")).length, values.length)
    }))

  it.live("trouble is none outside of a simulation", () =>
    Effect.gen(function*() {
      const before = yield* Clock.currentTimeMillis
      yield* Simulation.trouble({} as never)
      assert.isBelow((yield* Clock.currentTimeMillis) - before, 1000)
    }))
})

describe("a broken transport is found out", () => {
  /** What concerns other things than the settlement of messages in one group. */
  const notConcerned = [
    "has one position for all groups",
    "begins every group at the beginning",
    "takes names for one that begin alike",
    "gives unread messages where only due retries are wanted",
    "delivers a delayed message at once",
    "removes nothing, and says how much it was",
    "browses newest first",
    "answers a publish of many out of order",
    "waits without end for a broker that does not answer",
    "shows the password of an address in its error",
    "leaves a timer behind"
  ]
  // They begin when the test of a fault says so.
  const notStruck = [
    "confirms what is published and loses it, once after each fault",
    "delivers a message twice after each fault, and does not say so"
  ]
  const concerned = mutants.filter(({ name }) => !notConcerned.includes(name) && !notStruck.includes(name))

  const check = (mutant: Mutant) => {
    const broker: Broker = { owners: new Map(), strikes: 0 }
    const connect: Simulation.Options<unknown>["connect"] = (transport) => mutant.mutate(transport, broker)
    return Effect.exit(Simulation.check(Events, keyed, { ...ofKeys, connect, seeds: 100 }))
  }

  for (const mutant of concerned) {
    it.live(`${mutant.law}: ${mutant.name}`, () =>
      Effect.gen(function*() {
        const exit = yield* check(mutant)
        assert.isTrue(Exit.isFailure(exit), "100 seeds found nothing")
      }))
  }

  it.live("with the seed that shows it again, and what happened before", () =>
    Effect.gen(function*() {
      const [mutant] = concerned
      const connect: Simulation.Options<unknown>["connect"] = (transport) =>
        mutant!.mutate(transport, { owners: new Map(), strikes: 0 })
      const violated = yield* Effect.flip(Simulation.check(Events, keyed, { ...ofKeys, connect, first: 3 }))
      assert.instanceOf(violated, Simulation.Violated)
      const { run } = violated as Simulation.Violated
      assert.include(violated.message, `with seed ${run.seed}; Simulation.run with that seed shows it again`)
      assert.include(violated.message, run.violations[0]!.text)
      const again = yield* Simulation.run(Events, keyed, { ...ofKeys, connect, seed: run.seed })
      assert.deepStrictEqual(again, run)
    }))
})
