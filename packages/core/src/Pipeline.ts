/**
 * Pipelines are values: a source, steps, policies. Nothing happens until one is run.
 *
 * Steps are positional, each concerns the steps above it. Policies concern the whole pipeline, come after the steps
 * and may stand in any order. Every handler gets the current value and, second, the source `Message`.
 *
 * @since 0.1.0
 */
import type * as Arr from "effect/Array"
import type * as Cause from "effect/Cause"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual, flow } from "effect/Function"
import * as Layer from "effect/Layer"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import type * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type * as Types from "effect/Types"
import { isLimit } from "./Concurrency.ts"
import type * as Concurrency from "./Concurrency.ts"
import type { Description } from "./Description.ts"
import { addPolicy, addStep } from "./internal/compose.ts"
import { describe as describeProgram, topics as topicsOf } from "./internal/describe.ts"
import type { Hint, Hints } from "./internal/hint.ts"
import {
  durationOf,
  type Invalid,
  invalidFunction,
  invalidOf,
  invalidPipelines,
  toError,
  unknownOption
} from "./internal/invalid.ts"
import { isPipeline as isPipelineInternal, make, programOf, TypeId as TypeIdInternal } from "./internal/pipeline.ts"
import type { Step as ProgramStep } from "./internal/program.ts"
import { fromPromise, promiseForm, settledResults, tapped, wrapPromise } from "./internal/promise.ts"
import { defaultSchedule } from "./internal/retryDecision.ts"
import type { Running } from "./internal/running.ts"
import { makeSource } from "./internal/source.ts"
import { start as startProgram } from "./internal/start.ts"
import type * as Message from "./Message.ts"
import type { PublishError } from "./Publisher.ts"
import type * as Settlement from "./Settlement.ts"
import type * as Topic from "./Topic.ts"
import * as Transport from "./Transport.ts"
import type { TransportError } from "./TransportError.ts"

/**
 * Marks pipelines.
 *
 * @category type ids
 * @since 0.1.0
 */
export const TypeId: "~@millrace/core/Pipeline" = TypeIdInternal

/**
 * Marks pipelines.
 *
 * @category type ids
 * @since 0.1.0
 */
export type TypeId = typeof TypeId

/**
 * A pipeline: `M` the message its handlers see, `A` the value now, `E` the failures its policies settle, `R` the
 * services it needs.
 *
 * @category models
 * @since 0.1.0
 */
export interface Pipeline<out M extends Message.Any, out A, out E = never, out R = never> extends Pipeable {
  readonly [TypeId]: {
    readonly _M: Types.Covariant<M>
    readonly _A: Types.Covariant<A>
    readonly _E: Types.Covariant<E>
    readonly _R: Types.Covariant<R>
  }
  /** `<topic>/<group>` unless given. */
  readonly name: string
}

/**
 * A pipeline that still takes steps. The first policy closes it; a later step is a type error whose text is this
 * property's name.
 *
 * @category models
 * @since 0.1.0
 */
export interface Open<out M extends Message.Any, out A, out E = never, out R = never> extends Pipeline<M, A, E, R> {
  readonly "~steps come before policies": true
}

type Any = Message.Any
type Step<M extends Any, A, B, E2 = never, R2 = never> = <E, R>(self: Open<M, A, E, R>) => Open<M, B, E | E2, R | R2>
type Policy = <M extends Any, A, E, R>(self: Pipeline<M, A, E, R>) => Pipeline<M, A, E, R>
type BatchHandler<A, M extends Any, B> = (
  values: Arr.NonEmptyReadonlyArray<A>,
  messages: Arr.NonEmptyReadonlyArray<M>
) => B
interface TryCatch<A, M extends Any, B, E> {
  readonly try: (value: A, message: M) => PromiseLike<B>
  readonly catch: (cause: unknown) => E
}
type MustBeEffect<B, PromiseForm extends string> = B extends Effect.Effect<unknown, unknown, unknown> ? unknown
  : B extends PromiseLike<unknown> ? `this returns a Promise: use Pipeline.${PromiseForm}`
  : Hint<"this returns no Effect: return one, such as Effect.sync(() => …)">
type MustBeResults<B> = B extends Effect.Effect<infer A, unknown, unknown>
  ? A extends ReadonlyArray<Result.Result<unknown, unknown>> ? unknown
  : "this gives no array of results: return one Result for each value, in the same order"
  : MustBeEffect<B, "batchEachPromise">
type MustBeDuration<D> = D extends Duration.Input ? unknown
  : Hint<"this is no duration: write it as '5 seconds', '100 millis' or a number of milliseconds">
type MustBeName<N> = N extends "" ? Hint<"a topic name has at least one character"> : unknown
type Results<B, I extends 0 | 1> = Effect.Success<B> extends ReadonlyArray<infer X>
  ? X extends Result.Result<infer A, infer E> ? [A, E][I] : never
  : never
type NoEffect<B> = B extends Effect.Effect<unknown, unknown, unknown>
  ? "this resolves to an Effect that is never run: use Pipeline.mapEffect"
  : unknown
type Sync<B> = B extends PromiseLike<unknown> ? "this returns a Promise: use Pipeline.mapPromise"
  : B extends Effect.Effect<unknown, unknown, unknown> ? "this returns an Effect: use Pipeline.mapEffect"
  : unknown

/**
 * Any pipeline.
 *
 * @category models
 * @since 0.1.0
 */
export type AnyPipeline = Pipeline<Any, unknown, unknown, unknown>

/**
 * The services a pipeline needs.
 *
 * @category models
 * @since 0.1.0
 */
export type Services<P> = P extends Pipeline<Any, unknown, unknown, infer R> ? R : never

/**
 * The failures that a pipeline's policies settle.
 *
 * @category models
 * @since 0.1.0
 */
export type Error<P> = P extends Pipeline<Any, unknown, infer E, unknown> ? E : never

/**
 * Options of a source that every broker has.
 *
 * @category models
 * @since 0.1.0
 */
export interface FromOptions {
  /** The consumer group (Redis) or durable consumer (NATS). Processes of one group share the work. */
  readonly group: string
  /** As in logs, spans and dead letters. Default `<topic>/<group>`. */
  readonly name?: string | undefined
  /** Where a group that does not exist yet begins; an existing group keeps its position. Default `"new"`. */
  readonly startFrom?: "new" | "beginning" | undefined
  /**
   * How many messages may wait in this process. Default: about 200 ms of work at the pipeline's own rate, at most 1,024.
   */
  readonly prefetch?: number | undefined
  /**
   * How many bytes of bodies may wait in this process, by the average size of recent messages; messages that run do not
   * count. Default 16 MiB.
   */
  readonly prefetchBytes?: number | undefined
  /** How many retries may wait in this process before pulling stops. Default 10,000. */
  readonly waiting?: number | undefined
  /**
   * How many messages may wait behind another one of their key before pulling stops, and in open batches of keys beyond
   * those of the permits. Default 10,000.
   */
  readonly maxBlocked?: number | undefined
  /** How long running handlers may finish when the pipeline stops. Default 30 seconds. */
  readonly drainTimeout?: Duration.Input | Hints["duration"] | undefined
}

