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

/** Version 00 of the header; of a later one, the part that is known. Any other text starts a new trace. */
const valid =
  /^(?:00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$|(?!00|ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:$|-))/

export const fromTraceparent = (traceparent: string | undefined): Tracer.ExternalSpan | undefined =>
  traceparent === undefined || !valid.test(traceparent) ? undefined : Tracer.externalSpan({
    traceId: traceparent.slice(3, 35),
    spanId: traceparent.slice(36, 52),
    sampled: isFlagged(traceparent)
  })

const isFlagged = (traceparent: string): boolean => (Number.parseInt(traceparent[54]!, 16) & 1) === 1

/**
 * A trace that its publisher does not sample is not sampled here. Of the others a share is, with all their messages; a message
 * without a trace is sampled at all its attempts or at none. Allocates nothing.
 */
export const isSampled = (message: { readonly headers: Headers; readonly id: string }, ratio: number): boolean => {
  // Headers may be decoded when they are first read.
  if (ratio <= 0) return false
  const { traceparent } = message.headers
  if (traceparent === undefined || !valid.test(traceparent)) return ratio >= 1 || shareOf(message.id) < ratio
  return isFlagged(traceparent) && (ratio >= 1 || Number.parseInt(traceparent.slice(22, 35), 16) / 2 ** 52 < ratio)
}

/** Hashes an id to a number from 0 to 1: FNV-1a, and a mixing step, because consecutive ids differ in few bits. */
const shareOf = (id: string): number => {
  let hash = 0x811c9dc5
  for (let i = 0; i < id.length; i++) hash = Math.imul(hash ^ id.charCodeAt(i), 0x01000193)
  hash = Math.imul(hash ^ hash >>> 16, 0x85ebca6b)
  hash = Math.imul(hash ^ hash >>> 13, 0xc2b2ae35)
  return ((hash ^ hash >>> 16) >>> 0) / 2 ** 32
}

export const toTraceparent = (span: Tracer.AnySpan): string =>
  `00-${span.traceId}-${span.spanId}-${span.sampled ? "01" : "00"}`

/** Whether a trace is current here. */
export const hasTrace = (context: Context.Context<never>): boolean =>
  Context.getOrUndefined(context, Tracer.ParentSpan) !== undefined || Context.get(context, Carried) !== undefined

/**
 * Writes the trace that is current here; a `tracestate` belongs to its trace and goes no further than that. What a
 * foreign publisher wrote wrongly goes nowhere: it could make the next message unsendable.
 */
export const inject = (headers: Record<string, string>, context: Context.Context<never>): void => {
  const span = Context.getOrUndefined(context, Tracer.ParentSpan)
  const carried = Context.get(context, Carried)
  if (span !== undefined) headers["traceparent"] = toTraceparent(span)
  if (carried === undefined) return
  const { baggage, traceparent, tracestate } = carried
  if (baggage !== undefined && isCarriable(baggage)) headers["baggage"] = baggage
  const publisher = fromTraceparent(traceparent)
  if (publisher === undefined) return
  if (span === undefined) headers["traceparent"] = traceparent!
  const isSameTrace = span === undefined || publisher.traceId === span.traceId
  if (tracestate !== undefined && isSameTrace && isCarriable(tracestate)) headers["tracestate"] = tracestate
}

/** Printable, and no longer than a baggage may be: W3C has every platform carry 8192 bytes, and 512 of a `tracestate`. */
const isCarriable = (text: string): boolean => text.length <= 8192 && /^[\x20-\x7e\t]+$/.test(text)

/**
 * The span that the handlers of a message without a span run under: their own spans are not sampled either. Its ids are
 * made when they are asked for.
 */
class UnsampledSpan implements Tracer.ExternalSpan {
  readonly _tag = "ExternalSpan"
  readonly sampled = false
  readonly annotations = Context.empty()
  readonly #traceparent: string | undefined
  #ids: { readonly traceId: string; readonly spanId: string } | undefined
  constructor(traceparent: string | undefined) {
    this.#traceparent = traceparent
  }
  get traceId(): string {
    return this.ids.traceId
  }
  get spanId(): string {
    return this.ids.spanId
  }
  get isUsed(): boolean {
    return this.#ids !== undefined
  }
  private get ids() {
    return this.#ids ??= fromTraceparent(this.#traceparent) ?? { traceId: hex(32), spanId: hex(16) }
  }
}

const unused = new WeakMap<object, { readonly span: UnsampledSpan; readonly context: Context.Context<never> }>()

/** `context` for the handlers of a message without a span; a trace of its own is shared until somebody looks at its ids. */
export const unsampled = (context: Context.Context<never>, headers: Headers): Context.Context<never> => {
  const { traceparent } = headers
  if (traceparent !== undefined) return Context.add(context, Tracer.ParentSpan, new UnsampledSpan(traceparent))
  const known = unused.get(context)
  if (known !== undefined && !known.span.isUsed) return known.context
  const span = new UnsampledSpan(undefined)
  // Flat: each fiber looks up a dozen services.
  const added = Context.makeUnsafe<never>(new Map(Context.add(context, Tracer.ParentSpan, span).mapUnsafe))
  unused.set(context, { span, context: added })
  return added
}

const hex = (digits: number): string => {
  let text = ""
  while (text.length < digits) text += Math.floor(Math.random() * 2 ** 32).toString(16).padStart(8, "0")
  return text
}

const traces = new WeakMap<object, string>()

/** The span that an attempt at a delivery ran in, for its dead letter. */
export const traceOf = (delivery: { readonly headers: Headers }): string | undefined => {
  const { traceparent } = delivery.headers
  return traces.get(delivery) ?? (fromTraceparent(traceparent) === undefined ? undefined : traceparent)
}

export const setTraceOf = (delivery: object, span: Tracer.AnySpan): void => {
  traces.set(delivery, toTraceparent(span))
}
