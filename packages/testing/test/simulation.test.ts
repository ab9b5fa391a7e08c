import { assert, describe, it } from "@effect/vitest"
import { Message, Pipeline, Settlement } from "@millrace/core"
import { Simulation } from "@millrace/testing"
import { Clock, type Context, Effect, Schedule } from "effect"
import { execFile } from "node:child_process"
import * as crypto from "node:crypto"
import * as path from "node:path"
import { promisify } from "node:util"
import { transitions, Watch } from "../../core/src/internal/attempt.ts"
import { type Broker, type Mutant, mutants } from "./mutants.ts"
import { type Event, Events, keyed, ofAll, ofKeys, plain, policy, runs, troubled, values } from "./simulated.ts"

/** Holds every attempt of a run to the table of transitions, and to one permit while it works on its message. */
const watched = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const wrong: Array<string> = []
    const watch: Context.Service.Shape<typeof Watch> = (attempt, next) => {
      const { delivery: { id }, permit, state } = attempt
      if (!transitions[state].includes(next)) wrong.push(`${id} goes from ${state} to ${next}`)
      if (next === "running" && state !== "stopping" && permit === undefined) wrong.push(`${id} runs without a permit`)
      if (state === "buffered" && next === "left" && permit !== undefined) wrong.push(`${id} leaves with a permit`)
    }
    const result = yield* Effect.provideService(effect, Watch, watch)
    assert.deepStrictEqual(wrong, [])
    return result
  })

