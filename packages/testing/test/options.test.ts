import { assert, describe, it } from "@effect/vitest"
import { Pipeline, Topic } from "@millrace/core"
import { Proxy, Simulation, TestHarness, Wait } from "@millrace/testing"
import { Cause, Effect, Exit, Schema } from "effect"

const Numbers = Topic.make("numbers", { schema: Schema.Int })
const numbers = Pipeline.from(Numbers, { group: "g", startFrom: "beginning" })
const simulated = (options: object) =>
  Simulation.check(Numbers, numbers, { values: [1], seeds: 1, faults: [], ...options })

const soon = "soon" as never
const text = "1" as never

/** Each would otherwise decide in silence whether a test passes. */
const bad: ReadonlyArray<readonly [string, Effect.Effect<unknown, unknown>]> = [
  ["seeds is NaN", simulated({ seeds: NaN })],
  ["seeds is 0", simulated({ seeds: 0 })],
  ["first is NaN", simulated({ first: NaN })],
  ["workers is 0", simulated({ workers: 0 })],
  ["workers is \"1\"", simulated({ workers: text })],
  ["attempts is NaN", simulated({ attempts: NaN })],
  ["minIdle is \"soon\"", simulated({ minIdle: soon })],
  ["restWithin is NaN", simulated({ restWithin: NaN })],
  ["within is NaN", Wait.until("never", () => false, NaN)],
  ["duration is -1", Wait.pass(-1)],
  [
    "runUntilIdle is NaN",
    Effect.flatMap(TestHarness.make(Numbers, numbers), (harness) => harness.runUntilIdle(NaN)).pipe(
      Effect.scoped,
      Effect.provide(TestHarness.layer)
    )
  ],
  ...[
    ["shape.latency is NaN", { latency: NaN, bandwidth: 1 }],
    ["shape.bandwidth is 0", { latency: 0, bandwidth: 0 }],
    ["shape.bandwidth is \"1\"", { latency: 0, bandwidth: text }]
  ].map(([sentence, shape]) =>
    [
      sentence as string,
      Effect.scoped(
        Effect.flatMap(Proxy.make({ host: "127.0.0.1", port: 1 }), (proxy) => proxy.shape(shape as Proxy.Shape))
      )
    ] as const
  )
]

describe("a number that cannot be meant", () => {
  for (const [sentence, effect] of bad) {
    it.live(`${sentence}: the test fails by name`, () =>
      Effect.gen(function*() {
        const exit = yield* Effect.exit(effect)
        assert.isTrue(Exit.isFailure(exit))
        const error = Cause.squash((exit as Exit.Failure<unknown, unknown>).cause)
        assert.include(String(error), `testing: ${sentence}: `)
      }))
  }
})
