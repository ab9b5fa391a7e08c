import * as Context from "effect/Context"
import type { Instrument } from "./series.ts"

/**
 * Whether pipelines and publishers keep metrics. Default: no.
 *
 * @category references
 * @since 0.1.0
 */
export const MetricsEnabled = Context.Reference<boolean>("@millrace/core/Telemetry/MetricsEnabled", {
  defaultValue: () => false
})

/** Every metric that Millrace keeps. Names, units and types of `messaging.*` are those of the conventions. */
export const instruments = {
  sent: {
    type: "counter",
    name: "messaging.client.sent.messages",
    unit: "{message}",
    description: "Number of messages producer attempted to send to the broker."
  },
  consumed: {
    type: "counter",
    name: "messaging.client.consumed.messages",
    unit: "{message}",
    description: "Number of messages that were delivered to the application."
  },
  operation: {
    type: "histogram",
    name: "messaging.client.operation.duration",
    unit: "s",
    description: "Duration of messaging operation initiated by a producer or consumer client."
  },
  process: {
    type: "histogram",
    name: "messaging.process.duration",
    unit: "s",
    description: "Duration of processing operation."
  },
  wait: {
    type: "histogram",
    name: "millrace.wait.duration",
    unit: "s",
    description: "Time from the publishing of a message to the beginning of its first attempt."
  },
  outcomes: {
    type: "counter",
    name: "millrace.outcomes",
    unit: "{message}",
    description: "Attempts by their outcome."
  },
  redelivered: {
    type: "counter",
    name: "millrace.redelivered",
    unit: "{message}",
    description: "Deliveries of messages that were delivered before."
  },
  owned: {
    type: "gauge",
    name: "millrace.owned",
    unit: "{message}",
    description: "Messages that this process owns, buffered and running."
  },
  health: {
    type: "gauge",
    name: "millrace.health",
    unit: "{pipeline}",
    description: "Pipelines of this process in a state."
  },
  lag: {
    type: "gauge",
    combine: "max",
    name: "millrace.lag",
    unit: "{message}",
    description: "Messages that are stored and were never delivered to the group; absent where the server cannot know."
  },
  pending: {
    type: "gauge",
    combine: "max",
    name: "millrace.pending",
    unit: "{message}",
    description: "Messages that were delivered to the group and are not settled, waiting retries included."
  },
  oldestAge: {
    type: "gauge",
    combine: "max",
    name: "millrace.oldest.age",
    unit: "s",
    description: "Age of the oldest message that the group has not settled."
  }
} as const satisfies Record<string, Instrument>
