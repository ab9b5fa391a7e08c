import { NodeServices } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { memory, nats, redis, run } from "./processes.ts"

describe("idempotent", { timeout: 180_000 }, () => {
  for (const transport of [memory, redis, nats]) {
    // Each life is the start of a process: three deaths show as much as the ten of the program's default.
    const kills = transport === memory ? 0 : 3
    it.live(`${transport.name}: killed ${kills} times while it credits payments, the total is right`, () =>
      Effect.gen(function*() {
        const { exitCode, stderr, stdout } = yield* run(
          "idempotent.main.ts",
          [...yield* transport.flags, "--kills", String(kills)],
          "170 seconds"
        )
        assert.strictEqual(exitCode, 0, stderr)
        const line = new RegExp(
          `^500 payments, ${kills} kills, (\\d+) delivered again: 125250 cents of 125250 are credited$`,
          "m"
        )
        const [, again] = line.exec(stdout) ?? []
        assert.isDefined(again, stdout)
      }).pipe(Effect.provide(NodeServices.layer)))
  }
})
