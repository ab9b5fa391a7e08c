/**
 * Pipelines are values: a source, steps, policies. Nothing happens until one is run.
 *
 * Steps are positional, each concerns what stands above it. Policies concern the whole pipeline, come after the steps
 * and may stand in any order. Every handler gets the current value and, second, the source `Message`.
 *
 * @since 0.1.0
 */
import type * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Layer from "effect/Layer"
import { type Pipeable, pipeArguments } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import type * as Result from "effect/Result"
import type * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type * as Types from "effect/Types"
import { isLimit } from "./Concurrency.ts"
import type * as Concurrency from "./Concurrency.ts"
import { defaultSchedule } from "./internal/retryDecision.ts"
import type { Description } from "./Description.ts"
import { describe as describeProgram, topics as topicsOf } from "./internal/describe.ts"
import { inspectedAs } from "./internal/inspection.ts"
import { noPolicies, type Policies, type Program, type Step as ProgramStep } from "./internal/program.ts"
import type { Running } from "./internal/running.ts"
import { start as startProgram } from "./internal/start.ts"
import type * as Message from "./Message.ts"
import type { PublishError } from "./Publisher.ts"
import type * as Settlement from "./Settlement.ts"
import type * as Topic from "./Topic.ts"
import * as Transport from "./Transport.ts"
import type { TransportError } from "./TransportError.ts"

const TypeId = "~@millrace/core/Pipeline"

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
type NoEffect<B> = B extends Effect.Effect<unknown, unknown, unknown>
  ? "this resolves to an Effect nobody runs: use Pipeline.mapEffect"
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
 * What every broker's source takes.
 *
 * - `group`: the consumer group (Redis) or durable consumer (NATS); processes of one group share the work
 * - `name`: as in logs, spans and dead letters; default `<topic>/<group>`
 * - `startFrom`: where a group that does not exist yet begins; default `"new"`
 * - `prefetch`: how many messages may wait in this process; default about 200 ms of work at the pipeline's own rate,
 *   at most 512
 * - `prefetchBytes`: how many bytes of bodies may wait in this process, by the average size of recent messages; default
 *   16 MiB. Messages that run do not count
 * - `waiting`: how many retries may wait in this process before pulling stops; default 10,000
 * - `maxBlocked`: how many messages may wait behind another one of their key before pulling stops; default 10,000
 * - `drainTimeout`: how long running handlers may finish when the pipeline stops; default 30 seconds
 *
 * @category models
 * @since 0.1.0
 */
export interface FromOptions {
  readonly group: string
  readonly name?: string | undefined
  readonly startFrom?: "new" | "beginning" | undefined
  readonly prefetch?: number | undefined
  readonly prefetchBytes?: number | undefined
  readonly waiting?: number | undefined
  readonly maxBlocked?: number | undefined
  readonly drainTimeout?: Duration.Input | undefined
}

const programs = new WeakMap<object, Program>()

const programOf = (self: AnyPipeline): Program => programs.get(self)!

const Prototype = Object.assign(inspectedAs("Pipeline"), {
  [TypeId]: { _M: (_: never) => _, _A: (_: never) => _, _E: (_: never) => _, _R: (_: never) => _ },
  pipe() {
    return pipeArguments(this, arguments)
  },
  toJSON(this: AnyPipeline) {
    return describe(this)
  }
})

const make = (program: Program): any => {
  const self = Object.assign(Object.create(Prototype), { name: program.name })
  programs.set(self, program)
  return self
}

const addStep = (self: AnyPipeline, step: ProgramStep): any => {
  const program = programOf(self)
  return make({ ...program, steps: [...program.steps, step] })
}

const addPolicy = (self: AnyPipeline, policies: Partial<Policies>): any => {
  const program = programOf(self)
  return make({ ...program, policies: { ...program.policies, ...policies } })
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
  <A, H, RD, RE>(
    topic: Topic.TopicWithHeaders<A, H, RD, RE>,
    options: FromOptions
  ): Open<Message.WithHeaders<A, H>, A, never, Transport.Transport | RD>
  <A, RD, RE>(
    topic: Topic.Topic<A, RD, RE>,
    options: FromOptions
  ): Open<Message.Message<A>, A, never, Transport.Transport | RD>
} = (topic: Topic.Topic<any, any, any>, options: FromOptions): any =>
  fromTransport(topic, options, { transport: Transport.Transport })

