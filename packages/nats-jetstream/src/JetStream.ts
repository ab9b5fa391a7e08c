/**
 * Pipelines on NATS JetStream.
 *
 * A topic is a subject, a group a durable consumer. Both, and the stream that takes the subject, are created when a
 * pipeline starts, or verified. Everything else of Millrace runs on it unchanged; what only JetStream can do is here,
 * and puts {@link JetStream} into a pipeline's requirements.
 *
 * @since 0.1.0
 */
import type * as Message from "@millrace/core/Message"
import type * as Pipeline from "@millrace/core/Pipeline"
import type * as Topic from "@millrace/core/Topic"
import { Transport } from "@millrace/core/Transport"
import {
  durationOf,
  fromTransport,
  type Hints,
  type Invalid,
  quietly,
  withSetting
} from "@millrace/core/TransportAuthor"
import type * as TransportError from "@millrace/core/TransportError"
import type { NatsConnection } from "@nats-io/nats-core"
import type * as Arr from "effect/Array"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { addressOf, connect } from "./internal/connect.ts"
import { invalidStart } from "./internal/consumers.ts"
import { checkConnection, checkOptions } from "./internal/options.ts"
import { JetStream } from "./internal/service.ts"
import * as settings from "./internal/settings.ts"
import { markStandIn, standIn } from "./internal/standIn.ts"
import { make as makeService } from "./internal/transport.ts"
import type { CommonOptions, Options, StartFrom } from "./Options.ts"

export { ackSync, inProgress } from "./internal/acknowledging.ts"
export { consumerInfo, read, streamInfo } from "./internal/inspection.ts"
export { publish, publishBatch, to } from "./internal/publish.ts"
export { JetStream } from "./internal/service.ts"
export type {
  CommonOptions,
  ConsumerInfo,
  Manage,
  Options,
  Published,
  PublishOptions,
  Read,
  ReadOptions,
  StartFrom,
  StreamBounds,
  StreamInfo,
  StreamOptions
} from "./Options.ts"

const both = (service: JetStream["Service"]): Context.Context<JetStream | Transport> =>
  Context.make(JetStream, service).pipe(Context.add(Transport, service.transport))

/**
 * Creates both services; the connection closes with the scope.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (
  options: Options
): Effect.Effect<Context.Context<JetStream | Transport>, TransportError.TransportError, Scope.Scope> =>
  quietly(
    Effect.flatMap(connect(options), (client) => Effect.map(makeService(client, addressOf(options.url), options), both))
  )

/**
 * Connects to NATS. Fails with a `TransportError` when no server answers within `connectTimeout`; a connection that is
 * lost later is re-made for as long as the Layer lives.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options): Layer.Layer<JetStream | Transport, TransportError.TransportError> =>
  Layer.effectContext(make(options))

/**
 * As {@link layer}, with options that may come from configuration.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options: Config.Wrap<Options>
): Layer.Layer<JetStream | Transport, TransportError.TransportError | Config.ConfigError> =>
  Layer.effectContext(Effect.flatMap(Config.unwrap(options), make))

/**
 * Uses a connection made elsewhere, with `wsconnect` say. It stays open when the Layer closes.
 *
 * **Gotchas**
 *
 * The client gives up after ten tries to re-connect unless it was given `maxReconnectAttempts: -1`, and notices a dead
 * connection after minutes unless it was given a short `pingInterval`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerFromConnection = (
  connection: NatsConnection,
  options: CommonOptions = {}
): Layer.Layer<JetStream | Transport, TransportError.TransportError> =>
  Layer.effectContext(
    quietly(Effect.suspend(() =>
      checkConnection(connection) ?? checkOptions(options, []) ??
        Effect.map(makeService(connection, connection.getServer(), options), both)
    ))
  )

/**
 * Provides the service on the broker that is provided, for tests of pipelines that are made by {@link from} or use
 * `JetStream.ackSync`. `subject` of `TestHarness.publish` says on which subject a message was published.
 *
 * **Details**
 *
 * A message on a subject that the pipeline does not read is left out, as the server does; its acknowledgement is among
 * `settled` of the report. A message that names no subject reaches the pipeline. `ackSync` acknowledges. There is no
 * client, so that {@link publish}, {@link read} and the like fail.
 *
 * **Example** (A pipeline of many subjects, in the harness)
 *
 * ```ts import.meta.vitest
 * import { Pipeline, Topic } from "@millrace/core"
 * import { JetStream } from "@millrace/nats-jetstream"
 * import { TestHarness } from "@millrace/testing"
 * import { Effect, Layer, Schema } from "effect"
 *
 * const Orders = Topic.make("orders", { schema: Schema.String })
 * const regions = JetStream.from(Orders, { group: "regions", subject: "orders.{region}.created" }).pipe(
 *   Pipeline.tap((_, message) => JetStream.ackSync(message)),
 *   Pipeline.map((order, message) => `${message.params.region}: ${order}`)
 * )
 * const test = Effect.gen(function*() {
 *   const harness = yield* TestHarness.make(Orders, regions)
 *   yield* harness.publish("a", { subject: "orders.eu.created" })
 *   yield* harness.publish("b", { subject: "orders.eu.deleted" })
 *   return yield* harness.runUntilIdle()
 * }).pipe(Effect.scoped, Effect.provide(JetStream.layerTest.pipe(Layer.provideMerge(TestHarness.layer))))
 *
 * const report = await Effect.runPromise(test)
 * report.handled.map(({ value }) => value) // => ["eu: a"]
 * ```
 *
 * @category testing
 * @since 0.1.0
 */
