/**
 * Pipelines on Redis Streams and Valkey.
 *
 * @since 0.1.0
 */
import * as Concurrency from "@millrace/core/Concurrency"
import type * as Message from "@millrace/core/Message"
import type * as Pipeline from "@millrace/core/Pipeline"
import type * as Topic from "@millrace/core/Topic"
import * as Transport from "@millrace/core/Transport"
import { durationOf, fromTransport, type Hints, quietly, withSetting } from "@millrace/core/TransportAuthor"
import { invalidOption, type TransportError } from "@millrace/core/TransportError"
import type * as Arr from "effect/Array"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Layer from "effect/Layer"
import type * as Option from "effect/Option"
import type * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as browsing from "./internal/browse.ts"
import * as groups from "./internal/groups.ts"
import { HealthRecord } from "./internal/health.ts"
import * as Maintenance from "./internal/maintenance.ts"
import * as publish from "./internal/publish.ts"
import * as removal from "./internal/removal.ts"
import { transportError } from "./internal/reply.ts"
import * as server_ from "./internal/server.ts"
import * as Settings from "./internal/settings.ts"
import { RemoveOnSuccess, Source } from "./internal/source.ts"
import { standIn } from "./internal/standIn.ts"
import * as subscribe from "./internal/subscribe.ts"
import type { Client, ClientOptions, GroupInfo, Options, ReadOptions, Removal, RemoveOptions } from "./Options.ts"

export type { ConsumerInfo } from "@millrace/core/Transport"
export type {
  Bound,
  Client,
  ClientOptions,
  Credentials,
  CredentialsSource,
  GroupInfo,
  Options,
  ReadOptions,
  Removal,
  RemoveOptions
} from "./Options.ts"

/**
 * The operations that only Redis has.
 *
 * @category services
 * @since 0.1.0
 */
export class RedisStreams extends Context.Service<RedisStreams, {
  /** The same broker as every pipeline sees it. */
  readonly transport: Transport.Transport["Service"]
  readonly groupInfo: (topic: string, group: string) => Effect.Effect<GroupInfo, TransportError>
  readonly read: (topic: string, options?: ReadOptions) => Stream.Stream<Transport.Delivery, TransportError>
  /** Trims what every group of the topic has acknowledged; gives how many entries that were. */
  readonly trim: (topic: string) => Effect.Effect<number, TransportError>
  readonly remove: (
    messages: Arr.NonEmptyReadonlyArray<Message.Any>,
    options?: RemoveOptions
  ) => Effect.Effect<ReadonlyArray<Removal>, TransportError>
}>()("@millrace/redis-streams/RedisStreams") {}

