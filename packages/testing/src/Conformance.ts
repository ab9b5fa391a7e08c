/**
 * The behaviour that every transport must have, as tests that a broker's author runs against it.
 *
 * `suite` registers them with vitest; `check` runs one of `tests` as a plain Effect. The contract is written
 * in `@millrace/core/Transport`.
 *
 * @since 0.1.0
 */
import type { Capabilities } from "@millrace/core/Transport"
import { Transport } from "@millrace/core/Transport"
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as References from "effect/References"
import type * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import * as process from "node:process"
import { delivery } from "./internal/conformance/delivery.ts"
import { fault } from "./internal/conformance/fault.ts"
import { flow } from "./internal/conformance/flow.ts"
import { lifecycle } from "./internal/conformance/lifecycle.ts"
import { poison } from "./internal/conformance/poison.ts"
import { retry } from "./internal/conformance/retry.ts"
import { conduct, type Need, Rig, type Test as RigTest } from "./internal/conformance/rig.ts"
import { settlement } from "./internal/conformance/settlement.ts"
import { durationFrom } from "./internal/options.ts"
import type * as Proxy from "./Proxy.ts"

/**
 * Describes one test: `law` is the law of settlement that it proves, or the contract between core and transport, and
 * `needs` what it cannot be run without.
 *
 * @category models
 * @since 0.1.0
 */
export interface Test {
  readonly id: string
  readonly group: string
  readonly law: string
  readonly title: string
  readonly needs: ReadonlyArray<Need>
  /** Runs while no other test does. */
  readonly alone: boolean
}

export type { Need }

/**
 * A transport to be tested.
 *
 * @category models
 * @since 0.1.0
 */
export interface Target<R, E> {
  /** The broker, and one connection to it as the `Transport`. */
  readonly layer: Layer.Layer<R | Transport, E>
  /** `"test"` for a broker that runs on `Clock`: its time is `TestClock`'s and each test builds the Layer anew. */
  readonly clock: "test" | "live"
  /**
   * How long the transport, as it is configured here, leaves an unsettled message with a consumer that says nothing.
   * Short makes the suite quick; a second is a good value.
   */
  readonly claimAfter: Duration.Input
  /** Another connection, as another process would have it; closed by its scope. */
  readonly connect?: Effect.Effect<Transport["Service"], unknown, NoInfer<R> | Scope.Scope> | undefined
  /** Ends the broker and starts it again, with its data. */
  readonly restart?: Effect.Effect<unknown, unknown, NoInfer<R>> | undefined
  /** Ends all connections; they may be made again at once. */
  readonly cut?: Effect.Effect<unknown, unknown, NoInfer<R>> | undefined
  /** From now on no byte passes on the connections that are open, and they stay open; new ones work. */
  readonly halfOpen?: Effect.Effect<unknown, unknown, NoInfer<R>> | undefined
  /** Changes latency and bandwidth of the connections. */
  readonly shape?: ((shape: Proxy.Shape) => Effect.Effect<unknown, unknown, NoInfer<R>>) | undefined
  /** The broker refuses to store messages until the scope closes, as a full one does. */
  readonly refuse?: Effect.Effect<unknown, unknown, NoInfer<R> | Scope.Scope> | undefined
  /** Another node of the cluster leads. */
  readonly changeLeader?: Effect.Effect<unknown, unknown, NoInfer<R>> | undefined
  /** An operator's action behind the back of a running pipeline. */
  readonly deleteTopic?: ((topic: string) => Effect.Effect<unknown, unknown, NoInfer<R>>) | undefined
  /** An operator's action behind the back of a running pipeline. */
  readonly deleteGroup?: ((topic: string, group: string) => Effect.Effect<unknown, unknown, NoInfer<R>>) | undefined
  /** An operator's action behind the back of a running pipeline. */
  readonly deleteConsumers?: ((topic: string, group: string) => Effect.Effect<unknown, unknown, NoInfer<R>>) | undefined
  /** Connects to an address where no broker answers. */
  readonly unreachable?: Effect.Effect<unknown, unknown, NoInfer<R> | Scope.Scope> | undefined
  /** Narrows the declaration of the transport. */
  readonly capabilities?: Partial<Capabilities> | undefined
}

