import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Tracer from "effect/Tracer"
import type * as Message from "../Message.ts"
import { typeOf } from "./errorDetail.ts"
import { inFlightOf } from "./inFlight.ts"
import { invalidNumber, keepInvalid, unknownOption } from "./invalid.ts"
import { serverAttributes } from "./serverAttributes.ts"
import { skipping } from "./skipping.ts"
import { isFiltered } from "./steps.ts"
import { fromTraceparent, isSampled, setTraceOf } from "./traceContext.ts"
import { inSpan, isTraced } from "./traced.ts"

type Given = Message.Any | ReadonlyArray<Message.Any>

type Spanned<A, E, R> = Effect.Effect<A, E, Exclude<R, Tracer.ParentSpan>>

/**
 * Options of {@link spans}.
 *
 * @category models
 * @since 0.1.0
 */
export interface SpanOptions {
  /**
   * How a `process` span relates to the span that published the message. `"link"` (default) starts a trace of its
   * own, as the conventions have it; `"parent"` goes on with the publisher's.
   */
  readonly relation?: "link" | "parent" | undefined
  /**
   * The part of the messages that get a span, of those whose publisher was sampled or unknown; default 1. All
   * messages of a trace are decided alike.
   */
  readonly sampleRatio?: number | undefined
}

/**
 * A middleware that opens a `process` span around everything that stands above it, one for each attempt.
 *
 * **Details**
 *
 * `Pipeline.middleware(Telemetry.spans())` for messages, and the same value as `middleware` of `Pipeline.batch`, where one
 * span covers the batch and links to every message. Handlers publish in the span. Whether a message is sampled is decided
 * first: a message without a span costs next to nothing, and its handlers and publishes are not sampled either.
 *
 * @category tracing
 * @since 0.1.0
 */
export const spans = (options?: SpanOptions): <A, E, R>(
  handler: Effect.Effect<A, E, R>,
  message: Message.Any | ReadonlyArray<Message.Any>
) => Effect.Effect<A, E, Exclude<R, Tracer.ParentSpan>> => {
  const { relation = "link", sampleRatio: ratio = 1 } = options ?? {}
  const isParent = relation === "parent"
  const invalid = (options === undefined ? undefined : unknownOption("spans", options, ["relation", "sampleRatio"])) ??
    invalidNumber("spans.sampleRatio", ratio, 0, 1, "give a part of the messages, from 0 to 1") ??
    (isParent || relation === "link"
      ? undefined
      : { option: "spans.relation", value: relation, remedy: "write \"link\" or \"parent\"" })
  /** The span, where the message is sampled. */
  const wrap = <A, E, R>(handler: Effect.Effect<A, E, R>, given: Given): Spanned<A, E, R> =>
    Effect.withFiber(({ context }) => isTraced(context) ? spanned(handler, given) : handler as Spanned<A, E, R>)
  const spanned = <A, E, R>(handler: Effect.Effect<A, E, R>, given: Given): Spanned<A, E, R> => {
    const isBatch = Array.isArray(given)
    const messages: ReadonlyArray<Message.Any> = isBatch ? given : [given as Message.Any]
    const message = messages[0]!
    const publishers = messages.map(({ headers }) => fromTraceparent(headers["traceparent"]))
    const [publisher] = publishers
    return inSpan(
      `process ${templateOf(message)}`,
      {
        kind: "consumer",
        ...(isParent && !isBatch && publisher !== undefined ? { parent: publisher } : { root: true }),
        links: isParent && !isBatch ? [] : links(messages, publishers, isBatch),
        attributes: attributesOf(message, isBatch ? messages.length : undefined)
      },
      (span) => {
        for (const message of messages) {
          const delivery = inFlightOf(message)?.delivery
          if (delivery !== undefined) setTraceOf(delivery, span)
        }
        return Effect.withParentSpan(handler, span, { captureStackTrace: false })
      },
      (exit) =>
        Exit.isSuccess(exit) || isFiltered(exit.cause) ? undefined : { type: typeOf(exit.cause), cause: exit.cause }
    )
  }
  const middleware = <A, E, R>(handler: Effect.Effect<A, E, R>, given: Given): Spanned<A, E, R> => {
    const messages: ReadonlyArray<Message.Any> = Array.isArray(given) ? given : [given as Message.Any]
    if (messages.some((message) => isSampled(message, ratio))) return wrap(handler, given)
    for (const message of messages) inFlightOf(message)?.unsample()
    return handler as Spanned<A, E, R>
  }
  const parts = skipping(middleware, {
    wrap,
    skips: (received) => {
      if (isSampled(received.delivery, ratio)) return false
      received.unsample()
      return true
    }
  })
  return keepInvalid(parts, invalid)
}

const links = (
  messages: ReadonlyArray<Message.Any>,
  publishers: ReadonlyArray<Tracer.ExternalSpan | undefined>,
  isBatch: boolean
): Array<Tracer.SpanLink> =>
  publishers.flatMap((span, i) => {
    if (span === undefined) return []
    // Attributes of one message of a batch stand on its link.
    const { id, topic } = messages[i]!
    return [{ span, attributes: isBatch ? { "messaging.message.id": id, "messaging.destination.name": topic } : {} }]
  })

/** The declared topic: a source with wildcards has one name, however many subjects it reads. */
const templateOf = (message: Message.Any): string => inFlightOf(message)?.source ?? message.topic

const attributesOf = (message: Message.Any, count: number | undefined): Record<string, unknown> => {
  const inFlight = inFlightOf(message)
  const { attempt, id, topic } = message
  return {
    "messaging.operation.name": "process",
    "messaging.operation.type": "process",
    "messaging.system": inFlight?.transport.name ?? "unknown",
    "messaging.destination.name": inFlight !== undefined && count !== undefined ? inFlight.source : topic,
    ...(inFlight === undefined || inFlight.source === topic
      ? {}
      : { "messaging.destination.template": inFlight.source }),
    ...(inFlight === undefined ? {} : { "messaging.consumer.group.name": inFlight.group }),
    ...(inFlight?.clientId === undefined ? {} : { "messaging.client.id": inFlight.clientId }),
    ...serverAttributes(inFlight?.transport.address),
    ...(count === undefined
      ? { "messaging.message.id": id, "millrace.attempt": attempt }
      : { "messaging.batch.message_count": count })
  }
}
