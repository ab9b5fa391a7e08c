import * as Context from "effect/Context"
import * as Tracer from "effect/Tracer"
import type { Headers } from "./headers.ts"

/**
 * W3C trace context in headers: `traceparent`, `tracestate`, `baggage`.
 *
 * The headers of the message that a handler works on, where they carry a trace: what the handler publishes goes on with
 * it.
 */
export const Carried = Context.Reference<Headers | undefined>("@millrace/core/internal/Carried", {
  defaultValue: () => undefined
})

export const carriesTrace = (headers: Headers): boolean =>
  headers["traceparent"] !== undefined || headers["baggage"] !== undefined

/** Version 00 of the header; any other text starts a new trace. */
export const fromTraceparent = (traceparent: string | undefined): Tracer.ExternalSpan | undefined => {
  if (traceparent === undefined) return undefined
  const match = /^00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$/.exec(traceparent)
  if (match === null || /^0+$/.test(match[1]!) || /^0+$/.test(match[2]!)) return undefined
  return Tracer.externalSpan({
    traceId: match[1]!,
    spanId: match[2]!,
    sampled: (Number.parseInt(match[3]!, 16) & 1) === 1
  })
}

export const toTraceparent = (span: Tracer.AnySpan): string =>
  `00-${span.traceId}-${span.spanId}-${span.sampled ? "01" : "00"}`

/** Whether a trace is current here. */
export const hasTrace = (context: Context.Context<never>): boolean =>
  Context.getOrUndefined(context, Tracer.ParentSpan) !== undefined || Context.get(context, Carried) !== undefined

/** Writes the trace that is current here; a `tracestate` belongs to its trace and goes no further than that. */
export const inject = (headers: Record<string, string>, context: Context.Context<never>): void => {
  const span = Context.getOrUndefined(context, Tracer.ParentSpan)
  const carried = Context.get(context, Carried)
  if (span !== undefined) headers["traceparent"] = toTraceparent(span)
  if (carried === undefined) return
  const { baggage, traceparent, tracestate } = carried
  if (baggage !== undefined) headers["baggage"] = baggage
  if (traceparent === undefined) return
  if (span === undefined) headers["traceparent"] = traceparent
  const isSameTrace = span === undefined || fromTraceparent(traceparent)?.traceId === span.traceId
  if (tracestate !== undefined && isSameTrace) headers["tracestate"] = tracestate
}

/** The span that the handlers of a message without a span run under: their own spans are not sampled either. */
export const unsampledSpan = (headers: Headers): Tracer.ExternalSpan => {
  const publisher = fromTraceparent(headers["traceparent"])
  return Tracer.externalSpan({
    traceId: publisher?.traceId ?? hex(32),
    spanId: publisher?.spanId ?? hex(16),
    sampled: false
  })
}

const hex = (digits: number): string => {
  let text = ""
  while (text.length < digits) text += Math.floor(Math.random() * 2 ** 32).toString(16).padStart(8, "0")
  return text
}

const traces = new WeakMap<object, string>()

/** The span that an attempt at a delivery ran in, for its dead letter. */
export const traceOf = (delivery: { readonly headers: Headers }): string | undefined =>
  traces.get(delivery) ?? delivery.headers["traceparent"]

export const setTraceOf = (delivery: object, span: Tracer.AnySpan): void => {
  traces.set(delivery, toTraceparent(span))
}
