import type * as TransportError from "@millrace/core/TransportError"
import { DiscardPolicy, RetentionPolicy, type StreamConfig, type StreamInfo } from "@nats-io/jetstream"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { mismatch } from "./comparison.ts"
import { ask, type Connection } from "./connection.ts"
import * as names from "./names.ts"

/** A shorter time is no place for dead letters. */
const minDeadLetterAge = Duration.days(1)

/** Refuses a target that does not keep what it confirms, and names bounds that remove dead letters. */
export const verifyKeeps = Effect.fnUntraced(function*(
  connection: Connection,
  { config, state }: StreamInfo,
  { purpose, topic }: { readonly purpose: "source" | "output" | "deadLetter"; readonly topic: string }
): Effect.fn.Return<void, TransportError.TransportError> {
  const refuse = (option: string, expected: string, found: unknown) =>
    mismatch(`${option} of stream ${config.name}`, expected, JSON.stringify(found) ?? "absent")
  if (purpose === "source") return
  if (config.sealed) return yield* refuse("sealed", "false, it takes no message", true)
  const what = purpose === "deadLetter" ? "dead letters" : "outputs"
  if (config.no_ack) return yield* refuse("no_ack", `false, because ${what} wait for a confirmation`, true)
  if (config.allow_msg_counter) {
    return yield* refuse("allow_msg_counter", `false, because a counter takes increments only, no ${what}`, true)
  }
  if (config.retention === RetentionPolicy.Interest) {
    const isRead = state.consumer_count > 0 && (yield* isConsumed(connection, config.name, topic))
    const lost = `it removes messages on ${topic} at once, because no consumer reads them`
    if (!isRead && purpose === "deadLetter") {
      return yield* refuse("retention", `"limits" or "workqueue": ${lost}`, config.retention)
    }
    if (!isRead) yield* Effect.logWarning(`stream ${config.name} has interest retention: ${lost}`)
  }
  if (purpose === "output") return
  if (config.max_msgs_per_subject === 1) {
    return yield* refuse("max_msgs_per_subject", "absent, because each dead letter would replace the one before", 1)
  }
  const bounds = [
    config.max_msgs > 0 ? `max_msgs ${config.max_msgs}` : undefined,
    config.max_bytes > 0 ? `max_bytes ${config.max_bytes}` : undefined,
    config.max_msgs_per_subject > 0 ? `max_msgs_per_subject ${config.max_msgs_per_subject}` : undefined,
    config.max_age > 0 && config.max_age / 1e6 < Duration.toMillis(minDeadLetterAge)
      ? `max_age ${Duration.format(Duration.millis(config.max_age / 1e6))}`
      : undefined
  ].filter((bound) => bound !== undefined)
  if (bounds.length > 0 && config.discard !== DiscardPolicy.New) {
    yield* Effect.logWarning(`stream ${config.name} removes dead letters of ${topic} beyond ${bounds.join(", ")}`)
  }
})

const isConsumed = (connection: Connection, stream: string, topic: string) =>
  ask(connection, `listing the consumers of ${stream}`, async (jsm) => {
    for await (const { config } of jsm.consumers.list(stream)) {
      const filters = config.filter_subjects ?? [config.filter_subject || ">"]
      if (filters.some((filter) => names.covers(filter, topic))) return true
    }
    return false
  })

/** Whether nothing is ever removed from a stream. */
export const isUnbounded = (config: StreamConfig): boolean =>
  config.retention === RetentionPolicy.Limits && config.max_age === 0 &&
  [config.max_msgs, config.max_bytes, config.max_msgs_per_subject].every((bound) => bound <= 0)
