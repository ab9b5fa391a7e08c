import { NodeServices } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { memory, nats, redis, run } from "./processes.ts"

describe("task queue", () => {
  for (const transport of [memory, redis, nats]) {
    it.live(`${transport.name}: a worker is killed half-way, every task is done and gone from the broker`, () =>
      Effect.gen(function*() {
        const { exitCode, stderr, stdout } = yield* run("taskQueue.main.ts", yield* transport.flags)
        assert.strictEqual(exitCode, 0, stderr)
        assert.match(stdout, /^worker 0 has crashed/m)
        assert.match(stdout, /^120 of 120 tasks done, \d+ of them twice; none is left on the broker$/m)
      }).pipe(Effect.provide(NodeServices.layer)))
  }
})