/**
 * Starts a pipeline on one particular broker: what a transport's own `from` is made of.
 *
 * **Details**
 *
 * `transport` puts that broker's service into `R`, `settings` reach its `subscribe`, and `extend` adds to each message
 * what that broker's messages have beside the common fields.
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromTransport = <A, RD, RE, R, M extends Message.Message<A> = Message.Message<A>>(
  topic: Topic.Topic<A, RD, RE>,
  options: FromOptions,
  broker: {
    readonly transport: Effect.Effect<Transport.Transport["Service"], never, R>
    readonly settings?: Context.Context<never> | undefined
    readonly extend?: ((message: Message.Message<A>, delivery: Transport.Delivery) => M) | undefined
  }
): Open<M, A, never, R | RD> =>
  make({
    name: options.name ?? `${topic.name}/${options.group}`,
    source: {
      topic: topic as any,
      group: options.group,
      startFrom: options.startFrom ?? "new",
      prefetch: options.prefetch,
      prefetchBytes: options.prefetchBytes ?? 16 * 1024 * 1024,
      waiting: options.waiting ?? 10_000,
      maxBlocked: options.maxBlocked ?? 10_000,
      drainTimeout: Duration.fromInputUnsafe(options.drainTimeout ?? "30 seconds"),
      transport: broker.transport as Effect.Effect<Transport.Transport["Service"]>,
      extend: broker.extend as any
    },
    steps: [],
    policies: broker.settings === undefined ? noPolicies : { ...noPolicies, settings: broker.settings }
  })

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
 * Transforms the value with a function that returns one. What it throws is a defect.
 *
 * @category steps
 * @since 0.1.0
 */
export const map: {
  <M extends Any, A, B>(f: (value: A, message: NoInfer<M>) => B & Sync<B>): Step<M, A, B>
  <M extends Any, A, E, R, B>(self: Open<M, A, E, R>, f: (value: A, message: M) => B & Sync<B>): Open<M, B, E, R>
} = dual(2, (self: AnyPipeline, f: any) => addStep(self, { _tag: "Map", f }))

/**
 * Transforms the value with a function that returns an Effect.
 *
 * @category steps
 * @since 0.1.0
 */
export const mapEffect: {
  <M extends Any, A, B, E2, R2>(
    f: (value: A, message: NoInfer<M>) => Effect.Effect<B, E2, R2>
  ): Step<M, A, B, E2, R2>
  <M extends Any, A, E, R, B, E2, R2>(
    self: Open<M, A, E, R>,
    f: (value: A, message: M) => Effect.Effect<B, E2, R2>
  ): Open<M, B, E | E2, R | R2>
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
  <M extends Any, A, B, E2>(options: {
    readonly try: (value: A, message: NoInfer<M>) => PromiseLike<B & NoEffect<B>>
    readonly catch: (cause: unknown) => E2
  }): Step<M, A, B, E2>
  <M extends Any, A, B>(
    f: (value: A, message: NoInfer<M>) => PromiseLike<B & NoEffect<B>>
  ): Step<M, A, B, Cause.UnknownError>
  <M extends Any, A, E, R, B, E2>(self: Open<M, A, E, R>, options: {
    readonly try: (value: A, message: M) => PromiseLike<B & NoEffect<B>>
    readonly catch: (cause: unknown) => E2
  }): Open<M, B, E | E2, R>
  <M extends Any, A, E, R, B>(
    self: Open<M, A, E, R>,
    f: (value: A, message: M) => PromiseLike<B & NoEffect<B>>
  ): Open<M, B, E | Cause.UnknownError, R>
} = dual(2, (self: AnyPipeline, f: any) =>
  addStep(self, {
    _tag: "Promise",
    f: typeof f === "function" ? f : f.try,
    catch: typeof f === "function" ? (cause) => new Cause.UnknownError(cause) : f.catch
  }))

/**
 * Runs an Effect for each value and passes the value on unchanged.
 *
 * @category steps
 * @since 0.1.0
 */
