// That services are missing is the point. @effect-diagnostics missingEffectContext:off
/** The mistakes of a first hour: each test holds the sentence that the compiler prints. */
import { Millrace, Pipeline, Settlement, Topic, type Transport, type TransportError } from "@millrace/core"
import { JetStream } from "@millrace/nats-jetstream"
import { RedisStreams } from "@millrace/redis-streams"
import { Config, Duration, Effect, Layer, Redacted, Schema } from "effect"
import { describe, test } from "tstyche"

const Order = Schema.Struct({ id: Schema.String, user: Schema.Number })
const Orders = Topic.make("orders", { schema: Order })
const orders = Pipeline.from(Orders, { group: "payments" })
declare const save: (id: string) => Promise<void>
declare const runs: (program: Effect.Effect<unknown, TransportError.TransportError>) => void
declare const anyBroker: Layer.Layer<Transport.Transport, TransportError.TransportError>

describe("what a pipeline needs", () => {
  test("a missing Layer is named with the remedy", () => {
    // @ts-expect-error no Layer provides this service: Effect.provide the broker's, or your own
    runs(Pipeline.run(orders))
    runs(Pipeline.run(orders).pipe(Effect.provide(anyBroker)))
  })

  test("another broker's Layer is no remedy", () => {
    const removing = RedisStreams.from(Orders, { group: "payments" })
    const nats = JetStream.layer({ url: "nats://localhost:4222" })
    // @ts-expect-error no Layer provides this service: Effect.provide the broker's, or your own
    runs(Pipeline.run(removing).pipe(Effect.provide(nats)))
  })

  test("a scope that nothing closes", () => {
    // @ts-expect-error nothing closes this pipeline: use Pipeline.run, or Effect.scoped around the whole program
    runs(Pipeline.start(orders).pipe(Effect.provide(anyBroker)))
    runs(Effect.scoped(Pipeline.start(orders)).pipe(Effect.provide(anyBroker)))
  })
})

describe("what a function returns", () => {
  test("map", () => {
    // @ts-expect-error this returns a Promise: use Pipeline.mapPromise
    orders.pipe(Pipeline.map(async (order) => order.id))
    // @ts-expect-error this returns an Effect: use Pipeline.mapEffect
    orders.pipe(Pipeline.map((order) => Effect.log(order.id)))
  })

  test("an async function in a step for Effects", () => {
    // @ts-expect-error this returns a Promise: use Pipeline.tapPromise
    orders.pipe(Pipeline.tap(async (order) => save(order.id)))
    // @ts-expect-error this returns a Promise: use Pipeline.mapPromise
    orders.pipe(Pipeline.mapEffect((order) => save(order.id)))
    // @ts-expect-error this returns a Promise: use Pipeline.batchPromise
    orders.pipe(Pipeline.batch({ size: 10, within: "1 second" }, async (orders) => save(orders[0].id)))
    // @ts-expect-error this returns a Promise: use Pipeline.batchEachPromise
    orders.pipe(Pipeline.batchEach({ size: 10, within: "1 second" }, async (orders) => save(orders[0].id)))
    // @ts-expect-error this returns a Promise: use Pipeline.catchTagPromise
    orders.pipe(Pipeline.timeout("1 second"), Pipeline.catchTag("TimeoutError", async () => save("late")))
  })

  test("a plain value in a step for Effects", () => {
    // @ts-expect-error this returns no Effect: return one, such as Effect.sync(() => …)
    orders.pipe(Pipeline.tap((order) => console.log(order)))
    // @ts-expect-error this returns no Effect: return one, such as Effect.sync(() => …)
    orders.pipe(Pipeline.mapEffect((order) => order.id))
    // @ts-expect-error this gives no array of results: return one Result for each value, in the same order
    orders.pipe(Pipeline.batchEach({ size: 10, within: "1 second" }, () => Effect.succeed("done")))
  })

  test("an Effect in a step for promises", () => {
    // @ts-expect-error this resolves to an Effect that is never run: use Pipeline.mapEffect
    orders.pipe(Pipeline.mapPromise(async (order) => Effect.log(order.id)))
  })
})

