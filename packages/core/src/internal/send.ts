import * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Result from "effect/Result"
import * as Tracer from "effect/Tracer"
import type { Outgoing, Published, Transport } from "../Transport.ts"
import { instruments, MetricsEnabled } from "./instruments.ts"
import type { PublishError } from "./publishError.ts"
import { type Counter, type Histogram, Registry } from "./series.ts"
import { serverAttributes, texts } from "./serverAttributes.ts"
import { fromTraceparent, toTraceparent } from "./traceContext.ts"
import { inSpan, isTraced } from "./traced.ts"

type Results = ReadonlyArray<Result.Result<Published, PublishError>>

/**
 * Gives messages of one topic to the broker, in a `send` span whose context they carry, and counts them. `give` is the
 * way to give them, where that is not the transport's own `publish`.
 *
 * @category publishing
 * @since 0.1.0
 */
export const send = (
  transport: Transport["Service"],
  messages: Arr.NonEmptyReadonlyArray<Outgoing>,
  give: (messages: Arr.NonEmptyReadonlyArray<Outgoing>) => Effect.Effect<Results> = transport.publish
): Effect.Effect<Results> =>
  Effect.withFiber(({ context }) => {
    const traced = isTraced(context) ? spanned(transport, messages, give, context) : undefined
    const publish = traced ?? give(messages)
    return Context.get(context, MetricsEnabled) ? metered(publish, transport, messages, context) : publish
  })

/** Gives messages to the broker as they are, such as dead letters, which keep the trace of their message. */
export const store = (
  transport: Transport["Service"],
  messages: Arr.NonEmptyReadonlyArray<Outgoing>
): Effect.Effect<Results> =>
  Effect.withFiber(({ context }) => {
    const publish = transport.publish(messages)
    return Context.get(context, MetricsEnabled) ? metered(publish, transport, messages, context) : publish
  })

// --- span

const spanned = (
  transport: Transport["Service"],
  messages: Arr.NonEmptyReadonlyArray<Outgoing>,
  publish: (messages: Arr.NonEmptyReadonlyArray<Outgoing>) => Effect.Effect<Results>,
  context: Context.Context<never>
): Effect.Effect<Results> | undefined => {
  // The header is the trace that the handler's message carries, or one that the caller gave.
  const parent = Context.getOrUndefined(context, Tracer.ParentSpan) ??
    fromTraceparent(messages[0].headers["traceparent"])
  // Not sampled: the message carries its parent's decision on, and nothing is built.
  if (parent?.sampled === false) return undefined
  const [{ topic }] = messages
  return inSpan(
    `send ${topic}`,
    {
      kind: "producer",
      ...(parent === undefined ? {} : { parent }),
      attributes: {
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.system": transport.name,
        "messaging.destination.name": topic,
        ...serverAttributes(transport.address),
        ...(messages.length === 1 ? {} : { "messaging.batch.message_count": messages.length })
      }
    },
    (span) => {
      return Effect.tap(
        publish(Arr.map(messages, (message) => within(message, span))),
        ([result]) =>
          Effect.sync(() => {
            if (messages.length === 1 && result !== undefined && Result.isSuccess(result)) {
              span.attribute("messaging.message.id", result.success.id)
            }
          })
      )
    },
    (exit) => {
      if (Exit.isFailure(exit)) return { type: "_OTHER", cause: exit.cause }
      const failed = exit.value.find(Result.isFailure)
      return failed === undefined
        ? undefined
        : { type: failed.failure.reason._tag, cause: Cause.fail(failed.failure.reason) }
    }
  )
}

/** A message that carries the span; a `tracestate` of another trace goes no further. */
const within = (message: Outgoing, span: Tracer.Span): Outgoing => {
  const { traceparent, tracestate, ...headers } = message.headers
  const isSameTrace = fromTraceparent(traceparent)?.traceId === span.traceId
  return {
    ...message,
    headers: {
      ...headers,
      traceparent: toTraceparent(span),
      ...(tracestate === undefined || !isSameTrace ? {} : { tracestate })
    }
  }
}

// --- metrics

const metered = (
  publish: Effect.Effect<Results>,
  transport: Transport["Service"],
  messages: Arr.NonEmptyReadonlyArray<Outgoing>,
  context: Context.Context<never>
): Effect.Effect<Results> =>
  Effect.suspend(() => {
    const clock = Context.get(context, Clock.Clock)
    const began = clock.monotonicTimeNanosUnsafe()
    return Effect.tap(publish, (results) =>
      Effect.sync(() => {
        const seconds = Number(clock.monotonicTimeNanosUnsafe() - began) / 1e9
        const meter = SendMeter.of(context, transport)
        const [{ topic }] = messages
        let failure = ""
        results.forEach((result, i) => {
          const type = Result.isFailure(result) ? result.failure.reason._tag : ""
          if (type !== "") failure = type
          // A message that was never sent is not counted.
          if (type !== "NotSent" && type !== "Unencodable") meter.series(messages[i]!.topic, type).sent.add(1)
        })
        meter.series(topic, failure).operation.record(seconds)
      }))
  })

interface SendSeries {
  readonly sent: Counter
  readonly operation: Histogram
}

const getOrAdd = <A>(map: WeakMap<object, A>, key: object, make: () => A): A => {
  let value = map.get(key)
  if (value === undefined) map.set(key, value = make())
  return value
}

class SendMeter {
  private static readonly all = new WeakMap<object, WeakMap<object, WeakMap<object, SendMeter>>>()
  private readonly registry: Registry
  private readonly transport: Transport["Service"]
  private readonly known = new Map<string, SendSeries>()

  static of(context: Context.Context<never>, transport: Transport["Service"]): SendMeter {
    const [registry, attributes] = Registry.identity(context)
    const meters = getOrAdd(
      getOrAdd(SendMeter.all, registry, () => new WeakMap()),
      attributes,
      () => new WeakMap()
    )
    return getOrAdd(meters, transport, () => new SendMeter(new Registry(context), transport))
  }

  private constructor(registry: Registry, transport: Transport["Service"]) {
    this.registry = registry
    this.transport = transport
  }

  series(topic: string, error: string): SendSeries {
    const key = `${error} ${topic}`
    let series = this.known.get(key)
    if (series === undefined) {
      // Topics may be subjects made of ids.
      if (this.known.size >= maxSeries && topic !== "_OTHER") return this.series("_OTHER", error)
      const attributes = {
        "messaging.operation.name": "send",
        "messaging.system": this.transport.name,
        "messaging.destination.name": topic,
        ...texts(serverAttributes(this.transport.address)),
        ...(error === "" ? {} : { "error.type": error })
      }
      this.known.set(
        key,
        series = {
          sent: this.registry.counter(instruments.sent, attributes),
          operation: this.registry.histogram(instruments.operation, {
            ...attributes,
            "messaging.operation.type": "send"
          })
        }
      )
    }
    return series
  }
}

const maxSeries = 500
