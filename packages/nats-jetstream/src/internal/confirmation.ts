import * as Publisher from "@millrace/core/Publisher"
import type * as Transport from "@millrace/core/Transport"
import type { Msg } from "@nats-io/nats-core"
import * as Result from "effect/Result"
import { delayedSubject } from "./names.ts"

export interface Confirmed extends Transport.Published {
  readonly stream: string
  readonly sequence: number
}

export type Answer = Result.Result<Confirmed, Publisher.PublishError>

/** The message that an answer is about. */
export interface Sent {
  readonly topic: string
  readonly subject: string
  readonly isDelayed: boolean
  /** In bytes, and how many of them are headers. */
  readonly size: number
  readonly headerSize: number
}

/** What the server says to a publish. */
export interface PubAck {
  readonly stream?: string
  readonly seq?: number
  readonly duplicate?: boolean
  readonly error?: { readonly code: number; readonly err_code?: number; readonly description: string }
}

export const failed = (topic: string, reason: Publisher.PublishErrorReason): Answer =>
  Result.fail(new Publisher.PublishError({ topic, reason }))

/** Failures because no stream takes the subject, or none that has a leader: the message is nowhere. */
const nobody = new WeakSet<Publisher.PublishError>()

export const isNobody = (error: Publisher.PublishError): boolean => nobody.has(error)

const messageTooLarge = 10054
const headersTooLarge = 10097
const storeFailed = 10077
const insufficientStorage = 10047
const maxHeaderSize = 65_535

const decoder = new TextDecoder()

/** The answers of one stream begin with the same bytes, up to the sequence: those of the last one that was read whole. */
interface Known {
  readonly stream: string
  readonly beginning: Uint8Array
}
let known: Known | undefined

/** The sequence in an answer that says nothing but the known stream and a sequence; else `undefined`. */
const sequenceIn = (data: Uint8Array, { beginning }: Known): number | undefined => {
  const end = data.length - 1
  if (end <= beginning.length || end > beginning.length + 15 || data[end] !== closingBrace) return undefined
  for (let i = beginning.length - 1; i >= 0; i--) if (data[i] !== beginning[i]) return undefined
  let sequence = 0
  for (let i = beginning.length; i < end; i++) {
    const digit = data[i]! - zero
    if (digit < 0 || digit > 9) return undefined
    sequence = sequence * 10 + digit
  }
  return sequence
}

const closingBrace = 0x7d
const zero = 0x30

const confirmed = (stream: string, sequence: number, duplicate: boolean): Answer =>
  Result.succeed({ id: String(sequence), duplicate, stream, sequence })

/** Reads the answer to a publish. */
export const answerOf = (sent: Sent, { data }: Msg): Answer => {
  if (known !== undefined) {
    const sequence = sequenceIn(data, known)
    if (sequence !== undefined) return confirmed(known.stream, sequence, false)
  }
  const { isDelayed, subject, topic } = sent
  if (data.length === 0) {
    if (isDelayed) {
      const subjects = delayedSubject(topic, "*")
      return failed(
        topic,
        new Publisher.Refused({
          detail: `for delayed delivery the stream of ${topic} must take ${subjects} too, and allow_msg_schedules`
        })
      )
    }
    const reason = new Publisher.NotSent({ detail: `no stream takes ${subject} now` })
    const unheard = new Publisher.PublishError({ topic, reason })
    nobody.add(unheard)
    return Result.fail(unheard)
  }
  const text = decoder.decode(data)
  let ack: PubAck
  try {
    ack = JSON.parse(text)
  } catch {
    return notOfAStream(sent)
  }
  if (ack.error !== undefined) return refusal(sent, ack.error)
  if (ack.stream === undefined || ack.seq === undefined) return notOfAStream(sent)
  const beginning = /^(.*"seq":)\d+\}$/.exec(text)?.[1]
  if (beginning !== undefined) known = { stream: ack.stream, beginning: Buffer.from(beginning) }
  return confirmed(ack.stream, ack.seq, ack.duplicate === true)
}

const notOfAStream = ({ subject, topic }: Sent): Answer =>
  failed(topic, new Publisher.OutcomeUnknown({ detail: `something else than a stream answers for ${subject}` }))

const refusal = ({ headerSize, size, topic }: Sent, error: NonNullable<PubAck["error"]>): Answer => {
  const detail = `${error.description} (${error.err_code ?? error.code})`
  switch (error.err_code) {
    case messageTooLarge:
      return failed(topic, new Publisher.TooLarge({ size, limit: Math.max(0, size - 1) }))
    case headersTooLarge:
      return failed(topic, new Publisher.TooLarge({ size: headerSize, limit: maxHeaderSize }))
    // The stream, the account or the server is full: it is there, and it says no.
    case storeFailed:
    case insufficientStorage:
      return failed(topic, new Publisher.Refused({ detail }))
    default:
      return failed(topic, error.code === 503 ? new Publisher.NotSent({ detail }) : new Publisher.Refused({ detail }))
  }
}
