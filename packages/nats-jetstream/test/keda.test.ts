import { assert, describe, it } from "@effect/vitest"
import { Pipeline, Publisher, Telemetry, Topic } from "@millrace/core"
import { JetStream } from "@millrace/nats-jetstream"
import { Brokers } from "@millrace/testing"
import { Effect, Schema } from "effect"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as Yaml from "yaml"

const Orders = Topic.make("orders", { schema: Schema.Number })

/** What the example in `dashboards` tells KEDA. */
const trigger: Record<string, string> = Yaml.parse(
  Fs.readFileSync(Path.join(import.meta.dirname, "../../../dashboards/keda-nats.yaml"), "utf8")
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
  it.live("the fields that its NATS scaler reads are there, under the names of the example", () =>
    Effect.scoped(Effect.gen(function*() {
      const { account, consumer, lagThreshold, stream } = trigger
      assert.isAbove(Number(lagThreshold), 0)
      const port = yield* Brokers.freePort
      const broker = yield* Brokers.nats({ config: `http: "127.0.0.1:${port}"` })
      yield* Effect.provide(backlog(consumer!), [JetStream.layer({ url: broker.url }), Telemetry.layerLogs(false)])
      const jsz = yield* Effect.promise(async () => {
        const response = await fetch(`http://127.0.0.1:${port}/jsz?acc=${account}&consumers=true&config=true`)
        return await response.json() as {
          readonly account_details: ReadonlyArray<{
            readonly name: string
            readonly stream_detail: ReadonlyArray<{
              readonly name: string
              readonly consumer_detail: ReadonlyArray<{
                readonly name: string
                readonly num_pending: number
                readonly config: { readonly max_waiting: number; readonly metadata: Record<string, string> }
              }>
            }>
          }>
        }
      })
      const found = jsz.account_details.find(({ name }) => name === account)!
        .stream_detail.find(({ name }) => name === stream)!
        .consumer_detail
      assert.deepStrictEqual(found.map(({ name, num_pending }) => [name, num_pending]), [[consumer, 2]])
      // `nats server check consumer` takes its thresholds from the consumer.
      const { max_waiting, metadata } = found[0]!.config
      assert.strictEqual(metadata["io.nats.monitor.enabled"], "true")
      assert.isBelow(Number(metadata["io.nats.monitor.waiting-critical"]), max_waiting)
      assert.isAbove(Number(metadata["io.nats.monitor.redelivery-critical"]), 0)
    })))
})
