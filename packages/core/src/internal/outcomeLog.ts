import type * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Telemetry from "../Telemetry.ts"
import type { Delivery } from "../Transport.ts"
import { describe, type ErrorDetailOptions } from "./errorDetail.ts"
import { oneLine, printable } from "./printable.ts"

/** Of what a line is about, at most so many lines a minute. */
type Kind =
  | "dead-lettered"
  | "discarded"
  | "failed after they were settled"
  | "running for long"
  | "failing again and again"
  | "whose dead letters were refused"

interface Failure {
  readonly delivery: Delivery
  readonly cause: Cause.Cause<unknown>
}

interface Details {
  readonly reason?: string
  readonly attempts?: number
}

interface Window {
  written: number
  omitted: number
  /** What was left out, by error and by reason. */
  readonly errors: Map<string, number>
  readonly reasons: Map<string, number>
}

export interface OutcomeLogOptions {
  readonly pipeline: string
  readonly topic: string
  readonly group: string
  /** `undefined`: discarded. */
  readonly deadLetter: string | undefined
  readonly perMinute: number
  /** Whether lines at debug are written at all: each retry makes one. */
  readonly isDebugging: boolean
  readonly errors: ErrorDetailOptions
  readonly run: (effect: Effect.Effect<void>) => unknown
}

/**
 * Writes what becomes of messages: a warning for each that is not tried again, within a rate; retries at debug. An error
 * is shown with its stack the first time in a minute.
 */
export class OutcomeLog {
  private readonly options: OutcomeLogOptions
  private readonly windows = new Map<Kind, Window>()
  private readonly shown = new Set<string>()
  private windowEnds = 0

  constructor(options: OutcomeLogOptions) {
    const { deadLetter, group, pipeline, topic } = options
    // Any text is the name of something on Redis.
    this.options = {
      ...options,
      pipeline: oneLine(pipeline),
      topic: oneLine(topic),
      group: oneLine(group),
      deadLetter: deadLetter === undefined ? undefined : oneLine(deadLetter)
    }
  }

  started(broker: string, concurrency: number): void {
    const { group, pipeline, topic } = this.options
    const bound = concurrency === Infinity ? "unbounded concurrency" : `concurrency ${concurrency}`
    this.write(
      Effect.logInfo(`${pipeline}: consuming ${topic} as group ${group} from ${broker}, ${bound}`),
      { broker, concurrency }
    )
  }

  stopped(counts: { readonly [name: string]: number }): void {
    const said = Object.entries(counts).filter(([, count]) => count > 0).map(([name, count]) => `${name} ${count}`)
    this.write(
      Effect.logInfo(`${this.options.pipeline}: stopped; ${said.length === 0 ? "no message" : said.join(", ")}`),
      {}
    )
  }

  /** `now` in milliseconds. */
  ended(outcome: Telemetry.Outcome, now: number): void {
    const { deadLetter, pipeline } = this.options
    const { delivery } = outcome
    switch (outcome._tag) {
      case "DeadLettered":
        return this.unhandled("dead-lettered", `dead-lettered to ${deadLetter}`, outcome, now)
      case "Discarded":
        return this.unhandled("discarded", "discarded", outcome, now)
      case "FailedAfterSettle":
        return this.failed("failed after they were settled", "failed after it was settled", outcome, now)
      case "Retried": {
        if (isPowerOfTen(delivery.attempt)) {
          return this.failed("failing again and again", `has failed ${delivery.attempt} times`, outcome, now)
        }
        if (!this.options.isDebugging) return
        const { message, tag } = describe(outcome.cause, noDetail)
        return this.write(
          Effect.logDebug(
            `${pipeline}: attempt ${delivery.attempt} of message ${delivery.id} failed, next one in ${
              Duration.format(Duration.millis(Math.round(outcome.delay)))
            }: ${line(tag, message)}`
          ),
          this.annotations(delivery)
        )
      }
    }
  }

  /** The broker refused a dead letter; the message stays, or is gone where it had been settled before. */
  refused(
    delivery: Delivery,
    cause: Cause.Cause<unknown>,
    after: Duration.Duration | undefined,
    now: number,
    isOutage: boolean
  ): void {
    const { deadLetter, pipeline } = this.options
    const letter = `${pipeline}: the dead letter of message ${delivery.id} cannot be written`
    if (after !== undefined && isOutage) {
      return this.write(
        Effect.logDebug(`${letter}, tried again in ${Duration.format(after)}`),
        this.annotations(delivery)
      )
    }
    const then = after === undefined
      ? "the message is discarded"
      : `the message stays, the dead letter is tried again in ${Duration.format(after)}`
    this.warn("whose dead letters were refused", `${letter} to ${deadLetter}, ${then}`, { delivery, cause }, now)
  }