export const layerTest: Layer.Layer<JetStream, never, Transport> = Layer.effect(
  JetStream,
  Transport.useSync((transport) => {
    const service = JetStream.of({ transport: standIn(transport), client: noClient })
    markStandIn(service)
    return service
  })
)

const noClient: NatsConnection = new Proxy({} as NatsConnection, {
  get: () => {
    throw new Error("JetStream.layerTest has no client: use Brokers.nats() of @millrace/testing")
  }
})

/**
 * The names in braces of a subject: `"orders.{region}.{kind}"` has `region` and `kind`.
 *
 * @category models
 * @since 0.1.0
 */
export type Params<S extends string> = { readonly [K in ParamNames<S>]: string }

type ParamNames<S extends string> = S extends `${string}{${infer Name}}${infer Rest}` ? Name | ParamNames<Rest> : never

/**
 * A message with the parameters of its subject.
 *
 * @category models
 * @since 0.1.0
 */
export interface WithParams<out A, out P> extends Message.Message<A> {
  readonly params: P
}

/**
 * What a source on JetStream takes beside what every source does.
 *
 * - `subject`: what to read, where that is not the topic's own name: parts may be `*` or `{name}`, the last one `>`
 *
 * @category models
 * @since 0.1.0
 */
export interface FromOptions extends Omit<Pipeline.FromOptions, "startFrom"> {
  /** Several of them, without names. */
  readonly subjects?: Arr.NonEmptyReadonlyArray<string> | undefined
  /**
   * The stream to read, by its name, where that is not the one that takes the topic: a mirror, one that sources or
   * transforms. Without `subject` or `subjects`, all that it holds.
   */
  readonly stream?: string | undefined
  /** Also a stream sequence or a time. */
  readonly startFrom?: StartFrom | undefined
  /** This consumer's, instead of the layer's. */
  readonly ackWait?: Duration.Input | Hints["duration"] | undefined
}

