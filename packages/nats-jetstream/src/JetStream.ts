/**
 * Pipelines on NATS JetStream.
 *
 * A topic is a subject, a group a durable consumer. Both, and the stream that takes the subject, are created when a
 * pipeline starts, or verified. Everything else of Millrace runs on it unchanged; what only JetStream can do is here,
 * and puts {@link JetStream} into a pipeline's requirements.
 *
 * @since 0.1.0
 */
import * as Concurrency from "@millrace/core/Concurrency"
import * as Message from "@millrace/core/Message"
import * as Pipeline from "@millrace/core/Pipeline"
import * as Publisher from "@millrace/core/Publisher"
import * as Settlement from "@millrace/core/Settlement"
import type * as Topic from "@millrace/core/Topic"
import { Transport } from "@millrace/core/Transport"
import * as TransportError from "@millrace/core/TransportError"
import type { StreamConfig } from "@nats-io/jetstream"
import { type NatsConnection, nuid, type TlsOptions } from "@nats-io/nats-core"
import * as Arr from "effect/Array"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import type * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as atomic from "./internal/atomic.ts"
import * as browsing from "./internal/browsing.ts"
import { addressOf, connect } from "./internal/connect.ts"
import {
  type Connection,
  failure,
  interrupted,
  transport as transportName,
  unexpected,
  watch
} from "./internal/connection.ts"
import { JetStreamDelivery } from "./internal/delivery.ts"
import { groups } from "./internal/groups.ts"
import { Condition } from "./internal/health.ts"
import { AttemptLedger } from "./internal/ledger.ts"
import { idOf } from "./internal/life.ts"
import * as names from "./internal/names.ts"
import * as publishing from "./internal/publishing.ts"
import * as resources from "./internal/resources.ts"
import { atLeast } from "./internal/server.ts"
import * as settings from "./internal/settings.ts"
import { confirmAll } from "./internal/settling.ts"
import { standIn } from "./internal/standIn.ts"
import { subscribe } from "./internal/subscription.ts"

/**
 * What a layer does with the streams and consumers that its pipelines need.
 *
 * - `"create"`: those that are absent are created, those that exist are verified and never changed (default)
 * - `"verify"`: all must exist as they are needed
 * - `"none"`: as `"verify"`, and no bucket for notes is looked for: a message that is handed back counts an attempt
 *
 * @category models
 * @since 0.1.0
 */
export type Manage = "create" | "verify" | "none"

/**
 * Options that do not concern the connection itself.
 *
 * @category models
 * @since 0.1.0
 */
export interface CommonOptions {
  /** Handlers that run at once, of all pipelines on this layer together; default unbounded. */
  readonly concurrency?: number | undefined
  /** What is done with streams and consumers that are absent. Default `"create"`. */
  readonly manage?: Manage | undefined
  /**
   * `"until-acked"` makes work queues: a message is gone when its group has settled it. Default: streams keep what
   * they take, within the bounds of `stream`.
   */
  readonly retention?: "limits" | "until-acked" | undefined
  /** Of streams that are created; verified on those that exist, where given. */
  readonly stream?: StreamOptions | undefined
  /**
   * How long the server waits for a sign of life, and so how soon a peer gets the messages of a process that died; of
   * consumers that are created, default 30 seconds. Long handlers are kept alive.
   */
  readonly ackWait?: Duration.Input | undefined
  /** How long a confirmation may take; default 5 seconds. */
  readonly publishTimeout?: Duration.Input | undefined
  /** The JetStream domain. */
  readonly domain?: string | undefined
  /** Instead of `domain`, where an account imports the API under another name. */
  readonly apiPrefix?: string | undefined
  /** For users that may only subscribe below it, default `_INBOX`; a connection made elsewhere needs it too. */
  readonly inboxPrefix?: string | undefined
}

