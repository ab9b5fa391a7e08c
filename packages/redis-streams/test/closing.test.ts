import { assert, it } from "@effect/vitest"
import { Closing } from "../src/internal/closing.ts"

it("pipelines that close one after the other wait together, and one that closes later in the outage waits as long", () => {
  let time = 0
  const closing = new Closing(() => false, () => time)
  const close = (lasts: number) => {
    const left = closing.left(1_000)
    time += Math.min(left, lasts)
    closing.ended()
    return left
  }
  assert.deepStrictEqual([close(1_000), close(1_000), close(1_000)], [1_000, 0, 0])
  time += 2_000
  assert.deepStrictEqual([close(1_000), close(1_000)], [1_000, 0])
})
