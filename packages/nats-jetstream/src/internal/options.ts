import * as TransportAuthor from "@millrace/core/TransportAuthor"
import type { TransportError } from "@millrace/core/TransportError"
import type { CommonOptions } from "../Options.ts"
import { transport } from "./connection.ts"

const common = [
  "concurrency",
  "manage",
  "retention",
  "stream",
  "deadLetterStream",
  "ackWait",
  "publishTimeout",
  "domain",
  "apiPrefix",
  "inboxPrefix"
]
const bounds = ["storage", "replicas", "maxAge", "maxMessages", "maxBytes", "duplicateWindow", "config"]

const durationsOf = (
  { maxAge, duplicateWindow }: { readonly maxAge?: unknown; readonly duplicateWindow?: unknown }
) => ({
  maxAge,
  duplicateWindow
})

/** Options from JavaScript, or behind a cast: names that do not exist, durations that are none. */
export const checkOptions = (
  options: CommonOptions & { readonly connectTimeout?: unknown },
  own: ReadonlyArray<string>
): TransportError | undefined => {
  const check = (of: string, given: unknown, known: ReadonlyArray<string>, durations: object) =>
    TransportAuthor.checkOptions(
      transport,
      of,
      given,
      known,
      ...Object.entries(durations).map(([option, input]) =>
        input === undefined
          ? undefined
          : TransportAuthor.durationOf(of === "layer" ? option : `${of}.${option}`, input).invalid
      )
    )
  const { ackWait, connectTimeout, deadLetterStream, publishTimeout, stream } = options ?? {}
  return check("layer", options, [...own, ...common], { ackWait, connectTimeout, publishTimeout }) ??
    (stream === undefined
      ? undefined
      : check("stream", stream, ["name", "subjects", ...bounds], durationsOf(stream))) ??
    (deadLetterStream === undefined
      ? undefined
      : check("deadLetterStream", deadLetterStream, bounds, durationsOf(deadLetterStream)))
}
