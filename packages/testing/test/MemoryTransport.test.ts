import { describe, it } from "@effect/vitest"
import { Pipeline, Publisher, Topic } from "@millrace/core"
import { MemoryTransport, Wait } from "@millrace/testing"
import { Clock, Effect, Schedule, Schema } from "effect"

const Numbers = Topic.make("numbers", { schema: Schema.Number })

/** Time passes between any two looks at it. */
const ticking = (clock: Clock.Clock): Clock.Clock => {
  let now = clock.currentTimeMillisUnsafe()
  return Object.assign(Object.create(clock) as Clock.Clock, { currentTimeMillisUnsafe: () => ++now })
}

describe("the memory broker", () => {
  it.live("delivers a retry that becomes due between two looks at the clock", () =>
    Effect.gen(function*() {
      const clock = ticking(yield* Clock.clockWith(Effect.succeed))
      for (let delay = 1; delay <= 12; delay++) {
        yield* Effect.gen(function*() {
          const running = yield* Pipeline.start(
            Pipeline.from(Numbers, { group: "test", startFrom: "beginning" }).pipe(
              Pipeline.tap((_, { attempt }) => attempt === 1 ? Effect.fail("once") : Effect.void),
              Pipeline.retry({ times: 1, schedule: Schedule.spaced(delay) })
            )
          )
          yield* Publisher.publish(Numbers, 1)
          yield* Wait.eventually(`a retry after ${delay} ms is handled`, running.counts, ({ handled }) => handled === 1)
        }).pipe(
          Effect.scoped,
          Effect.provide(MemoryTransport.layer()),
          Effect.provideService(Clock.Clock, clock)
        )
      }
    }))
})