export const tap: {
  <M extends Any, A, X, E2, R2>(
    f: (value: NoInfer<A>, message: NoInfer<M>) => Effect.Effect<X, E2, R2>
  ): Step<M, A, A, E2, R2>
  <M extends Any, A, E, R, X, E2, R2>(
    self: Open<M, A, E, R>,
    f: (value: A, message: M) => Effect.Effect<X, E2, R2>
  ): Open<M, A, E | E2, R | R2>
} = dual(2, (self: AnyPipeline, f: any) => addStep(self, { _tag: "Effect", f, keep: true }))

/**
 * Goes on only with values that pass; the others are done: acknowledged and counted as filtered.
 *
 * @category steps
 * @since 0.1.0
 */
export const filter: {
  <M extends Any, A, B extends A>(
    refinement: (value: NoInfer<A>, message: NoInfer<M>) => value is B
  ): Step<M, A, B>
  <M extends Any, A>(predicate: (value: NoInfer<A>, message: NoInfer<M>) => boolean): Step<M, A, A>
  <M extends Any, A, E, R, B extends A>(
    self: Open<M, A, E, R>,
    refinement: (value: A, message: M) => value is B
  ): Open<M, B, E, R>
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
  <M extends Any, A, B, X>(
    f: (value: NoInfer<A>, message: NoInfer<M>) => Result.Result<B, X>
  ): Step<M, A, B>
  <M extends Any, A, E, R, B, X>(
    self: Open<M, A, E, R>,
    f: (value: A, message: M) => Result.Result<B, X>
  ): Open<M, B, E, R>
} = dual(2, (self: AnyPipeline, f: any) => addStep(self, { _tag: "FilterMap", f }))

/**
 * Publishes the value, or what `value` makes of it (an array is several messages), and passes the value on.
 *
 * **Details**
 *
 * The message id derives from topic, group, source id and step, so that a retry does not duplicate where the broker
 * deduplicates. While the broker is unreachable the publish waits, holding its slot: that is not an attempt.
 *
 * @category steps
 * @since 0.1.0
 */