/**
 * How streams are created.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamOptions {
  /** Where the server keeps messages. Default `"file"`. */
  readonly storage?: "file" | "memory" | undefined
  /** On how many servers. Default 1. */
  readonly replicas?: number | undefined
  /** Messages that are older are deleted. Default: none. */
  readonly maxAge?: Duration.Input | undefined
  /** The oldest messages beyond this number are deleted. Default: none. */
  readonly maxMessages?: number | undefined
  /** The oldest messages beyond this size are deleted. Default: none. */
  readonly maxBytes?: number | undefined
  /** How long the server recognises the id of a message. Default 2 minutes. */
  readonly duplicateWindow?: Duration.Input | undefined
  /** Whatever else the server knows, under its own names. */
  readonly config?: Partial<StreamConfig> | undefined
}

/**
 * Options of {@link layer}.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options extends CommonOptions {
  /** `nats://host:port` or `tls://host:port`, several separated by commas; with `user:password@` or `token@`. */
  readonly url: string | Redacted.Redacted<string>
  /** The name of the connection, as the server shows it. */
  readonly name?: string | undefined
  /** A token, instead of a user and a password. */
  readonly token?: Redacted.Redacted<string> | undefined
  /** The text of a credentials file. */
  readonly credentials?: Redacted.Redacted<string> | undefined
  /** The seed of a user without a credentials file. */
  readonly nkey?: Redacted.Redacted<string> | undefined
  /** Certificates, as texts or files; a `tls://` URL needs none of its own where a known authority vouches. */
  readonly tls?: TlsOptions | undefined
  /** Until the first connection; default 10 seconds. */
  readonly connectTimeout?: Duration.Input | undefined
}

/**
 * A connection to JetStream.
 *
 * `client` is the connection of `@nats-io/nats-core`, for what Millrace leaves alone: core NATS, key-value and object
 * stores.
 *
 * @category services
 * @since 0.1.0
 */
export class JetStream extends Context.Service<JetStream, {
  readonly transport: Transport["Service"]
  readonly client: NatsConnection
}>()("@millrace/nats-jetstream/JetStream") {}

interface Parts {
  readonly connection: Connection
  readonly declaring: resources.Declaring
  readonly send: (
    sendings: Arr.NonEmptyReadonlyArray<publishing.Sending>
  ) => Effect.Effect<ReadonlyArray<Result.Result<publishing.Confirmed, Publisher.PublishError>>>
  /** Topics that have been declared since the layer was built. */
  readonly declared: Set<string>
}

/** What the functions of this module need and nobody else should see. */
const parts = new WeakMap<object, Parts>()

const partsOf: Effect.Effect<Parts, never, JetStream> = JetStream.use((service) => {
  const found = parts.get(service)
  return found === undefined
    ? Effect.die(
      new Error("this JetStream service was not made by JetStream.layer, layerConfig or layerFromConnection")
    )
    : Effect.succeed(found)
})