/**
 * Starts a pipeline at a topic on JetStream.
 *
 * **Example** (Reading parameters from the subject)
 *
 * ```ts
 * import { Pipeline, Topic } from "@millrace/core"
 * import { JetStream } from "@millrace/nats-jetstream"
 * import { Schema } from "effect"
 *
 * const Orders = Topic.make("orders", { schema: Schema.Struct({ id: Schema.String }) })
 *
 * JetStream.from(Orders, { group: "regions", subject: "orders.{region}" }).pipe(
 *   Pipeline.map((order, message) => `${message.params.region}: ${order.id}`)
 * )
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const from: {
  /**
   * Starts a pipeline at a topic on JetStream.
   */
  <A, H, RD, RE>(
    topic: Topic.TopicWithHeaders<A, H, RD, RE>,
    options: FromOptions & { readonly subject?: undefined }
  ): Pipeline.Open<Message.WithHeaders<A, H>, A, never, JetStream | RD>
  /**
   * Starts a pipeline at a topic on JetStream.
   */
  <A, RD, RE, const S extends string>(
    topic: Topic.Topic<A, RD, RE>,
    options: FromOptions & { readonly subject: S }
  ): Pipeline.Open<WithParams<A, Params<S>>, A, never, JetStream | RD>
  /**
   * Starts a pipeline at a topic on JetStream.
   */
  <A, RD, RE>(
    topic: Topic.Topic<A, RD, RE>,
    options: FromOptions & { readonly subject?: undefined }
  ): Pipeline.Open<Message.Message<A>, A, never, JetStream | RD>
} = (topic: Topic.Topic<any, any, any>, options: FromOptions & { readonly subject?: string | undefined }): any => {
  // JavaScript may leave the options out: starting refuses that, making a pipeline never throws.
  const { ackWait, startFrom, stream } = options ?? {}
  const badText = notText(options ?? {})
  const { subject, subjects } = badText === undefined ? options ?? {} : {}
  const wait = ackWait === undefined ? undefined : durationOf("ackWait", ackWait)
  let context = Context.empty()
  const set = <A>(reference: Context.Reference<A>, value: A) => context = Context.add(context, reference, value)
  if (subject !== undefined || subjects !== undefined) {
    set(settings.Subjects, [
      ...subject === undefined ? [] : [subject.replaceAll(/\{[^{}.]+\}/g, "*")],
      ...subjects ?? []
    ] as unknown as Arr.NonEmptyReadonlyArray<string>)
  }
  if (stream !== undefined) set(settings.StreamName, stream)
  if (startFrom !== undefined) set(settings.Start, startFrom)
  if (wait !== undefined) set(settings.AckWait, wait.duration)
  const named = (subject ?? "").split(".").flatMap((part, index) =>
    part.startsWith("{") && part.endsWith("}") ? [{ name: part.slice(1, -1), index }] : []
  )
  return fromTransport<any, any, any, JetStream, any>(topic, options && { ...options, startFrom: undefined } as any, {
    options: ["ackWait", "stream", "subject", "subjects"],
    invalid: badText ?? wait?.invalid ?? invalidStart(startFrom),
    transport: JetStream.use((service) => Effect.succeed(service.transport)),
    settings: context,
    extend: subject === undefined ? undefined : (message, delivery) => {
      const parts = delivery.topic.split(".")
      const params: Record<string, string> = {}
      for (const { index, name } of named) params[name] = parts[index] ?? ""
      return Object.assign(message, { params })
    }
  })
}

/** JavaScript may give anything for a name. */
const notText = (
  { stream, subject, subjects }: { readonly stream?: unknown; readonly subject?: unknown; readonly subjects?: unknown }
): Invalid | undefined => {
  const isText = (value: unknown) => typeof value === "string" && value !== ""
  for (const [option, value] of Object.entries({ subject, stream })) {
    if (value !== undefined && !isText(value)) return { option, value, remedy: "give a text that is not empty" }
  }
  return subjects === undefined || (Array.isArray(subjects) && subjects.length > 0 && subjects.every(isText))
    ? undefined
    : { option: "subjects", value: subjects, remedy: "give an array of texts, at least one" }
}

/**
 * How a pipeline's acknowledgements are sent.
 *
 * **Details**
 *
 * - `"write"` (default): written once per turn of the event loop, and known to have arrived when the server has answered
 *   behind them. A server that is killed may forget some: those messages come again
 * - `"confirm"`: the server answers each one when it has taken it; about a fifth of the speed
 *
 * @category policies
 * @since 0.1.0
 */
export const acknowledge: {
  /**
   * How a pipeline's acknowledgements are sent.
   *
   * **Details**
   *
   * - `"write"` (default): written once per turn of the event loop, and known to have arrived when the server has answered
   *   behind them. A server that is killed may forget some: those messages come again
   * - `"confirm"`: the server answers each one when it has taken it; about a fifth of the speed
   */
  (mode: "write" | "confirm"): <M extends Message.Any, A, E, R>(
    self: Pipeline.Pipeline<M, A, E, R>
  ) => Pipeline.Pipeline<M, A, E, R | JetStream>
  /**
   * How a pipeline's acknowledgements are sent.
   *
   * **Details**
   *
   * - `"write"` (default): written once per turn of the event loop, and known to have arrived when the server has answered
   *   behind them. A server that is killed may forget some: those messages come again
   * - `"confirm"`: the server answers each one when it has taken it; about a fifth of the speed
   */
  <M extends Message.Any, A, E, R>(
    self: Pipeline.Pipeline<M, A, E, R>,
    mode: "write" | "confirm"
  ): Pipeline.Pipeline<M, A, E, R | JetStream>
} = dual(
  2,
  (self: Pipeline.AnyPipeline, mode: "write" | "confirm") => withSetting(self, settings.Acknowledge, mode)
)
