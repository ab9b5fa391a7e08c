import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Topic from "../Topic.ts"
import type { Outgoing } from "../Transport.ts"
import { InvalidOption } from "../TransportError.ts"
import type { Invalid } from "./invalid.ts"
import { isOurs } from "./letterHeaders.ts"
import { PublishError, Unencodable } from "./publishError.ts"
import type { PublishOptions } from "./publishOptions.ts"
import { invalidOf, isTopic } from "./topic.ts"
import { inject } from "./traceContext.ts"

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

/** Makes what `publish` sends, without sending it. */
export const outgoing = <A, RD, RE>(
  topic: Topic.Topic<A, RD, RE>,
  value: A,
  options?: PublishOptions
): Effect.Effect<Outgoing, PublishError, RE> =>
  Effect.withFiber((fiber) => {
    const invalid = isTopic(topic)
      ? invalidOf(topic)
      : { option: "topic", value: topic, remedy: "give a topic: Topic.make(name, { schema })" }
    if (invalid !== undefined) return Effect.fail(refuse(invalid))
    const headers: Record<string, string> = Object.create(null)
    headers["content-type"] = topic.codec.contentType
    inject(headers, fiber.context)
    for (const [given, text] of Object.entries(options?.headers ?? {})) {
      const name = given.toLowerCase()
      // They describe the message that they came with: its headers can be forwarded as they are.
      if (name === "content-type" || isOurs(name)) continue
      // The strictest of the brokers decides, so that a pipeline moves between them unchanged.
      if (!/^[!#$%&'*+.^_`|~0-9a-z-]+$/.test(name) || /[\r\n]/.test(text) || isReserved(name)) {
        const reason = new InvalidOption({
          option: `header ${JSON.stringify(given)}`,
          value: JSON.stringify(text),
          remedy: isReserved(name)
            ? "body and millrace-* are reserved, choose another name"
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
    const delay = given === undefined
      ? Duration.zero
      : Option.getOrUndefined(Duration.fromInput(given as Duration.Input))
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