const make = Effect.fnUntraced(function*(
  client: NatsConnection,
  address: string,
  options: CommonOptions
): Effect.fn.Return<JetStream["Service"], TransportError.TransportError, Scope.Scope> {
  const concurrency = options.concurrency ?? Infinity
  if (!(concurrency === Infinity || (Number.isInteger(concurrency) && concurrency > 0))) {
    return yield* TransportError.invalidOption(
      transportName,
      "concurrency",
      concurrency,
      "give a whole number of handlers, 1 or more, or leave it out"
    )
  }
  if (!atLeast(client.info?.version, 2, 9)) {
    return yield* failure(
      new TransportError.Unsupported({
        operation: `nats-server ${client.info?.version}`,
        remedy: "Millrace needs nats-server 2.9, and recommends 2.10 or newer"
      })
    )
  }
  const inboxPrefix = options.inboxPrefix ?? "_INBOX"
  const connection = yield* watch(client, {
    address,
    ...(options.domain === undefined ? {} : { domain: options.domain }),
    ...(options.apiPrefix === undefined ? {} : { apiPrefix: options.apiPrefix })
  })
  const publishTimeout = Duration.fromInputUnsafe(options.publishTimeout ?? "5 seconds")
  const { send } = yield* publishing.publishing(connection, { timeout: publishTimeout, inboxPrefix })
  const declaring: resources.Declaring = {
    manage: options.manage ?? "create",
    retention: options.retention,
    ackWait: options.ackWait,
    ...options.stream
  }
  const context = yield* Effect.context<never>()
  const ledger = yield* Effect.acquireRelease(
    Effect.sync(() =>
      new AttemptLedger({
        connection,
        manage: declaring.manage,
        run: Effect.runForkWith(context),
        runPromise: Effect.runPromiseWith(context)
      })
    ),
    (ledger) => Effect.sync(() => ledger.close())
  )
  const declared = new Set<string>()
  const declare = Effect.fnUntraced(function*(topic: string): Effect.fn.Return<void, TransportError.TransportError> {
    const badName = names.validateTopic(topic)
    if (badName !== undefined) return yield* badName
    yield* resources.whenReady(resources.ensureStream(connection, declaring, topic, Arr.of(topic)))
    declared.add(topic)
  })
  /** Makes the stream that a message lacks: a publisher need not know whether a consumer has been started before. */
  const publish = Effect.fnUntraced(function*(sendings: Arr.NonEmptyReadonlyArray<publishing.Sending>) {
    const answers = yield* send(sendings)
    const unheard = sendings.flatMap((sending, index) => {
      const answer = answers[index]!
      return Result.isFailure(answer) && publishing.isNobody(answer.failure) ? [{ sending, index }] : []
    })
    if (!Arr.isArrayNonEmpty(unheard)) return answers
    const results = answers.slice()
    for (const [topic, ones] of Object.entries(Arr.groupBy(unheard, ({ sending }) => sending.message.topic))) {
      const declaration = yield* Effect.result(declare(topic))
      if (Result.isSuccess(declaration)) {
        const again = yield* send(Arr.map(ones, ({ sending }) => sending))
        for (let i = 0; i < ones.length; i++) results[ones[i]!.index] = again[i]!
      } else if (declaration.failure.reason._tag === "Mismatch" || declaration.failure.reason._tag === "Unauthorized") {
        const reason = new Publisher.Refused({ detail: declaration.failure.message })
        for (const { index } of ones) results[index] = Result.fail(new Publisher.PublishError({ topic, reason }))
      }
    }
    return results
  })
  /** An id that nobody else knows is good for nobody else: what may not have arrived is published again here, once. */
  const publishOnce = Effect.fnUntraced(function*(messages: Parameters<Transport["Service"]["publish"]>[0]) {
    const sendings = Arr.map(messages, (message) => ({
      message: message.id === undefined ? { ...message, id: nuid.next() } : message
    }))
    const answers = yield* publish(sendings)
    const unknown = sendings.flatMap((sending, index) => {
      const answer = answers[index]!
      const isOurs = messages[index]!.id === undefined
      return isOurs && Result.isFailure(answer) && answer.failure.reason._tag === "OutcomeUnknown"
        ? [{ sending, index }]
        : []
    })
    if (!Arr.isArrayNonEmpty(unknown)) return answers
    yield* Effect.ignore(Effect.timeoutOption(connection.whenConnected, publishTimeout))
    const again = yield* send(Arr.map(unknown, ({ sending }) => sending))
    const results = answers.slice()
    unknown.forEach(({ index }, i) => {
      const answer = again[i]!
      // Not sent this time says nothing about the first.
      if (Result.isSuccess(answer) || answer.failure.reason._tag !== "NotSent") results[index] = answer
    })
    return results
  })
  /** A sequence is unique within one life of its stream only. */
  const identified = Effect.fnUntraced(function*(
    answers: ReadonlyArray<Result.Result<publishing.Confirmed, Publisher.PublishError>>
  ) {
    const results: Array<Result.Result<publishing.Confirmed, Publisher.PublishError>> = []
    for (const answer of answers) {
      if (Result.isFailure(answer)) {
        results.push(answer)
        continue
      }
      const { duplicate, sequence, stream } = answer.success
      const life = connection.lives.ofPublished(stream, sequence, duplicate) ??
        (yield* Effect.orElseSucceed(
          Effect.map(connection.call(`looking for stream ${stream}`, (jsm) => jsm.streams.info(stream)), (info) => {
            const life = connection.lives.note(info)
            connection.lives.ofPublished(stream, sequence, duplicate)
            return life
          }),
          () => undefined
        ))
      // A user that may not look for the stream gets the bare sequence, which `get` and `remove` take too.
      results.push(life === undefined ? answer : Result.succeed({ ...answer.success, id: idOf(life, sequence) }))
    }
    return results
  })
  const condition = new Condition(Date.now)
  const transport: Transport["Service"] = {
    name: transportName,
    address,
    capabilities: {
      deduplication: true,
      delayedPublish: atLeast(client.info?.version, 2, 12),
      uncountedRelease: declaring.manage !== "none",
      ownership: true,
      maxBody: undefined
    },
    limit: Concurrency.make(concurrency),
    nameRemedy: names.remedy,
    subscribe: (wish) => subscribe(connection, declaring, ledger, inboxPrefix, wish),
    declare,
    publish: (messages) => Effect.flatMap(publishOnce(messages), identified),
    browse: (topic, options) => browsing.browse(connection, topic, options),
    get: (topic, id) => browsing.get(connection, topic, id),
    groups: (topic) => groups(connection, topic),
    remove: (topic, ids) => browsing.remove(connection, topic, ids),
    health: Effect.sync(() =>
      connection.state() === "connected" ? condition.connected() : condition.reconnecting("there is no connection")
    )
  }
  const service = { transport, client }
  parts.set(service, { connection, declaring, send: publish, declared })
  return service
})

