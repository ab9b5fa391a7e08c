/**
 * Seeing what becomes of messages: outcomes, metrics, spans. All of it is off unless asked for.
 *
 * Metric and span names follow the OpenTelemetry messaging conventions 1.44; what they have no name for is under
 * `millrace.`. `messaging.system` is the transport's name: `redis`, `nats`, `memory`.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Tracer from "effect/Tracer"
import type * as DeadLetter from "./DeadLetter.ts"
import * as Message from "./Message.ts"
import type * as Transport from "./Transport.ts"

/**
 * What became of one attempt at one message.
 *
 * - `Handled`: `value` is what the last step gave
 * - `Filtered`: a filter, or the group it was redriven for, said it is not for this pipeline
 * - `Retried`: it comes again after `delay` milliseconds
 * - `DeadLettered`, `Discarded`: it will not be tried again
 * - `Released`: handed back without counting, by drain
 * - `Lost`: another consumer has it
 * - `FailedAfterSettle`: it failed when it had been settled by hand
 *
 * @category models
 * @since 0.1.0
 */
export type Outcome = {
  readonly pipeline: string
  readonly delivery: Transport.Delivery
  /** `undefined` when the message could not be decoded or was never begun. */
  readonly message: Message.Any | undefined
} & OutcomeKind

/**
 * The kinds of {@link Outcome}.
 *
 * @category models
 * @since 0.1.0
 */
export type OutcomeKind =
  | { readonly _tag: "Handled"; readonly value: unknown }
  | { readonly _tag: "Filtered" | "Released" | "Lost" }
  | { readonly _tag: "Retried"; readonly delay: number; readonly cause: Cause.Cause<unknown> }
  | {
    readonly _tag: "DeadLettered" | "Discarded"
    readonly cause: Cause.Cause<unknown>
    readonly reason: DeadLetter.Reason
  }
  | { readonly _tag: "FailedAfterSettle"; readonly cause: Cause.Cause<unknown> }

/**
 * Called with every outcome of the pipelines started under it, synchronously: keep it cheap. Default: none.
 *
 * @category references
 * @since 0.1.0
 */
export const Observer = Context.Reference<((outcome: Outcome) => void) | undefined>(
  "@millrace/core/Telemetry/Observer",
  { defaultValue: () => undefined }
)

/**
 * Whether pipelines that are started keep metrics. Default: no.
 *
 * @category references
 * @since 0.1.0
 */
export const Metrics = Context.Reference<boolean>("@millrace/core/Telemetry/Metrics", { defaultValue: () => false })

/**
 * Keeps metrics of the pipelines started under it, in Effect's own registry: `messaging.client.consumed.messages`,
 * `messaging.process.duration` (seconds) and `millrace.outcomes`. Export them with Effect's OTLP or Prometheus layers.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerMetrics: Layer.Layer<never> = Layer.succeed(Metrics, true)

/**
 * A middleware that opens a `process` span around everything that stands above it, one for each attempt.
 *
 * **Details**
 *
 * `Pipeline.middleware(Telemetry.spans())`. The span is linked to the one that published the message, as the conventions
 * have it; with `parent` it becomes its child. What handlers publish carries this span on. A span costs more than the
 * engine does for the message.
 *
 * @category tracing
 * @since 0.1.0
 */
export const spans = (options?: { readonly relation?: "link" | "parent" | undefined }) =>
<A, E, R>(
  handler: Effect.Effect<A, E, R>,
  message: Message.Any
): Effect.Effect<A, E, Exclude<R, Tracer.ParentSpan>> => {
  const received = Message.received(message)
  const publisher = publisherSpan(message.headers["traceparent"])
  const asParent = options?.relation === "parent"
  return Effect.useSpan(`process ${message.topic}`, {
    kind: "consumer",
    ...(publisher !== undefined && asParent ? { parent: publisher } : { root: true }),
    links: publisher === undefined || asParent ? [] : [{ span: publisher, attributes: {} }],
    attributes: {
      "messaging.operation.name": "process",
      "messaging.operation.type": "process",
      "messaging.system": received?.transport.name ?? "unknown",
      "messaging.destination.name": message.topic,
      "messaging.consumer.group.name": received?.group ?? "unknown",
      "messaging.message.id": message.id,
      "millrace.attempt": message.attempt
    }
  }, (span) => Effect.withParentSpan(handler, span, { captureStackTrace: false }))
}

/** Version 00 of the W3C header; what is anything else starts a new trace. */
const publisherSpan = (traceparent: string | undefined): Tracer.ExternalSpan | undefined => {
  const match = /^00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$/.exec(traceparent ?? "")
  if (match === null || /^0+$/.test(match[1]!) || /^0+$/.test(match[2]!)) return undefined
  return Tracer.externalSpan({
    traceId: match[1]!,
    spanId: match[2]!,
    sampled: (Number.parseInt(match[3]!, 16) & 1) === 1
  })
}
