import * as Publisher from "@millrace/core/Publisher"
import type * as Transport from "@millrace/core/Transport"
import * as TransportError from "@millrace/core/TransportError"
import { createInbox } from "@nats-io/nats-core"
import type * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import type { Connection } from "./connection.ts"
import { HeaderBlock } from "./headerBlock.ts"
import { delayedSubject, remedy as nameRemedy } from "./names.ts"
import { atLeast } from "./server.ts"

/** What JetStream can be told beside what every broker can. */
export interface Expectations {
  /** How long the server keeps the message, in seconds. */
  readonly ttl?: number | undefined
  readonly expectLastSequence?: number | undefined
  readonly expectLastSubjectSequence?: number | undefined
  readonly expectLastMessageId?: string | undefined
  readonly expectStream?: string | undefined
}

/** One message on its way. */
export interface PendingMessage {
  readonly message: Transport.Outgoing
  /** For a message without an id of its own, so that the server takes it once. */
  readonly id?: string | undefined
  /** Where the message goes if that is not its topic's own. */
  readonly subject?: string | undefined
  readonly expectations?: Expectations | undefined
}

/** A message as it is written. */
export interface Encoded {
  readonly subject: string
  readonly headers: Uint8Array
  readonly isDelayed: boolean
}

/** The server's dates end. */
const maxDelay = 100 * 365 * 24 * 3600_000

/** Throws the reason why a message cannot be sent. */
export const encode = (
  connection: Connection,
  { expectations, id, message, subject }: PendingMessage,
  clock: Clock.Clock
): Encoded => {
  const { topic } = message
  verifyName("topic", topic)
  const target = subject ?? topic
  if (target !== topic) verifyName("subject", target)
  const block = encodeHeaders(message, expectations, id)
  const delay = message.delay === undefined ? 0 : Duration.toMillis(message.delay)
  const { info } = connection.nc
  if (delay !== 0) verifyDelay(delay, info?.version)
  if (expectations?.ttl !== undefined && !atLeast(info?.version, 2, 11)) {
    throw invalid(
      "ttl",
      `${expectations.ttl} s`,
      `a time to live needs nats-server 2.11, this is ${info?.version}; bound the stream's max_age instead`
    )
  }
  const isDelayed = delay > 0
  if (isDelayed) {
    const at = clock.currentTimeMillisUnsafe() + connection.clockSkew() + delay
    block.add("Nats-Schedule", `@at ${new Date(at).toISOString()}`)
    block.add("Nats-Schedule-Target", target)
  }
  const headers = block.encode()
  const limit = info?.max_payload ?? Infinity
  const size = message.body.length + headers.length
  if (size > limit) throw new Publisher.TooLarge({ size, limit })
  // A subject holds one schedule: each message has its own.
  return {
    subject: isDelayed ? delayedSubject(topic, createInbox().slice("_INBOX.".length)) : target,
    headers,
    isDelayed
  }
}

export const isReason = (cause: unknown): cause is Publisher.PublishErrorReason =>
  cause instanceof TransportError.InvalidOption || cause instanceof Publisher.TooLarge

const invalid = (option: string, value: string, remedy: string) =>
  new TransportError.InvalidOption({ option, value, remedy })

/** Most messages go where the one before went. */
let lastName: string | undefined

const verifyName = (option: string, name: string): void => {
  if (name === lastName) return
  const remedy = nameRemedy("topic", name)
  if (remedy !== undefined) throw invalid(option, name, remedy)
  lastName = name
}

const verifyDelay = (delay: number, version: string | undefined): void => {
  const value = Duration.format(Duration.millis(delay))
  if (!(delay <= maxDelay)) throw invalid("delay", value, "give at most a hundred years")
  if (delay > 0 && !atLeast(version, 2, 12)) {
    throw invalid("delay", value, `delayed delivery needs nats-server 2.12, this is ${version}`)
  }
}

/** Throws the reason why headers cannot be written. */
export const encodeHeaders = (
  message: Transport.Outgoing,
  expectations: Expectations | undefined,
  idGiven?: string | undefined
): HeaderBlock => {
  const block = new HeaderBlock()
  // What another client wrote has to be stored in a dead letter, even where this one refuses to write it.
  const isDeadLetter = message.headers[deadLetterHeader] !== undefined
  for (const name of Object.keys(message.headers)) {
    // The server's own: they delete messages, or expect some. Whoever means them gives options of `JetStream.publish`.
    if (/^nats-/i.test(name)) continue
    const value = message.headers[name]!
    if (!isDeadLetter) refuseBreaks("header", name, value)
    put(block, name, value)
  }
  const id = message.id ?? idGiven
  if (id !== undefined) {
    refuseBreaks("id", "", id)
    block.add("Nats-Msg-Id", messageId(message.topic, id))
  }
  if (expectations !== undefined) addExpectations(block, message.topic, expectations)
  return block
}

const addExpectations = (block: HeaderBlock, topic: string, expectations: Expectations): void => {
  const { expectLastMessageId, expectLastSequence, expectLastSubjectSequence, expectStream, ttl } = expectations
  if (expectLastMessageId !== undefined) refuseBreaks("expect.lastMessageId", "", expectLastMessageId)
  if (expectStream !== undefined) refuseBreaks("expect.stream", "", expectStream)
  if (ttl !== undefined) block.add("Nats-TTL", `${ttl}s`)
  if (expectStream !== undefined) block.add("Nats-Expected-Stream", expectStream)
  if (expectLastSequence !== undefined) block.add("Nats-Expected-Last-Sequence", `${expectLastSequence}`)
  if (expectLastMessageId !== undefined) {
    block.add("Nats-Expected-Last-Msg-Id", messageId(topic, expectLastMessageId))
  }
  if (expectLastSubjectSequence !== undefined) {
    block.add("Nats-Expected-Last-Subject-Sequence", `${expectLastSubjectSequence}`)
  }
}

/**
 * The server knows ids for a whole stream; ours belong to a topic. The server removes white space at the end of a header:
 * an id that ends with white space or a slash gets one more slash, so that different ids stay different.
 */
const messageId = (topic: string, id: string): string => `${topic}/${id}${/[\s/]$/.test(id) ? "/" : ""}`

const deadLetterHeader = "millrace-dead-letter"

/** A line break would end the header, and begin another one. */
const refuseBreaks = (option: string, name: string, value: string): void => {
  if (!/[\r\n\0]/.test(value)) return
  throw invalid(
    name === "" ? option : `${option} ${name}`,
    JSON.stringify(value.slice(0, 100)),
    "a header of NATS is one line, take out the line breaks"
  )
}

const put = (block: HeaderBlock, name: string, value: string): void =>
  block.add(
    /^[!-9;-~]+$/.test(name) ? name : encodeURIComponent(name),
    /[\r\n]/.test(value) ? value.replace(/[\r\n]+/g, " ") : value
  )
