import * as TransportAuthor from "@millrace/core/TransportAuthor"
import { invalidOption, type TransportError } from "@millrace/core/TransportError"
import type { NatsConnection } from "@nats-io/nats-core"
import type { CommonOptions, StreamOptions } from "../Options.ts"
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
      : check("deadLetterStream", deadLetterStream, bounds, durationsOf(deadLetterStream))) ??
    checkValues(options)
}

/** A connection from JavaScript: a promise of one is the usual mistake. */
export const checkConnection = (connection: NatsConnection): TransportError | undefined =>
  typeof connection?.getServer === "function" && typeof connection.request === "function"
    ? undefined
    : invalidOption(
      transport,
      "connection",
      connection,
      "give a connection: await connect(…) or wsconnect(…) of @nats-io"
    )

const isWord = (...words: ReadonlyArray<string>) =>
  [
    (value: unknown) => words.includes(value as string),
    `write ${words.map((word) => `"${word}"`).join(" or ")}`
  ] as const
const isCount = [
  (value: unknown) => Number.isSafeInteger(value) && value as number >= 1,
  "give a whole number of at least 1"
] as const
const isText = [(value: unknown) => typeof value === "string", "give a text"] as const

/** Values that the server would refuse in its own words, or that would mean the default. */
const checkValues = (options: CommonOptions): TransportError | undefined => {
  const ofStream = (of: string, { maxBytes, maxMessages, replicas, storage }: StreamOptions = {}) =>
    [
      [`${of}.storage`, storage, isWord("file", "memory")],
      [`${of}.replicas`, replicas, isCount],
      [`${of}.maxMessages`, maxMessages, isCount],
      [`${of}.maxBytes`, maxBytes, isCount]
    ] as const
  const values = [
    ["manage", options.manage, isWord("create", "verify", "none")],
    ["retention", options.retention, isWord("limits", "until-acked")],
    ["domain", options.domain, isText],
    ["apiPrefix", options.apiPrefix, isText],
    ["inboxPrefix", options.inboxPrefix, isText],
    ...ofStream("stream", options.stream),
    ...ofStream("deadLetterStream", options.deadLetterStream)
  ] as const
  for (const [option, value, [is, remedy]] of values) {
    if (value !== undefined && !is(value)) return invalidOption(transport, option, value, remedy)
  }
  return undefined
}
