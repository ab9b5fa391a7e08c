import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type * as Schema from "effect/Schema"
import type { Wire } from "../Codec.ts"
import type * as Topic from "../Topic.ts"
import type { Outgoing } from "../Transport.ts"
import { InvalidOption } from "../TransportError.ts"
import type { Headers } from "./headers.ts"
import type { Invalid } from "./invalid.ts"
import { isOurs } from "./letterHeaders.ts"
import { PublishError, Unencodable } from "./publishError.ts"
import type { PublishOptions } from "./publishOptions.ts"
import { invalidOf, isTopic } from "./topic.ts"
import { hasTrace, inject } from "./traceContext.ts"

export const refuse = ({ option, remedy, value }: Invalid) =>
  new PublishError({
    topic: option === "topic" ? String(value) : option,
    reason: new InvalidOption({
      option,
      value: typeof value === "string" ? JSON.stringify(value) : String(value),
      remedy
    })
  })

const isReserved = (name: string) => name === "body" || name.startsWith("millrace-")

const refused = (topic: string, option: string, value: unknown, remedy: string) =>
  new PublishError({
    topic,
    reason: new InvalidOption({
      option,
      value: typeof value === "string" ? JSON.stringify(value) : String(value),
      remedy
    })
  })

const noHeaders = new Map<string, Headers>()

/** The headers of a message that has no others: one object for each content type. */
const plainHeaders = (contentType: string): Headers => {
  let headers = noHeaders.get(contentType)
  if (headers === undefined) {
    headers = Object.freeze(Object.assign(Object.create(null), { "content-type": contentType }) as Headers)
    noHeaders.set(contentType, headers)
  }
  return headers
}

const headersOf = (
  topic: { readonly name: string; readonly codec: { readonly contentType: string } },
  given: Headers | undefined,
  key: string | undefined,
  context: Context.Context<never>
): Headers | PublishError => {
  if (given === undefined && key === undefined && !hasTrace(context)) return plainHeaders(topic.codec.contentType)
  const headers: Record<string, string> = Object.create(null)
  headers["content-type"] = topic.codec.contentType
  inject(headers, context)
  for (const [written, text] of Object.entries(given ?? {})) {
    const name = written.toLowerCase()
    // They describe the message that they came with: its headers can be forwarded as they are.
    if (name === "content-type" || isOurs(name)) continue
    // The strictest of the brokers decides, so that a pipeline moves between them unchanged.
    if (!/^[!#$%&'*+.^_`|~0-9a-z-]+$/.test(name) || /[\r\n]/.test(text) || isReserved(name)) {
      const reason = new InvalidOption({
        option: `header ${JSON.stringify(written)}`,
        value: JSON.stringify(text),
        remedy: isReserved(name)
          ? "body and millrace-* are reserved, choose another name"
          : "a name is an HTTP token, a value has no line break"
      })
      return new PublishError({ topic: topic.name, reason })
    }
    headers[name] = text
  }
  if (key !== undefined) headers["millrace-key"] = encodeURIComponent(key)
  return headers
}

/** Makes what is sent of a value, in the context of its publisher: an `Exit` where encoding needs no Effect. */
export const outgoingOf = <A, RD, RE>(
  topic: Topic.Topic<A, RD, RE>,
  value: A,
  options: PublishOptions | undefined,
  context: Context.Context<never>
): Effect.Effect<Outgoing, PublishError, RE> => {
  const invalid = isTopic(topic)
    ? invalidOf(topic)
    : { option: "topic", value: topic, remedy: "give a topic: Topic.make(name, { schema })" }
  if (invalid !== undefined) return Exit.fail(refuse(invalid))
  const key = topic.key?.(value)
  if (typeof key === "string" && !key.isWellFormed()) {
    return Exit.fail(refused(topic.name, "key", key, "half of a character cannot be encoded"))
  }
  const headers = headersOf(topic, options?.headers, key, context)
  if (headers instanceof PublishError) return Exit.fail(headers)
  const id = options?.id
  if (id !== undefined && (/[\r\n]/.test(id) || !id.isWellFormed())) {
    return Exit.fail(refused(topic.name, "id", id, "an id is one line of text"))
  }
  const given = options?.delay
  const delay = given === undefined ? undefined : Option.getOrUndefined(Duration.fromInput(given as Duration.Input))
  if (
    given !== undefined &&
    (delay === undefined || Number.isNaN(given) || !Number.isFinite(Duration.toMillis(delay)))
  ) {
    return Exit.fail(
      refused(topic.name, "delay", given, "write a duration as \"5 seconds\" or as a number of milliseconds")
    )
  }
  const made = ({ body, fields }: Wire): Outgoing => ({
    topic: topic.name,
    body,
    fields,
    headers,
    key,
    id,
    delay: delay === undefined ? undefined : Duration.max(Duration.zero, delay)
  })
  const unencodable = (error: Schema.SchemaError) =>
    new PublishError({ topic: topic.name, reason: new Unencodable({ issue: error.message }) })
  return Effect.mapBothEager(topic.codec.encode(value), { onFailure: unencodable, onSuccess: made })
}

/** Makes what `publish` sends, without sending it. */
export const outgoing = <A, RD, RE>(
  topic: Topic.Topic<A, RD, RE>,
  value: A,
  options?: PublishOptions
): Effect.Effect<Outgoing, PublishError, RE> =>
  Effect.withFiber(({ context }) => outgoingOf(topic, value, options, context))
