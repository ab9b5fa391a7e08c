import { assert, describe, it } from "@effect/vitest"
import { DelayedRetries } from "../src/internal/delayedRetries.ts"

describe("retries that wait", () => {
  it("one without a delay is due at once, and says so", () => {
    let told = 0
    const retries = new DelayedRetries(() => told++)
    retries.add("1-0", 0)
    assert.deepStrictEqual([told, retries.isDue, retries.take(1)], [1, true, ["1-0"]])
    retries.stop()
  })
})