/**
 * Creates both services; the connections close with the scope.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (
  options: Options
): Effect.Effect<Context.Context<RedisStreams | Transport.Transport>, TransportError, Scope.Scope> =>
  quietly(makeService(Settings.check(options), options?.concurrency))

const makeService = Effect.fnUntraced(function*(
  checked: Result.Result<Settings.Settings, TransportError>,
  concurrency: Options["concurrency"]
): Effect.fn.Return<Context.Context<RedisStreams | Transport.Transport>, TransportError, Scope.Scope> {
  const isWhole = typeof concurrency === "number" && Number.isInteger(concurrency) && concurrency >= 1
  if (concurrency !== undefined && !Concurrency.isLimit(concurrency) && !isWhole) {
    return yield* invalidOption("redis", "concurrency", concurrency, "give a whole number of at least 1")
  }
  const settings = yield* Effect.fromResult(checked)
  const server = yield* server_.make(settings)
  const keyOf = (topic: string) => settings.keyPrefix + topic
  const failing = (operation: string) => (error: Error) => transportError(operation, settings.label, error)
  const record = new HealthRecord()
  const unbounded = new Set<string>()
  const maintain = yield* Maintenance.make(server)
  const transport = Transport.Transport.of({
    name: "redis",
    address: settings.label.replace(/^\w+:\/\//, ""),
    capabilities: {
      deduplication: true,
      delayedPublish: true,
      uncountedRelease: true,
      orderedRelease: true,
      ownership: true,
      maxBody: undefined
    },
    limit: Concurrency.isLimit(concurrency) ? concurrency : Concurrency.make(concurrency ?? Infinity),
    subscribe: yield* subscribe.make(server, maintain),
    nameRemedy: Settings.nameRemedy(settings),
    declare: (topic, purpose) => {
      if (purpose === "deadLetter") unbounded.add(topic)
      return groups.verify(server, keyOf(topic))
    },
    publish: publish.make(server, unbounded),
    browse: (topic, options) => browsing.browse(server, topic, options),
    get: (topic, id) => browsing.get(server, topic, id),
    groups: (topic) =>
      Effect.mapError(groups.all(server, keyOf(topic)), failing(`looking at the groups of ${keyOf(topic)}`)),
    remove: (topic, ids) =>
      Effect.mapBoth(server.write.one(keyOf(topic), ["XDEL", keyOf(topic), ...ids]), {
        onFailure: failing(`removing from ${keyOf(topic)}`),
        onSuccess: Number
      }),
    health: Effect.clockWith((clock) =>
      Effect.sync(() => {
        const trouble = server.write.trouble ?? server.control.trouble
        const { reason } = server.refusals
        const state = trouble !== undefined ? "reconnecting" : reason !== undefined ? "impaired" : "consuming"
        return record.note(state, trouble ?? reason, clock.currentTimeMillisUnsafe())
      })
    )
  })
  return Context.make(Transport.Transport, transport).pipe(Context.add(
    RedisStreams,
    RedisStreams.of({
      transport,
      read: (topic, options) => browsing.read(server, topic, options),
      groupInfo: (topic, group) =>
        Effect.flatMap(
          Effect.mapError(
            groups.info(server, keyOf(topic), group),
            failing(`looking at group ${group} of ${keyOf(topic)}`)
          ),
          (info) => info === undefined ? groups.noGroup(keyOf(topic), group) : Effect.succeed(info)
        ),
      trim: (topic) => Effect.mapError(Maintenance.trim(server, keyOf(topic)), failing(`trimming ${keyOf(topic)}`)),
      remove: removal.make(server, transport)
    })
  ))
})

/**
 * Provides Redis, or Valkey, as the broker of pipelines.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options): Layer.Layer<RedisStreams | Transport.Transport, TransportError> =>
  Layer.effectContext(make(options))

/**
 * Provides the server that a client of npm `redis` is for. The Layer makes connections of its own with the client's
 * options (address, TLS, credentials, database, name): a read that waits needs one for itself. The client need not be
 * connected, is not used otherwise, and is not closed. For a cluster or Sentinel use {@link layer}.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerFromClient = (
  client: Client,
  options: ClientOptions = {}
): Layer.Layer<RedisStreams | Transport.Transport, TransportError> =>
  Layer.effectContext(
    quietly(Effect.suspend(() => makeService(Settings.checkClient(client, options), options?.concurrency)))
  )

/**
 * Provides Redis, or Valkey, with options read from `Config`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options: Config.Wrap<Options>
): Layer.Layer<RedisStreams | Transport.Transport, TransportError | Config.ConfigError> =>
  Layer.effectContext(Effect.flatMap(Config.unwrap(options), make))

/**
 * Provides the service on the broker that is provided, for tests of pipelines that are made by {@link from} or use
 * {@link remove}.
 *
 * **Details**
 *
 * `remove` deletes the message at once, whatever other groups there are. {@link removeOnSuccess} acknowledges.
 *
 * **Example** (A pipeline that removes, in the harness)
 *
 * ```ts import.meta.vitest
 * import { Pipeline, Topic } from "@millrace/core"
 * import { RedisStreams } from "@millrace/redis-streams"
 * import { TestHarness } from "@millrace/testing"
 * import { Effect, Layer, Schema } from "effect"
 *
 * const Jobs = Topic.make("jobs", { schema: Schema.String })
 * const removing = RedisStreams.from(Jobs, { group: "jobs" }).pipe(
 *   Pipeline.mapEffect((_, message) => RedisStreams.remove(message))
 * )
 * const report = await Effect.runPromise(
 *   TestHarness.run(Jobs, removing, ["a"]).pipe(
 *     Effect.provide(RedisStreams.layerTest.pipe(Layer.provideMerge(TestHarness.layer)))
 *   )
 * )
 * report.handled.map(({ value }) => value) // => ["removed"]
 * ```
 *
 * @category testing
 * @since 0.1.0
 */