const toLayer = <E>(
  service: Effect.Effect<JetStream["Service"], E, Scope.Scope>
): Layer.Layer<JetStream | Transport, E> =>
  Layer.effectContext(
    Effect.map(service, (service) => Context.make(JetStream, service).pipe(Context.add(Transport, service.transport)))
  )

const connected = (options: Options) =>
  Effect.flatMap(connect(options), (client) => make(client, addressOf(options.url), options))

/**
 * Connects to NATS. Fails with a `TransportError` when no server answers within `connectTimeout`; a connection that is
 * lost later is re-made for as long as the Layer lives.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options): Layer.Layer<JetStream | Transport, TransportError.TransportError> =>
  toLayer(connected(options))

/**
 * As {@link layer}, with options that may come from configuration.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options: Config.Wrap<Options>
): Layer.Layer<JetStream | Transport, TransportError.TransportError | Config.ConfigError> =>
  toLayer(Effect.flatMap(Config.unwrap(options), connected))

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
  toLayer(make(connection, connection.getServer(), options))

// --- consuming

/**
 * Provides the service on the broker that is provided, for tests of pipelines that are made by {@link from} or use
 * {@link ackSync}. `subject` of `TestHarness.publish` says on which subject a message was published.
 *
 * **Details**
 *
 * Filters are not applied: the pipeline gets every message of its topic. `ackSync` acknowledges. There is no client, so
 * that {@link publish}, {@link read} and the like fail.
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
    standIns.add(service)
    return service
  })
)

const standIns = new WeakSet<object>()

const noClient: NatsConnection = new Proxy({} as NatsConnection, {
  get: () => {
    throw new Error("JetStream.layerTest has no client: use Brokers.nats() of @millrace/testing")
  }
})

/**
 * Where a consumer that does not exist yet begins.
 *
 * @category models
 * @since 0.1.0
 */