/**
 * Starts a pipeline at a topic, on whichever broker's Layer is provided.
 *
 * **Example** (Composing plain functions)
 *
 * ```ts import.meta.vitest
 * import { Pipeline, Topic } from "@millrace/core"
 * import { Schema } from "effect"
 *
 * const Orders = Topic.make("orders", { schema: Schema.Struct({ id: Schema.String, total: Schema.Number }) })
 *
 * const totals = Pipeline.from(Orders, { group: "totals" }).pipe(
 *   Pipeline.filter((order) => order.total > 0),
 *   Pipeline.map((order) => order.total * 100)
 * )
 * totals.name // => "orders/totals"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const from: {
  /**
   * Starts a pipeline at a topic, on whichever broker's Layer is provided.
   */
  <A, H, RD, RE>(
    topic: Topic.TopicWithHeaders<A, H, RD, RE>,
    options: FromOptions
  ): Open<Message.WithHeaders<A, H>, A, never, Transport.Transport | RD>
  /**
   * Starts a pipeline at a topic, on whichever broker's Layer is provided.
   */
  <A, RD, RE>(
    topic: Topic.Topic<A, RD, RE>,
    options: FromOptions
  ): Open<Message.Message<A>, A, never, Transport.Transport | RD>
} = (topic: Topic.Topic<any, any, any>, options: FromOptions): any =>
  makeSource(topic, options, { transport: Transport.Transport, options: [] })

/**
 * Describes a pipeline as plain data: source, steps and policies, defaults included. `console.log` and `JSON.stringify`
 * show the same.
 *
 * **Example** (Reading the steps)
 *
 * ```ts import.meta.vitest
 * import { Pipeline, Topic } from "@millrace/core"
 * import { Schema } from "effect"
 *
 * const Orders = Topic.make("orders", { schema: Schema.Struct({ total: Schema.Number }) })
 * const totals = Pipeline.from(Orders, { group: "totals" }).pipe(Pipeline.map((order) => order.total))
 * Pipeline.describe(totals).steps // => [{ step: "map" }]
 * ```
 *
 * @category inspection
 * @since 0.1.0
 */
export const describe = (self: AnyPipeline): Description => describeProgram(programOf(self))

/**
 * Gives the topics of a pipeline as values: the one it reads, and those that its `to` steps write, each once. Dead
 * letters have a topic without a schema: its name is in {@link describe}.
 *
 * @category inspection
 * @since 0.1.0
 */
export const topics = (self: AnyPipeline): {
  readonly source: Topic.Topic<unknown, unknown, unknown>
  readonly outputs: ReadonlyArray<Topic.Topic<unknown, unknown, unknown>>
} => topicsOf(programOf(self))

// --- steps

/**
 * Transforms the value with a function that returns one. An error that it throws is a defect.
 *
 * @category steps
 * @since 0.1.0
 */
export const map: {
  /**
   * Transforms the value with a function that returns one. An error that it throws is a defect.
   */
  <M extends Any, A, B>(f: (value: A, message: NoInfer<M>) => B & Sync<B>): Step<M, A, B>
  /**
   * Transforms the value with a function that returns one. An error that it throws is a defect.
   */
  <M extends Any, A, E, R, B>(self: Open<M, A, E, R>, f: (value: A, message: M) => B & Sync<B>): Open<M, B, E, R>
} = dual(2, (self: AnyPipeline, f: any) => addStep(self, { _tag: "Map", f }))

/**
 * Transforms the value with a function that returns an Effect.
 *
 * @category steps
 * @since 0.1.0
 */
export const mapEffect: {
  /**
   * Transforms the value with a function that returns an Effect.
   */
  <M extends Any, A, B>(
    f: (value: A, message: NoInfer<M>) => B & MustBeEffect<B, "mapPromise">
  ): Step<M, A, Effect.Success<B>, Effect.Error<B>, Effect.Services<B>>
  /**
   * Transforms the value with a function that returns an Effect.
   */
  <M extends Any, A, E, R, B>(
    self: Open<M, A, E, R>,
    f: (value: A, message: M) => B & MustBeEffect<B, "mapPromise">
  ): Open<M, Effect.Success<B>, E | Effect.Error<B>, R | Effect.Services<B>>
} = dual(2, (self: AnyPipeline, f: any) => addStep(self, { _tag: "Effect", f, keep: false }))

/**
 * Transforms the value with a function that returns a Promise; `catch` gives its rejections a type.
 *
 * **Details**
 *
 * Pass `message.signal` on: it aborts on timeout, on shutdown and when another consumer has taken the message over. A
 * `Settlement.retry` or `Settlement.terminate` may be thrown.
 *
 * @category steps
 * @since 0.1.0
 */
export const mapPromise: {
  /**
   * Transforms the value with a function that returns a Promise; `catch` gives its rejections a type.
   *
   * **Details**
   *
   * Pass `message.signal` on: it aborts on timeout, on shutdown and when another consumer has taken the message over. A
   * `Settlement.retry` or `Settlement.terminate` may be thrown.
   */
  <M extends Any, A, B, E2>(options: TryCatch<A, NoInfer<M>, B & NoEffect<B>, E2>): Step<M, A, B, E2>
  /**
   * Transforms the value with a function that returns a Promise; `catch` gives its rejections a type.
   *
   * **Details**
   *
   * Pass `message.signal` on: it aborts on timeout, on shutdown and when another consumer has taken the message over. A
   * `Settlement.retry` or `Settlement.terminate` may be thrown.
   */
  <M extends Any, A, B>(
    f: (value: A, message: NoInfer<M>) => PromiseLike<B & NoEffect<B>>
  ): Step<M, A, B, Cause.UnknownError>
  /**
   * Transforms the value with a function that returns a Promise; `catch` gives its rejections a type.
   *
   * **Details**
   *
   * Pass `message.signal` on: it aborts on timeout, on shutdown and when another consumer has taken the message over. A
   * `Settlement.retry` or `Settlement.terminate` may be thrown.
   */
  <M extends Any, A, E, R, B, E2>(
    self: Open<M, A, E, R>,
    options: TryCatch<A, M, B & NoEffect<B>, E2>
  ): Open<M, B, E | E2, R>
  /**
   * Transforms the value with a function that returns a Promise; `catch` gives its rejections a type.
   *
   * **Details**
   *
   * Pass `message.signal` on: it aborts on timeout, on shutdown and when another consumer has taken the message over. A
   * `Settlement.retry` or `Settlement.terminate` may be thrown.
   */
  <M extends Any, A, E, R, B>(
    self: Open<M, A, E, R>,
    f: (value: A, message: M) => PromiseLike<B & NoEffect<B>>
  ): Open<M, B, E | Cause.UnknownError, R>
} = dual(2, (self: AnyPipeline, f: any) => {
  const form = promiseForm("mapPromise", f)
  return addStep(self, { _tag: "Promise", f: form.try, catch: form.catch }, form.invalid)
})

