// That services are missing is the point. @effect-diagnostics missingEffectContext:off
import { type Message, Pipeline, type Publisher, Topic, type TransportError } from "@millrace/core"
import { JetStream } from "@millrace/nats-jetstream"
import { RedisStreams } from "@millrace/redis-streams"
import { MemoryTransport } from "@millrace/testing"
import { Config, Effect, Schema } from "effect"
import { describe, expect, test } from "tstyche"

class Order extends Schema.Opaque<Order>()(Schema.Struct({ id: Schema.String })) {}
const Orders = Topic.make("orders", { schema: Order })

const redis = RedisStreams.layer({ url: "redis://localhost:6379" })
const nats = JetStream.layer({ url: "nats://localhost:4222" })
const memory = MemoryTransport.layer()

declare const runs: (program: Effect.Effect<never, TransportError.TransportError>) => void

test("a pipeline that says nothing of a broker runs on each", () => {
  const portable = Pipeline.run(Pipeline.from(Orders, { group: "g" }).pipe(Pipeline.map((order) => order.id)))
  runs(portable.pipe(Effect.provide(redis)))
  runs(portable.pipe(Effect.provide(nats)))
  runs(portable.pipe(Effect.provide(memory)))
  // @ts-expect-error Type 'Transport & Hint<"no Layer provides this service
  runs(portable)
})

describe("what only Redis has compiles against Redis only", () => {
  test("remove", () => {
    const removing = Pipeline.run(
      Pipeline.from(Orders, { group: "g" }).pipe(Pipeline.tap((_, message) => RedisStreams.remove(message)))
    )
    runs(removing.pipe(Effect.provide(redis)))
    // @ts-expect-error Type 'RedisStreams & Hint<"no Layer provides this service
    runs(removing.pipe(Effect.provide(nats)))
    // @ts-expect-error Type 'RedisStreams & Hint<"no Layer provides this service
    runs(removing.pipe(Effect.provide(memory)))
  })

  test("removeOnSuccess", () => {
    const removing = Pipeline.run(Pipeline.from(Orders, { group: "g" }).pipe(RedisStreams.removeOnSuccess))
    runs(removing.pipe(Effect.provide(redis)))
    // @ts-expect-error Type 'RedisStreams & Hint<"no Layer provides this service
    runs(removing.pipe(Effect.provide(nats)))
  })

  test("RedisStreams.from", () => {
    const source = RedisStreams.from(Orders, { group: "g", startFrom: "1690000000000-0", block: "1 second" })
    expect(source).type.toBe<Pipeline.Open<Message.Message<Order>, Order, never, RedisStreams.RedisStreams>>()
    runs(Pipeline.run(source).pipe(Effect.provide(redis)))
    // @ts-expect-error Type 'RedisStreams & Hint<"no Layer provides this service
    runs(Pipeline.run(source).pipe(Effect.provide(memory)))
    // @ts-expect-error Type 'RedisStreams & Hint<"no Layer provides this service
    runs(Pipeline.run(source).pipe(Effect.provide(nats)))
  })
})

describe("what only JetStream has compiles against JetStream only", () => {
  test("ackSync", () => {
    const confirming = Pipeline.run(
      Pipeline.from(Orders, { group: "g" }).pipe(Pipeline.tap((_, message) => JetStream.ackSync(message)))
    )
    runs(confirming.pipe(Effect.provide(nats)))
    // @ts-expect-error Type 'JetStream & Hint<"no Layer provides this service
    runs(confirming.pipe(Effect.provide(redis)))
    // @ts-expect-error Type 'JetStream & Hint<"no Layer provides this service
    runs(confirming.pipe(Effect.provide(memory)))
  })

  test("JetStream.from, which reads parameters from the subject", () => {
    const source = JetStream.from(Orders, { group: "g", subject: "orders.{region}.{shop}" })
    source.pipe(Pipeline.map((_, { params }) => {
      expect(params).type.toBe<{ readonly region: string; readonly shop: string }>()
      return params.region
    }))
    runs(Pipeline.run(source).pipe(Effect.provide(nats)))
    // @ts-expect-error Type 'JetStream & Hint<"no Layer provides this service
    runs(Pipeline.run(source).pipe(Effect.provide(redis)))
    // @ts-expect-error Type 'JetStream & Hint<"no Layer provides this service
    runs(Pipeline.run(source).pipe(Effect.provide(memory)))
  })
})

test("JetStream.to crosses brokers: Redis in, NATS out, with both layers", () => {
  const crossing = RedisStreams.from(Orders, { group: "g" }).pipe(JetStream.to(Orders))
  expect(crossing).type.toBe<
    Pipeline.Open<
      Message.Message<Order>,
      Order,
      Publisher.PublishError,
      RedisStreams.RedisStreams | JetStream.JetStream
    >
  >()
  runs(Pipeline.run(crossing).pipe(Effect.provide([redis, nats])))
  // @ts-expect-error Type 'JetStream & Hint<"no Layer provides this service
  runs(Pipeline.run(crossing).pipe(Effect.provide(redis)))
})

test("layers read their options from configuration", () => {
  const program = Pipeline.run(Pipeline.from(Orders, { group: "g" }))
  const url = Config.String("URL")
  expect(program.pipe(Effect.provide(RedisStreams.layerConfig({ url })))).type.toBe<
    Effect.Effect<never, TransportError.TransportError | Config.ConfigError>
  >()
  expect(program.pipe(Effect.provide(JetStream.layerConfig({ url })))).type.toBe<
    Effect.Effect<never, TransportError.TransportError | Config.ConfigError>
  >()
})
