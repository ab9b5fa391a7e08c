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
import { delayedSubject, validateTopic } from "./names.ts"
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
export interface Sending {
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

const error = (topic: string, reason: Publisher.Reason): Answer =>
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
  options: { readonly timeout: Duration.Duration; readonly inboxPrefix: string }
): Effect.fn.Return<
  {
    readonly send: (sendings: Arr.NonEmptyReadonlyArray<Sending>) => Effect.Effect<ReadonlyArray<Answer>>
  },
  never,
  Scope.Scope
> {
  const { nc } = connection
  const clock = yield* Clock.clockWith(Effect.succeed)
  const now = () => Number(clock.monotonicTimeNanosUnsafe()) / 1e6
  const timeout = Duration.toMillis(options.timeout)
  const inbox = createInbox(options.inboxPrefix)
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

  /** Says why it cannot be sent, or sends it. */
  const sendOne = (sending: Sending, done: (answer: Answer) => void): void => {
    const { message } = sending
    const topic = message.topic
    const badName = validateTopic(topic)
    if (badName !== undefined && badName.reason._tag === "InvalidOption") return done(error(topic, badName.reason))
    if (connection.state() !== "connected") {
      return done(error(topic, new Publisher.NotSent({ detail: "there is no connection" })))
    }
    const target = sending.subject ?? topic
    const token = (tokens++).toString(36)
    const headers = encodeHeaders(message, sending.expectations)
    const delay = message.delay === undefined ? 0 : Duration.toMillis(message.delay)
    if (delay > 0 && !atLeast(nc.info?.version, 2, 12)) {
      return done(error(
        topic,
        new TransportError.InvalidOption({
          option: "delay",
          value: Duration.format(Duration.millis(delay)),
          remedy: `delayed delivery needs nats-server 2.12, this is ${nc.info?.version}`
        })
      ))
    }
    if (sending.expectations?.ttl !== undefined && !atLeast(nc.info?.version, 2, 11)) {
      return done(error(
        topic,
        new TransportError.InvalidOption({
          option: "ttl",
          value: `${sending.expectations.ttl} s`,
          remedy:
            `a time to live needs nats-server 2.11, this is ${nc.info?.version}; bound the stream's max_age instead`
        })
      ))
    }
    if (delay > 0) {
      headers.set("Nats-Schedule", `@at ${new Date(clock.currentTimeMillisUnsafe() + delay).toISOString()}`)
      headers.set("Nats-Schedule-Target", target)
    }
    // A subject holds one schedule: each message has its own.
    const subject = delay > 0 ? delayedSubject(topic, createInbox().slice("_INBOX.".length)) : target
    const limit = nc.info?.max_payload ?? Infinity
    const size = message.body.length + sizeOf(headers)
    if (size > limit) return done(error(topic, new Publisher.TooLarge({ size, limit })))
    slots.set(token, { topic, subject, delayed: delay > 0, until: now() + timeout, done })
    try {
      nc.publish(subject, message.body, { headers, reply: `${inbox}.${token}` })
    } catch (cause) {
      settle(
        token,
        () => error(topic, new Publisher.NotSent({ detail: cause instanceof Error ? cause.message : String(cause) }))
      )
    }
  }

  return {
    send: (sendings) =>
      Effect.callback<ReadonlyArray<Answer>>((resume) => {
        const answers = new Array<Answer>(sendings.length)
        let next = 0
        let missing = sendings.length
        const go = () => {
          while (next < sendings.length) {
            if (slots.size >= window) return void waiters.push(go)
            const index = next++
            sendOne(sendings[index]!, (answer) => {
              answers[index] = answer
              if (--missing === 0) resume(Effect.succeed(answers))
            })
          }
        }
        go()
      })
  }
})

export const encodeHeaders = (message: Transport.Outgoing, expectations: Expectations | undefined): MsgHdrs => {
  const headers = makeHeaders()
  for (const name in message.headers) put(headers, name, message.headers[name]!)
  if (message.id !== undefined) headers.set("Nats-Msg-Id", message.id)
  if (expectations !== undefined) {
    const { expectLastMessageId, expectLastSequence, expectLastSubjectSequence, expectStream, ttl } = expectations
    if (ttl !== undefined) headers.set("Nats-TTL", `${ttl}s`)
    if (expectStream !== undefined) headers.set("Nats-Expected-Stream", expectStream)
    if (expectLastSequence !== undefined) headers.set("Nats-Expected-Last-Sequence", `${expectLastSequence}`)
    if (expectLastMessageId !== undefined) headers.set("Nats-Expected-Last-Msg-Id", expectLastMessageId)
    if (expectLastSubjectSequence !== undefined) {
      headers.set("Nats-Expected-Last-Subject-Sequence", `${expectLastSubjectSequence}`)
    }
  }
  return headers
}

/** Another client may have written what this one refuses to: a dead letter of it has to be stored all the same. */
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
    return error(
      slot.topic,
      ack.error.code === 503 ? new Publisher.NotSent({ detail }) : new Publisher.Refused({ detail })
    )
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
