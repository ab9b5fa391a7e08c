/** Five minutes without a broker, by the clock of the tests. */
import * as Pipeline from "@millrace/core/Pipeline"
import * as Publisher from "@millrace/core/Publisher"
import * as Topic from "@millrace/core/Topic"
import { Transport } from "@millrace/core/Transport"
import { TransportError, Unreachable } from "@millrace/core/TransportError"
import * as MemoryTransport from "@millrace/testing/MemoryTransport"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"

const Jobs = Topic.make("jobs", { schema: Schema.Int })
const Done = Topic.make("jobs.done", { schema: Schema.Int })

/** A transport whose broker is there or not. */
const interruptible = (inner: Transport["Service"], up: Latch.Latch, isUp: () => boolean): Transport["Service"] => {
  const gone = new TransportError({ transport: "memory", reason: new Unreachable({ address: "memory" }) })
  const whileUp = <A>(effect: Effect.Effect<A, TransportError>) =>
    Effect.suspend(() => isUp() ? effect : Effect.fail(gone))
  return {
    ...inner,
    publish: (messages) =>
      Effect.suspend(() =>
        isUp()
          ? inner.publish(messages)
          : Effect.succeed(
            messages.map(({ topic }) =>
              Result.fail(new Publisher.PublishError({ topic, reason: new Publisher.NotSent({ detail: "stopped" }) }))
            )
          )
      ),
    subscribe: (options) =>
      Effect.map(inner.subscribe(options), (subscription) => ({
        ...subscription,
        pull: (max) => Effect.andThen(up.await, subscription.pull(max)),
        settle: (batch) => whileUp(subscription.settle(batch)),
        extend: (deliveries) => whileUp(subscription.extend(deliveries))
      }))
  }
}

/** Lets so many seconds pass, one after the other. */
const pass = (seconds: number) =>
  Effect.repeat(
    Effect.andThen(TestClock.adjust("1 second"), Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))),
    { times: seconds - 1 }
  )

/** Gives what did not hold. */
export const outage = (count: number) =>
  Effect.gen(function*() {
    const memory = yield* MemoryTransport.make()
    const inner = yield* memory.connect
    const up = Latch.makeUnsafe(true)
    let isUp = true
    const transport = interruptible(inner, up, () => isUp)
    const run = Effect.gen(function*() {
      yield* Publisher.publishAll(Jobs, Arr.range(1, count))
      const running = yield* Pipeline.start(
        Pipeline.from(Jobs, { group: "workers", startFrom: "beginning" }).pipe(
          Pipeline.mapEffect((n) => Effect.as(Effect.sleep(n % 1_000), n)),
          Pipeline.to(Done),
          Pipeline.retry({ times: 2, schedule: Schedule.spaced("1 second") }),
          Pipeline.concurrency(16)
        )
      )
      yield* pass(5)
      const before = (yield* running.counts).handled
      isUp = false
      up.closeUnsafe()
      yield* pass(300)
      isUp = true
      up.openUnsafe()
      yield* pass(count)
      const done = yield* Stream.runCollect(transport.browse(Done.name))
      const dead = yield* Stream.runCount(transport.browse("jobs.dead"))
      return [
        ...(before > 0 && before < count ? [] : [`${before} were handled before it, not some`]),
        ...(done.length === count ? [] : [`${done.length} results of ${count} jobs`]),
        ...(dead === 0 ? [] : [`${dead} dead letters`])
      ]
    })
    return yield* Effect.provideService(run, Transport, transport)
  }).pipe(Effect.scoped, Effect.provide(TestClock.layer()))
