import { assert, describe, it, vi } from "@effect/vitest"
import { DelayedRetries } from "../src/internal/delayedRetries.ts"

describe("retries that wait", () => {
  it("one without a delay is due at once, and says so", () => {
    let told = 0
    const retries = new DelayedRetries(() => told++)
    retries.add("1-0", 0)
    assert.deepStrictEqual([told, retries.isDue, retries.take(1)], [1, true, ["1-0"]])
    retries.stop()
  })

  // was: the timer of the first was replaced, and the first was noticed with the second or at the next read
  it("one that becomes due in a busy loop is told, whatever is added before its timer fires", async () => {
    const told = Promise.withResolvers<void>()
    const retries = new DelayedRetries(told.resolve)
    retries.add("1-0", 1)
    const until = performance.now() + 5
    while (performance.now() < until);
    retries.add("2-0", 3_600_000)
    await told.promise
    assert.deepStrictEqual(retries.take(2), ["1-0"])
    retries.stop()
  })

  // was: a process that stood still between the two readings of the clock was never told
  it("one that becomes due while it is added is told", async () => {
    let now = 0
    const clock = vi.spyOn(performance, "now").mockImplementation(() => now += 2)
    try {
      const told = Promise.withResolvers<void>()
      const retries = new DelayedRetries(told.resolve)
      retries.add("1-0", 1)
      await told.promise
      assert.deepStrictEqual(retries.take(1), ["1-0"])
      retries.stop()
    } finally {
      clock.mockRestore()
    }
  })
})
