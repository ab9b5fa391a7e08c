/**
 * Publishing from anywhere: a request handler, a script, or a message handler as a plain side effect.
 *
 * A publish inside a handler is repeated when the handler is retried, unless it is given an `id`; the step
 * `Pipeline.to` derives one from its source.
 *
 * @since 0.1.0
 */
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Tracer from "effect/Tracer"
import type * as Message from "./Message.ts"
import * as Topic from "./Topic.ts"
import { type Outgoing, type Published, Transport } from "./Transport.ts"
import { InvalidOption, Unauthorized } from "./TransportError.ts"

/**
 * The value does not fit the topic's schema.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unencodable extends Schema.Error<Unencodable>("@millrace/core/Publisher/Unencodable")({
  _tag: Schema.tag("Unencodable"),
  issue: Schema.String
}) {
  override get message(): string {
    return `the value does not fit the topic's schema: ${this.issue}`
  }
}

/**
 * The message is larger than the broker takes; `limit` in bytes.
 *
 * @category errors
 * @since 0.1.0
 */
export class TooLarge extends Schema.Error<TooLarge>("@millrace/core/Publisher/TooLarge")({
  _tag: Schema.tag("TooLarge"),
  size: Schema.Number,
  limit: Schema.Number
}) {
  override get message(): string {
    return `${this.size} bytes, more than the ${this.limit} that the broker takes`
  }
}

/**
 * The broker answered and will not take it: memory is full, a key of another type, an expectation that does not hold.
 *
 * @category errors
 * @since 0.1.0
 */
export class Refused extends Schema.Error<Refused>("@millrace/core/Publisher/Refused")({
  _tag: Schema.tag("Refused"),
  detail: Schema.String
}) {
  override get message(): string {
    return `the broker refused it: ${this.detail}`
  }
}

/**
 * It was never sent: there is no connection. Publishing again cannot duplicate.
 *
 * @category errors
 * @since 0.1.0
 */
export class NotSent extends Schema.Error<NotSent>("@millrace/core/Publisher/NotSent")({
  _tag: Schema.tag("NotSent"),
  detail: Schema.String
}) {
  override get message(): string {
    return `it was not sent: ${this.detail}`
  }
}

/**
 * It was sent and the connection was lost before the answer: the broker may have it. Publishing again may duplicate,
 * unless it has an `id` and the broker deduplicates.
 *
 * @category errors
 * @since 0.1.0
 */
export class OutcomeUnknown extends Schema.Error<OutcomeUnknown>("@millrace/core/Publisher/OutcomeUnknown")({
  _tag: Schema.tag("OutcomeUnknown"),
  detail: Schema.String
}) {
  override get message(): string {
    return `the broker may or may not have it: ${this.detail}`
  }
}

/**
 * The reasons of a {@link PublishError}.
 *
 * @category errors
 * @since 0.1.0
 */
export const Reason = Schema.Union([
  Unencodable,
  TooLarge,
  Refused,
  NotSent,
  OutcomeUnknown,
  InvalidOption,
  Unauthorized
])

/**
 * The reasons of a {@link PublishError}.
 *
 * @category errors
 * @since 0.1.0
 */
export type Reason = typeof Reason.Type

/**
 * A message was not published, or may not have been.
 *
 * @category errors
 * @since 0.1.0
 */
export class PublishError extends Schema.Error<PublishError>("@millrace/core/PublishError")({
  _tag: Schema.tag("PublishError"),
  topic: Schema.String,
  reason: Reason
}) {
  override get message(): string {
    return `publish to ${this.topic}: ${this.reason.message}`
  }
}

/**
 * Options of one publish.
 *
 * - `headers`: names are sent in lower case; `body`, `content-type` and `millrace-*` are refused
 * - `id`: the same id is taken once, on brokers that deduplicate and for as long as they do
 * - `delay`: not delivered before; default none. Refused where the broker has no delayed delivery
 *
 * @category models
 * @since 0.1.0
 */
export interface PublishOptions {
  readonly headers?: Message.Headers | undefined
  readonly id?: string | undefined
  readonly delay?: Duration.Input | undefined
}

