import { NodeServices } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Pipeline } from "@millrace/core"
import { TestHarness } from "@millrace/testing"
import { Clock, Effect } from "effect"
import { Prompts } from "../src/slowCalls.ts"
import { memory, nats, redis, run } from "./processes.ts"

describe("slow calls", () => {
  // The same pipeline with a call that takes its time on the clock of the test.
  for (const [concurrency, seconds] of [[1, 15], [5, 3], [10, 1.5]] as const) {
    it.effect(`50 calls of 300 ms take exactly ${seconds} seconds at a concurrency of ${concurrency}`, () =>
      Effect.gen(function*() {
        const pipeline = Pipeline.from(Prompts, { group: "completions" }).pipe(
          Pipeline.tap(() => Effect.sleep("300 millis")),
          Pipeline.concurrency(concurrency)
        )
        const since = yield* Clock.currentTimeMillis
        const prompts = Array.from({ length: 50 }, (_, id) => ({ id, prompt: `question ${id}` }))
        const report = yield* TestHarness.run(Prompts, pipeline, prompts)
        assert.strictEqual(report.handled.length, 50)
        assert.strictEqual((yield* Clock.currentTimeMillis) - since, seconds * 1000)
      }).pipe(Effect.provide(TestHarness.layer)))
  }

  for (const transport of [memory, redis, nats]) {
    it.live(`${transport.name}: 50 calls, 5 at once and never more`, () =>
      Effect.gen(function*() {
        const { exitCode, stderr, stdout } = yield* run("slowCalls.main.ts", yield* transport.flags)
        assert.strictEqual(exitCode, 0, stderr)
        assert.match(stdout, /^100 % {2}50 of 50 answered, 0 running$/m)
        assert.match(stdout, /^50 calls of 300 ms, at most 5 at once/m)
      }).pipe(Effect.provide(NodeServices.layer)))
  }
})
