import type * as Transport from "@millrace/core/Transport"
import type * as TransportError from "@millrace/core/TransportError"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { invalidOption } from "./connection.ts"
import { type ConsumerSpec, validateAckWait } from "./consumers.ts"
import * as names from "./names.ts"
import * as settings from "./settings.ts"
import type { Declaring, StreamSpec } from "./streams.ts"

/** What a pipeline asks for. */
export interface SubscriptionSpec {
  readonly stream: StreamSpec
  readonly consumer: ConsumerSpec
  /** Subjects were given, beside the topic. */
  readonly isFiltered: boolean
  /** The server confirms each acknowledgement. */
  readonly confirm: boolean
}

/** Reads the options of a subscription; fails with an `InvalidOption` that names the first one that cannot be. */
export const specOf = Effect.fnUntraced(function*(
  declaring: Declaring,
  options: Transport.SubscribeOptions
): Effect.fn.Return<SubscriptionSpec, TransportError.TransportError> {
  const { deadLetter, group, maxOwned, settings: given, topic } = options
  const name = Context.get(given, settings.StreamName)
  const badName = names.validateTopic(topic) ?? names.validateGroup(group) ??
    (name === undefined ? undefined : names.validateStream(name, "stream"))
  if (badName !== undefined) return yield* badName
  const filters = Context.get(given, settings.Subjects)
  // A stream that is read by its name is read whole.
  const subjects = filters ?? (name === undefined ? [topic] : [])
  const mode = Context.get(given, settings.Acknowledge)
  if (mode !== "write" && mode !== "confirm") {
    return yield* invalidOption("acknowledge", mode, "write \"write\" or \"confirm\"")
  }
  const badFilter = subjects.map((subject) => names.validateFilter(subject)).find((error) => error !== undefined)
  if (badFilter !== undefined) return yield* badFilter
  const catching = deadLetter === undefined
    ? undefined
    : subjects.find((subject) => names.covers(subject, deadLetter))
  if (catching !== undefined) {
    return yield* invalidOption(
      "deadLetter",
      deadLetter,
      `the pipeline reads ${catching} and would consume its own dead letters, give a topic outside of that`
    )
  }
  const wait = Context.get(given, settings.AckWait) ?? declaring.ackWait
  const ackWait = wait === undefined
    ? undefined
    : Duration.toMillis(Duration.fromInputUnsafe(wait as Duration.Input))
  const badWait = ackWait === undefined ? undefined : validateAckWait(ackWait)
  if (badWait !== undefined) return yield* badWait
  const startFrom = Context.get(given, settings.Start) ?? options.startFrom
  return {
    stream: { topic, subjects: filters ?? Arr.of(topic), purpose: "source", name },
    consumer: { topic, group, subjects, startFrom, ackWait, maxOwned },
    isFiltered: filters !== undefined,
    confirm: mode === "confirm"
  }
})