  /** A handler is still running. */
  runningLong(delivery: Delivery, millis: number, now: number): void {
    const { pipeline } = this.options
    if (!this.mayWrite("running for long", undefined, now)) return
    const time = Duration.format(Duration.seconds(Math.floor(millis / 1000)))
    this.write(
      Effect.logWarning(`${pipeline}: the handler of message ${delivery.id} has been running for ${time}`),
      this.annotations(delivery)
    )
  }

  /** Writes how many lines were left out, when their minute is over. */
  look(now: number): void {
    if (now < this.windowEnds) return
    this.flush()
  }

  flush(): void {
    const { pipeline } = this.options
    for (const [kind, { errors, omitted, reasons }] of this.windows) {
      if (omitted === 0) continue
      const which = errors.size === 0 ? "" : ` (${most(errors, omitted)})`
      this.write(Effect.logWarning(`${pipeline}: ${omitted} more messages ${kind} in the last minute${which}`), {
        omitted,
        ...(reasons.size === 0 ? {} : { "omitted.reasons": Object.fromEntries(reasons) })
      })
    }
    this.windows.clear()
    this.shown.clear()
  }

  private unhandled(
    kind: Kind,
    what: string,
    outcome: Extract<Telemetry.Outcome, { readonly attempts: number }>,
    now: number
  ): void {
    const { attempts, reason } = outcome
    const times = attempts === 1 ? "1 attempt" : `${attempts} attempts`
    const after = reason === "undecodable"
      ? "it cannot be decoded"
      : reason === "vanished"
      ? `after ${times}, the broker stores it no longer`
      : `after ${times}, ${reason}`
    this.failed(kind, `is ${what} (${after})`, outcome, now, { reason, attempts })
  }

  /** `what`: what has become of the message. */
  private failed(kind: Kind, what: string, failure: Failure, now: number, more?: Details): void {
    this.warn(kind, `${this.options.pipeline}: message ${failure.delivery.id} ${what}`, failure, now, more)
  }

  private warn(kind: Kind, text: string, { cause, delivery }: Failure, now: number, more: Details = {}): void {
    const { message, stack, tag, ...detail } = describe(cause, this.options.errors)
    if (!this.mayWrite(kind, tag, now, more.reason)) return
    const isFirst = !this.shown.has(tag)
    this.shown.add(tag)
    this.write(Effect.logWarning(`${text}: ${line(tag, message)}`), {
      ...this.annotations(delivery),
      ...more,
      "error.type": oneLine(tag),
      ...(detail.causes.length === 0 ? {} : { "error.causes": detail.causes.map(oneLine) }),
      ...(detail.fields === undefined ? {} : { "error.fields": detail.fields }),
      ...(isFirst && stack !== undefined ? { "error.stack": printable(stack) } : {})
    })
  }

  private mayWrite(kind: Kind, tag: string | undefined, now: number, reason?: string): boolean {
    if (now >= this.windowEnds) {
      this.flush()
      this.windowEnds = now + 60_000
    }
    let window = this.windows.get(kind)
    if (window === undefined) this.windows.set(kind, window = noLines())
    if (window.written < this.options.perMinute) {
      window.written++
      return true
    }
    window.omitted++
    if (reason !== undefined) window.reasons.set(reason, (window.reasons.get(reason) ?? 0) + 1)
    if (tag !== undefined && (window.errors.has(tag) || window.errors.size < 50)) {
      window.errors.set(tag, (window.errors.get(tag) ?? 0) + 1)
    }
    return false
  }

  private annotations({ attempt, id, topic }: Delivery): { readonly [name: string]: unknown } {
    return { topic: oneLine(topic), id: oneLine(id), attempts: attempt }
  }

  private write(effect: Effect.Effect<void>, annotations: { readonly [name: string]: unknown }): void {
    const { group, pipeline, topic } = this.options
    this.options.run(Effect.annotateLogs(effect, { pipeline, topic, group, ...annotations }))
  }
}

const noDetail = { stack: false, fields: false }

const noLines = (): Window => ({ written: 0, omitted: 0, errors: new Map(), reasons: new Map() })

/** The three most frequent errors, and how many others there are. */
const most = (errors: ReadonlyMap<string, number>, total: number): string => {
  const named = [...errors].sort(([, a], [, b]) => b - a).slice(0, 3)
  const others = total - named.reduce((sum, [, count]) => sum + count, 0)
  return [...named.map(([tag, count]) => `${line(tag, "")} ${count}`), ...(others === 0 ? [] : [`others ${others}`])]
    .join(", ")
}

/** One line, however the error is written. */
const line = (tag: string, message: string): string => {
  const single = oneLine(message === "" ? tag : `${tag}: ${message}`)
  return single.length > 300 ? `${single.slice(0, 299)}…` : single
}

const isPowerOfTen = (n: number): boolean => n >= 10 && Number.isInteger(Math.log10(n))
