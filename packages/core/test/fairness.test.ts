import { assert, it } from "@effect/vitest"
import { Pipeline, Publisher, Topic, type Transport } from "@millrace/core"
import { JetStream } from "@millrace/nats-jetstream"
import { RedisStreams } from "@millrace/redis-streams"
import { Brokers, Wait } from "@millrace/testing"
import { type Context, Effect, Latch, Layer, Schema, type Scope } from "effect"

const Tasks = Topic.make("tasks", { schema: Schema.Number })

/** What two workers did of a backlog of 200 tasks of 300 ms each. */
const share = <E>(connect: Effect.Effect<Context.Context<Transport.Transport>, E, Scope.Scope>) =>
  Effect.gen(function*() {
    const handled: Array<number> = []
    const ready = yield* Latch.make()
    const worker = (first: boolean) =>
      Effect.gen(function*() {
        const context = yield* connect
        if (first) {
          // The group is there first: both begin with all of the backlog before them.
          yield* Effect.scoped(Pipeline.start(Pipeline.from(Tasks, { group: "workers", startFrom: "beginning" }))).pipe(
            Effect.provideContext(context)
          )
          yield* Effect.provideContext(Publisher.publishAll(Tasks, Array.from({ length: 200 }, (_, n) => n)), context)
        }
        return yield* Pipeline.start(
          Pipeline.from(Tasks, { group: "workers" }).pipe(
            Pipeline.tap((n) =>
              ready.await.pipe(
                Effect.andThen(Effect.sleep("300 millis")),
                Effect.andThen(Effect.sync(() => handled.push(n)))
              )
            ),
            Pipeline.concurrency(8)
          )
        ).pipe(Effect.provideContext(context))
      })
    const workers = [yield* worker(true), yield* worker(false)]
    // No worker is ahead because the other one took long to connect.
    for (const running of workers) {
      yield* Wait.until("eight handlers run", Effect.map(running.owned, ({ running }) => running === 8))
    }
    yield* ready.open
    while (handled.length < 200) yield* Effect.sleep(20)
    assert.strictEqual(new Set(handled).size, 200)
    for (const running of workers) {
      const { handled, lost } = yield* running.counts
      assert.strictEqual(lost, 0)
      assert.isAtLeast(handled, 80)
    }
  })

it.live("Redis: two workers share a backlog of slow tasks, and no claim is lost", () =>
  Effect.gen(function*() {
    const { url } = yield* Brokers.redis()
    yield* share(Layer.build(Layer.fresh(RedisStreams.layer({ url }))))
  }))

it.live("JetStream: two workers share a backlog of slow tasks, and no claim is lost", () =>
  Effect.gen(function*() {
    const { url } = yield* Brokers.nats()
    yield* share(Layer.build(Layer.fresh(JetStream.layer({ url }))))
  }))