/**
 * Runs an Effect for each value and passes the value on unchanged.
 *
 * @category steps
 * @since 0.1.0
 */
export const tap: {
  /**
   * Runs an Effect for each value and passes the value on unchanged.
   */
  <M extends Any, A, B>(
    f: (value: NoInfer<A>, message: NoInfer<M>) => B & MustBeEffect<B, "tapPromise">
  ): Step<M, A, A, Effect.Error<B>, Effect.Services<B>>
  /**
   * Runs an Effect for each value and passes the value on unchanged.
   */
  <M extends Any, A, E, R, B>(
    self: Open<M, A, E, R>,
    f: (value: A, message: M) => B & MustBeEffect<B, "tapPromise">
  ): Open<M, A, E | Effect.Error<B>, R | Effect.Services<B>>
} = dual(2, (self: AnyPipeline, f: any) => addStep(self, { _tag: "Effect", f, keep: true }))

/**
 * Runs an `async` function for each value and passes the value on unchanged; `catch` gives its rejections a type.
 *
 * **Details**
 *
 * Without `catch` a rejection is a `Cause.UnknownError`. See {@link mapPromise} for the signal and for settlements.
 *
 * @category steps
 * @since 0.1.0
 */
export const tapPromise: {
  /**
   * Runs an `async` function for each value and passes the value on unchanged; `catch` gives its rejections a type.
   *
   * **Details**
   *
   * Without `catch` a rejection is a `Cause.UnknownError`. See {@link mapPromise} for the signal and for settlements.
   */
  <M extends Any, A, E2>(options: TryCatch<NoInfer<A>, NoInfer<M>, unknown, E2>): Step<M, A, A, E2>
  /**
   * Runs an `async` function for each value and passes the value on unchanged; `catch` gives its rejections a type.
   *
   * **Details**
   *
   * Without `catch` a rejection is a `Cause.UnknownError`. See {@link mapPromise} for the signal and for settlements.
   */
  <M extends Any, A>(
    f: (value: NoInfer<A>, message: NoInfer<M>) => PromiseLike<unknown>
  ): Step<M, A, A, Cause.UnknownError>
  /**
   * Runs an `async` function for each value and passes the value on unchanged; `catch` gives its rejections a type.
   *
   * **Details**
   *
   * Without `catch` a rejection is a `Cause.UnknownError`. See {@link mapPromise} for the signal and for settlements.
   */
  <M extends Any, A, E, R, E2>(self: Open<M, A, E, R>, options: TryCatch<A, M, unknown, E2>): Open<M, A, E | E2, R>
  /**
   * Runs an `async` function for each value and passes the value on unchanged; `catch` gives its rejections a type.
   *
   * **Details**
   *
   * Without `catch` a rejection is a `Cause.UnknownError`. See {@link mapPromise} for the signal and for settlements.
   */
  <M extends Any, A, E, R>(
    self: Open<M, A, E, R>,
    f: (value: A, message: M) => PromiseLike<unknown>
  ): Open<M, A, E | Cause.UnknownError, R>
} = dual(2, (self: AnyPipeline, f: any) => {
  const form = promiseForm("tapPromise", f)
  return addStep(self, { _tag: "Promise", f: tapped(form.try), catch: form.catch }, form.invalid)
})

/**
 * Goes on only with values that pass; the others are done: acknowledged and counted as filtered.
 *
 * @category steps
 * @since 0.1.0
 */
export const filter: {
  /**
   * Goes on only with values that pass; the others are done: acknowledged and counted as filtered.
   */
  <M extends Any, A, B extends A>(
    refinement: (value: NoInfer<A>, message: NoInfer<M>) => value is B
  ): Step<M, A, B>
  /**
   * Goes on only with values that pass; the others are done: acknowledged and counted as filtered.
   */
  <M extends Any, A>(predicate: (value: NoInfer<A>, message: NoInfer<M>) => boolean): Step<M, A, A>
  /**
   * Goes on only with values that pass; the others are done: acknowledged and counted as filtered.
   */
  <M extends Any, A, E, R, B extends A>(
    self: Open<M, A, E, R>,
    refinement: (value: A, message: M) => value is B
  ): Open<M, B, E, R>
  /**
   * Goes on only with values that pass; the others are done: acknowledged and counted as filtered.
   */
  <M extends Any, A, E, R>(
    self: Open<M, A, E, R>,
    predicate: (value: A, message: M) => boolean
  ): Open<M, A, E, R>
} = dual(2, (self: AnyPipeline, f: any) => addStep(self, { _tag: "Filter", f }))

/**
 * Filters and transforms in one step: a `Result` failure is filtered out.
 *
 * @category steps
 * @since 0.1.0
 */
export const filterMap: {
  /**
   * Filters and transforms in one step: a `Result` failure is filtered out.
   */
  <M extends Any, A, B, X>(
    f: (value: NoInfer<A>, message: NoInfer<M>) => Result.Result<B, X>
  ): Step<M, A, B>
  /**
   * Filters and transforms in one step: a `Result` failure is filtered out.
   */
  <M extends Any, A, E, R, B, X>(
    self: Open<M, A, E, R>,
    f: (value: A, message: M) => Result.Result<B, X>
  ): Open<M, B, E, R>
} = dual(2, (self: AnyPipeline, f: any) => addStep(self, { _tag: "FilterMap", f }))

/**
 * Publishes the value, or the result of `value` (an array is several messages), and passes the value on.
 *
 * **Details**
 *
 * The message id derives from topic, group, source id and step, so that a retry does not duplicate where the broker
 * deduplicates. Messages of one array are told apart by their places in it: a retry must give the same ones in the same
 * order. While the broker is unreachable the publish waits, holding its slot: that is not an attempt.
 *
 * @category steps
 * @since 0.1.0
 */