export const to: {
  <B, RD, RE>(
    topic: Topic.Topic<B, RD, RE>
  ): <M extends Any, A extends B, E, R>(self: Open<M, A, E, R>) => Open<M, A, E | PublishError, R | RE>
  <M extends Any, A, B, RD, RE>(
    topic: Topic.Topic<B, RD, RE>,
    value: (value: NoInfer<A>, message: NoInfer<M>) => NoInfer<B> | ReadonlyArray<NoInfer<B>>
  ): Step<M, A, A, PublishError, RE>
  <M extends Any, A extends B, E, R, B, RD, RE>(
    self: Open<M, A, E, R>,
    topic: Topic.Topic<B, RD, RE>
  ): Open<M, A, E | PublishError, R | RE>
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
 * Publishes as {@link to} does, to another broker than the source's: what a transport's own `to` is made of.
 *
 * @category steps
 * @since 0.1.0
 */
export const toTransport = <M extends Any, A, E, R, B, RD, RE, R2>(
  self: Open<M, A, E, R>,
  transport: Effect.Effect<Transport.Transport["Service"], never, R2>,
  topic: Topic.Topic<B, RD, RE>,
  value: ((value: A, message: M) => B | ReadonlyArray<B>) | undefined
): Open<M, A, E | PublishError, R | RE | R2> => addStep(self, { _tag: "To", topic, f: value, transport: transport as any } as ProgramStep)

/**
 * Fails with `Cause.TimeoutError` when what stands above it takes longer; the handler is interrupted, its signal aborts.
 *
 * @category steps
 * @since 0.1.0
 */
export const timeout: {
  (duration: Duration.Input): <M extends Any, A, E, R>(
    self: Open<M, A, E, R>
  ) => Open<M, A, E | Cause.TimeoutError, R>
  <M extends Any, A, E, R>(
    self: Open<M, A, E, R>,
    duration: Duration.Input
  ): Open<M, A, E | Cause.TimeoutError, R>
} = dual(
  2,
  (self: AnyPipeline, duration: Duration.Input) =>
    addStep(self, { _tag: "Timeout", duration: Duration.fromInputUnsafe(duration) })
)

type TagOf<K> = K extends Arr.NonEmptyReadonlyArray<string> ? K[number] : K extends string ? K : never

/**
 * Recovers from failures of one tag, or of several, that stand above it.
 *
 * @category steps
 * @since 0.1.0
 */
export const catchTag: {
  <const K extends Types.Tags<E> | Arr.NonEmptyReadonlyArray<Types.Tags<E>>, M extends Any, E, B, E2, R2>(
    tag: K,
    f: (error: NoInfer<Types.ExtractTag<E, TagOf<K>>>, message: NoInfer<M>) => Effect.Effect<B, E2, R2>
  ): <A, R>(self: Open<M, A, E, R>) => Open<M, A | B, E2 | Types.ExcludeTag<E, TagOf<K>>, R | R2>
  <M extends Any, A, E, R, const K extends Types.Tags<E> | Arr.NonEmptyReadonlyArray<Types.Tags<E>>, B, E2, R2>(
    self: Open<M, A, E, R>,
    tag: K,
    f: (error: Types.ExtractTag<E, TagOf<K>>, message: M) => Effect.Effect<B, E2, R2>
  ): Open<M, A | B, E2 | Types.ExcludeTag<E, TagOf<K>>, R | R2>
} = dual(3, (self: AnyPipeline, tag: string | ReadonlyArray<string>, f: any) => {
  const tags = new Set(typeof tag === "string" ? [tag] : tag)
  return addStep(self, {
    _tag: "Catch",
    tags: [...tags],
    matches: (error) => Predicate.hasProperty(error, "_tag") && tags.has(error._tag as string),
    f
  })
})

/**
 * When a batch is handed over: when it holds `size` messages, or `within` after its first one came.
 *
 * @category models
 * @since 0.1.0
 */
export interface BatchOptions {
  readonly size: number
  readonly within: Duration.Input
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
  <M extends Any, A, X, E2, R2>(
    options: BatchOptions,
    f: (
      values: Arr.NonEmptyReadonlyArray<A>,
      messages: Arr.NonEmptyReadonlyArray<NoInfer<M>>
    ) => Effect.Effect<X, E2, R2>
  ): Step<M, A, A, E2, R2>
  <M extends Any, A, E, R, X, E2, R2>(
    self: Open<M, A, E, R>,
    options: BatchOptions,
    f: (values: Arr.NonEmptyReadonlyArray<A>, messages: Arr.NonEmptyReadonlyArray<M>) => Effect.Effect<X, E2, R2>
  ): Open<M, A, E | E2, R | R2>
} = dual(3, (self: AnyPipeline, options: BatchOptions, f: any) => addBatch(self, options, false, f))

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
  <M extends Any, A, B, EI, E2, R2>(
    options: BatchOptions,
    f: (
      values: Arr.NonEmptyReadonlyArray<A>,
      messages: Arr.NonEmptyReadonlyArray<NoInfer<M>>
    ) => Effect.Effect<ReadonlyArray<Result.Result<B, EI>>, E2, R2>
  ): Step<M, A, B, EI | E2, R2>
  <M extends Any, A, E, R, B, EI, E2, R2>(
    self: Open<M, A, E, R>,
    options: BatchOptions,
    f: (
      values: Arr.NonEmptyReadonlyArray<A>,
      messages: Arr.NonEmptyReadonlyArray<M>
    ) => Effect.Effect<ReadonlyArray<Result.Result<B, EI>>, E2, R2>
  ): Open<M, B, E | EI | E2, R | R2>
} = dual(3, (self: AnyPipeline, options: BatchOptions, f: any) => addBatch(self, options, true, f))

const addBatch = (self: AnyPipeline, options: BatchOptions, each: boolean, f: any): any =>
  addStep(self, {
    _tag: "Batch",
    size: options.size,
    within: Duration.fromInputUnsafe(options.within),
    each,
    f
  })

type AnyOpen = Open<Any, unknown, unknown, unknown>
type Out<C, I extends 0 | 1 | 2> = {
  [K in keyof C]: C[K] extends (...args: never) => Open<Any, infer A, infer E, infer R> ? [A, E, R][I] : never
}[keyof C]
type Cases<M extends Any, A, C> =
  & { readonly [K in Types.Tags<A>]: (self: Open<M, Types.ExtractTag<A, K>>) => AnyOpen }
  & { readonly [K in Exclude<keyof C, Types.Tags<A>>]: never }

