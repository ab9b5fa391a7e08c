import type * as Message from "@millrace/core/Message"
import * as Publisher from "@millrace/core/Publisher"
import type * as Transport from "@millrace/core/Transport"
import type { MsgHdrs } from "@nats-io/nats-core"
import type { Arrivals } from "./arrivals.ts"
import { headersOf } from "./headers.ts"

/** As clients give it, with or without JetStream. */
interface Msg {
  readonly subject: string
  readonly reply?: string
  readonly data: Uint8Array
  readonly headers?: MsgHdrs | undefined
}

/**
 * A message as it came. What the server says about it is in its reply subject,
 * `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<timestamp>.<pending>`, with domain and account
 * before the stream on newer servers' request.
 */
export class JetStreamDelivery implements Transport.Delivery {
  private readonly msg: Msg
  readonly reply: string
  readonly id: string
  /** How often the server has delivered it. */
  readonly delivered: number
  /** Where the timestamp begins. */
  private readonly time: number
  private decoded: Message.Headers | undefined
  /** Deliveries that were handed back untouched. */
  released = 0
  suspect = false
  firstFailedAt: number | undefined
  /** Monotonic milliseconds after which a peer may have it. */
  heldUntil = 0
  /** The server's confirmation is waited for: until then it has not ended, and is kept alive with what nobody was given. */
  confirming = false
  /** Where it stands among those that were given and are not settled. */
  slot = -1
  /** Told when it is settled, or somebody else's. */
  owner: Pick<Arrivals, "ended"> | undefined

  constructor(msg: Msg) {
    this.msg = msg
    const reply = msg.reply ?? ""
    this.reply = reply
    // A consumer's messages all begin with the same.
    if (!reply.startsWith(prefix)) prefix = prefixOf(reply)
    const afterDelivered = reply.indexOf(".", prefix.length)
    const afterSequence = reply.indexOf(".", afterDelivered + 1)
    this.delivered = Number(reply.slice(prefix.length, afterDelivered))
    this.id = reply.slice(afterDelivered + 1, afterSequence)
    this.time = reply.indexOf(".", afterSequence + 1) + 1
  }
  get body(): Uint8Array {
    return this.msg.data
  }
  get topic(): string {
    return this.msg.subject
  }
  get headers(): Message.Headers {
    return this.decoded ??= headersOf(this.msg)
  }
  get key(): string | undefined {
    return Publisher.keyOf(this.headers)
  }
  get attempt(): number {
    return Math.max(1, this.delivered - this.released)
  }
  get redelivered(): boolean {
    return this.delivered > 1
  }
  get publishedAt(): number {
    return Math.floor(Number(this.timestamp) / 1e6)
  }
  /** In nanoseconds. Tells two messages apart that have the same number in two streams of the same name. */
  get timestamp(): string {
    return this.reply.slice(this.time, this.reply.indexOf(".", this.time))
  }
}

let prefix = "no message yet"

const prefixOf = (reply: string): string => {
  const tokens = reply.split(".")
  return `${tokens.slice(0, tokens.length === 9 ? 4 : 6).join(".")}.`
}