describe("options", () => {
  test("a key that is no string", () => {
    // @ts-expect-error a key is a string: convert it, as in String(value.id)
    Topic.make("orders", { schema: Order, key: (order) => order.user })
    Topic.make("orders", { schema: Order, key: (order) => order.user > 0 ? order.id : undefined })
  })

  test("a secret that is a plain text", () => {
    // @ts-expect-error a secret is wrapped, so that no log shows it: Redacted.make(text) of effect
    RedisStreams.layer({ url: "redis://localhost:6379", password: "secret" })
    // @ts-expect-error a secret is wrapped, so that no log shows it: Redacted.make(text) of effect
    JetStream.layer({ url: "nats://localhost:4222", token: "secret" })
    RedisStreams.layer({ url: "redis://localhost:6379", password: Redacted.make("secret") })
    RedisStreams.layerConfig({ url: Config.String("URL"), password: Config.Redacted("PASSWORD") })
    JetStream.layerConfig({ url: Config.Redacted("URL"), token: Config.Redacted("TOKEN") })
  })

  test("a topic without a name", () => {
    // @ts-expect-error a topic name has at least one character
    Topic.make("", { schema: Order })
    // @ts-expect-error a topic name has at least one character
    orders.pipe(Pipeline.deadLetter(""))
  })

  test("a text that is no duration", () => {
    // @ts-expect-error this is no duration: write it as '5 seconds', '100 millis' or a number of milliseconds
    orders.pipe(Pipeline.timeout("5s"))
    orders.pipe(Pipeline.timeout("5 seconds"), Pipeline.timeout(5000))
    // @ts-expect-error write a duration as '5 seconds', '100 millis' or a number of milliseconds
    Pipeline.from(Orders, { group: "payments", drainTimeout: "5s" })
    // @ts-expect-error write a duration as '5 seconds', '100 millis' or a number of milliseconds
    orders.pipe(Pipeline.batch({ size: 10, within: "1s" }, () => Effect.void))
    // @ts-expect-error write a duration as '5 seconds', '100 millis' or a number of milliseconds
    RedisStreams.layer({ url: "redis://localhost:6379", claim: { minIdle: "1m" } })
    // @ts-expect-error write a duration as '5 seconds', '100 millis' or a number of milliseconds
    JetStream.layer({ url: "nats://localhost:4222", ackWait: "1m" })
    // @ts-expect-error write a duration as '5 seconds', '100 millis' or a number of milliseconds
    Settlement.retry("1m")
    Pipeline.from(Orders, { group: "payments", drainTimeout: Duration.seconds(5) })
    RedisStreams.layerConfig({ url: Config.String("URL"), claim: { minIdle: Config.Duration("IDLE") } })
  })

  test("`while` where nothing has a typed failure", () => {
    const throwing = orders.pipe(Pipeline.map((order) => order.id))
    // @ts-expect-error no step above has a typed failure, so there is nothing to ask
    throwing.pipe(Pipeline.retry({ while: (error) => error instanceof TypeError }))
  })

  test("a step after a policy", () => {
    // @ts-expect-error steps come before policies
    orders.pipe(Pipeline.concurrency(2), Pipeline.map((order) => order.id))
  })

  test("no group", () => {
    // @ts-expect-error Property 'group' is missing
    Pipeline.from(Orders, {})
  })
})

describe("Millrace.run", () => {
  test("takes a pipeline, or several, whose services the broker's Layer has", () => {
    Millrace.run(orders, { broker: anyBroker })
    Millrace.run([orders, RedisStreams.from(Orders, { group: "b" })], {
      broker: RedisStreams.layer({ url: "redis://a" })
    })
  })

  test("another broker's pipeline is refused", () => {
    // @ts-expect-error the broker's Layer lacks a service that this pipeline needs
    Millrace.run(RedisStreams.from(Orders, { group: "b" }), { broker: JetStream.layer({ url: "nats://a" }) })
  })

  test("one of several brokers has to have the services, whichever it is", () => {
    const broker = Math.random() < 0.5 ? RedisStreams.layer({ url: "redis://a" }) : JetStream.layer({ url: "nats://a" })
    Millrace.run(orders, { broker })
    Millrace.run([orders], { broker })
    Millrace.make({ broker, pipelines: [orders] })
    // @ts-expect-error the broker's Layer lacks a service that this pipeline needs
    Millrace.run(RedisStreams.from(Orders, { group: "b" }), { broker })
    // @ts-expect-error the broker's Layer lacks a service that this pipeline needs
    Millrace.make({ broker, pipelines: [RedisStreams.from(Orders, { group: "b" })] })
  })

  test("a Layer without a broker is refused", () => {
    // @ts-expect-error is not assignable to type
    Millrace.run(orders, { broker: Layer.empty })
  })
})
