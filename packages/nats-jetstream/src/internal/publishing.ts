import * as Publisher from "@millrace/core/Publisher"
import type * as Transport from "@millrace/core/Transport"
import * as TransportError from "@millrace/core/TransportError"
import { createInbox, headers as makeHeaders, type Msg, type MsgHdrs } from "@nats-io/nats-core"
import type * as Arr from "effect/Array"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import type { Connection } from "./connection.ts"
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

/** One message on its way; `subject` is where it goes if that is not its topic's own. */
export interface PendingMessage {
  readonly message: Transport.Outgoing
  readonly subject?: string | undefined
  readonly expectations?: Expectations | undefined
}

export interface Confirmed extends Transport.Published {
  readonly stream: string
  readonly sequence: number
}

type Answer = Result.Result<Confirmed, Publisher.PublishError>

interface Slot {
  readonly size: number
  readonly headerSize: number
  readonly topic: string
  readonly subject: string
  readonly delayed: boolean
  readonly until: number
  readonly done: (answer: Answer) => void
}

/** What the server says to a publish. */
export interface PubAck {
  readonly stream?: string
  readonly seq?: number
  readonly duplicate?: boolean
  readonly error?: { readonly code: number; readonly err_code?: number; readonly description: string }
}

const error = (topic: string, reason: Publisher.PublishErrorReason): Answer =>
  Result.fail(new Publisher.PublishError({ topic, reason }))

const decoder = new TextDecoder()

/** Failures because no stream takes the subject, or none that has a leader: the message is nowhere. */
const nobody = new WeakSet<Publisher.PublishError>()

export const isNobody = (error: Publisher.PublishError): boolean => nobody.has(error)

/** Unconfirmed messages on one connection; beyond that, publishing waits. */
const window = 1024

/**
 * Publishes and takes the confirmations on one inbox.
 *
 * The client's own request costs a promise, a timer and a token for each message, and does not fail when the connection
 * does. Here one message costs an entry of a map; a lost connection answers all at once.
 */
export const publishing = Effect.fnUntraced(function*(
  connection: Connection,
  options: { readonly timeout: Duration.Duration }
): Effect.fn.Return<
  {
    readonly send: (messages: Arr.NonEmptyReadonlyArray<PendingMessage>) => Effect.Effect<ReadonlyArray<Answer>>
  },
  never,
  Scope.Scope
> {
  const { nc } = connection
  const clock = yield* Clock.clockWith(Effect.succeed)
  const now = () => Number(clock.monotonicTimeNanosUnsafe()) / 1e6
  const timeout = Duration.toMillis(options.timeout)
  const inbox = createInbox(connection.inboxPrefix)
  const slots = new Map<string, Slot>()
  const waiters: Array<() => void> = []
  let tokens = 0

  const settle = (token: string, answer: (slot: Slot) => Answer) => {
    const slot = slots.get(token)
    if (slot === undefined) return
    slots.delete(token)
    slot.done(answer(slot))
    if (waiters.length > 0 && slots.size <= window / 2) { for (const wake of waiters.splice(0)) wake() }
  }
  const subscription = nc.subscribe(`${inbox}.*`, {
    callback(_, msg) {
      settle(msg.subject.slice(inbox.length + 1), (slot) => toAnswer(slot, msg))
    }
  })
  const sweep = setInterval(() => {
    const time = now()
    for (const [token, slot] of slots) {
      if (slot.until > time) return
      settle(
        token,
        () =>
          error(
            slot.topic,
            new Publisher.OutcomeUnknown({ detail: `no confirmation within ${Duration.format(options.timeout)}` })
          )
      )
    }
  }, Math.max(10, Math.min(250, timeout / 4)))
  sweep.unref()
  const stop = connection.listen({
    lost() {
      for (const token of slots.keys()) {
        settle(
          token,
          (slot) =>
            error(
              slot.topic,
              new Publisher.OutcomeUnknown({ detail: "the connection was lost before the confirmation" })
            )
        )
      }
    },
    refused(violation) {
      if (violation.operation !== "publish") return
      for (const [token, slot] of slots) {
        if (slot.subject === violation.subject) {
          settle(token, () =>
            error(
              slot.topic,
              new TransportError.Unauthorized({
                address: nc.getServer(),
                operation: "publish",
                detail: `no permission to publish to ${slot.subject}`
              })
            ))
        }
      }
    }
  })
  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      stop()
      clearInterval(sweep)
      if (!nc.isClosed()) subscription.unsubscribe()
    })
  )

  /** Says why it cannot be sent, or sends it. Nothing that is thrown here may reach the messages of others. */
  const sendOne = (pending: PendingMessage, done: (answer: Answer) => void): void => {
    const { topic } = pending.message
    let encoded: Encoded
    try {
      encoded = encode(connection, pending, clock)
    } catch (cause) {
      return done(error(topic, isReason(cause) ? cause : new Publisher.Refused({ detail: String(cause) })))
    }
    if (connection.state() !== "connected") {
      return done(error(topic, new Publisher.NotSent({ detail: "there is no connection" })))
    }
    const token = (tokens++).toString(36)
    const { headerSize, headers, size, subject } = encoded
    const delayed = encoded.isDelayed
    slots.set(token, { size, headerSize, topic, subject, delayed, until: now() + timeout, done })
    try {
      nc.publish(subject, pending.message.body, { headers, reply: `${inbox}.${token}` })
    } catch (cause) {
      settle(
        token,
        () => error(topic, new Publisher.NotSent({ detail: cause instanceof Error ? cause.message : String(cause) }))
      )
    }
  }

  return {
    send: (messages) =>
      Effect.callback<ReadonlyArray<Answer>>((resume) => {
        const answers = new Array<Answer>(messages.length)
        let next = 0
        let missing = messages.length
        const go = () => {
          while (next < messages.length) {
            if (slots.size >= window) return void waiters.push(go)
            const index = next++
            sendOne(messages[index]!, (answer) => {
              answers[index] = answer
              if (--missing === 0) resume(Effect.succeed(answers))
            })
          }
        }
        go()
      })
  }
})

