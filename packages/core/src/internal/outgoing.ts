import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Schema from "effect/Schema"
import type { Wire } from "../Codec.ts"
import type * as Topic from "../Topic.ts"
import type { Outgoing } from "../Transport.ts"
import { InvalidOption } from "../TransportError.ts"
import type { Headers } from "./headers.ts"
import { delayOf, type Invalid, invalidOf, unknownOption } from "./invalid.ts"
import { invalidKeyType } from "./key.ts"
import { isOurs } from "./letterHeaders.ts"
import { effectOfCodec, ignore } from "./promise.ts"
import { PublishError, Unencodable } from "./publishError.ts"
import type { PublishOptions } from "./publishOptions.ts"
import { shownValue } from "./shownValue.ts"
import { isTopic } from "./topic.ts"
import { hasTrace, inject } from "./traceContext.ts"

export const refuse = (invalid: Invalid) =>
  refused(invalid.option === "topic" ? String(invalid.value) : invalid.option, invalid)

const isReserved = (name: string) => name === "body" || name.startsWith("millrace-")

export const refused = (topic: string, { option, remedy, value }: Invalid) =>
  new PublishError({
    topic,
    reason: new InvalidOption({ option, value: shownValue(value), remedy })
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
    const isText = typeof text === "string" && !/[\r\n]/.test(text)
    if (!isText || !/^[!#$%&'*+.^_`|~0-9a-z-]+$/.test(name) || isReserved(name)) {
      return refused(topic.name, {
        option: `header ${JSON.stringify(written)}`,
        value: text,
        remedy: isReserved(name)
          ? "body and millrace-* are reserved, choose another name"
          : "a name is an HTTP token, a value is a text without a line break"
      })
    }
    headers[name] = text
  }
  if (key !== undefined) headers["millrace-key"] = encodeURIComponent(key)
  return headers
}

const invalidKey = (key: unknown): Invalid | undefined => {
  const mistyped = invalidKeyType("key", key)
  if (mistyped !== undefined || key === undefined || (key as string).isWellFormed()) return mistyped
  return { option: "key", value: key, remedy: "half of a character cannot be encoded" }
}

const invalidOptions = (options: PublishOptions): Invalid | undefined => {
  const unknown = unknownOption("publish", options, ["headers", "id", "delay"])
  if (unknown !== undefined) return unknown
  const { delay, headers, id } = options
  if (headers !== undefined && (typeof headers !== "object" || headers === null)) {
    return { option: "headers", value: headers, remedy: "give an object of names and texts" }
  }
  if (id !== undefined && !(typeof id === "string" && id.isWellFormed() && !/[\r\n]/.test(id))) {
    return { option: "id", value: id, remedy: "an id is one line of text" }
  }
  return delay === undefined || delayOf(delay) !== undefined
    ? undefined
    : { option: "delay", value: delay, remedy: "write a duration as \"5 seconds\" or as a number of milliseconds" }
}

const encode = <A, RD, RE>(
  { codec }: Topic.Topic<A, RD, RE>,
  value: A
): Effect.Effect<Wire, Schema.SchemaError, RE> => effectOfCodec("encode", codec.encode(value))

/** Makes what is sent of a value, in the context of its publisher: an `Exit` where encoding needs no Effect. */
export const outgoingOf = <A, RD, RE>(
  topic: Topic.Topic<A, RD, RE>,
  value: A,
  options: PublishOptions | undefined,
  context: Context.Context<never>
): Effect.Effect<Outgoing, PublishError, RE> => {
  const wrong = options === undefined || !isTopic(topic) ? undefined : invalidOptions(options)
  return wrong === undefined
    ? checkedOf(topic, value, options, context)
    : Exit.fail(refused(topic.name, wrong))
}

/** The same with options that need no check. */
export const checkedOf = <A, RD, RE>(
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
  const unencodable = (error: Schema.SchemaError) =>
    new PublishError({ topic: topic.name, reason: new Unencodable({ issue: error.message }) })
  const wrongKey = invalidKey(key)
  // A value that does not fit is the cause of its key.
  if (wrongKey !== undefined) {
    ignore(key)
    const encoded = Effect.mapError(encode(topic, value), unencodable)
    return Effect.andThen(encoded, Exit.fail(refused(topic.name, wrongKey)))
  }
  const headers = headersOf(topic, options?.headers, key, context)
  if (headers instanceof PublishError) return Exit.fail(headers)
  const id = options?.id
  const given = options?.delay
  const delay = given === undefined ? undefined : delayOf(given)
  const made = ({ body, fields }: Wire): Outgoing => ({
    topic: topic.name,
    body,
    fields,
    headers,
    key,
    id,
    delay
  })
  return Effect.mapBothEager(encode(topic, value), { onFailure: unencodable, onSuccess: made })
}

/** Makes what `publish` sends, without sending it. */
export const outgoing = <A, RD, RE>(
  topic: Topic.Topic<A, RD, RE>,
  value: A,
  options?: PublishOptions
): Effect.Effect<Outgoing, PublishError, RE> =>
  Effect.withFiber(({ context }) => outgoingOf(topic, value, options, context))