/**
 * The outcome of one test: `skipped` holds the reason.
 *
 * @category models
 * @since 0.1.0
 */
export interface Outcome {
  readonly test: Test
  readonly result: "passed" | "failed" | { readonly skipped: string }
}

/**
 * Options for {@link suite}: `name` heads the tests, `onEnd` is called with the outcomes.
 *
 * @category models
 * @since 0.1.0
 */
export interface SuiteOptions<R, E> extends Target<R, E> {
  /** The name of the broker, in the titles of the tests. */
  readonly name: string
  /** Called with all outcomes when the suite has ended. */
  readonly onEnd?: ((outcomes: ReadonlyArray<Outcome>) => void | Promise<void>) | undefined
}

const groups: ReadonlyArray<readonly [group: string, tests: ReadonlyArray<RigTest>]> = [
  ["delivery", delivery],
  ["settlement", settlement],
  ["retry", retry],
  ["poison", poison],
  ["flow", flow],
  ["lifecycle", lifecycle],
  ["fault", fault]
]

const runs = new Map<string, RigTest>(groups.flatMap(([, tests]) => tests.map((test) => [test.id, test])))

/**
 * All tests, in the order of their numbers.
 *
 * @category testing
 * @since 0.1.0
 */
export const tests: ReadonlyArray<Test> = groups.flatMap(([group, tests]) =>
  tests.map(({ alone, id, law, needs, title }) => ({ id, group, law, title, needs, alone }))
)

const reasons: Record<Need, string> = {
  connect: "no `connect`: the suite has one connection only",
  restart: "no `restart`",
  cut: "no `cut`",
  halfOpen: "no `halfOpen`",
  shape: "no `shape`",
  refuse: "no `refuse`",
  changeLeader: "no `changeLeader`: a server of its own has nobody to give the lead to",
  deleteTopic: "no `deleteTopic`",
  deleteGroup: "no `deleteGroup`",
  deleteConsumers: "no `deleteConsumers`",
  unreachable: "no `unreachable`",
  testClock: "hours of real time: only a broker on `TestClock` can be asked",
  deduplication: "the transport declares no deduplication",
  delayedPublish: "the transport declares no delayed publish",
  uncountedRelease: "the transport declares that a release counts an attempt",
  orderedRelease: "the transport declares that released messages lose their order through several restarts",
  ownership: "the transport declares that it does not know who owns a delivery",
  maxBody: "the transport declares no limit of its own"
}

/**
 * Runs one test on a target, within the context that the target's Layer has built; gives the reason when it has to be
 * skipped.
 *
 * @category testing
 * @since 0.1.0
 */
export const check = <R, E>(
  test: Test,
  target: Target<R, E>
): Effect.Effect<string | undefined, unknown, R | Transport> =>
  Effect.gen(function*() {
    const transport = yield* Transport
    const context = yield* Effect.context<R>()
    const capabilities = { ...transport.capabilities, ...target.capabilities }
    const given = { ...capabilities, ...target, testClock: target.clock === "test" }
    const lacks = test.needs.find((need) => given[need] === undefined || given[need] === false)
    if (lacks !== undefined) return reasons[lacks]
    const rig = Rig.of({
      transport,
      capabilities,
      connect: Effect.provide(target.connect ?? Effect.die(reasons.connect), context),
      restart: Effect.provide(target.restart ?? Effect.die(reasons.restart), context),
      cut: Effect.provide(target.cut ?? Effect.die(reasons.cut), context),
      halfOpen: Effect.provide(target.halfOpen ?? Effect.die(reasons.halfOpen), context),
      shape: (shape) => Effect.provide(target.shape?.(shape) ?? Effect.die(reasons.shape), context),
      refuse: Effect.provide(target.refuse ?? Effect.die(reasons.refuse), context),
      changeLeader: Effect.provide(target.changeLeader ?? Effect.die(reasons.changeLeader), context),
      deleteTopic: (topic) => Effect.provide(target.deleteTopic?.(topic) ?? Effect.die(reasons.deleteTopic), context),
      deleteGroup: (topic, group) =>
        Effect.provide(target.deleteGroup?.(topic, group) ?? Effect.die(reasons.deleteGroup), context),
      deleteConsumers: (topic, group) =>
        Effect.provide(target.deleteConsumers?.(topic, group) ?? Effect.die(reasons.deleteConsumers), context),
      unreachable: Effect.provide(target.unreachable ?? Effect.die(reasons.unreachable), context),
      claimAfter: Duration.toMillis(durationFrom("claimAfter", target.claimAfter)),
      clock: target.clock
    })
    yield* Effect.provideService(conduct(runs.get(test.id)!), Rig, rig)
    return undefined
  })