export const to: {
  /**
   * Publishes the value, or the result of `value` (an array is several messages), and passes the value on.
   *
   * **Details**
   *
   * The message id derives from topic, group, source id and step, so that a retry does not duplicate where the broker
   * deduplicates. Messages of one array are told apart by their places in it: a retry must give the same ones in the same
   * order. While the broker is unreachable the publish waits, holding its slot: that is not an attempt.
   */
  <B, RD, RE>(
    topic: Topic.Topic<B, RD, RE>
  ): <M extends Any, A extends B, E, R>(self: Open<M, A, E, R>) => Open<M, A, E | PublishError, R | RE>
  /**
   * Publishes the value, or the result of `value` (an array is several messages), and passes the value on.
   *
   * **Details**
   *
   * The message id derives from topic, group, source id and step, so that a retry does not duplicate where the broker
   * deduplicates. Messages of one array are told apart by their places in it: a retry must give the same ones in the same
   * order. While the broker is unreachable the publish waits, holding its slot: that is not an attempt.
   */
  <M extends Any, A, B, RD, RE>(
    topic: Topic.Topic<B, RD, RE>,
    value: (value: NoInfer<A>, message: NoInfer<M>) => NoInfer<B> | ReadonlyArray<NoInfer<B>>
  ): Step<M, A, A, PublishError, RE>
  /**
   * Publishes the value, or the result of `value` (an array is several messages), and passes the value on.
   *
   * **Details**
   *
   * The message id derives from topic, group, source id and step, so that a retry does not duplicate where the broker
   * deduplicates. Messages of one array are told apart by their places in it: a retry must give the same ones in the same
   * order. While the broker is unreachable the publish waits, holding its slot: that is not an attempt.
   */
  <M extends Any, A extends B, E, R, B, RD, RE>(
    self: Open<M, A, E, R>,
    topic: Topic.Topic<B, RD, RE>
  ): Open<M, A, E | PublishError, R | RE>
  /**
   * Publishes the value, or the result of `value` (an array is several messages), and passes the value on.
   *
   * **Details**
   *
   * The message id derives from topic, group, source id and step, so that a retry does not duplicate where the broker
   * deduplicates. Messages of one array are told apart by their places in it: a retry must give the same ones in the same
   * order. While the broker is unreachable the publish waits, holding its slot: that is not an attempt.
   */
  <M extends Any, A, E, R, B, RD, RE>(
    self: Open<M, A, E, R>,
    topic: Topic.Topic<B, RD, RE>,
    value: (value: A, message: M) => NoInfer<B> | ReadonlyArray<NoInfer<B>>
  ): Open<M, A, E | PublishError, R | RE>
} = dual(
  (args) => isPipeline(args[0]),
  (self: AnyPipeline, topic: any, value?: any) => addStep(self, { _tag: "To", topic, f: value, transport: undefined })
)

/**
 * Fails with `Cause.TimeoutError` when the steps above it take longer; the handler is interrupted, its signal aborts.
 *
 * @category steps
 * @since 0.1.0
 */
export const timeout: {
  /**
   * Fails with `Cause.TimeoutError` when the steps above it take longer; the handler is interrupted, its signal aborts.
   */
  <const D extends Duration.Input | string>(
    duration: D & MustBeDuration<D>
  ): <M extends Any, A, E, R>(self: Open<M, A, E, R>) => Open<M, A, E | Cause.TimeoutError, R>
  /**
   * Fails with `Cause.TimeoutError` when the steps above it take longer; the handler is interrupted, its signal aborts.
   */
  <M extends Any, A, E, R, const D extends Duration.Input | string>(
    self: Open<M, A, E, R>,
    duration: D & MustBeDuration<D>
  ): Open<M, A, E | Cause.TimeoutError, R>
} = dual(2, (self: AnyPipeline, input: Duration.Input) => {
  const { duration, invalid } = durationOf("timeout", input)
  return addStep(self, { _tag: "Timeout", duration }, invalid)
})

type TagOf<K> = K extends Arr.NonEmptyReadonlyArray<string> ? K[number] : K extends string ? K : never

/**
 * Recovers from failures of one tag, or of several, that stand above it.
 *
 * @category steps
 * @since 0.1.0
 */
export const catchTag: {
  /**
   * Recovers from failures of one tag, or of several, that stand above it.
   */
  <const K extends Types.Tags<E> | Arr.NonEmptyReadonlyArray<Types.Tags<E>>, M extends Any, E, B>(
    tag: K,
    f: (
      error: NoInfer<Types.ExtractTag<E, TagOf<K>>>,
      message: NoInfer<M>
    ) => B & MustBeEffect<B, "catchTagPromise">
  ): <A, R>(
    self: Open<M, A, E, R>
  ) => Open<
    M,
    A | Effect.Success<B>,
    Effect.Error<B> | Types.ExcludeTag<E, TagOf<K>>,
    R | Effect.Services<B>
  >
  /**
   * Recovers from failures of one tag, or of several, that stand above it.
   */
  <M extends Any, A, E, R, const K extends Types.Tags<E> | Arr.NonEmptyReadonlyArray<Types.Tags<E>>, B>(
    self: Open<M, A, E, R>,
    tag: K,
    f: (error: Types.ExtractTag<E, TagOf<K>>, message: M) => B & MustBeEffect<B, "catchTagPromise">
  ): Open<M, A | Effect.Success<B>, Effect.Error<B> | Types.ExcludeTag<E, TagOf<K>>, R | Effect.Services<B>>
} = dual(
  3,
  (self: AnyPipeline, tag: string | ReadonlyArray<string>, f: any) =>
    addStep(self, { _tag: "Catch", ...tagged(tag), f }, invalidTag("catchTag", tag))
)

const invalidTag = (option: string, tag: unknown): Invalid | undefined =>
  [tag].flat().length > 0 && [tag].flat().every((tag) => typeof tag === "string")
    ? undefined
    : { option, value: tag, remedy: "give the _tag of an error, or an array of them, then a function" }

const tagged = (tag: string | ReadonlyArray<string>) => {
  const tags = new Set([tag].flat())
  return {
    tags: [...tags],
    matches: (error: unknown) => Predicate.hasProperty(error, "_tag") && tags.has(error._tag as string)
  }
}

/**
 * Recovers from failures of one tag, or of several, that stand above it, with an `async` function. A rejection of that
 * function is a `Cause.UnknownError`.
 *
 * @category steps
 * @since 0.1.0
 */
export const catchTagPromise: {
  /**
   * Recovers from failures of one tag, or of several, that stand above it, with an `async` function. A rejection of that
   * function is a `Cause.UnknownError`.
   */
  <const K extends Types.Tags<E> | Arr.NonEmptyReadonlyArray<Types.Tags<E>>, M extends Any, E, B>(
    tag: K,
    f: (error: NoInfer<Types.ExtractTag<E, TagOf<K>>>, message: NoInfer<M>) => PromiseLike<B & NoEffect<B>>
  ): <A, R>(
    self: Open<M, A, E, R>
  ) => Open<M, A | B, Cause.UnknownError | Types.ExcludeTag<E, TagOf<K>>, R>
  /**
   * Recovers from failures of one tag, or of several, that stand above it, with an `async` function. A rejection of that
   * function is a `Cause.UnknownError`.
   */
  <M extends Any, A, E, R, const K extends Types.Tags<E> | Arr.NonEmptyReadonlyArray<Types.Tags<E>>, B>(
    self: Open<M, A, E, R>,
    tag: K,
    f: (error: Types.ExtractTag<E, TagOf<K>>, message: M) => PromiseLike<B & NoEffect<B>>
  ): Open<M, A | B, Cause.UnknownError | Types.ExcludeTag<E, TagOf<K>>, R>
} = dual(3, (self: AnyPipeline, tag: string | ReadonlyArray<string>, f: any) => {
  const form = promiseForm("catchTagPromise", f)
  const step: ProgramStep = { _tag: "Catch", ...tagged(tag), f: fromPromise(form) }
  return addStep(self, step, invalidTag("catchTagPromise", tag) ?? form.invalid)
})