export type StartFrom = settings.StartFrom

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
  /** Also a stream sequence or a time. */
  readonly startFrom?: StartFrom | undefined
  /** This consumer's, instead of the layer's. */
  readonly ackWait?: Duration.Input | undefined
  /** See {@link acknowledge}. */
  readonly acknowledge?: "write" | "confirm" | undefined
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
  const { acknowledge, ackWait, startFrom, subject, subjects, ...rest } = options
  let context = Context.empty()
  const set = <A>(reference: Context.Reference<A>, value: A) => context = Context.add(context, reference, value)
  if (subject !== undefined || subjects !== undefined) {
    set(settings.Subjects, [
      ...subject === undefined ? [] : [subject.replaceAll(/\{[^{}.]+\}/g, "*")],
      ...subjects ?? []
    ] as unknown as Arr.NonEmptyReadonlyArray<string>)
  }
  if (startFrom !== undefined) set(settings.Start, startFrom)
  if (ackWait !== undefined) set(settings.AckWait, Duration.fromInputUnsafe(ackWait))
  if (acknowledge !== undefined) set(settings.Acknowledge, acknowledge)
  const named = (subject ?? "").split(".").flatMap((part, index) =>
    part.startsWith("{") && part.endsWith("}") ? [{ name: part.slice(1, -1), index }] : []
  )
  return Pipeline.fromTransport<any, any, any, JetStream, any>(topic, rest, {
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
  (self: Pipeline.AnyPipeline, mode: "write" | "confirm") => Pipeline.withSetting(self, settings.Acknowledge, mode)
)

/**
 * Acknowledges a message and waits until the server has confirmed it.
 *
 * **Details**
 *
 * `false`: it was settled before. When no confirmation comes within `timeout` (default 5 seconds), through however many
 * connections, it fails, and the pipeline's policies settle the message: it may be handled again, never lost.
 *
 * @category settling
 * @since 0.1.0
 */
export const ackSync = Effect.fnUntraced(function*(
  message: Message.Any,
  options?: { readonly timeout?: Duration.Input | undefined }
): Effect.fn.Return<boolean, Settlement.SettleError, JetStream> {
  const service = yield* JetStream
  if (standIns.has(service)) return yield* Message.settle(message, Settlement.ack)
  const { connection } = yield* partsOf
  const received = Message.received(message)
  const delivery = received?.delivery
  if (received === undefined || received.transport !== service.transport || !(delivery instanceof JetStreamDelivery)) {
    return yield* new Settlement.SettleError({
      id: message.id,
      cause: new Error("it did not come from this JetStream layer")
    })
  }
  if (!received.claim()) return false
  delivery.confirming = true
  const ended = Effect.sync(() => {
    delivery.confirming = false
  })
  return yield* connection.whenConnected.pipe(
    Effect.andThen(confirmAll(connection, [delivery])),
    Effect.retry({ schedule: resources.backoff, while: (error) => error.reason._tag === "Interrupted" }),
    Effect.timeout(options?.timeout ?? "5 seconds"),
    Effect.ensuring(ended),
    Effect.filterOrFail(
      () => delivery.ended("done"),
      () => new Error("it came again before the server confirmed, and is being handled again")
    ),
    Effect.as(true),
    Effect.mapError((cause) => new Settlement.SettleError({ id: message.id, cause })),
    Effect.onError(() => Effect.sync(() => received.unclaim()))
  )
})

// --- publishing

/**
 * Options of {@link publish}.
 *
 * - `id`: default a random one, so that a publish whose outcome is unknown can be repeated
 *
 * @category models
 * @since 0.1.0
 */
export interface PublishOptions extends Publisher.PublishOptions {
  /** Where to, if not the topic's own: one that a stream takes. */
  readonly subject?: string | undefined
  /** How long the server keeps the message, in whole seconds (2.11). */
  readonly ttl?: Duration.Input | undefined
  /** The publish is refused if the stream is not in this state. */
  readonly expect?: {
    readonly stream?: string | undefined
    readonly lastSequence?: number | undefined
    readonly lastSubjectSequence?: number | undefined
    readonly lastMessageId?: string | undefined
  } | undefined
  /**
   * How long to repeat a publish that was not confirmed; default 30 seconds, and never longer than the stream's
   * duplicate window (two minutes unless given).
   */
  readonly retryFor?: Duration.Input | undefined
}

/**
 * What the stream says of a published message.
 *
 * @category models
 * @since 0.1.0
 */
export interface Published {
  readonly id: string
  readonly duplicate: boolean
  readonly stream: string
  readonly sequence: number
}

const isUncertain = (error: Publisher.PublishError) =>
  error.reason._tag === "NotSent" || error.reason._tag === "OutcomeUnknown"

const sendUntil = (
  { connection, send }: Parts,
  sending: publishing.Sending,
  until: Schedule.Schedule<unknown, unknown>
): Effect.Effect<Published, Publisher.PublishError> =>
  Effect.ignore(Effect.timeoutOption(connection.whenConnected, "1 second")).pipe(
    Effect.andThen(send([sending])),
    Effect.flatMap((answers) => Effect.fromResult(answers[0]!)),
    Effect.retry({ schedule: until, while: isUncertain })
  )

/**
 * Publishes one value, with what JetStream offers beside `Publisher.publish`, and waits for the confirmation. While
 * there is none it is published again under the same id, which the server takes once.
 *
 * @category publishing
 * @since 0.1.0
 */
export const publish = <A, RD, RE>(
  topic: Topic.Topic<A, RD, RE>,
  value: A,
  options: PublishOptions = {}
): Effect.Effect<Published, Publisher.PublishError, JetStream | RE> =>
  Effect.gen(function*() {
    const all = yield* partsOf
    const id = options.id ?? crypto.randomUUID()
    const message = yield* Publisher.outgoing(topic, value, { headers: options.headers, delay: options.delay, id })
    const retryFor = Duration.fromInputUnsafe(options.retryFor ?? "30 seconds")
    return yield* sendUntil(
      all,
      {
        message,
        subject: options.subject,
        expectations: {
          ttl: options.ttl === undefined
            ? undefined
            : Math.ceil(Duration.toSeconds(Duration.fromInputUnsafe(options.ttl))),
          expectStream: options.expect?.stream,
          expectLastSequence: options.expect?.lastSequence,
          expectLastSubjectSequence: options.expect?.lastSubjectSequence,
          expectLastMessageId: options.expect?.lastMessageId
        }
      },
      Schedule.upTo(resources.backoff, { duration: retryFor })
    )
  })

/**
 * Publishes values so that all are stored or none, and consumers see them together. Needs nats-server 2.12 and a stream
 * with `allow_atomic`, which streams made by this layer have; at most 1000 values.
 *
 * **Gotchas**
 *
 * The server keeps no ids of such messages: when the outcome is unknown, publishing again may store all of them twice.
 *
 * @category publishing
 * @since 0.1.0
 */
export const publishBatch = <A, RD, RE>(
  topic: Topic.Topic<A, RD, RE>,
  values: Arr.NonEmptyReadonlyArray<A>
): Effect.Effect<{ readonly stream: string; readonly lastSequence: number }, Publisher.PublishError, JetStream | RE> =>
  Effect.gen(function*() {
    const { connection, declared } = yield* partsOf
    const fail = (reason: Publisher.Reason) => new Publisher.PublishError({ topic: topic.name, reason })
    if (!declared.has(topic.name)) {
      yield* JetStream.use(({ transport }) => transport.declare(topic.name, "output")).pipe(
        Effect.mapError((error) => fail(new Publisher.NotSent({ detail: error.message })))
      )
    }
    const messages = yield* Effect.forEach(values, (value) => Publisher.outgoing(topic, value))
    return yield* atomic.publishBatch(connection, topic.name, messages)
  })

const steps = new WeakMap<Message.Any, number>()

/**
 * A step that publishes to JetStream from a pipeline on any broker, and passes the value on.
 *
 * **Details**
 *
 * The message id derives from the source's topic, group and id, the target and the step, so that a retry does not duplicate
 * within the stream's duplicate window. While the server is unreachable the publish waits and holds its slot.
 *
 * @category steps
 * @since 0.1.0
 */
export const to: {
  /**
   * A step that publishes to JetStream from a pipeline on any broker, and passes the value on.
   *
   * **Details**
   *
   * The message id derives from the source's topic, group and id, the target and the step, so that a retry does not duplicate
   * within the stream's duplicate window. While the server is unreachable the publish waits and holds its slot.
   */
  <B, RD, RE>(
    topic: Topic.Topic<B, RD, RE>
  ): <M extends Message.Any, A extends B, E, R>(
    self: Pipeline.Open<M, A, E, R>
  ) => Pipeline.Open<M, A, E | Publisher.PublishError, R | RE | JetStream>
  /**
   * A step that publishes to JetStream from a pipeline on any broker, and passes the value on.
   *
   * **Details**
   *
   * The message id derives from the source's topic, group and id, the target and the step, so that a retry does not duplicate
   * within the stream's duplicate window. While the server is unreachable the publish waits and holds its slot.
   */
  <M extends Message.Any, A, B, RD, RE>(
    topic: Topic.Topic<B, RD, RE>,
    value: (value: NoInfer<A>, message: NoInfer<M>) => NoInfer<B>
  ): <E, R>(self: Pipeline.Open<M, A, E, R>) => Pipeline.Open<M, A, E | Publisher.PublishError, R | RE | JetStream>
} = (topic: Topic.Topic<any, any, any>, value: (value: any, message: any) => any = (value) => value): any =>
  Pipeline.tap((input: any, message: Message.Any) =>
    Effect.gen(function*() {
      const all = yield* partsOf
      if (!all.declared.has(topic.name)) {
        yield* JetStream.use(({ transport }) => transport.declare(topic.name, "output")).pipe(
          Effect.retry({ schedule: resources.backoff, while: (error) => error.reason._tag === "Interrupted" }),
          Effect.mapError((error) =>
            new Publisher.PublishError({ topic: topic.name, reason: new Publisher.Refused({ detail: error.message }) })
          )
        )
      }
      const group = Message.received(message)?.group ?? ""
      // Each attempt has a message of its own: the steps of one publish under the same numbers again.
      const step = steps.get(message) ?? 0
      steps.set(message, step + 1)
      const outgoing = yield* Publisher.outgoing(topic, value(input, message), {
        id: [message.topic, group, message.id, topic.name, step].join("/")
      })
      return yield* sendUntil(all, { message: outgoing }, resources.backoff)
    })
  )

// --- reading without a group

/**
 * A message that was read without a group.
 *
 * @category models
 * @since 0.1.0
 */
export interface Read<out A> {
  readonly value: A
  readonly id: string
  readonly topic: string
  readonly headers: Message.Headers
  readonly publishedAt: DateTime.Utc
}

/**
 * Reads a topic in order, without a group and without acknowledging: for projections and caches. Goes on for ever, with
 * what is published later, and begins again where it was when the connection was lost.
 *
 * @category reading
 * @since 0.1.0
 */
export const read = <A, RD, RE>(
  topic: Topic.Topic<A, RD, RE>,
  options?: { readonly startFrom?: StartFrom | undefined; readonly subject?: string | undefined }
): Stream.Stream<Read<A>, TransportError.TransportError | Schema.SchemaError, JetStream | RD> =>
  Stream.unwrap(Effect.gen(function*() {
    const { connection, declaring } = yield* partsOf
    const subject = options?.subject ?? topic.name
    const badName = names.validateTopic(topic.name) ?? names.validateFilter(subject)
    if (badName !== undefined) return yield* badName
    const stream = yield* resources.whenReady(
      resources.ensureStream(connection, declaring, topic.name, Arr.of(subject))
    )
    const life = connection.lives.note(stream)
    const messages = yield* connection.call(
      `reading ${subject}`,
      (jsm) =>
        jsm.jetstream().consumers.get(stream.config.name, {
          filter_subjects: subject,
          ...resources.start(options?.startFrom ?? "beginning")
        }).then((consumer) => consumer.consume())
    ).pipe(Effect.mapError(unexpected(`reading ${subject}`)))
    yield* Effect.addFinalizer(() => Effect.promise(() => messages.close()).pipe(Effect.ignore))
    return Stream.fromAsyncIterable(messages, (cause) => interrupted(`reading ${subject}`, cause)).pipe(
      Stream.mapEffect((message) => {
        const delivery = new JetStreamDelivery(message, life)
        return Effect.map(topic.codec.decode(delivery), (value): Read<A> => ({
          value,
          id: delivery.id,
          topic: delivery.topic,
          headers: delivery.headers,
          publishedAt: DateTime.makeUnsafe(delivery.publishedAt)
        }))
      })
    )
  }))

// --- seeing

/**
 * How far a group has come.
 *
 * @category models
 * @since 0.1.0
 */
export interface ConsumerInfo {
  readonly stream: string
  readonly consumer: string
  /** Not yet delivered. */
  readonly pending: number
  /** Delivered and not settled, waiting retries included. */
  readonly ackPending: number
  /** Both together: what is left to do. */
  readonly lag: number
  /** Of `ackPending`, those that were delivered more than once. */
  readonly redelivered: number
  /** Open requests for messages, of all processes. */
  readonly waiting: number
  readonly lastDelivered: { readonly sequence: number; readonly at: DateTime.Utc | undefined }
  readonly ackFloor: { readonly sequence: number; readonly at: DateTime.Utc | undefined }
}

/**
 * What a stream holds.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamInfo {
  readonly stream: string
  readonly subjects: ReadonlyArray<string>
  readonly messages: number
  readonly bytes: number
  readonly firstSequence: number
  readonly lastSequence: number
  readonly consumers: number
  readonly replicas: number
  readonly leader: string | undefined
}

const streamFor = (connection: Connection, topic: string) =>
  Effect.flatMap(resources.findStream(connection, topic), (info) =>
    info === undefined
      ? Effect.fail(failure(
        new TransportError.Mismatch({ name: `the stream of ${topic}`, expected: "there", found: "absent" })
      ))
      : Effect.succeed(info))

/**
 * Asks how far a group has come on a topic.
 *
 * @category seeing
 * @since 0.1.0
 */
export const consumerInfo = Effect.fnUntraced(function*(
  topic: string | { readonly name: string },
  group: string
): Effect.fn.Return<ConsumerInfo, TransportError.TransportError, JetStream> {
  const { connection } = yield* partsOf
  const name = typeof topic === "string" ? topic : topic.name
  const stream = yield* streamFor(connection, name)
  const durable = names.durableOf(name, group, stream.config.subjects ?? [])
  const info = yield* resources.consumerInfo(connection, stream.config.name, durable)
  if (info === undefined) {
    return yield* failure(
      new TransportError.Mismatch({
        name: `consumer ${durable} of stream ${stream.config.name}`,
        expected: "there",
        found: "absent"
      })
    )
  }
  const position = (sequence: { readonly stream_seq: number; readonly last_active?: unknown }) => ({
    sequence: sequence.stream_seq,
    at: typeof sequence.last_active === "string" ? DateTime.makeUnsafe(sequence.last_active) : undefined
  })
  return {
    stream: info.stream_name,
    consumer: info.name,
    pending: info.num_pending,
    ackPending: info.num_ack_pending,
    lag: info.num_pending + info.num_ack_pending,
    redelivered: info.num_redelivered,
    waiting: info.num_waiting,
    lastDelivered: position(info.delivered),
    ackFloor: position(info.ack_floor)
  }
})

/**
 * Asks what the stream of a topic holds.
 *
 * @category seeing
 * @since 0.1.0
 */
export const streamInfo = Effect.fnUntraced(function*(
  topic: string | { readonly name: string }
): Effect.fn.Return<StreamInfo, TransportError.TransportError, JetStream> {
  const { connection } = yield* partsOf
  const info = yield* streamFor(connection, typeof topic === "string" ? topic : topic.name)
  return {
    stream: info.config.name,
    subjects: info.config.subjects ?? [],
    messages: info.state.messages,
    bytes: info.state.bytes,
    firstSequence: info.state.first_seq,
    lastSequence: info.state.last_seq,
    consumers: info.state.consumer_count,
    replicas: info.config.num_replicas,
    leader: info.cluster?.leader
  }
})