export const layerTest: Layer.Layer<RedisStreams, never, Transport.Transport> = Layer.effect(
  RedisStreams,
  Transport.Transport.useSync(standIn)
)

/**
 * What a source on Redis takes.
 *
 * @category models
 * @since 0.1.0
 */
export interface FromOptions extends Omit<Pipeline.FromOptions, "startFrom"> {
  /** Also the id of an entry, after which a new group begins. */
  readonly startFrom?: "new" | "beginning" | (string & {}) | undefined
  /** For this pipeline, instead of the Layer's. */
  readonly block?: Duration.Input | Hints["duration"] | undefined
  /** For this pipeline, instead of the Layer's. */
  readonly claim?: { readonly minIdle: Duration.Input | Hints["duration"] } | undefined
}

/** In milliseconds, and what is wrong with the option. */
const millisOf = (option: string, input: unknown) => {
  if (input === undefined) return { millis: undefined, invalid: undefined }
  const { duration, invalid } = durationOf(option, input)
  return { millis: Duration.toMillis(duration), invalid }
}

/**
 * Starts a pipeline at a topic on Redis, with what only Redis has.
 *
 * @category constructors
 * @since 0.1.0
 */
export const from: {
  /**
   * Starts a pipeline at a topic on Redis, with what only Redis has.
   */
  <A, H, RD, RE>(
    topic: Topic.TopicWithHeaders<A, H, RD, RE>,
    options: FromOptions
  ): Pipeline.Open<Message.WithHeaders<A, H>, A, never, RedisStreams | RD>
  /**
   * Starts a pipeline at a topic on Redis, with what only Redis has.
   */
  <A, RD, RE>(
    topic: Topic.Topic<A, RD, RE>,
    options: FromOptions
  ): Pipeline.Open<Message.Message<A>, A, never, RedisStreams | RD>
} = <A, RD, RE>(
  topic: Topic.Topic<A, RD, RE>,
  options: FromOptions
): Pipeline.Open<Message.WithHeaders<A, never>, A, never, RedisStreams | RD> => {
  // JavaScript may leave the options out: starting refuses that, making a pipeline never throws.
  const { block, claim, startFrom } = options ?? {}
  const wrongStart = startFrom === undefined || typeof startFrom === "string" ? undefined : {
    option: "startFrom",
    value: startFrom,
    remedy: "give \"new\", \"beginning\" or the id of an entry"
  }
  const common = startFrom === "new" ? "new" : startFrom === "beginning" ? "beginning" : undefined
  const wait = millisOf("block", block)
  const idle = millisOf("claim.minIdle", claim?.minIdle)
  return fromTransport(topic, options && { ...options, startFrom: common }, {
    transport: RedisStreams.use(({ transport }) => Effect.succeed(transport)),
    options: ["block", "claim"],
    invalid: wrongStart ?? wait.invalid ?? idle.invalid,
    settings: Context.make(Source, {
      startFrom: common === undefined ? startFrom : undefined,
      block: wait.millis,
      minIdle: idle.millis
    })
  })
}

/**
 * Removes a message, or many, from its stream: acknowledges it for this group, and deletes it once every group has.
 *
 * **Details**
 *
 * Works at any point of a handler, and on a message that was settled before. Many are removed with one command for each
 * stream, and give one answer each, in order. A pipeline that uses it does not compile against another broker's Layer.
 * Interruption does not take back what was sent.
 *
 * @category settling
 * @since 0.1.0
 */