/**
 * When a batch is handed over: when it holds `size` messages, or `within` after its first one came.
 *
 * @category models
 * @since 0.1.0
 */
export interface BatchOptions {
  /** The most messages of a batch; at least 1. */
  readonly size: number
  /** How long the first message of a batch waits for others. */
  readonly within: Duration.Input | Hints["duration"]
  /** Wraps the function, once for each batch: `Telemetry.spans()`, a transaction. It must not run the handler twice. */
  readonly middleware?:
    | (<A, E, R>(
      handler: Effect.Effect<A, E, R>,
      messages: Arr.NonEmptyReadonlyArray<Message.Any>
    ) => Effect.Effect<A, E, R>)
    | undefined
}

/**
 * Handles messages together, all or nothing; each value then goes on alone and each message is settled alone.
 *
 * **Details**
 *
 * A batch is one permit; messages that wait for it hold none and are kept alive. On drain an open batch is handed over
 * as it is. When the function fails, every message of the batch follows the retry policy.
 *
 * @category steps
 * @since 0.1.0
 */
export const batch: {
  /**
   * Handles messages together, all or nothing; each value then goes on alone and each message is settled alone.
   *
   * **Details**
   *
   * A batch is one permit; messages that wait for it hold none and are kept alive. On drain an open batch is handed over
   * as it is. When the function fails, every message of the batch follows the retry policy.
   */
  <M extends Any, A, B>(
    options: BatchOptions,
    f: BatchHandler<A, NoInfer<M>, B & MustBeEffect<B, "batchPromise">>
  ): Step<M, A, A, Effect.Error<B>, Effect.Services<B>>
  /**
   * Handles messages together, all or nothing; each value then goes on alone and each message is settled alone.
   *
   * **Details**
   *
   * A batch is one permit; messages that wait for it hold none and are kept alive. On drain an open batch is handed over
   * as it is. When the function fails, every message of the batch follows the retry policy.
   */
  <M extends Any, A, E, R, B>(
    self: Open<M, A, E, R>,
    options: BatchOptions,
    f: BatchHandler<A, M, B & MustBeEffect<B, "batchPromise">>
  ): Open<M, A, E | Effect.Error<B>, R | Effect.Services<B>>
} = dual(3, (self: AnyPipeline, options: BatchOptions, f: any) => addBatch(self, options, false, f))

/**
 * Handles messages together with an `async` function, all or nothing, as {@link batch} does. A rejection is a
 * `Cause.UnknownError` of every message of the batch.
 *
 * @category steps
 * @since 0.1.0
 */
export const batchPromise: {
  /**
   * Handles messages together with an `async` function, all or nothing, as {@link batch} does. A rejection is a
   * `Cause.UnknownError` of every message of the batch.
   */
  <M extends Any, A>(
    options: BatchOptions,
    f: BatchHandler<A, NoInfer<M>, PromiseLike<unknown>>
  ): Step<M, A, A, Cause.UnknownError>
  /**
   * Handles messages together with an `async` function, all or nothing, as {@link batch} does. A rejection is a
   * `Cause.UnknownError` of every message of the batch.
   */
  <M extends Any, A, E, R>(
    self: Open<M, A, E, R>,
    options: BatchOptions,
    f: BatchHandler<A, M, PromiseLike<unknown>>
  ): Open<M, A, E | Cause.UnknownError, R>
} = dual(3, (self: AnyPipeline, options: BatchOptions, f: any) => {
  const form = promiseForm("batchPromise", f)
  return addBatch(self, options, false, fromPromise(form), form.invalid)
})

/**
 * Handles messages together and answers for each: one `Result` per value, in the same order. A failed item is retried or
 * dead-lettered alone.
 *
 * **Gotchas**
 *
 * Another number of results than values is a defect of the whole batch.
 *
 * @category steps
 * @since 0.1.0
 */
export const batchEach: {
  /**
   * Handles messages together and answers for each: one `Result` per value, in the same order. A failed item is retried or
   * dead-lettered alone.
   *
   * **Gotchas**
   *
   * Another number of results than values is a defect of the whole batch.
   */
  <M extends Any, A, B>(
    options: BatchOptions,
    f: BatchHandler<A, NoInfer<M>, B & MustBeResults<B>>
  ): Step<M, A, Results<B, 0>, Results<B, 1> | Effect.Error<B>, Effect.Services<B>>
  /**
   * Handles messages together and answers for each: one `Result` per value, in the same order. A failed item is retried or
   * dead-lettered alone.
   *
   * **Gotchas**
   *
   * Another number of results than values is a defect of the whole batch.
   */
  <M extends Any, A, E, R, B>(
    self: Open<M, A, E, R>,
    options: BatchOptions,
    f: BatchHandler<A, M, B & MustBeResults<B>>
  ): Open<M, Results<B, 0>, E | Results<B, 1> | Effect.Error<B>, R | Effect.Services<B>>
} = dual(3, (self: AnyPipeline, options: BatchOptions, f: any) => addBatch(self, options, true, f))

/**
 * Handles messages together with an `async` function that answers for each, as `Promise.allSettled` does: one settled
 * result per value, in the same order. A rejected item is retried or dead-lettered alone.
 *
 * **Gotchas**
 *
 * Another number of results than values is a defect of the whole batch.
 *
 * **Example** (Sending a batch)
 *
 * ```ts
 * import { Pipeline, Topic } from "@millrace/core"
 * import { Schema } from "effect"
 *
 * declare const send: (address: string) => Promise<string>
 *
 * const Mails = Topic.make("mails", { schema: Schema.String })
 * export const mailing = Pipeline.from(Mails, { group: "mailing" }).pipe(
 *   Pipeline.batchEachPromise({ size: 50, within: "1 second" }, (values) => Promise.allSettled(values.map(send)))
 * )
 * ```
 *
 * @category steps
 * @since 0.1.0
 */
export const batchEachPromise: {
  /**
   * Handles messages together with an `async` function that answers for each, as `Promise.allSettled` does: one settled
   * result per value, in the same order. A rejected item is retried or dead-lettered alone.
   *
   * **Gotchas**
   *
   * Another number of results than values is a defect of the whole batch.
   */
  <M extends Any, A, B>(
    options: BatchOptions,
    f: BatchHandler<A, NoInfer<M>, PromiseLike<ReadonlyArray<PromiseSettledResult<B>>>>
  ): Step<M, A, B, Cause.UnknownError>
  /**
   * Handles messages together with an `async` function that answers for each, as `Promise.allSettled` does: one settled
   * result per value, in the same order. A rejected item is retried or dead-lettered alone.
   *
   * **Gotchas**
   *
   * Another number of results than values is a defect of the whole batch.
   */
  <M extends Any, A, E, R, B>(
    self: Open<M, A, E, R>,
    options: BatchOptions,
    f: BatchHandler<A, M, PromiseLike<ReadonlyArray<PromiseSettledResult<B>>>>
  ): Open<M, B, E | Cause.UnknownError, R>
} = dual(3, (self: AnyPipeline, options: BatchOptions, f: any) => {
  const form = promiseForm("batchEachPromise", f)
  const results = flow(fromPromise(form), Effect.flatMap(settledResults(form.catch)))
  return addBatch(self, options, true, results, form.invalid)
})