/**
 * Sends each value down the branch of its `_tag`. Exhaustive: a missing tag and an unknown one are type errors. A
 * message is settled once its branch, and what stands below, are done.
 *
 * @category steps
 * @since 0.1.0
 */
export const branchTag: {
  <M extends Any, A extends { readonly _tag: string }, C extends Cases<M, A, C>>(
    cases: C
  ): Step<M, A, Out<C, 0>, Out<C, 1>, Out<C, 2>>
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
  <M extends Any, A, K extends string, C extends { readonly [k in K]: (self: Open<M, A>) => AnyOpen }>(
    by: (value: NoInfer<A>, message: NoInfer<M>) => K,
    cases: C
  ): Step<M, A, Out<C, 0>, Out<C, 1>, Out<C, 2>>
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
  return addStep(self, {
    _tag: "Branch",
    by,
    cases: new Map(Object.entries(cases).map(([name, grow]) => [name, programOf(grow(trunk)).steps]))
  })
}

/**
 * Wraps all that stands above it, as one Effect: logging, tenant context, transactions, a retry of its own.
 *
 * **Gotchas**
 *
 * What a filter above rejects passes through as a failure that is not in `E`: recover by tag, not from everything.
 *
 * @category steps
 * @since 0.1.0
 */
export const middleware: {
  <M extends Any, A, E, R, B, E2, R2>(
    f: (handler: Effect.Effect<A, E, R>, message: NoInfer<M>) => Effect.Effect<B, E2, R2>
  ): (self: Open<M, A, E, R>) => Open<M, B, E2, R2>
  <M extends Any, A, E, R, B, E2, R2>(
    self: Open<M, A, E, R>,
    f: (handler: Effect.Effect<A, E, R>, message: M) => Effect.Effect<B, E2, R2>
  ): Open<M, B, E2, R2>
} = dual(2, (self: AnyPipeline, f: any) => {
  const program = programOf(self)
  return make({ ...program, steps: [{ _tag: "Middleware", steps: program.steps, f }] })
})

// --- policies

/**
 * When to try again.
 *
 * - `times`: retries, as in Effect: at most `times` + 1 attempts; default 4
 * - `schedule`: the delay before attempt n is this schedule stepped n − 1 times, whichever process runs it; default
 *   1 second to 5 minutes, growing, jittered
 * - `while`: a failure that it rejects is dead-lettered at once. It is not asked about defects, which are retried
 *
 * @category models
 * @since 0.1.0
 */
export interface RetryOptions<E, M extends Any, R> {
  readonly times?: number | undefined
  readonly schedule?: Schedule.Schedule<unknown, NoInfer<E>, never, R> | undefined
  readonly while?:
    | ((error: NoInfer<Exclude<E, Settlement.SettlementRequested>>, message: NoInfer<M>) => boolean)
    | undefined
}

/**
 * Retries failures. Attempts are counted at the broker, so that the limit holds across crashes; while a retry waits it
 * holds no slot.
 *
 * @category policies
 * @since 0.1.0
 */
export const retry: {
  <M extends Any, E, R2 = never>(
    options: RetryOptions<E, M, R2>
  ): <A, R>(self: Pipeline<M, A, E, R>) => Pipeline<M, A, E, R | R2>
  <M extends Any, A, E, R, R2 = never>(
    self: Pipeline<M, A, E, R>,
    options: RetryOptions<E, M, R2>
  ): Pipeline<M, A, E, R | R2>
} = dual(2, (self: AnyPipeline, options: RetryOptions<any, any, any>) =>
  addPolicy(self, {
    retry: { times: options.times ?? 4, schedule: (options.schedule ?? defaultSchedule) as any, while: options.while }
  }))

/**
 * Stores what will not be tried again in `topic`, instead of `<topic>.dead`.
 *
 * @category policies
 * @since 0.1.0
 */
export const deadLetter: {
  (topic: string): Policy
  <M extends Any, A, E, R>(self: Pipeline<M, A, E, R>, topic: string): Pipeline<M, A, E, R>
} = dual(2, (self: AnyPipeline, topic: string) => addPolicy(self, { deadLetter: topic }))