/**
 * Registers all tests with vitest, for one transport; `await` it at the top of a test file.
 *
 * **Details**
 *
 * Each test uses topics of its own, and those of a group run together where they can. One that the target cannot be
 * given is skipped with its reason, and the last line counts: `conformance: redis 8.6: 67 run, 2 skipped: …`.
 *
 * **Example** (Testing a broker)
 *
 * ```ts fragment
 * import { Conformance } from "@millrace/testing"
 *
 * await Conformance.suite({
 *   name: "my broker",
 *   layer: MyBroker.layer({ url, claimAfter: "1 second" }),
 *   connect: MyBroker.make({ url, claimAfter: "1 second" }),
 *   claimAfter: "1 second",
 *   clock: "live"
 * })
 * ```
 *
 * @category testing
 * @since 0.1.0
 */
export const suite = async <R, E>(options: SuiteOptions<R, E>): Promise<void> => {
  const { afterAll, beforeAll, describe, it, vi } = await import("vitest")
  const { clock, name } = options
  // Nearly all time of a test is waiting; too many at once would miss their heartbeats on a small machine.
  vi.setConfig({ maxConcurrency: clock === "test" ? 24 : 12 })
  // The clients' logs of a disturbed broker would bury the failure.
  const layer = Layer.provideMerge(options.layer, Layer.succeed(References.MinimumLogLevel, "None"))
  const shared = clock === "live" ? ManagedRuntime.make(layer) : undefined
  const runtimeOf = () => shared ?? ManagedRuntime.make(Layer.provideMerge(Layer.fresh(layer), TestClock.layer()))
  const outcomes: Array<Outcome> = []

  describe(`conformance: ${name}`, () => {
    if (shared !== undefined) beforeAll(() => shared.runPromise(Effect.void), longHook)
    afterAll(async () => {
      await shared?.dispose()
      process.stderr.write(`${summary(name, outcomes)}\n`)
      await options.onEnd?.(outcomes)
    }, longHook)
    const register = (test: Test) =>
      it(`${test.id} ${test.law}: ${test.title}`, { timeout: longTest }, async (context) => {
        const runtime = runtimeOf()
        const exit = await runtime.runPromiseExit(check(test, options), { signal: context.signal })
        if (runtime !== shared) await runtime.dispose()
        const skipped = Exit.isSuccess(exit) ? exit.value : undefined
        outcomes.push({
          test,
          result: skipped !== undefined ? { skipped } : Exit.isSuccess(exit) ? "passed" : "failed"
        })
        if (Exit.isFailure(exit)) throw Cause.squash(exit.cause)
        if (skipped !== undefined) context.skip(skipped)
      })
    for (const [group] of groups) {
      describe.concurrent(group, () => tests.filter((test) => test.group === group && !test.alone).forEach(register))
    }
    describe("alone", () => tests.filter(({ alone }) => alone).forEach(register))
  })
}

/** Milliseconds. A test ends itself long before; this is for one that cannot. */
const longTest = 180_000
const longHook = 120_000

const summary = (name: string, outcomes: ReadonlyArray<Outcome>): string => {
  const skipped = outcomes.flatMap(({ result, test }) =>
    typeof result === "object" ? [`${test.id} (${result.skipped})`] : []
  )
  return `conformance: ${name}: ${outcomes.length - skipped.length} run, ${skipped.length} skipped` +
    (skipped.length > 0 ? `: ${skipped.join("; ")}` : "")
}
