/**
 * Observing messages: logs, outcomes, metrics, spans.
 *
 * Logs are on, metrics and spans are off unless asked for. Metric and span names follow the OpenTelemetry messaging
 * conventions 1.44; names that the conventions do not have begin with `millrace.`. `messaging.system` is the transport's
 * name: `redis`, `nats`, `memory`.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as DeadLetter from "./DeadLetter.ts"
import type { Hints } from "./internal/hint.ts"
import { MetricsEnabled } from "./internal/instruments.ts"
import { durationOf, type Invalid, toError, unknownOption } from "./internal/invalid.ts"
import { noObserver } from "./internal/observer.ts"
import * as prometheus from "./internal/prometheus.ts"
import type * as Message from "./Message.ts"
import type * as Transport from "./Transport.ts"

/**
 * The outcome of one attempt at one message.
 *
 * - `Handled`: `value` is the result of the last step
 * - `Filtered`: a filter, or the group that a redriven message is for, said that it is not for this pipeline
 * - `Retried`: the next attempt comes after `delay` milliseconds
 * - `DeadLettered`, `Discarded`: no further attempt
 * - `Released`: returned to the broker without counting an attempt, by drain
 * - `Lost`: another consumer owns it
 * - `Vanished`: the broker deleted it before its retry or release; an outcome `DeadLettered` or `Discarded` follows
 * - `FailedAfterSettle`: it failed after it had been settled by hand
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
  | { readonly _tag: "Filtered" | "Released" | "Lost" | "Vanished" }
  | { readonly _tag: "Retried"; readonly delay: number; readonly cause: Cause.Cause<unknown> }
  | {
    readonly _tag: "DeadLettered" | "Discarded"
    readonly cause: Cause.Cause<unknown>
    readonly reason: DeadLetter.DeadLetterReason
    /** How many attempts were made, as in the dead letter. Deliveries that only tried to write the letter do not count. */
    readonly attempts: number
  }
  | { readonly _tag: "FailedAfterSettle"; readonly cause: Cause.Cause<unknown> }

/**
 * Called with every outcome of the pipelines started under it, synchronously: keep it cheap. An observer that throws
 * breaks nothing; the first error is logged. Default: none.
 *
 * @category references
 * @since 0.1.0
 */
export const Observer = Context.Reference<(outcome: Outcome) => void>("@millrace/core/Telemetry/Observer", {
  defaultValue: () => noObserver
})

// --- logs

/**
 * The log lines of pipelines.
 *
 * @category models
 * @since 0.1.0
 */
export interface LogOptions {
  /** A handler that runs for longer is a warning, once. */
  readonly longRunning: Duration.Duration
  /** Warnings of one kind that a pipeline writes in a minute; the others are counted. */
  readonly perMinute: number
}

/**
 * The log lines of pipelines started under it; `false`: nothing. Default: a handler of 5 minutes is long, 10 warnings of a kind a
 * minute.
 *
 * **Details**
 *
 * One line when a pipeline starts and one when it stops. A warning for each message that is dead-lettered, discarded or
 * undecodable. A warning when an outage begins, a line when it ends: once for each broker, not for each pipeline. Retries
 * at debug; the 10th, 100th, … failure of one message is a warning.
 *
 * @category references
 * @since 0.1.0
 */
export const Logs = Context.Reference<LogOptions | false>("@millrace/core/Telemetry/Logs", {
  defaultValue: () => ({ longRunning: Duration.minutes(5), perMinute: 10 })
})

/**
 * Sets the log lines of the pipelines started under it; `false`: nothing.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerLogs = (
  options: {
    readonly longRunning?: Duration.Input | Hints["duration"] | undefined
    readonly perMinute?: number | undefined
  } | false
): Layer.Layer<never> => {
  if (options === false) return Layer.succeed(Logs, false)
  const { longRunning = "5 minutes", perMinute = 10 } = options ?? {}
  const { duration, invalid } = durationOf("layerLogs.longRunning", longRunning)
  const isCount = perMinute === Infinity || (Number.isInteger(perMinute) && perMinute >= 0)
  return unless(
    unknownOption("layerLogs", options, ["longRunning", "perMinute"]) ?? invalid ?? (isCount ? undefined : {
      option: "layerLogs.perMinute",
      value: perMinute,
      remedy: "give a whole number of lines, or Infinity"
    }),
    Layer.succeed(Logs, { longRunning: duration, perMinute })
  )
}

/** A value that cannot work is a defect of the Layer: its types refuse most of such values. */
const unless = (invalid: Invalid | undefined, layer: Layer.Layer<never>): Layer.Layer<never> =>
  invalid === undefined ? layer : Layer.effectDiscard(Effect.die(toError("core", invalid)))

