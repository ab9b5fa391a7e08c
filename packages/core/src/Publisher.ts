/**
 * Publishing from anywhere: a request handler, a script, or a message handler as a plain side effect.
 *
 * A publish inside a handler is repeated when the handler is retried, unless it is given an `id`; the step
 * `Pipeline.to` derives one from its source.
 *
 * @since 0.1.0
 */
import * as Arr from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import type { Invalid } from "./internal/invalid.ts"
import { PublishError, Unencodable } from "./internal/publishError.ts"
import { send } from "./internal/send.ts"
import { invalidOf } from "./internal/topic.ts"
import { inject } from "./internal/traceContext.ts"
import type * as Message from "./Message.ts"
import * as Topic from "./Topic.ts"
import { type Outgoing, type Published, Transport } from "./Transport.ts"
import { InvalidOption } from "./TransportError.ts"

export {
  NotSent,
  OutcomeUnknown,
  PublishError,
  PublishErrorReason,
  type Reason,
  Refused,
  TooLarge,
  Unencodable
} from "./internal/publishError.ts"

/**
 * Options of one publish.
 *
 * @category models
 * @since 0.1.0
 */
export interface PublishOptions {
  /**
   * Names are sent in lower case; `body` is refused. `content-type` and `millrace-*` are left out, so that the headers of
   * a message can be forwarded as they are.
   */
  readonly headers?: Message.Headers | undefined
  /** The same id is stored once, on brokers that deduplicate and for as long as they do. */
  readonly id?: string | undefined
  /** The message is not delivered before. Default none; refused where the broker has no delayed delivery. */
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
        Effect.flatMap(give(transport, topic.name, [message]), (results) => Effect.fromResult(results[0]!))
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
          Effect.flatMap(give(transport, topic.name, messages), (results) => Effect.fromResult(Result.all(results)))
        )
        : Effect.succeed([])
  )

const refuse = ({ option, remedy, value }: Invalid) =>
  new PublishError({
    topic: option === "topic" ? String(value) : option,
    reason: new InvalidOption({
      option,
      value: typeof value === "string" ? JSON.stringify(value) : String(value),
      remedy
    })
  })

/** The broker decides which names a topic may have. */
const give = (
  transport: Transport["Service"],
  topic: string,
  messages: Arr.NonEmptyReadonlyArray<Outgoing>
): Effect.Effect<ReadonlyArray<Result.Result<Published, PublishError>>, PublishError> => {
  const remedy = transport.nameRemedy("topic", topic)
  return remedy === undefined
    ? send(transport, messages)
    : Effect.fail(refuse({ option: "topic", value: topic, remedy }))
}

const refused = (topic: string, option: string, value: unknown, remedy: string) =>
  new PublishError({
    topic,
    reason: new InvalidOption({
      option,
      value: typeof value === "string" ? JSON.stringify(value) : String(value),
      remedy
    })
  })

/**
 * Makes what `publish` sends, without sending it. Transports import it from `TransportAuthor`.
 *
 * @category transport authors
 * @since 0.1.0
 */
export const outgoing = <A, RD, RE>(
  topic: Topic.Topic<A, RD, RE>,
  value: A,
  options?: PublishOptions
): Effect.Effect<Outgoing, PublishError, RE> =>
  Effect.withFiber((fiber) => {
    const invalid = Topic.isTopic(topic)
      ? invalidOf(topic)
      : { option: "topic", value: topic, remedy: "give a topic: Topic.make(name, { schema })" }
    if (invalid !== undefined) return Effect.fail(refuse(invalid))
    const headers: Record<string, string> = Object.create(null)
    headers["content-type"] = topic.codec.contentType
    inject(headers, fiber.context)
    for (const [given, text] of Object.entries(options?.headers ?? {})) {
      const name = given.toLowerCase()
      // They describe the message that they came with: its headers can be forwarded as they are.
      if (name === "content-type" || name.startsWith("millrace-")) continue
      // The strictest of the brokers decides, so that a pipeline moves between them unchanged.
      if (!/^[!#$%&'*+.^_`|~0-9a-z-]+$/.test(name) || /[\r\n]/.test(text) || name === "body") {
        const reason = new InvalidOption({
          option: `header ${JSON.stringify(given)}`,
          value: JSON.stringify(text),
          remedy: name === "body"
            ? "body is reserved, choose another name"
            : "a name is an HTTP token, a value has no line break"
        })
        return Effect.fail(new PublishError({ topic: topic.name, reason }))
      }
      headers[name] = text
    }
    const key = topic.key?.(value)
    if (key !== undefined) {
      if (typeof key === "string" && !key.isWellFormed()) {
        return Effect.fail(refused(topic.name, "key", key, "half of a character cannot be encoded"))
      }
      headers["millrace-key"] = encodeURIComponent(key)
    }
    const id = options?.id
    if (id !== undefined && (/[\r\n]/.test(id) || !id.isWellFormed())) {
      return Effect.fail(refused(topic.name, "id", id, "an id is one line of text"))
    }
    const given = options?.delay
    const delay = given === undefined ? Duration.zero : Option.getOrUndefined(Duration.fromInput(given))
    if (delay === undefined || Number.isNaN(given) || !Number.isFinite(Duration.toMillis(delay))) {
      return Effect.fail(
        refused(topic.name, "delay", given, "write a duration as \"5 seconds\" or as a number of milliseconds")
      )
    }
    return Effect.mapBoth(topic.codec.encode(value), {
      onFailure: (error) => new PublishError({ topic: topic.name, reason: new Unencodable({ issue: error.message }) }),
      onSuccess: (wire): Outgoing => ({
        topic: topic.name,
        body: wire.body,
        fields: wire.fields,
        headers,
        key,
        id,
        delay: given === undefined ? undefined : Duration.max(Duration.zero, delay)
      })
    })
  })

/**
 * Reads the key back from the headers of a delivery. Transports import it from `TransportAuthor`.
 *
 * @category transport authors
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
