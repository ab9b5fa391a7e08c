/**
 * A named, typed contract between those who publish and those who consume.
 *
 * @since 0.1.0
 */
import { type Pipeable, pipeArguments } from "effect/Pipeable"
import type * as Schema from "effect/Schema"
import type * as Types from "effect/Types"
import * as Codec from "./Codec.ts"
import type * as Message from "./Message.ts"
import { invalidOption, type TransportError } from "./TransportError.ts"

const TypeId = "~@millrace/core/Topic"

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
  readonly name: string
  readonly codec: Codec.Codec<A, RD, RE>
  readonly key: Key<A>
}

/**
 * A topic whose headers have a schema; handlers read them as `message.typedHeaders`.
 *
 * @category models
 * @since 0.1.0
 */
export interface TopicWithHeaders<in out A, in out H, out RD = never, out RE = never> extends Topic<A, RD, RE> {
  readonly headers: Schema.ConstraintCodec<H, Message.Headers>
}

/**
 * Declares a topic. `schema` is JSON through that schema; anything else is a `codec`.
 *
 * **Details**
 *
 * A name is made of letters, digits and `_ . -`; another one fails with a typed error when the topic is first used.
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
  <S extends Schema.Constraint, H>(name: string, options: {
    readonly schema: S
    readonly key?: Key<S["Type"]>
    readonly headers: Schema.ConstraintCodec<H, Message.Headers>
  }): TopicWithHeaders<S["Type"], H, S["DecodingServices"], S["EncodingServices"]>
  <S extends Schema.Constraint>(name: string, options: {
    readonly schema: S
    readonly key?: Key<S["Type"]>
  }): Topic<S["Type"], S["DecodingServices"], S["EncodingServices"]>
  <A, RD, RE>(name: string, options: {
    readonly codec: Codec.Codec<A, RD, RE>
    readonly key?: Key<NoInfer<A>>
  }): Topic<A, RD, RE>
} = (name: string, options: {
  readonly schema?: Schema.Constraint
  readonly codec?: Codec.Codec<any, any, any>
  readonly key?: Key<any>
  readonly headers?: Schema.ConstraintCodec<any, Message.Headers>
}): any => ({
  [TypeId]: (_: never) => _,
  name,
  codec: options.schema === undefined ? options.codec : Codec.json(options.schema),
  key: options.key,
  headers: options.headers,
  pipe() {
    return pipeArguments(this, arguments)
  }
})

/**
 * Says why a topic cannot have this name, if it cannot.
 *
 * @category validation
 * @since 0.1.0
 */
export const validateName = (transport: string, name: string): TransportError | undefined =>
  /^[A-Za-z0-9_.-]+$/.test(name)
    ? undefined
    : invalidOption(transport, "topic", name, "a topic name is made of letters, digits and the signs _ . -")
