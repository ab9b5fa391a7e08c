import * as TransportAuthor from "@millrace/core/TransportAuthor"
import { invalidOption, type TransportError } from "@millrace/core/TransportError"
import type { NatsConnection } from "@nats-io/nats-core"
import * as Duration from "effect/Duration"
import type { CommonOptions, PublishOptions, StreamOptions } from "../Options.ts"
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

const millisOf = (input: unknown): number => Duration.toMillis(TransportAuthor.durationOf("", input).duration)

const isTimeout = [
  (value: unknown) => millisOf(value) > 0 && millisOf(value) < 2 ** 31,
  "give more than 0, such as 10 seconds, and at most 24 days"
] as const
const longest = 100 * 365 * 86_400_000
const isKept = (value: unknown) => millisOf(value) >= 100 && millisOf(value) <= longest
const isAge = [
  (value: unknown) => millisOf(value) === 0 || isKept(value),
  "give 0.1 seconds to a hundred years, or 0 for no bound"
] as const
const isWindow = [isKept, "give 0.1 seconds to a hundred years"] as const

/** Values that the server would refuse in its own words, or that would mean the default. */
const checkValues = (
  options: CommonOptions & { readonly connectTimeout?: unknown }
): TransportError | undefined => {
  const ofStream = (
    of: string,
    { duplicateWindow, maxAge, maxBytes, maxMessages, replicas, storage }: StreamOptions = {}
  ) =>
    [
      [`${of}.maxAge`, maxAge, isAge],
      [`${of}.duplicateWindow`, duplicateWindow, isWindow],
      [`${of}.storage`, storage, isWord("file", "memory")],
      [`${of}.replicas`, replicas, isCount],
      [`${of}.maxMessages`, maxMessages, isCount],
      [`${of}.maxBytes`, maxBytes, isCount]
    ] as const
  return firstWrong([
    ["connectTimeout", options.connectTimeout, isTimeout],
    ["publishTimeout", options.publishTimeout, isTimeout],
    ["manage", options.manage, isWord("create", "verify", "none")],
    ["retention", options.retention, isWord("limits", "until-acked")],
    ["domain", options.domain, isText],
    ["apiPrefix", options.apiPrefix, isText],
    ["inboxPrefix", options.inboxPrefix, isText],
    ...ofStream("stream", options.stream),
    ...ofStream("deadLetterStream", options.deadLetterStream)
  ])
}

/** Options of `JetStream.publish`. A number that the server cannot read would mean that nothing is expected. */
export const checkPublish = (options: PublishOptions): TransportError | undefined => {
  const of = "publish"
  const { expect = {}, retryFor, ttl } = options ?? {}
  const known = ["headers", "id", "delay", "subject", "ttl", "expect", "retryFor"]
  const durations = Object.entries({ ttl, retryFor }).map(([option, input]) =>
    input === undefined ? undefined : TransportAuthor.durationOf(option, input).invalid
  )
  const wrong = TransportAuthor.checkOptions(transport, of, options, known, ...durations) ??
    TransportAuthor.checkOptions(transport, "expect", expect, [
      "stream",
      "lastSequence",
      "lastSubjectSequence",
      "lastMessageId"
    ])
  if (wrong !== undefined) return wrong
  const isPosition = [
    (value: unknown) => Number.isSafeInteger(value) && value as number >= 0,
    "give a whole number, 0 for none"
  ] as const
  const isLife = [
    (value: unknown) => millisOf(value) > 0 && millisOf(value) <= longest,
    "give more than 0 and at most a hundred years"
  ] as const
  return firstWrong([
    ["ttl", ttl, isLife],
    ["expect.stream", expect.stream, isText],
    ["expect.lastSequence", expect.lastSequence, isPosition],
    ["expect.lastSubjectSequence", expect.lastSubjectSequence, isPosition],
    ["expect.lastMessageId", expect.lastMessageId, isText]
  ])
}

type Check = readonly [is: (value: unknown) => boolean, remedy: string]

const firstWrong = (
  values: ReadonlyArray<readonly [option: string, value: unknown, check: Check]>
): TransportError | undefined => {
  for (const [option, value, [is, remedy]] of values) {
    if (value !== undefined && !is(value)) return invalidOption(transport, option, value, remedy)
  }
  return undefined
}
