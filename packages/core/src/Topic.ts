/**
 * A named, typed contract between those who publish and those who consume.
 *
 * @since 0.1.0
 */
import { type Pipeable, pipeArguments } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import type { StandardSchemaV1 } from "effect/StandardSchema"
import type * as Types from "effect/Types"
import * as Codec from "./Codec.ts"
import { describeTopic } from "./internal/describeTopic.ts"
import type { Headers } from "./internal/headers.ts"
import type { Hint } from "./internal/hint.ts"
import { inspectedAs } from "./internal/inspection.ts"
import { type Invalid, invalidFunction, InvalidId, invalidOf, unknownOption } from "./internal/invalid.ts"
import { isTopic as isTopicInternal, TypeId as TypeIdInternal } from "./internal/topic.ts"

/**
 * Marks topics.
 *
 * @category type ids
 * @since 0.1.0
 */
export const TypeId: "~@millrace/core/Topic" = TypeIdInternal

/**
 * Marks topics.
 *
 * @category type ids
 * @since 0.1.0
 */
export type TypeId = typeof TypeId

/**
 * Chooses the key of a value: messages of one key keep their order under `Pipeline.concurrency({ max, key })`.
 *
 * @category models
 * @since 0.1.0
 */
export type Key<A> = ((value: A) => string | undefined) | undefined

/**
 * A topic: a Redis stream, a JetStream subject, a name in memory. Inert until a pipeline or a publisher uses it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Topic<in out A, out RD = never, out RE = never> extends Pipeable {
  readonly [TypeId]: Types.Invariant<A>
  /** The Redis stream, the JetStream subject, or the name in memory. */
  readonly name: string
  /** How a value becomes bytes and comes back. */
  readonly codec: Codec.Codec<A, RD, RE>
  /** The schema whose JSON form is on the wire, for documents about it; absent where the wire holds no JSON. */
  readonly schema: Codec.Codec<A, RD, RE>["schema"]
  /** The key of a value, where the topic has one. */
  readonly key: Key<A>
}

/**
 * A topic whose headers have a schema; handlers read them as `message.typedHeaders`.
 *
 * @category models
 * @since 0.1.0
 */
export interface TopicWithHeaders<in out A, in out H, out RD = never, out RE = never> extends Topic<A, RD, RE> {
  /** The schema of the headers. */
  readonly headers: Schema.ConstraintCodec<H, Headers>
}

type MustBeName<N> = N extends "" ? Hint<"a topic name has at least one character"> : unknown
type MustBeKey<K> = K extends string | undefined ? unknown
  : Hint<"a key is a string: convert it, as in String(value.id)">