describe("simulation", () => {
  it.live("the same seed is the same run, event by event, and another seed another", () =>
    Effect.gen(function*() {
      const run = yield* Simulation.run(Events, keyed, { ...ofKeys, seed: 7 })
      assert.deepStrictEqual(yield* Simulation.run(Events, keyed, { ...ofKeys, seed: 7 }), run)
      assert.isAbove(run.trace.length, 100)
      assert.notDeepEqual((yield* Simulation.run(Events, keyed, { ...ofKeys, seed: 8 })).trace, run.trace)
    }))

  it.live("a seed is the same run in every process, whatever ran before it and whatever the clocks of the machine say", () =>
    Effect.gen(function*() {
      const seeds = [3, 5, 2]
      const main = path.join(import.meta.dirname, "seeds.main.ts")
      const { stdout } = yield* Effect.promise(() =>
        promisify(execFile)(process.execPath, [main, "traces", ...seeds.map(String)])
      )
      const lines: Array<string> = []
      for (const [kind, run] of Object.entries(runs)) {
        for (const seed of [...seeds].reverse()) {
          const { trace, violations } = yield* run(seed)
          assert.deepStrictEqual(violations, [])
          lines.push(`${kind} ${seed} ${crypto.createHash("sha256").update(trace.join("\n")).digest("hex")}`)
        }
      }
      assert.sameMembers(stdout.trim().split("\n"), lines)
    }))

  it.live("no law is violated: many at once", () => watched(Simulation.check(Events, plain, { ...ofAll, seeds: 100 })))

  it.live("no law is violated: keys in order", () =>
    watched(Simulation.check(Events, keyed, { ...ofKeys, seeds: 100 })))

  it.live("no law is violated: a stop that interrupts handlers", () =>
    watched(
      Simulation.check(
        Events,
        Pipeline.from(Events, { group: "test", drainTimeout: "20 millis" }).pipe(
          Pipeline.tap((_, message) => Simulation.trouble(message)),
          Pipeline.retry(policy),
          Pipeline.concurrency(4)
        ),
        { ...ofAll, faults: ["drain", "handler", "delay", "cut"], seeds: 100 }
      )
    ))

  for (const workers of [1, 2, 3]) {
    for (const limit of [2, 3, 4, 5]) {
      it.live(`poison messages are dead-lettered alone: ${workers} processes, ${limit} attempts, 1 to 5 of them`, () =>
        Effect.gen(function*() {
          for (const killers of [1, 2, 3, 4, 5]) {
            yield* Simulation.check(
              Events,
              Pipeline.from(Events, { group: "test", prefetch: 8 }).pipe(
                Pipeline.tap((_, message) => Simulation.trouble(message)),
                Pipeline.retry({ times: limit - 1, schedule: Schedule.spaced("1 second") }),
                Pipeline.concurrency(8)
              ),
              {
                values: Array.from({ length: 40 }, (_, n) => ({ key: "", n })),
                attempts: limit,
                workers,
                faults: [],
                kills: ({ value }) =>
                  (value as typeof Event.Type).n % 8 === 3 && (value as typeof Event.Type).n < 8 * killers,
                seeds: 4,
                first: 100 * killers
              }
            )
          }
        }))
    }
  }

  it.live("no law is violated: keys in order, and few messages may wait", () =>
    Simulation.check(
      Events,
      Pipeline.from(Events, { group: "test", waiting: 2, prefetch: 3 }).pipe(
        Pipeline.tap((_, message) => Simulation.trouble(message)),
        Pipeline.retry(policy),
        Pipeline.concurrency({ max: 4, key: ({ value }) => value.key })
      ),
      { ...ofKeys, seeds: 50 }
    ).pipe(watched))

  it.live("no law is violated: batches", () =>
    Simulation.check(
      Events,
      troubled.pipe(
        Pipeline.batch({ size: 5, within: "1 second" }, () => Effect.sleep("100 millis")),
        Pipeline.retry(policy),
        Pipeline.concurrency(2)
      ),
      { ...ofAll, seeds: 50 }
    ).pipe(watched))

  it.live("no law is violated: batches with keys", () =>
    Simulation.check(
      Events,
      troubled.pipe(
        Pipeline.batch({ size: 3, within: "1 second" }, () => Effect.sleep("100 millis")),
        Pipeline.retry(policy),
        Pipeline.concurrency({ max: 2, key: ({ value }) => value.key })
      ),
      { ...ofAll, seeds: 25 }
    ).pipe(watched))

  it.live("no law is violated: settled by hand, in time or never", () =>
    Simulation.check(
      Events,
      troubled.pipe(
        Pipeline.tap((n, message) =>
          n % 3 === 0
            ? Effect.forkDetach(Effect.delay(Message.settle(message, Settlement.ack), "3 seconds"))
            : Effect.void
        ),
        Pipeline.ackPolicy("manual"),
        Pipeline.retry(policy),
        Pipeline.concurrency(4)
      ),
      { ...ofAll, seeds: 50 }
    ).pipe(watched))

  it.live("every kind of fault happens, and with none there is no trouble", () =>
    Effect.gen(function*() {
      const traces: Array<string> = []
      for (let seed = 1; seed <= 20; seed++) {
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
  const concernedToo = [
    "is not ready when it says so: a new group begins with the first pull",
    "gives more than a pull's max",
    "swallows what arrives after a pull was interrupted",
    "looks for messages when a pull begins, and then no more",
    "leaves the request of an interrupted pull open",
    "drops headers"
  ]
  const notConcerned = [
    "forgets when a message failed first",
    "cuts delays to five minutes",
    "gives a neglected delivery to no one as long as its consumer lives",
    "gives up what a deleted consumer owned",
    "answers a settlement after a fault and does not send it",
    "gives its deliveries twice when the wall clock jumps"
  ]
  // They begin when the test of a fault says so.
  const notStruck = [
    "confirms what is published and loses it, once after each fault",
    "delivers a message twice after each fault, and does not say so"
  ]
  const concerned = mutants.filter(({ law, name }) =>
    law === "contract" ? concernedToo.includes(name) : ![...notConcerned, ...notStruck].includes(name)
  )

  const check = (mutant: Mutant) => {
    const broker: Broker = { owners: new Map(), strikes: 0 }
    const connect: Simulation.Options<unknown>["connect"] = (transport) => mutant.mutate(transport, broker)
    return Effect.gen(function*() {
      for (let seed = 1; seed <= 100; seed++) {
        const { violations } = yield* Simulation.run(Events, keyed, { ...ofKeys, connect, seed })
        if (violations.length > 0) return true
      }
      return false
    })
  }

  for (const mutant of concerned) {
    it.live(`${mutant.law}: ${mutant.name}`, () =>
      Effect.gen(function*() {
        assert.isTrue(yield* check(mutant), "100 seeds found nothing")
      }))
  }

  it.live("with the smallest run that shows it: few faults, and a history that can be read", () =>
    Effect.gen(function*() {
      const [mutant] = concerned
      const connect: Simulation.Options<unknown>["connect"] = (transport) =>
        mutant!.mutate(transport, { owners: new Map(), strikes: 0 })
      const violated = yield* Effect.flip(Simulation.check(Events, keyed, { ...ofKeys, connect, first: 3 }))
      assert.instanceOf(violated, Simulation.Violated)
      const { run } = violated as Simulation.Violated
      assert.include(violated.message, `with seed ${run.seed}`)
      assert.include(violated.message, run.violations[0]!.text)
      const again = yield* Simulation.run(Events, keyed, {
        ...ofKeys,
        connect,
        seed: run.seed,
        only: run.faults.keys()
      })
      assert.deepStrictEqual(again, run)
      const whole = yield* Simulation.run(Events, keyed, { ...ofKeys, connect, seed: run.seed })
      assert.isBelow(run.faults.size, whole.faults.size / 2)
      assert.isAtMost(run.trace.length, 60)
    }))
})