type BatchFunction = Extract<ProgramStep, { _tag: "Batch" }>["f"]

const addBatch = (self: AnyPipeline, options: BatchOptions, each: boolean, f: any, wrong?: Invalid): any => {
  const { duration, invalid } = durationOf("batch.within", options?.within)
  const unknown = unknownOption("batch", options, ["size", "within", "middleware"])
  const step: ProgramStep = {
    _tag: "Batch",
    size: options?.size,
    within: duration,
    each,
    f: typeof options?.middleware === "function" && typeof f === "function" ? wrapBatch(options.middleware, f) : f
  }
  const middleware = unknown === undefined ? invalidMiddleware(options.middleware) : undefined
  return addStep(self, step, unknown ?? invalid ?? middleware ?? wrong)
}

const invalidMiddleware = (middleware: BatchOptions["middleware"]): Invalid | undefined =>
  middleware === undefined ? undefined : invalidFunction("batch.middleware", middleware) ?? invalidOf(middleware)

const wrapBatch = (middleware: NonNullable<BatchOptions["middleware"]>, f: BatchFunction): BatchFunction => {
  const wrapped: BatchFunction = (values, messages) => middleware(Effect.suspend(() => f(values, messages)), messages)
  return Object.defineProperty(wrapped, "name", { value: f.name })
}

type AnyOpen = Open<Any, unknown, unknown, unknown>
type Out<C, I extends 0 | 1 | 2> = {
  [K in keyof C]: C[K] extends (...args: never) => Open<Any, infer A, infer E, infer R> ? [A, E, R][I] : never
}[keyof C]
type Cases<M extends Any, A, C> =
  & { readonly [K in Types.Tags<A>]: (self: Open<M, Types.ExtractTag<A, K>>) => AnyOpen }
  & { readonly [K in Exclude<keyof C, Types.Tags<A>>]: never }

/**
 * Sends each value down the branch of its `_tag`. Exhaustive: a missing tag and an unknown one are type errors. A
 * message is settled once its branch and the steps below are done.
 *
 * @category steps
 * @since 0.1.0
 */
export const branchTag: {
  /**
   * Sends each value down the branch of its `_tag`. Exhaustive: a missing tag and an unknown one are type errors. A
   * message is settled once its branch and the steps below are done.
   */
  <M extends Any, A extends { readonly _tag: string }, C extends Cases<M, A, C>>(
    cases: C
  ): Step<M, A, Out<C, 0>, Out<C, 1>, Out<C, 2>>
  /**
   * Sends each value down the branch of its `_tag`. Exhaustive: a missing tag and an unknown one are type errors. A
   * message is settled once its branch and the steps below are done.
   */
  <M extends Any, A extends { readonly _tag: string }, E, R, C extends Cases<M, A, C>>(
    self: Open<M, A, E, R>,
    cases: C
  ): Open<M, Out<C, 0>, E | Out<C, 1>, R | Out<C, 2>>
} = dual(2, (self: AnyPipeline, cases: any) => addBranch(self, (value: any) => value._tag, cases))

/**
 * Sends each value down the branch that `by` names. Exhaustive over the names that the function can return.
 *
 * @category steps
 * @since 0.1.0
 */
export const branch: {
  /**
   * Sends each value down the branch that `by` names. Exhaustive over the names that the function can return.
   */
  <M extends Any, A, K extends string, C extends { readonly [k in K]: (self: Open<M, A>) => AnyOpen }>(
    by: (value: NoInfer<A>, message: NoInfer<M>) => K,
    cases: C
  ): Step<M, A, Out<C, 0>, Out<C, 1>, Out<C, 2>>
  /**
   * Sends each value down the branch that `by` names. Exhaustive over the names that the function can return.
   */
  <M extends Any, A, E, R, K extends string, C extends { readonly [k in K]: (self: Open<M, A>) => AnyOpen }>(
    self: Open<M, A, E, R>,
    by: (value: A, message: M) => K,
    cases: C
  ): Open<M, Out<C, 0>, E | Out<C, 1>, R | Out<C, 2>>
} = dual(3, (self: AnyPipeline, by: any, cases: any) => addBranch(self, by, cases))

const addBranch = (
  self: AnyPipeline,
  by: (value: unknown, message: Any) => string,
  cases: { readonly [name: string]: (self: AnyOpen) => AnyOpen }
): any => {
  const trunk: AnyOpen = make({ ...programOf(self), steps: [] })
  const grown = Object.entries(cases ?? {})
  if (grown.length === 0 || grown.some(([, grow]) => typeof grow !== "function")) {
    const remedy = "give a function for each case: { small: (pipeline) => pipeline.pipe(…) }"
    return addStep(self, { _tag: "Branch", by, cases: new Map() }, { option: "branch.cases", value: cases, remedy })
  }
  const branches = grown.map(([name, grow]) => [name, programOf(grow(trunk))] as const)
  const invalid = branches.find(([, { invalid }]) => invalid !== undefined)?.[1].invalid
  const steps = branches.map(([name, { steps }]) => [name, steps] as const)
  return addStep(self, { _tag: "Branch", by, cases: new Map(steps) }, invalid)
}

/**
 * Wraps all that stands above it, as one Effect: logging, tenant context, transactions, a retry of its own.
 *
 * **Gotchas**
 *
 * A message that a filter above rejects passes through as a defect: recover from failures, not from every cause.
 *
 * @category steps
 * @since 0.1.0
 */
export const middleware: {
  /**
   * Wraps all that stands above it, as one Effect: logging, tenant context, transactions, a retry of its own.
   *
   * **Gotchas**
   *
   * A message that a filter above rejects passes through as a defect: recover from failures, not from every cause.
   */
  <M extends Any, A, E, R, B, E2, R2>(
    f: (handler: Effect.Effect<A, E, R>, message: NoInfer<M>) => Effect.Effect<B, E2, R2>
  ): (self: Open<M, A, E, R>) => Open<M, B, E2, R2>
  /**
   * Wraps all that stands above it, as one Effect: logging, tenant context, transactions, a retry of its own.
   *
   * **Gotchas**
   *
   * A message that a filter above rejects passes through as a defect: recover from failures, not from every cause.
   */
  <M extends Any, A, E, R, B, E2, R2>(
    self: Open<M, A, E, R>,
    f: (handler: Effect.Effect<A, E, R>, message: M) => Effect.Effect<B, E2, R2>
  ): Open<M, B, E2, R2>
} = dual(2, (self: AnyPipeline, f: any) => {
  const program = programOf(self)
  return make({ ...program, steps: [{ _tag: "Middleware", steps: program.steps, f }] })
})