/**
 * Publishes one value and waits for the broker's confirmation.
 *
 * @category publishing
 * @since 0.1.0
 */
export const publish = <A, RD, RE>(
  topic: Topic.Topic<A, RD, RE>,
  value: A,
  options?: PublishOptions
): Effect.Effect<Published, PublishError, Transport | RE> =>
  Effect.flatMap(
    outgoing(topic, value, options),
    (message) =>
      Transport.use((transport) =>
        Effect.flatMap(transport.publish([message]), (results) => Effect.fromResult(results[0]!))
      )
  )

/**
 * Publishes many values in order, as one pipelined write, and waits for all confirmations.
 *
 * **Gotchas**
 *
 * When it fails, with the first failure, others may have been published: give each an `id` to publish again safely.
 *
 * @category publishing
 * @since 0.1.0
 */
export const publishAll = <A, RD, RE>(
  topic: Topic.Topic<A, RD, RE>,
  values: Iterable<A>,
  options?: (value: A, index: number) => PublishOptions
): Effect.Effect<ReadonlyArray<Published>, PublishError, Transport | RE> =>
  Effect.flatMap(
    Effect.forEach(values, (value, index) => outgoing(topic, value, options?.(value, index))),
    (messages) =>
      Arr.isReadonlyArrayNonEmpty(messages)
        ? Transport.use((transport) =>
          Effect.flatMap(transport.publish(messages), (results) => Effect.fromResult(Result.all(results)))
        )
        : Effect.succeed([])
  )

const isReserved = (name: string) => name === "body" || name === "content-type" || name.startsWith("millrace-")

/**
 * Makes what `publish` sends, without sending it.
 *
 * @category constructors
 * @since 0.1.0
 */
export const outgoing = <A, RD, RE>(
  topic: Topic.Topic<A, RD, RE>,
  value: A,
  options?: PublishOptions
): Effect.Effect<Outgoing, PublishError, RE> =>
  Effect.withFiber((fiber) => {
    const badName = Topic.validateName("publish", topic.name)
    if (badName !== undefined && badName.reason._tag === "InvalidOption") {
      return Effect.fail(new PublishError({ topic: topic.name, reason: badName.reason }))
    }
    const headers: Record<string, string> = Object.create(null)
    headers["content-type"] = topic.codec.contentType
    const span = Context.getOrUndefined(fiber.context, Tracer.ParentSpan)
    if (span !== undefined) headers["traceparent"] = `00-${span.traceId}-${span.spanId}-${span.sampled ? "01" : "00"}`
    for (const [given, text] of Object.entries(options?.headers ?? {})) {
      const name = given.toLowerCase()
      // The strictest of the brokers decides, so that a pipeline moves between them unchanged.
      if (!/^[!#$%&'*+.^_`|~0-9a-z-]+$/.test(name) || /[\r\n]/.test(text) || isReserved(name)) {
        const reason = new InvalidOption({
          option: `header ${JSON.stringify(given)}`,
          value: JSON.stringify(text),
          remedy: isReserved(name)
            ? "body, content-type and millrace-* are reserved, choose another name"
            : "a name is an HTTP token, a value has no line break"
        })
        return Effect.fail(new PublishError({ topic: topic.name, reason }))
      }
      headers[name] = text
    }
    const key = topic.key?.(value)
    if (key !== undefined) headers["millrace-key"] = encodeURIComponent(key)
    return Effect.mapBoth(topic.codec.encode(value), {
      onFailure: (error) => new PublishError({ topic: topic.name, reason: new Unencodable({ issue: error.message }) }),
      onSuccess: (wire): Outgoing => ({
        topic: topic.name,
        body: wire.body,
        fields: wire.fields,
        headers,
        key,
        id: options?.id,
        delay: options?.delay === undefined ? undefined : Duration.fromInputUnsafe(options.delay)
      })
    })
  })

/**
 * Reads the key back from the headers of a delivery.
 *
 * @category accessors
 * @since 0.1.0
 */
export const keyOf = (headers: Message.Headers): string | undefined => {
  const key = headers["millrace-key"]
  if (key === undefined) return undefined
  try {
    return decodeURIComponent(key)
  } catch {
    return key // written by somebody else
  }
}
