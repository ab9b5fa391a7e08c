import type * as Message from "@millrace/core/Message"
import * as Publisher from "@millrace/core/Publisher"
import type * as Transport from "@millrace/core/Transport"
import type { MsgHdrs } from "@nats-io/nats-core"

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
  private readonly nanos: string
  private decoded: Message.Headers | undefined
  /** Deliveries that were handed back untouched. */
  released = 0
  suspect = false
  /** Monotonic milliseconds after which a peer may have it. */
  heldUntil = 0
  /** Told when it is settled, or somebody else's. */
  owner: { readonly ended: (delivery: JetStreamDelivery, done: boolean) => void } | undefined

  constructor(msg: Msg) {
    this.msg = msg
    const reply = msg.reply ?? ""
    this.reply = reply
    const tokens = reply.split(".")
    const at = tokens.length === 9 ? 4 : 6
    this.delivered = Number(tokens[at])
    this.id = tokens[at + 1] ?? ""
    this.nanos = tokens[at + 3] ?? "0"
  }
  get body(): Uint8Array {
    return this.msg.data
  }
  get topic(): string {
    return this.msg.subject
  }
  get headers(): Message.Headers {
    return this.decoded ??= toHeaders(this.msg.headers)
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
    return Math.floor(Number(this.nanos) / 1e6)
  }
  /** Tells two messages apart that have the same number in two streams of the same name. */
  get timestamp(): string {
    return this.nanos
  }
}

/** As quick as an ordinary object, without inheriting names that a header may have. */
class Bare {
  [name: string]: string
}
Object.setPrototypeOf(Bare.prototype, null)

/** Names in lower case, without what is said to the server: a copy of them must not repeat an id or an expectation. */
export const toHeaders = (given: MsgHdrs | undefined): Message.Headers => {
  const headers = new Bare()
  if (given !== undefined) {
    for (const [name, values] of given) {
      const lower = name.toLowerCase()
      if (!lower.startsWith("nats-")) headers[lower] ??= values[0] ?? ""
    }
  }
  return headers
}
