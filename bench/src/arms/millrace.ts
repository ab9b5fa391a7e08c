/**
 * Pipelines with a handler that does nothing, or waits: as plain functions, as Effects, and with what a pipeline can be
 * armed with.
 */
import { type Message, Pipeline, Publisher, Telemetry, Topic, type Transport } from "@millrace/core"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as ManagedRuntime from "effect/ManagedRuntime"
import * as References from "effect/References"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { type Arm, sleep } from "../arm.ts"
import { Order } from "../order.ts"
import { outputOf, type Spec } from "../spec.ts"

/** What is worth a line to a user, once for each topic, is noise here. */
export const quietly = Effect.provideService(References.MinimumLogLevel, "Warn")

type Handle = (order: Order) => void
type Output = Topic.Topic<Order>
type Source = Pipeline.Open<Message.Message<Order>, Order, never, Transport.Transport>
type Built = Pipeline.Pipeline<Message.Message<Order>, unknown, unknown, Transport.Transport>

/** A function, or one that returns a promise. */
const plain = (source: Source, spec: Spec, handle: Handle) =>
  spec.delay === 0
    ? Pipeline.map(source, handle)
    : Pipeline.mapPromise(source, (order) => sleep(spec.delay).then(() => handle(order)))

const builders: Record<string, (source: Source, spec: Spec, handle: Handle, output: Output) => Built> = {
  /** Failures are thrown away. */
  bare: (source, spec, handle) => plain(source, spec, handle).pipe(Pipeline.retry({ times: 0 }), Pipeline.discard),
  /** As it comes: retries and dead letters by default. */
  plain,
  promise: (source, spec, handle) =>
    Pipeline.mapPromise(source, async (order) => {
      if (spec.delay > 0) await sleep(spec.delay)
      handle(order)
    }),
  /** An Effect that has to be run: a fiber a message. */
  effect: (source, spec, handle) =>
    Pipeline.mapEffect(source, (order) => {
      const handled = Effect.sync(() => handle(order))
      return spec.delay === 0 ? handled : Effect.andThen(Effect.sleep(spec.delay), handled)
    }),
  /** With what a pipeline in production says about failure. */
  armed: (source, spec, handle) =>
    plain(source, spec, handle).pipe(
      Pipeline.retry({
        times: 4,
        schedule: Schedule.exponential("1 second", 3).pipe(Schedule.jittered),
        while: () => true
      }),
      Pipeline.deadLetter("bench.dead")
    ),
  /** With metrics kept. */
  metered: plain,
  /** Metrics, and a span an attempt, under a tracer that throws them away. */
  traced: (source, spec, handle) => plain(source, spec, handle).pipe(Pipeline.middleware(Telemetry.spans())),
  /** Spans, of which no message gets one. */
  unsampled: (source, spec, handle) =>
    plain(source, spec, handle).pipe(Pipeline.middleware(Telemetry.spans({ sampleRatio: 0 }))),
  timed: (source, spec, handle) => plain(source, spec, handle).pipe(Pipeline.timeout("30 seconds")),
  keyed: (source, spec, handle) =>
    Pipeline.concurrency(plain(source, spec, handle), {
      max: spec.concurrency,
      key: (message) => message.value.customer
    }),
  /** Each handled message is published. */
  to: (source, _spec, handle, output) =>
    source.pipe(
      Pipeline.map((order) => {
        handle(order)
        return order
      }),
      Pipeline.to(output)
    ),
  /** Consumes messages that are published during the run. */
  roundTrip: plain,
  /** One message of a hundred fails once. */
  failing: (source, spec, handle) =>
    source.pipe(
      Pipeline.map((order, message) => {
        if (order.amount % 100 === 0 && message.attempt === 1) throw new Error("declined")
        return order
      }),
      (checked) => plain(checked, spec, handle),
      Pipeline.retry({ times: 4, schedule: Schedule.spaced("10 millis") })
    )
}

export const topicOf = (name: string) => Topic.make(name, { schema: Order })

const chunk = 1000
const fibers = 500

type Publish = (topic: Output, orders: ReadonlyArray<Order>) => Effect.Effect<void, unknown, Transport.Transport>

/** One call after the other. */
const publishAll: Publish = (topic, orders) =>
  Effect.gen(function*() {
    for (let start = 0; start < orders.length; start += chunk) {
      yield* Publisher.publishAll(topic, orders.slice(start, start + chunk))
    }
  })

const publishers: Record<string, Publish> = {
  publishAll,
  roundTrip: publishAll,
  /** Each fiber publishes one value, and waits for its confirmation before the next one. */
  publishEach: (topic, orders) =>
    Effect.forEach(orders, (order) => Publisher.publish(topic, order), { concurrency: fibers, discard: true })
}

export const make = async (
  runtime: ManagedRuntime.ManagedRuntime<Transport.Transport, unknown>,
  spec: Spec
): Promise<Arm> => {
  await runtime.context()
  const build = builders[spec.arm]
  const publish = publishers[spec.arm]
  if (build === undefined && publish === undefined) {
    throw new Error(`there is no arm ${spec.arm}, only ${Object.keys({ ...builders, ...publishers }).join(", ")}`)
  }
  return {
    ...(build === undefined ? {} : {
      async consume(topic, group, handle) {
        const source = Pipeline.from(topicOf(topic), { group, startFrom: "beginning" })
        const built = build(source, spec, handle, topicOf(outputOf(topic, group)))
        const pipeline = spec.arm === "keyed" ? built : Pipeline.concurrency(built, spec.concurrency)
        const scope = Scope.makeUnsafe()
        const isMetered = spec.arm === "metered" || spec.arm === "traced"
        await runtime.runPromise(
          Pipeline.start(pipeline).pipe(
            Scope.provide(scope),
            quietly,
            Effect.provideService(Telemetry.MetricsEnabled, isMetered)
          )
        )
        return () => runtime.runPromise(Scope.close(scope, Exit.void))
      }
    }),
    ...(publish === undefined ? {} : {
      publish: (topic, orders) => runtime.runPromise(publish(topicOf(topic), orders))
    }),
    close: () => runtime.dispose()
  }
}