/**
 * Wraps all that stands above it with an `async` function: `next()` runs the steps above and gives their value.
 *
 * **Details**
 *
 * A failure of `next()` that the function lets through, or throws again, keeps its type for the policies; another
 * rejection is a `Cause.UnknownError`. A message that a filter above rejects passes through as a rejection of `next()`:
 * throw errors that are not yours.
 *
 * **Example** (Measuring handlers)
 *
 * ```ts
 * import { Pipeline, Topic } from "@millrace/core"
 * import { Schema } from "effect"
 *
 * const Orders = Topic.make("orders", { schema: Schema.Struct({ id: Schema.String }) })
 * export const measured = Pipeline.from(Orders, { group: "audit" }).pipe(
 *   Pipeline.mapPromise(async (order) => order.id),
 *   Pipeline.middlewarePromise(async (next, message) => {
 *     const since = performance.now()
 *     try {
 *       return await next()
 *     } finally {
 *       console.log(message.id, performance.now() - since)
 *     }
 *   })
 * )
 * ```
 *
 * @category steps
 * @since 0.1.0
 */
export const middlewarePromise: {
  /**
   * Wraps all that stands above it with an `async` function: `next()` runs the steps above and gives their value.
   *
   * **Details**
   *
   * A failure of `next()` that the function lets through, or throws again, keeps its type for the policies; another
   * rejection is a `Cause.UnknownError`. A message that a filter above rejects passes through as a rejection of `next()`:
   * throw errors that are not yours.
   */
  <M extends Any, A, B>(
    f: (next: () => Promise<A>, message: NoInfer<M>) => PromiseLike<B & NoEffect<B>>
  ): <E, R>(self: Open<M, A, E, R>) => Open<M, B, E | Cause.UnknownError, R>
  /**
   * Wraps all that stands above it with an `async` function: `next()` runs the steps above and gives their value.
   *
   * **Details**
   *
   * A failure of `next()` that the function lets through, or throws again, keeps its type for the policies; another
   * rejection is a `Cause.UnknownError`. A message that a filter above rejects passes through as a rejection of `next()`:
   * throw errors that are not yours.
   */
  <M extends Any, A, E, R, B>(
    self: Open<M, A, E, R>,
    f: (next: () => Promise<A>, message: M) => PromiseLike<B & NoEffect<B>>
  ): Open<M, B, E | Cause.UnknownError, R>
} = dual(
  2,
  (self: AnyPipeline, f: any) =>
    middleware(
      self as AnyOpen,
      typeof f === "function" ? (handler, message) => wrapPromise(handler, (next) => f(next, message)) : f
    )
)

// --- policies

/**
 * When to try again.
 *
 * @category models
 * @since 0.1.0
 */
export interface RetryOptions<E, M extends Any, R> {
  /** Retries after the first attempt, as in Effect: at most `times` + 1 attempts. Default 4; 0 for none. */
  readonly times?: number | undefined
  /**
   * The delay before attempt n is this schedule stepped n − 1 times, whichever process runs it. Default: 1 second to
   * 5 minutes, growing, jittered.
   */
  readonly schedule?: Schedule.Schedule<unknown, NoInfer<E>, never, R> | undefined
  /** A failure that it rejects is dead-lettered at once. It is not asked about defects, which are retried. */
  readonly while?: Retryable<E, NoInfer<M>> | undefined
  /**
   * How many retries with `countsAttempt: false` one attempt may ask for before one counts. Default 100.
   */
  readonly uncounted?: number | undefined
}

type Retryable<E, M extends Any> = [Exclude<E, Settlement.SettlementRequested>] extends [never] ?
    & ((error: unknown, message: M) => boolean)
    & Hint<
      "no step above has a typed failure, so there is nothing to ask: use Pipeline.mapPromise or Pipeline.mapEffect"
    >
  : (error: NoInfer<Exclude<E, Settlement.SettlementRequested>>, message: M) => boolean

/**
 * Retries failures. Attempts are counted at the broker, so that the limit holds across crashes; while a retry waits it
 * holds no slot.
 *
 * @category policies
 * @since 0.1.0
 */
export const retry: {
  /**
   * Retries failures. Attempts are counted at the broker, so that the limit holds across crashes; while a retry waits it
   * holds no slot.
   */
  <M extends Any, E, R2 = never>(
    options: RetryOptions<E, M, R2>
  ): <A, R>(self: Pipeline<M, A, E, R>) => Pipeline<M, A, E, R | R2>
  /**
   * Retries failures. Attempts are counted at the broker, so that the limit holds across crashes; while a retry waits it
   * holds no slot.
   */
  <M extends Any, A, E, R, R2 = never>(
    self: Pipeline<M, A, E, R>,
    options: RetryOptions<E, M, R2>
  ): Pipeline<M, A, E, R | R2>
} = dual(2, (self: AnyPipeline, options: RetryOptions<any, any, any>) =>
  addPolicy(self, {
    retry: {
      times: options?.times ?? 4,
      schedule: (options?.schedule ?? defaultSchedule) as any,
      while: options?.while as any,
      uncounted: options?.uncounted ?? 100
    }
  }, invalidRetry(options)))

const invalidRetry = (options: RetryOptions<any, any, any>): Invalid | undefined => {
  const unknown = unknownOption("retry", options, ["times", "schedule", "while", "uncounted"])
  if (unknown !== undefined) return unknown
  if (options.schedule !== undefined && !Schedule.isSchedule(options.schedule)) {
    const remedy = "give a Schedule of effect, such as Schedule.spaced(\"5 seconds\")"
    return { option: "retry.schedule", value: options.schedule, remedy }
  }
  return invalidFunction("retry.while", options.while)
}

/**
 * Stores messages that will not be tried again in `topic`, instead of `<topic>.dead`.
 *
 * @category policies
 * @since 0.1.0
 */
export const deadLetter: {
  /**
   * Stores messages that will not be tried again in `topic`, instead of `<topic>.dead`.
   */
  <const N extends string>(topic: N & MustBeName<N>): Policy
  /**
   * Stores messages that will not be tried again in `topic`, instead of `<topic>.dead`.
   */
  <M extends Any, A, E, R, const N extends string>(
    self: Pipeline<M, A, E, R>,
    topic: N & MustBeName<N>
  ): Pipeline<M, A, E, R>
} = dual(2, (self: AnyPipeline, topic: string) => addPolicy(self, { deadLetter: topic }))

/**
 * Deletes messages that will not be tried again: the written-down alternative to {@link deadLetter}.
 *
 * @category policies
 * @since 0.1.0
 */
export const discard: Policy = (self) => addPolicy(self, { deadLetter: false })

/**
 * Many keys at once, each key one at a time and in order, also through retries: a failing message holds back only its own
 * key, without a slot while it waits.
 *
 * @category models
 * @since 0.1.0
 */
export interface Keyed<M extends Any> {
  /** How many handlers run at once, of all keys together. */
  readonly max: number | Concurrency.Limit
  /** `undefined`: this message waits for no other. `() => ""`: strict order of all messages. */
  readonly key: (message: M) => string | undefined
}