/**
 * Declares a topic. `schema` is JSON through that schema; anything else is a `codec`.
 *
 * **Details**
 *
 * `schema` is a schema of Effect, or of any library with Standard Schema (zod, valibot, arktype): see
 * {@link Codec.standard} for the limits of such a schema. The broker decides which names a topic may have; a name that it
 * cannot take, and any other bad input, is a typed error when the topic is first used. Declaring never throws.
 *
 * **Example** (Declaring a topic)
 *
 * ```ts import.meta.vitest
 * import { Topic } from "@millrace/core"
 * import { Schema } from "effect"
 *
 * const Order = Schema.Struct({ id: Schema.String, customer: Schema.String, total: Schema.Number })
 * const Orders = Topic.make("orders", { schema: Order, key: (order) => order.customer })
 * Orders.name // => "orders"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make: {
  /**
   * Declares a topic. `schema` is JSON through that schema; anything else is a `codec`.
   *
   * **Details**
   *
   * `schema` is a schema of Effect, or of any library with Standard Schema (zod, valibot, arktype): see
   * {@link Codec.standard} for the limits of such a schema. The broker decides which names a topic may have; a name that it
   * cannot take, and any other bad input, is a typed error when the topic is first used. Declaring never throws.
   */
  <A, RD, RE, const N extends string, K = undefined>(name: N & MustBeName<N>, options: {
    /** Anything but JSON: fields, text, bytes, or a codec of your own. */
    readonly codec: Codec.Codec<A, RD, RE>
    /** Messages of one key keep their order under `Pipeline.concurrency({ max, key })`. */
    readonly key?: ((value: NoInfer<A>) => K & MustBeKey<K>) | undefined
  }): Topic<A, RD, RE>
  /**
   * Declares a topic. `schema` is JSON through that schema; anything else is a `codec`.
   *
   * **Details**
   *
   * `schema` is a schema of Effect, or of any library with Standard Schema (zod, valibot, arktype): see
   * {@link Codec.standard} for the limits of such a schema. The broker decides which names a topic may have; a name that it
   * cannot take, and any other bad input, is a typed error when the topic is first used. Declaring never throws.
   */
  <S extends StandardSchemaV1<unknown, unknown>, const N extends string, K = undefined>(
    name: N & MustBeName<N>,
    options: {
      /** A schema of zod, valibot, arktype or another library with Standard Schema. */
      readonly schema: S extends Schema.Constraint ? never : S
      /** Messages of one key keep their order under `Pipeline.concurrency({ max, key })`. */
      readonly key?: ((value: StandardSchemaV1.InferOutput<S>) => K & MustBeKey<K>) | undefined
    }
  ): Topic<StandardSchemaV1.InferOutput<S>>
  /**
   * Declares a topic. `schema` is JSON through that schema; anything else is a `codec`.
   *
   * **Details**
   *
   * `schema` is a schema of Effect, or of any library with Standard Schema (zod, valibot, arktype): see
   * {@link Codec.standard} for the limits of such a schema. The broker decides which names a topic may have; a name that it
   * cannot take, and any other bad input, is a typed error when the topic is first used. Declaring never throws.
   */
  <S extends Schema.Constraint, H, const N extends string, K = undefined>(name: N & MustBeName<N>, options: {
    /** The schema of the value; JSON on the wire. */
    readonly schema: S
    /** Messages of one key keep their order under `Pipeline.concurrency({ max, key })`. */
    readonly key?: ((value: S["Type"]) => K & MustBeKey<K>) | undefined
    /** The schema of the headers; handlers read `message.typedHeaders`. */
    readonly headers: Schema.ConstraintCodec<H, Headers>
  }): TopicWithHeaders<S["Type"], H, S["DecodingServices"], S["EncodingServices"]>
  /**
   * Declares a topic. `schema` is JSON through that schema; anything else is a `codec`.
   *
   * **Details**
   *
   * `schema` is a schema of Effect, or of any library with Standard Schema (zod, valibot, arktype): see
   * {@link Codec.standard} for the limits of such a schema. The broker decides which names a topic may have; a name that it
   * cannot take, and any other bad input, is a typed error when the topic is first used. Declaring never throws.
   */
  <S extends Schema.Constraint, const N extends string, K = undefined>(name: N & MustBeName<N>, options: {
    /** The schema of the value; JSON on the wire. */
    readonly schema: S
    /** Messages of one key keep their order under `Pipeline.concurrency({ max, key })`. */
    readonly key?: ((value: S["Type"]) => K & MustBeKey<K>) | undefined
  }): Topic<S["Type"], S["DecodingServices"], S["EncodingServices"]>
} = (name: string, options: any): any => {
  const invalid = invalidTopic(name, options)
  const codec = options?.codec ?? codecOf(options?.schema)
  return Object.assign(Object.create(Prototype), {
    [TypeId]: (_: never) => _,
    [InvalidId]: invalid,
    name,
    codec,
    schema: codec.schema,
    key: options?.key,
    headers: options?.headers
  })
}

const Prototype = Object.assign(inspectedAs("Topic"), {
  pipe() {
    return pipeArguments(this, arguments)
  },
  toJSON(this: Topic<unknown>) {
    return describeTopic(this)
  }
})

const isStandard = (u: unknown): u is StandardSchemaV1<unknown, unknown> => Predicate.hasProperty(u, "~standard")

const codecOf = (schema: unknown): Codec.Codec<any, any, any> =>
  Schema.isSchema(schema)
    ? Codec.json(schema)
    : isStandard(schema)
    ? Codec.standard(schema)
    : Codec.json(Schema.Unknown)

const bareSchema = { toString: () => "a schema" }

const invalidTopic = (name: unknown, options: any): Invalid | undefined => {
  const remedy = "give { schema }, or { codec } for anything but JSON"
  if (typeof name !== "string" || name === "") {
    return { option: "topic", value: name, remedy: "a topic name is a text of at least one character" }
  }
  if (Schema.isSchema(options) || isStandard(options)) {
    return { option: `options of topic ${name}`, value: bareSchema, remedy: "write Topic.make(name, { schema })" }
  }
  const unknown = unknownOption(`topic ${name}`, options, ["schema", "codec", "key", "headers"]) ??
    invalidFunction(`topic ${name}: key`, options.key)
  if (unknown !== undefined) return unknown
  if (options.codec !== undefined) {
    return typeof options.codec?.decode === "function"
      ? invalidOf(options.codec)
      : { option: `topic ${name}: codec`, value: options.codec, remedy: "give a Codec, such as Codec.text" }
  }
  return Schema.isSchema(options.schema) || isStandard(options.schema)
    ? undefined
    : { option: `topic ${name}: schema`, value: options.schema, remedy }
}

/**
 * Tells topics from other values. Never throws.
 *
 * @category guards
 * @since 0.1.0
 */
export const isTopic = (u: unknown): u is Topic<unknown, unknown, unknown> => isTopicInternal(u)