/**
 * Throws away what will not be tried again: the written-down alternative to {@link deadLetter}.
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
  readonly max: number | Concurrency.Limit
  /** `undefined`: this message is in nobody's way. `() => ""`: strict order of all. */
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
  <M extends Any>(
    limit: number | Concurrency.Limit | Keyed<NoInfer<M>>
  ): <A, E, R>(self: Pipeline<M, A, E, R>) => Pipeline<M, A, E, R>
  <M extends Any, A, E, R>(
    self: Pipeline<M, A, E, R>,
    limit: number | Concurrency.Limit | Keyed<M>
  ): Pipeline<M, A, E, R>
} = dual(2, (self: AnyPipeline, limit: number | Concurrency.Limit | Keyed<any>) =>
  addPolicy(
    self,
    typeof limit === "number" || isLimit(limit)
      ? { concurrency: limit, key: undefined }
      : { concurrency: limit.max, key: limit.key }
  ))

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
 * Chooses when messages are acknowledged. With `manual`, what is unsettled `settleWithin` (default 30 seconds) after its
 * handler succeeded is reported with its id and will be redelivered.
 *
 * @category policies
 * @since 0.1.0
 */
export const ackPolicy: {
  (policy: AckPolicy, options?: { readonly settleWithin?: Duration.Input | undefined }): Policy
  <M extends Any, A, E, R>(
    self: Pipeline<M, A, E, R>,
    policy: AckPolicy,
    options?: { readonly settleWithin?: Duration.Input | undefined }
  ): Pipeline<M, A, E, R>
} = dual(
  (args) => isPipeline(args[0]),
  (self: AnyPipeline, policy: AckPolicy, options?: { readonly settleWithin?: Duration.Input | undefined }) =>
    addPolicy(self, {
      ackPolicy: policy,
      settleWithin: Duration.fromInputUnsafe(options?.settleWithin ?? "30 seconds")
    })
)

/**
 * Adds one of a broker's own settings: what a transport's own policies are made of.
 *
 * @category policies
 * @since 0.1.0
 */
export const withSetting: {
  <A>(reference: Context.Reference<A>, value: A): Policy
  <M extends Any, A, E, R, S>(
    self: Pipeline<M, A, E, R>,
    reference: Context.Reference<S>,
    value: S
  ): Pipeline<M, A, E, R>
} = dual(
  3,
  (self: AnyPipeline, reference: Context.Reference<any>, value: any) =>
    addPolicy(self, { settings: Context.add(programOf(self).policies.settings, reference, value) })
)

// --- running

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
 * `drainTimeout`, what is unsettled is handed back for a peer to take at once, without counting an attempt.
 *
 * @category running
 * @since 0.1.0
 */
export const start = <M extends Any, A, E, R>(
  self: Pipeline<M, A, E, R>
): Effect.Effect<Running, TransportError, R | Scope.Scope> => startProgram(programOf(self))

/**
 * Runs a pipeline until it is interrupted, then drains it.
 *
 * @category running
 * @since 0.1.0
 */
export const run = <M extends Any, A, E, R>(
  self: Pipeline<M, A, E, R>
): Effect.Effect<never, TransportError, Exclude<R, Scope.Scope>> =>
  Effect.scoped(Effect.flatMap(start(self), (running) => running.await))

/**
 * Runs several pipelines; when one can no longer run, all are drained and it fails.
 *
 * @category running
 * @since 0.1.0
 */
export const runAll = <const P extends readonly [AnyPipeline, ...Array<AnyPipeline>]>(
  pipelines: P
): Effect.Effect<never, TransportError, Exclude<Services<P[number]>, Scope.Scope>> =>
  Effect.forEach(pipelines, (pipeline) => run(pipeline), { concurrency: "unbounded", discard: true }) as any

/**
 * Provides a running pipeline as a Layer without services, to stand among others. It fails when the pipeline cannot
 * start; that one can no longer run later is logged, at level Error.
 *
 * @category running
 * @since 0.1.0
 */
export const toLayer = <M extends Any, A, E, R>(
  self: Pipeline<M, A, E, R>
): Layer.Layer<never, TransportError, Exclude<R, Scope.Scope>> => Layer.effectDiscard(start(self))

const isPipeline = (u: unknown): u is AnyPipeline => Predicate.hasProperty(u, TypeId)
