import type * as Message from "@millrace/core/Message"
import type * as Transport from "@millrace/core/Transport"
import * as TransportAuthor from "@millrace/core/TransportAuthor"
import type { TransportError } from "@millrace/core/TransportError"
import type { MsgHdrs } from "@nats-io/nats-core"
import * as Effect from "effect/Effect"
import { headersOf, isBodyLeftOut } from "./headers.ts"
import { idOf, type Life } from "./life.ts"

/** As clients give it, with or without JetStream. */
interface Msg {
  readonly subject: string
  readonly reply?: string
  readonly data: Uint8Array
  readonly headers?: MsgHdrs | undefined
}

/**
 * `done`: settled for good. `again`: it will be delivered again. `lost`: a peer may own it, and the engine knows.
 * `neglected`: the engine neither settled nor extended it.
 */
export type Ending = "done" | "again" | "lost" | "neglected"

/** Told when a delivery is settled, or lost. Returns `false` when a newer delivery of a message that is done is running. */
export interface Owner {
  readonly ended: (delivery: JetStreamDelivery, how: Ending, time?: number) => boolean
  /** It was lost before its handler began. */
  readonly neverBegan: (delivery: JetStreamDelivery) => void
  /** Renews the lease; `false` when a peer may own it. */
  readonly extend: (delivery: JetStreamDelivery) => Effect.Effect<boolean, TransportError>
}

/**
 * A message as the client received it. The server's metadata is in the reply subject,
 * `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<timestamp>.<pending>`, with domain and account
 * before the stream on newer servers' request.
 *
 * The client's message and the owner hold the connection, and with it passwords: both are private, so that no inspection
 * of a delivery shows them.
 */
export class JetStreamDelivery implements Transport.Delivery {
  readonly #msg: Msg
  #owner: Owner | undefined
  #headers: Message.Headers | undefined
  #body: Uint8Array | undefined
  readonly life: Life
  readonly reply: string
  /** In the stream; as text, the way it arrived. */
  readonly sequence: string
  /** How often the server has delivered it. */
  readonly delivered: number
  /** Deliveries that do not count: released, or never begun. */
  released = 0
  suspect = false
  /** This process holds an earlier delivery of it; a server that was killed may have forgotten that one. */
  isCopy = false
  /** The stream was created again since: the message is gone, and its sequence is another message's now. */
  isVoid = false
  /** This process requested the retry. */
  isOwnRetry = false
  firstFailedAt: number | undefined
  /** `false`: it was lost before its handler began. */
  mayHaveBegun = true
  /** In milliseconds since the epoch: see `Transport.Delivery.due`. */
  due: number | undefined
  /** As in `Transport.Delivery.givenUp`. */
  givenUp: string | undefined
  /** Monotonic milliseconds after which a peer may own it. */
  heldUntil = 0
  /** The server's confirmation is awaited: until then it has not ended, and is extended like buffered deliveries. */
  confirming = false
  /** Its place among the deliveries that were given and are not settled. */
  slot = -1

  /** `headers`: where they have been decoded. */
  constructor(msg: Msg, life: Life, headers?: Message.Headers) {
    this.#msg = msg
    this.#headers = headers
    this.life = life
    const reply = msg.reply ?? ""
    this.reply = reply
    const { length } = prefixIn(reply)
    const afterDelivered = reply.indexOf(".", length)
    const afterSequence = reply.indexOf(".", afterDelivered + 1)
    this.delivered = Number(reply.slice(length, afterDelivered))
    this.sequence = reply.slice(afterDelivered + 1, afterSequence)
  }
  get id(): string {
    return idOf(this.life, this.sequence)
  }
  get origin(): string {
    return this.life.origin
  }
  get body(): Uint8Array {
    return this.#body ??= this.#msg.data
  }
  /** The server has left it out. */
  get lacksBody(): boolean {
    return isBodyLeftOut(this.#msg)
  }
  get topic(): string {
    return this.#msg.subject
  }
  get headers(): Message.Headers {
    return this.#headers ??= headersOf(this.#msg)
  }
  get key(): string | undefined {
    return TransportAuthor.keyOf(this.headers)
  }
  get attempt(): number {
    return Math.max(1, this.delivered - this.released)
  }
  get redelivered(): boolean {
    return this.delivered > 1 || this.isCopy
  }
  get publishedAt(): number {
    return Math.floor(Number(this.timestamp) / 1e6)
  }
  get vanished(): boolean {
    return this.isVoid
  }
  get mayReturn(): boolean {
    return !this.isVoid
  }
  /** In nanoseconds. */
  get timestamp(): string {
    return timestampIn(this.reply)
  }
  /** Counts like `earlier`, which no handler has begun. */
  replaces(earlier: JetStreamDelivery): void {
    this.isCopy = true
    this.released = earlier.released + this.delivered - earlier.delivered
    this.suspect = earlier.suspect
    this.isOwnRetry = earlier.isOwnRetry
    this.firstFailedAt = earlier.firstFailedAt
    this.due = earlier.due
  }
  ownedBy(owner: Owner): void {
    this.#owner = owner
  }
  ended(how: Ending, time?: number): boolean {
    return this.#owner?.ended(this, how, time) ?? true
  }
  neverBegan(): void {
    this.mayHaveBegun = false
    this.#owner?.neverBegan(this)
  }
  extend(): Effect.Effect<boolean, TransportError> {
    return this.#owner?.extend(this) ?? Effect.succeed(false)
  }
  isSameMessage(other: JetStreamDelivery): boolean {
    return this.sequence === other.sequence && this.life === other.life
  }
}

/** The fourth token behind the prefix. */
export const timestampIn = (reply: string): string => {
  let from = prefixIn(reply).length
  for (let token = 0; token < 3; token++) from = reply.indexOf(".", from) + 1
  return reply.slice(from, reply.indexOf(".", from))
}

/** A consumer's messages all begin with the same. */
const prefixIn = (reply: string): string => reply.startsWith(prefix) ? prefix : prefix = prefixOf(reply)

let prefix = "no message yet"

const prefixOf = (reply: string): string => {
  const tokens = reply.split(".")
  return `${tokens.slice(0, tokens.length === 9 ? 4 : 6).join(".")}.`
}
