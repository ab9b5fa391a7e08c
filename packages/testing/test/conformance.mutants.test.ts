import { Transport } from "@millrace/core/Transport"
import { TransportError, Unreachable } from "@millrace/core/TransportError"
import { Conformance, MemoryTransport } from "@millrace/testing"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as References from "effect/References"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { afterAll, assert, describe, it, vi } from "vitest"
import { recordMutants } from "./conformanceTable.ts"
import { type Broker, leaked, type Mutant, mutants } from "./mutants.ts"

class Mutated extends Context.Service<Mutated, {
  readonly connect: Effect.Effect<Transport["Service"]>
  readonly strike: Effect.Effect<void>
}>()("test/Mutated") {}

const unreachable = Effect.fail(
  new TransportError({ transport: "memory", reason: new Unreachable({ address: "memory://nowhere" }) })
)

const target = (mutant: Mutant): Conformance.Target<Mutated | MemoryTransport.MemoryTransport, never> => {
  const strike = Mutated.use(({ strike }) => strike)
  return {
    clock: "test",
    claimAfter: "1 second",
    layer: Layer.effectContext(Effect.gen(function*() {
      const memory = yield* MemoryTransport.MemoryTransport
      const scope = yield* Effect.scope
      const broker: Broker = { owners: new Map(), strikes: 0 }
      const connect = Effect.map(
        Effect.provideService(memory.connect, Scope.Scope, scope),
        (transport) => mutant.mutate(transport, broker)
      )
      return Context.make(Mutated, { connect, strike: Effect.sync(() => void broker.strikes++) }).pipe(
        Context.add(Transport, yield* connect)
      )
    })).pipe(Layer.provideMerge(MemoryTransport.layer({ minIdle: "1 second" }))),
    connect: Mutated.use(({ connect }) => connect),
    cut: strike,
    restart: strike,
    halfOpen: strike,
    shape: () => strike,
    refuse: strike,
    changeLeader: strike,
    deleteTopic: (topic) => MemoryTransport.MemoryTransport.use((memory) => memory.deleteTopic(topic)),
    deleteGroup: (topic, group) =>
      Effect.andThen(MemoryTransport.MemoryTransport.use((memory) => memory.deleteGroup(topic, group)), strike),
    deleteConsumers: () => strike,
    unreachable: mutant.unreachable ?? unreachable
  }
}

const run = (mutant: Mutant, test: Conformance.Test) => {
  const on = target(mutant)
  return Conformance.check(test, on).pipe(
    Effect.provide(Layer.provideMerge(Layer.fresh(on.layer), TestClock.layer())),
    Effect.provideService(References.MinimumLogLevel, "None"),
    Effect.runPromiseExit
  )
}

const testOf = (id: string) => Conformance.tests.find((test) => test.id === id)!

afterAll(() => leaked.forEach(clearInterval))

// Under `TestClock` the tests wait for turns of the event loop: many that run together wait for the same turns.
vi.setConfig({ maxConcurrency: 24, testTimeout: 180_000 })

/** Each run has a broker of its own. Only this test looks at the process: for timers that are left behind. */
const isAlone = (id: string) => id === "L6"

/** The tests whose runs on the transport end in this way. */
const ending = async (
  mutant: Mutant,
  ids: ReadonlyArray<string>,
  how: (exit: Exit.Exit<unknown, unknown>) => boolean
) => {
  const exits = new Map<string, Exit.Exit<unknown, unknown>>()
  const note = async (id: string) => void exits.set(id, await run(mutant, testOf(id)))
  await Promise.all(ids.filter((id) => !isAlone(id)).map(note))
  for (const id of ids.filter(isAlone)) await note(id)
  return [...exits].filter(([, exit]) => how(exit)).map(([id, exit]) => Exit.isSuccess(exit) ? id : `${id}: ${exit}`)
}

/** The tests that should fail on the mutant, and pass. */
const blind = (mutant: Mutant) => ending(mutant, mutant.caughtBy, Exit.isSuccess)

describe("a broken transport does not pass the suite", () => {
  describe.concurrent("each mutant is caught, beside others", () => {
    it.each(mutants.filter(({ caughtBy }) => !caughtBy.some(isAlone)))("$law: $name", async (mutant) => {
      assert.deepStrictEqual(await blind(mutant), [])
    })
  })

  it.each(mutants.filter(({ caughtBy }) => caughtBy.some(isAlone)))("$law: $name", async (mutant) => {
    assert.deepStrictEqual(await blind(mutant), [])
  })

  it("every law has a mutant", () => {
    const laws = new Set(mutants.map(({ law }) => law))
    for (const law of [1, 2, 3, 4, 5, 6, 7, 8]) assert.isTrue(laws.has(`law ${law}`), `law ${law}`)
  })

  it("every test catches a mutant", () => {
    const catching = new Set(mutants.flatMap(({ caughtBy }) => caughtBy))
    assert.deepStrictEqual(Conformance.tests.filter(({ id }) => !catching.has(id)).map(({ id }) => id), [])
  })

  it("the table of the docs shows them all", () => assert.doesNotThrow(recordMutants))

  it("and one that is not broken passes the tests that catch them", async () => {
    const sound: Mutant = { name: "does nothing wrong", law: "none", caughtBy: [], mutate: (transport) => transport }
    const all = [...new Set(mutants.flatMap(({ caughtBy }) => caughtBy))]
    assert.deepStrictEqual(await ending(sound, all, Exit.isFailure), [])
  })
})