interface Encoded {
  readonly subject: string
  readonly headers: MsgHdrs
  readonly headerSize: number
  readonly size: number
  readonly isDelayed: boolean
}

const isReason = (cause: unknown): cause is Publisher.PublishErrorReason =>
  cause instanceof TransportError.InvalidOption || cause instanceof Publisher.TooLarge

/** Throws the reason why a message cannot be sent. */
const encode = (
  connection: Connection,
  { expectations, message, subject }: PendingMessage,
  clock: Clock.Clock
): Encoded => {
  const { nc } = connection
  const { topic } = message
  const invalid = (option: string, value: string, remedy: string) =>
    new TransportError.InvalidOption({ option, value, remedy })
  const remedy = nameRemedy("topic", topic)
  if (remedy !== undefined) throw invalid("topic", topic, remedy)
  const target = subject ?? topic
  const subjectRemedy = target === topic ? undefined : nameRemedy("topic", target)
  if (subjectRemedy !== undefined) throw invalid("subject", target, subjectRemedy)
  const headers = encodeHeaders(message, expectations)
  const delay = message.delay === undefined ? 0 : Duration.toMillis(message.delay)
  if (!(delay <= maxDelay)) {
    throw invalid("delay", Duration.format(Duration.millis(delay)), "give at most a hundred years")
  }
  const isDelayed = delay > 0
  const version = nc.info?.version
  if (isDelayed && !atLeast(version, 2, 12)) {
    throw invalid(
      "delay",
      Duration.format(Duration.millis(delay)),
      `delayed delivery needs nats-server 2.12, this is ${version}`
    )
  }
  if (expectations?.ttl !== undefined && !atLeast(version, 2, 11)) {
    throw invalid(
      "ttl",
      `${expectations.ttl} s`,
      `a time to live needs nats-server 2.11, this is ${version}; bound the stream's max_age instead`
    )
  }
  if (isDelayed) {
    const at = clock.currentTimeMillisUnsafe() + connection.clockSkew() + delay
    headers.set("Nats-Schedule", `@at ${new Date(at).toISOString()}`)
    headers.set("Nats-Schedule-Target", target)
  }
  const limit = nc.info?.max_payload ?? Infinity
  const headerSize = sizeOf(headers)
  const size = message.body.length + headerSize
  if (size > limit) throw new Publisher.TooLarge({ size, limit })
  return {
    // A subject holds one schedule: each message has its own.
    subject: isDelayed ? delayedSubject(topic, createInbox().slice("_INBOX.".length)) : target,
    headers,
    headerSize,
    size,
    isDelayed
  }
}

/** The server's dates end. */
const maxDelay = 100 * 365 * 24 * 3600_000

