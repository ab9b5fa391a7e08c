import * as Publisher from "@millrace/core/Publisher"
import * as TransportError from "@millrace/core/TransportError"
import { createInbox, headers as makeHeaders } from "@nats-io/nats-core"
import type * as Arr from "effect/Array"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type Answer, answerOf, failed, type Sent } from "./confirmation.ts"
import { type Connection, noInbox } from "./connection.ts"
import { encode, type Encoded, isReason, type PendingMessage } from "./encoding.ts"

/** A message that waits for its answer. */
interface Slot extends Sent {
  /** Its place among the unconfirmed, and how often a place was taken before: an answer may come too late. */
  readonly token: number
  /** Monotonic milliseconds. */
  readonly until: number
  /** Its place in `send`, and where the answer goes. */
  readonly index: number
  readonly batch: { readonly done: (index: number, answer: Answer) => void }
}

/** Unconfirmed messages on one connection; beyond that, publishing waits. */
const window = 1024

/** How often a refused inbox is subscribed to again, in milliseconds. */
const subscribeEvery = 2000

/** The client wants no more of headers than their bytes. One object for all messages: they are written at once. */
const encodedHeaders = () => {
  let bytes: Uint8Array = new Uint8Array(0)
  const headers = Object.assign(makeHeaders(), { encode: () => bytes })
  return (encoded: Uint8Array) => {
    bytes = encoded
    return headers
  }
}

/**
 * Publishes and takes the confirmations on one inbox.
 *
 * The client's own request costs a promise, a timer and a token for each message, and does not fail when the connection
 * does; its headers cost more than the rest. Here one message costs an entry of an array and a text; a lost connection answers
 * all at once. What is published in one turn of the event loop is written together.
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
  /** V8 keeps every old table of a Map that messages pass through; an array that is written over has none. */
  const slots = new Array<Slot | undefined>(window).fill(undefined)
  const free = Array.from(slots, (_, index) => window - 1 - index)
  const waiters: Array<() => void> = []
  const headersOf = encodedHeaders()
  let taken = 0

  const unconfirmedNow = () => slots.filter((slot) => slot !== undefined)
  const settle = (token: number, answer: (slot: Slot) => Answer) => {
    const slot = slots[token % window]
    if (slot === undefined || slot.token !== token) return
    slots[token % window] = undefined
    free.push(token % window)
    slot.batch.done(slot.index, answer(slot))
    if (waiters.length > 0 && free.length >= window / 2) { for (const wake of waiters.splice(0)) wake() }
  }
  /** The server does not let this client subscribe to its inbox: no answer would arrive. */
  let refusal: TransportError.Unauthorized | undefined
  const subscribe = () =>
    nc.subscribe(`${inbox}.*`, {
      // The client reads nothing more when this throws.
      callback(error, msg) {
        if (error === null) return settle(Number(msg.subject.slice(inbox.length + 1)), (slot) => answerOf(slot, msg))
        const detail = noInbox(`${inbox}.*`)
        refusal = new TransportError.Unauthorized({ address: nc.getServer(), operation: "publish", detail })
        for (const { token } of unconfirmedNow()) {
          settle(token, ({ topic }) => failed(topic, new Publisher.OutcomeUnknown({ detail })))
        }
      }
    })
  let subscription = subscribe()
  let subscribedAt = now()
  /** The permission may have been given meanwhile. */
  const subscribeAgain = (time: number) => {
    if (refusal === undefined || time - subscribedAt < subscribeEvery || connection.state() !== "connected") return
    subscribedAt = time
    const before = refusal
    subscription = subscribe()
    nc.flush().then(() => {
      if (refusal === before) refusal = undefined
    }, () => undefined)
  }
  const unconfirmed = new Publisher.OutcomeUnknown({
    detail: `no confirmation within ${Duration.format(options.timeout)}`
  })
  const sweep = setInterval(() => {
    const time = now()
    subscribeAgain(time)
    for (const { token, topic, until } of unconfirmedNow()) {
      if (until <= time) settle(token, () => failed(topic, unconfirmed))
    }
  }, Math.max(10, Math.min(250, timeout / 4)))
  sweep.unref()
  const lost = new Publisher.OutcomeUnknown({ detail: "the connection was lost before the confirmation" })
  const stop = connection.listen({
    lost() {
      for (const { token, topic } of unconfirmedNow()) settle(token, () => failed(topic, lost))
    },
    refused({ operation, subject }) {
      if (operation !== "publish") return
      const address = nc.getServer()
      const detail = `no permission to publish to ${subject}`
      for (const sent of unconfirmedNow()) {
        if (sent.subject !== subject) continue
        const reason = new TransportError.Unauthorized({ address, operation: "publish", detail })
        settle(sent.token, ({ topic }) => failed(topic, reason))
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

  /** Says why the message cannot be sent, or sends it. Nothing that is thrown here may reach the messages of others. */
  const sendOne = (pending: PendingMessage, until: number, index: number, batch: Slot["batch"]): void => {
    const { message: { body, topic } } = pending
    let encoded: Encoded
    try {
      encoded = encode(connection, pending, clock)
    } catch (cause) {
      const reason = isReason(cause) ? cause : new Publisher.Refused({ detail: String(cause) })
      return batch.done(index, failed(topic, reason))
    }
    if (connection.state() !== "connected") {
      return batch.done(index, failed(topic, new Publisher.NotSent({ detail: "there is no connection" })))
    }
    if (refusal !== undefined) return batch.done(index, failed(topic, refusal))
    const place = free.pop()!
    const token = taken++ * window + place
    const { headers, isDelayed, subject } = encoded
    const headerSize = headers.length
    slots[place] = { token, topic, subject, isDelayed, headerSize, size: body.length + headerSize, until, index, batch }
    try {
      nc.publish(subject, body, { headers: headersOf(headers), reply: `${inbox}.${token}` })
    } catch (cause) {
      const detail = cause instanceof Error ? cause.message : String(cause)
      settle(token, () => failed(topic, new Publisher.NotSent({ detail })))
    }
  }

  return {
    send: (messages) =>
      Effect.callback<ReadonlyArray<Answer>>((resume) => {
        const answers = new Array<Answer>(messages.length)
        let next = 0
        let missing = messages.length
        const batch = {
          done(index: number, answer: Answer) {
            answers[index] = answer
            if (--missing === 0) resume(Effect.succeed(answers))
          }
        }
        const go = () => {
          const until = now() + timeout
          while (next < messages.length) {
            if (free.length === 0) return void waiters.push(go)
            const index = next++
            sendOne(messages[index]!, until, index, batch)
          }
        }
        go()
      })
  }
})
