import { assert, describe, it } from "@effect/vitest"
import { Pipeline, Publisher, Telemetry, Topic } from "@millrace/core"
import { RedisStreams } from "@millrace/redis-streams"
import { Brokers } from "@millrace/testing"
import { Effect, Schema } from "effect"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { createClient } from "redis"
import * as Yaml from "yaml"

const Orders = Topic.make("orders", { schema: Schema.Number })

/** What the example in `dashboards` tells KEDA. */
const trigger: Record<string, string> = Yaml.parse(
  Fs.readFileSync(Path.join(import.meta.dirname, "../../../dashboards/keda-redis.yaml"), "utf8")
).spec.triggers[0].metadata

/** A group that has handled one of three messages, and stopped. */
const backlog = (group: string) =>
  Effect.gen(function*() {
    yield* Effect.scoped(Effect.gen(function*() {
      const running = yield* Pipeline.start(
        Pipeline.from(Orders, { group, prefetch: 0 }).pipe(Pipeline.map(() => {}))
      )
      yield* Publisher.publish(Orders, 1)
      while ((yield* running.counts).handled < 1) yield* Effect.sleep("5 millis")
    }))
    yield* Publisher.publishAll(Orders, [2, 3])
  })

describe("KEDA", () => {
  it.live("the fields that its Redis scaler reads are there, under the names of the example", () =>
    Effect.scoped(Effect.gen(function*() {
      const { consumerGroup, lagCount, stream } = trigger
      assert.strictEqual(stream, Orders.name)
      assert.isAbove(Number(lagCount), 0)
      const broker = yield* Brokers.redis()
      yield* Effect.provide(backlog(consumerGroup!), [
        RedisStreams.layer({ url: broker.url }),
        Telemetry.layerLogs(false)
      ])
      const client = yield* Effect.acquireRelease(
        Effect.promise(() => createClient({ url: broker.url }).connect()),
        (client) => Effect.promise(() => client.close())
      )
      const groups = yield* Effect.promise(() => client.xInfoGroups(stream!))
      assert.deepStrictEqual(groups.map(({ lag, name }) => [name, lag]), [[consumerGroup, 2]])
    })))
})