/** Throws the reason why headers cannot be written. */
export const encodeHeaders = (message: Transport.Outgoing, expectations: Expectations | undefined): MsgHdrs => {
  const headers = makeHeaders()
  // What another client wrote has to be stored in a dead letter, even where this one refuses to write it.
  const isDeadLetter = message.headers[deadLetterHeader] !== undefined
  for (const name of Object.keys(message.headers)) {
    const value = message.headers[name]!
    if (!isDeadLetter) refuseBreaks(`header ${name}`, value)
    put(headers, name, value)
  }
  if (message.id !== undefined) {
    refuseBreaks("id", message.id)
    headers.set("Nats-Msg-Id", messageId(message.topic, message.id))
  }
  if (expectations !== undefined) {
    const { expectLastMessageId, expectLastSequence, expectLastSubjectSequence, expectStream, ttl } = expectations
    if (ttl !== undefined) headers.set("Nats-TTL", `${ttl}s`)
    if (expectStream !== undefined) headers.set("Nats-Expected-Stream", expectStream)
    if (expectLastSequence !== undefined) headers.set("Nats-Expected-Last-Sequence", `${expectLastSequence}`)
    if (expectLastMessageId !== undefined) refuseBreaks("expect.lastMessageId", expectLastMessageId)
    if (expectStream !== undefined) refuseBreaks("expect.stream", expectStream)
    if (expectLastMessageId !== undefined) {
      headers.set("Nats-Expected-Last-Msg-Id", messageId(message.topic, expectLastMessageId))
    }
    if (expectLastSubjectSequence !== undefined) {
      headers.set("Nats-Expected-Last-Subject-Sequence", `${expectLastSubjectSequence}`)
    }
  }
  return headers
}

/** The server knows ids for a whole stream; ours belong to a topic. */
const messageId = (topic: string, id: string): string => `${topic}/${id}`

const deadLetterHeader = "millrace-dead-letter"

/** A line break would end the header, and begin another one. */
const refuseBreaks = (option: string, value: string): void => {
  if (!/[\r\n\0]/.test(value)) return
  throw new TransportError.InvalidOption({
    option,
    value: JSON.stringify(value.slice(0, 100)),
    remedy: "a header of NATS is one line, take out the line breaks"
  })
}

const put = (headers: MsgHdrs, name: string, value: string): void =>
  headers.append(
    /^[!-9;-~]+$/.test(name) ? name : encodeURIComponent(name),
    /[\r\n]/.test(value) ? value.replace(/[\r\n]+/g, " ") : value
  )

/** In bytes, as they are written: `NATS/1.0`, a line each, an empty line. */
export const sizeOf = (headers: MsgHdrs): number => {
  let size = 12
  for (const [name, values] of headers) for (const value of values) size += name.length + Buffer.byteLength(value) + 4
  return size
}

const messageTooLarge = 10054
const headersTooLarge = 10097
const storeFailed = 10077
const insufficientStorage = 10047
const maxHeaderSize = 65_535

const toAnswer = (slot: Slot, msg: Msg): Answer => {
  if (msg.data.length === 0) {
    if (slot.delayed) {
      return error(
        slot.topic,
        new Publisher.Refused({
          detail: `for delayed delivery the stream of ${slot.topic} must take ${
            delayedSubject(slot.topic, "*")
          } too, and allow_msg_schedules`
        })
      )
    }
    const reason = new Publisher.NotSent({ detail: `no stream takes ${slot.subject} now` })
    const unheard = new Publisher.PublishError({ topic: slot.topic, reason })
    nobody.add(unheard)
    return Result.fail(unheard)
  }
  let ack: PubAck
  try {
    ack = JSON.parse(decoder.decode(msg.data))
  } catch {
    return error(
      slot.topic,
      new Publisher.OutcomeUnknown({ detail: `something else than a stream answers for ${slot.subject}` })
    )
  }
  if (ack.error !== undefined) {
    const detail = `${ack.error.description} (${ack.error.err_code ?? ack.error.code})`
    switch (ack.error.err_code) {
      case messageTooLarge:
        return error(slot.topic, new Publisher.TooLarge({ size: slot.size, limit: Math.max(0, slot.size - 1) }))
      case headersTooLarge:
        return error(slot.topic, new Publisher.TooLarge({ size: slot.headerSize, limit: maxHeaderSize }))
      // The stream, the account or the server is full: it is there, and it says no.
      case storeFailed:
      case insufficientStorage:
        return error(slot.topic, new Publisher.Refused({ detail }))
      default:
        return error(
          slot.topic,
          ack.error.code === 503 ? new Publisher.NotSent({ detail }) : new Publisher.Refused({ detail })
        )
    }
  }
  if (ack.stream === undefined || ack.seq === undefined) {
    return error(
      slot.topic,
      new Publisher.OutcomeUnknown({ detail: `something else than a stream answers for ${slot.subject}` })
    )
  }
  return Result.succeed({
    id: String(ack.seq),
    duplicate: ack.duplicate === true,
    stream: ack.stream,
    sequence: ack.seq
  })
}