/**
 * The parts of an error that are recorded beside its tag, its message and its causes, in dead letters and logs: its stack, its own
 * fields. Fields named like a secret are never recorded. Default: both.
 *
 * @category references
 * @since 0.1.0
 */
export const ErrorDetails = Context.Reference<{ readonly stack: boolean; readonly fields: boolean }>(
  "@millrace/core/Telemetry/ErrorDetails",
  { defaultValue: () => ({ stack: true, fields: true }) }
)

// --- health

/**
 * When a pipeline that says it consumes is impaired.
 *
 * @category models
 * @since 0.1.0
 */
export interface WatchdogOptions {
  /** A pull is open for so long without a message, and the broker, asked twice, has messages for the group. */
  readonly silence: Duration.Duration
  /** Settlements are sent and not confirmed for so long. */
  readonly unconfirmed: Duration.Duration
}

/**
 * The watchdog of the pipelines started under it; `false`: none. Default: 1 minute of silence, 30 seconds without a
 * confirmation. An idle pipeline asks its broker once in `silence`.
 *
 * @category references
 * @since 0.1.0
 */
export const Watchdog = Context.Reference<WatchdogOptions | false>("@millrace/core/Telemetry/Watchdog", {
  defaultValue: () => ({ silence: Duration.minutes(1), unconfirmed: Duration.seconds(30) })
})

/**
 * How often a pipeline looks at its health and its handlers, for logs and the watchdog; `undefined`: never. Default:
 * every 5 seconds. A look may cost a request to the broker.
 *
 * @category references
 * @since 0.1.0
 */
export const LookInterval = Context.Reference<Duration.Duration | undefined>(
  "@millrace/core/Telemetry/LookInterval",
  { defaultValue: () => Duration.seconds(5) }
)

// --- metrics

export { MetricsEnabled }

/**
 * How often a pipeline with metrics asks its broker for `millrace.lag`, `millrace.pending` and `millrace.oldest.age`;
 * `undefined`: never. Default: never.
 *
 * @category references
 * @since 0.1.0
 */
export const PollInterval = Context.Reference<Duration.Duration | undefined>(
  "@millrace/core/Telemetry/PollInterval",
  { defaultValue: () => undefined }
)

/**
 * Keeps the metrics of pipelines and publishers under it, in Effect's own registry. Export them with Effect's OTLP or
 * Prometheus layers; `docs/observability.md` has the list.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerMetrics: Layer.Layer<never> = Layer.succeed(MetricsEnabled, true)

/**
 * Keeps metrics like {@link layerMetrics}, and asks the broker about each group once in `interval`. Default interval:
 * 15 seconds.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerPolledMetrics = (interval: Duration.Input = "15 seconds"): Layer.Layer<never> => {
  const option = "layerPolledMetrics.interval"
  const { duration, invalid } = durationOf(option, interval)
  const isHot = !Duration.isPositive(duration)
  return unless(
    invalid ?? (isHot ? { option, value: interval, remedy: "give more than 0, such as \"15 seconds\"" } : undefined),
    Layer.merge(layerMetrics, Layer.succeed(PollInterval, duration))
  )
}

/**
 * The name of a metric in Prometheus, by the rule of the OpenTelemetry Collector: unit and `_total` are appended. Give it
 * to Effect's Prometheus layer, so that one dashboard fits both ways.
 *
 * **Example** (Naming a metric)
 *
 * ```ts import.meta.vitest
 * import { Telemetry } from "@millrace/core"
 *
 * Telemetry.prometheusName("messaging.process.duration") // => "messaging_process_duration_seconds"
 * ```
 *
 * @category metrics
 * @since 0.1.0
 */
export const prometheusName: (name: string) => string = prometheus.prometheusName

// --- traces

export { type SpanOptions, spans } from "./internal/spans.ts"