export const remove: {
  /**
   * Removes a message, or many, from its stream: acknowledges it for this group, and deletes it once every group has.
   *
   * **Details**
   *
   * Works at any point of a handler, and on a message that was settled before. Many are removed with one command for each
   * stream, and give one answer each, in order. A pipeline that uses it does not compile against another broker's Layer.
   * Interruption does not take back what was sent.
   */
  (options?: RemoveOptions): {
    (self: Message.Any): Effect.Effect<Removal, TransportError, RedisStreams>
    (
      self: Arr.NonEmptyReadonlyArray<Message.Any>
    ): Effect.Effect<ReadonlyArray<Removal>, TransportError, RedisStreams>
  }
  /**
   * Removes a message, or many, from its stream: acknowledges it for this group, and deletes it once every group has.
   *
   * **Details**
   *
   * Works at any point of a handler, and on a message that was settled before. Many are removed with one command for each
   * stream, and give one answer each, in order. A pipeline that uses it does not compile against another broker's Layer.
   * Interruption does not take back what was sent.
   */
  (self: Message.Any, options?: RemoveOptions): Effect.Effect<Removal, TransportError, RedisStreams>
  /**
   * Removes a message, or many, from its stream: acknowledges it for this group, and deletes it once every group has.
   *
   * **Details**
   *
   * Works at any point of a handler, and on a message that was settled before. Many are removed with one command for each
   * stream, and give one answer each, in order. A pipeline that uses it does not compile against another broker's Layer.
   * Interruption does not take back what was sent.
   */
  (
    self: Arr.NonEmptyReadonlyArray<Message.Any>,
    options?: RemoveOptions
  ): Effect.Effect<ReadonlyArray<Removal>, TransportError, RedisStreams>
} = dual(
  (args) => args[0] !== undefined && (Array.isArray(args[0]) || "attempt" in args[0]),
  (
    self: Message.Any | Arr.NonEmptyReadonlyArray<Message.Any>,
    options?: RemoveOptions
  ): Effect.Effect<Removal | ReadonlyArray<Removal>, TransportError, RedisStreams> =>
    RedisStreams.use((redis): Effect.Effect<Removal | ReadonlyArray<Removal>, TransportError> =>
      isMany(self) ? redis.remove(self, options) : Effect.map(redis.remove([self], options), ([removal]) => removal!)
    )
)

const isMany = (
  self: Message.Any | Arr.NonEmptyReadonlyArray<Message.Any>
): self is Arr.NonEmptyReadonlyArray<Message.Any> => Array.isArray(self)

/**
 * Deletes what the pipeline is done with, as soon as every group has acknowledged it.
 *
 * @category policies
 * @since 0.1.0
 */
export const removeOnSuccess = <M extends Message.Any, A, E, R>(
  self: Pipeline.Pipeline<M, A, E, R>
): Pipeline.Pipeline<M, A, E, R | RedisStreams> => withSetting(self, RemoveOnSuccess, true)

/**
 * Reads stored entries, consumed or not, and touches no group. Ends at the entry that was newest when the stream began.
 * Pages of about 4 MB; fails with `TransportError`; interruption ends it after the present page.
 *
 * @category reading
 * @since 0.1.0
 */
export const read = (
  topic: string | { readonly name: string },
  options?: ReadOptions
): Stream.Stream<Transport.Delivery, TransportError, RedisStreams> =>
  Stream.unwrap(RedisStreams.use((redis) => Effect.succeed(redis.read(nameOf(topic), options))))

/**
 * Reads one stored entry by its id, in one request.
 *
 * @category reading
 * @since 0.1.0
 */
export const get = (
  topic: string | { readonly name: string },
  id: string
): Effect.Effect<Option.Option<Transport.Delivery>, TransportError, RedisStreams> =>
  RedisStreams.use(({ transport }) => transport.get(nameOf(topic), id))

const nameOf = (topic: string | { readonly name: string }): string => typeof topic === "string" ? topic : topic.name

/**
 * Reads what the server knows about a group: pending entries, their age, lag, consumers. Fails with `Mismatch` when there
 * is no such group.
 *
 * @category observing
 * @since 0.1.0
 */
export const groupInfo = (
  topic: string,
  group: string
): Effect.Effect<GroupInfo, TransportError, RedisStreams> => RedisStreams.use((redis) => redis.groupInfo(topic, group))