/**
 * Bounds the handlers that run at once; default 1, in order of first attempts. A `Concurrency.Limit` is shared by all
 * pipelines that name it. With a key, messages of one key are never in flight together in one process.
 *
 * @category policies
 * @since 0.1.0
 */
export const concurrency: {
  /**
   * Bounds the handlers that run at once; default 1, in order of first attempts. A `Concurrency.Limit` is shared by all
   * pipelines that name it. With a key, messages of one key are never in flight together in one process.
   */
  <M extends Any>(
    limit: number | Concurrency.Limit | Keyed<NoInfer<M>>
  ): <A, E, R>(self: Pipeline<M, A, E, R>) => Pipeline<M, A, E, R>
  /**
   * Bounds the handlers that run at once; default 1, in order of first attempts. A `Concurrency.Limit` is shared by all
   * pipelines that name it. With a key, messages of one key are never in flight together in one process.
   */
  <M extends Any, A, E, R>(
    self: Pipeline<M, A, E, R>,
    limit: number | Concurrency.Limit | Keyed<M>
  ): Pipeline<M, A, E, R>
} = dual(
  2,
  (self: AnyPipeline, limit: number | Concurrency.Limit | Keyed<any>) =>
    typeof limit === "object" && limit !== null && !isLimit(limit)
      ? addPolicy(
        self,
        { concurrency: limit.max, key: limit.key },
        unknownOption("concurrency", limit, ["max", "key"]) ?? invalidFunction("concurrency.key", limit.key)
      )
      : addPolicy(self, { concurrency: limit, key: undefined })
)

/**
 * When a message is acknowledged.
 *
 * - `on-success` (default): when its handler has succeeded
 * - `on-receive`: before its handler begins; a failure is dead-lettered once and never retried
 * - `manual`: by the handler (`Message.settle`); a failure follows the policies, success settles nothing
 *
 * @category models
 * @since 0.1.0
 */
export type AckPolicy = "on-success" | "on-receive" | "manual"

/**
 * Chooses when messages are acknowledged. With `manual`, a message that is unsettled `settleWithin` (default 30 seconds) after its
 * handler succeeded is reported with its id and will be redelivered. The next message of its key begins when the handler has
 * ended: where the order must hold through a retry by hand, settle inside the handler.
 *
 * @category policies
 * @since 0.1.0
 */
export const ackPolicy: {
  /**
   * Chooses when messages are acknowledged. With `manual`, a message that is unsettled `settleWithin` (default 30 seconds) after its
   * handler succeeded is reported with its id and will be redelivered. The next message of its key begins when the handler has
   * ended: where the order must hold through a retry by hand, settle inside the handler.
   */
  (policy: AckPolicy, options?: AckPolicyOptions): Policy
  /**
   * Chooses when messages are acknowledged. With `manual`, a message that is unsettled `settleWithin` (default 30 seconds) after its
   * handler succeeded is reported with its id and will be redelivered. The next message of its key begins when the handler has
   * ended: where the order must hold through a retry by hand, settle inside the handler.
   */
  <M extends Any, A, E, R>(
    self: Pipeline<M, A, E, R>,
    policy: AckPolicy,
    options?: AckPolicyOptions
  ): Pipeline<M, A, E, R>
} = dual(
  (args) => isPipeline(args[0]),
  (self: AnyPipeline, policy: AckPolicy, options?: AckPolicyOptions) => {
    const { duration, invalid } = durationOf("settleWithin", options?.settleWithin ?? "30 seconds")
    const unknown = options === undefined ? undefined : unknownOption("ackPolicy", options, ["settleWithin"])
    return addPolicy(self, { ackPolicy: policy, settleWithin: duration }, invalid ?? unknown)
  }
)

/**
 * Options of {@link ackPolicy}.
 *
 * @category models
 * @since 0.1.0
 */
export interface AckPolicyOptions {
  /** With `manual`: a message unsettled this long after its handler succeeded is reported. Default 30 seconds. */
  readonly settleWithin?: Duration.Input | Hints["duration"] | undefined
}

// --- running

// The compiler prints these beside the service that is missing.
type NoLayer = "no Layer provides this service: Effect.provide the broker's, or your own"
type NotClosed = "nothing closes this pipeline: use Pipeline.run, or Effect.scoped around the whole program"

export type {
  /**
   * @category models
   * @since 0.1.0
   */
  Counts,
  /**
   * @category models
   * @since 0.1.0
   */
  Health,
  /**
   * @category models
   * @since 0.1.0
   */
  Running
} from "./internal/running.ts"

/**
 * Starts a pipeline and returns once it is ready. Closing the scope drains it: running handlers finish within
 * `drainTimeout`, unsettled messages are released for a peer to take at once, without counting an attempt.
 *
 * @category running
 * @since 0.1.0
 */
export const start = <M extends Any, A, E, R>(
  self: Pipeline<M, A, E, R>
): Effect.Effect<Running, TransportError, (R & Hint<NoLayer>) | (Scope.Scope & Hint<NotClosed>)> =>
  startProgram(programOf(self)) as any

/**
 * Runs a pipeline until it is interrupted, then drains it.
 *
 * @category running
 * @since 0.1.0
 */
export const run = <M extends Any, A, E, R>(
  self: Pipeline<M, A, E, R>
): Effect.Effect<never, TransportError, Exclude<R, Scope.Scope> & Hint<NoLayer>> =>
  Effect.scoped(Effect.flatMap(start(self), (running) => running.await)) as any

/**
 * Runs several pipelines; when one can no longer run, all are drained and it fails. Without any it fails at once.
 *
 * @category running
 * @since 0.1.0
 */
export const runAll = <const P extends readonly [AnyPipeline, ...Array<AnyPipeline>]>(
  pipelines: P
): Effect.Effect<never, TransportError, Exclude<Services<P[number]>, Scope.Scope> & Hint<NoLayer>> =>
  Effect.suspend(() => {
    const invalid = invalidPipelines(pipelines)
    return invalid === undefined
      ? Effect.forEach(pipelines, (pipeline) => run(pipeline), { concurrency: "unbounded", discard: true })
      : Effect.fail(toError("core", invalid))
  }) as any

/**
 * Provides a running pipeline as a Layer without services, to stand among others. It fails when the pipeline cannot
 * start; that one can no longer run later is logged, at level Error.
 *
 * @category running
 * @since 0.1.0
 */
export const toLayer = <M extends Any, A, E, R>(
  self: Pipeline<M, A, E, R>
): Layer.Layer<never, TransportError, Exclude<R, Scope.Scope> & Hint<NoLayer>> =>
  Layer.effectDiscard(start(self)) as any

/**
 * Tells pipelines from other values. Never throws.
 *
 * @category guards
 * @since 0.1.0
 */
export const isPipeline = (u: unknown): u is AnyPipeline => isPipelineInternal(u)
