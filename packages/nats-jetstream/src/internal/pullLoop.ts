import type * as TransportError from "@millrace/core/TransportError"
import { createInbox, errors, type Msg, type Subscription } from "@nats-io/nats-core"
import type * as Clock from "effect/Clock"
import type { Connection } from "./connection.ts"
import { fromCause } from "./connection.ts"
import { JetStreamDelivery } from "./delivery.ts"
import type { Life } from "./life.ts"

/** Why reading cannot go on as it is. `missing`: nothing answers for the consumer. `detail`: the server's words. */
export interface Trouble {
  readonly _tag: "missing" | "refused" | "silent"
  readonly detail: string
}

export interface Bounds {
  readonly maxBatch: number
  readonly maxBytes: number
  /** How long a request stays open at most, in milliseconds. */
  readonly expires: number
}

export interface PullLoopOptions {
  readonly connection: Connection
  readonly clock: Clock.Clock
  /** Where requests go. */
  readonly subject: string
  /** Where the state of the consumer is asked for. */
  readonly infoSubject: string
  /** The present life of the stream. */
  readonly life: () => Life
  /** The consumer's own bounds on one request, which an operator may change. */
  readonly bounds: () => Bounds
  /** Messages in the order in which they arrived; called once per chunk that was read from the socket. */
  readonly onChunk: (chunk: Array<JetStreamDelivery>) => void
  readonly onTrouble: (trouble: Trouble) => void
  readonly onFailure: (error: TransportError.TransportError) => void
}

/** How long a request stays open while messages come. */
const shortest = 250

/** A server that has sent nothing for so long, in milliseconds, is away. */
const silentAfter = 3000

/** How long `retire` waits for a server that is slow, in milliseconds. */
const maxRetire = 10_000

/** How long after the expiry of a request its answer may come, in milliseconds. */
const lateAfter = 1000

/**
 * Asks the consumer for messages, on credit.
 *
 * `asked` is what is open at the server, all requests together: an answer does not say which of them it belongs to. The
 * answers of one epoch come to one inbox. Credit can be taken back by giving the inbox up: the server forgets the
 * requests. But a message that it has picked one for and not sent yet then counts as delivered, and a peer takes it for a
 * suspect. So requests are short while messages come, and `retire` lets them be filled or expire.
 */
export class PullLoop {
  readonly options: PullLoopOptions
  asked = 0
  private epoch: Subscription | undefined
  private chunk: Array<JetStreamDelivery> = []
  private silentSince = 0n
  /** The silence whose end a flush will tell. */
  private askedAbout = 0n
  private watchdog: NodeJS.Timeout | undefined
  private closing: Promise<void> | undefined
  private closed: (() => void) | undefined
  private looking: NodeJS.Timeout | undefined
  /** Milliseconds. The server takes at most half of the time that a request is open. */
  private readonly heartbeat: number
  /** What the next request is given: more after each that expired. */
  private expires: number
  /** When the last request expires. */
  private openUntil = 0n
  /** When the last message came. */
  private cameAt = 0n
  /** The next message is larger than the last request allowed. */
  private isOversized = false

  constructor(options: PullLoopOptions) {
    this.options = options
    const { expires } = options.bounds()
    this.heartbeat = Math.min(5000, Math.floor(expires / 2.5))
    this.expires = Math.min(shortest, expires)
    this.watch()
  }

  /** An idle loop, whose requests stay open for long, listens seldom: a process may have a thousand of them. */
  private watch(): void {
    const after = this.expires > lateAfter ? this.heartbeat : Math.min(lateAfter, this.heartbeat)
    this.watchdog = setTimeout(() => {
      this.listen()
      this.watch()
    }, after)
    this.watchdog.unref()
  }

  /** Whether `ask` may be called. */
  get open(): boolean {
    return this.epoch !== undefined
  }

  /** Begins an epoch. */
  begin(): void {
    const { connection } = this.options
    if (connection.state() !== "connected") return
    const epoch: Subscription = connection.nc.subscribe(createInbox(connection.inboxPrefix), {
      callback: (error, msg) => {
        if (error === null) this.receive(msg, epoch)
        else this.options.onFailure(fromCause(connection.nc.getServer(), "reading", error))
      }
    })
    this.epoch = epoch
    this.asked = 0
  }

  /** `bytes`: about how many the messages may have together; a larger one comes alone, by a request without that bound. */
  ask(count: number, bytes = Infinity): void {
    const { connection } = this.options
    if (this.epoch === undefined || connection.state() !== "connected") return
    const now = this.options.clock.monotonicTimeNanosUnsafe()
    if (this.asked === 0) this.silentSince = now
    const bounds = this.options.bounds()
    const expires = this.expires = Math.min(this.expires, bounds.expires)
    this.openUntil = now + BigInt(Math.round(expires * 1e6))
    // A short request answers soon enough by expiring.
    const heartbeat = expires > this.heartbeat ? Math.min(this.heartbeat, Math.floor(expires / 2.5)) : 0
    if (this.isOversized) {
      this.isOversized = false
      count = 1
      bytes = Infinity
    }
    bytes = Math.min(bytes, bounds.maxBytes)
    for (let rest = count; rest > 0; rest -= bounds.maxBatch) {
      const batch = Math.min(rest, bounds.maxBatch)
      const request = {
        batch,
        expires: expires * 1e6,
        idle_heartbeat: heartbeat * 1e6,
        max_bytes: Number.isFinite(bytes) ? Math.max(1, Math.round(bytes)) : undefined
      }
      connection.nc.publish(this.options.subject, JSON.stringify(request), { reply: this.epoch.getSubject() })
    }
    this.asked += count
  }

  /** Milliseconds until requests that are open have been filled, or have expired, or been taken back. */
  get remaining(): number {
    if (this.asked === 0) return 0
    const left = Number(this.openUntil - this.options.clock.monotonicTimeNanosUnsafe()) / 1e6
    return Math.max(0, Math.min(left, shortest))
  }

  /** Requests that expire with a part of their messages say nothing of it. */
  private get isIdle(): boolean {
    return this.options.clock.monotonicTimeNanosUnsafe() - this.cameAt > BigInt(2 * shortest) * 1_000_000n
  }

  /** Whether no request is filled any more: the last one has expired, or the server has let requests expire unfilled. */
  private get isSpent(): boolean {
    if (this.expires > shortest) return this.isIdle
    const since = this.options.clock.monotonicTimeNanosUnsafe() - this.openUntil
    return since > BigInt(shortest) * 1_000_000n || this.isIdle && since < -BigInt(shortest) * 1_000_000n
  }

  /**
   * Calls back when nothing is open and nothing has come for five looks. Requests that are spent are taken back; others
   * only to stop `forGood`, after 80 looks. Before each look the server has told the state of the consumer, for which it
   * waits as its deliveries do (for a disk, say), and the socket has been read. A server that tells nothing is waited for
   * as long as `silentAfter`, one that is slow for `maxRetire`.
   */
  retire(forGood: () => boolean, onEnd: () => void): void {
    if (this.looking !== undefined) return
    const { clock, connection, infoSubject } = this.options
    const now = () => Number(clock.monotonicTimeNanosUnsafe()) / 1e6
    const since = now()
    let toldAt = since
    let { asked } = this
    let looks = 0
    let silent = 0
    const look = (isTold: boolean) => {
      const time = now()
      if (isTold) {
        looks++
        toldAt = time
        silent = this.asked === asked ? silent + 1 : 0
      }
      asked = this.asked
      const { isSpent } = this
      const isAway = time - Math.max(toldAt, connection.heardAt()) > silentAfter
      const isOver = looks >= 80 || isAway || time - since > maxRetire
      if ((silent < 5 || asked > 0 && !isSpent) && !isOver) return wait()
      this.stay()
      void (asked > 0 && (isSpent || forGood()) ? this.end() : Promise.resolve()).then(onEnd)
    }
    const wait = () => {
      const looking = this.looking = setTimeout(() => {
        const answered = (isTold: boolean) => {
          if (this.looking === looking) look(isTold)
        }
        connection.nc.request(infoSubject, "", { timeout: silentAfter }).then(
          () => answered(true),
          // A refusal is an answer, too.
          (error) => answered(!(error instanceof errors.TimeoutError))
        )
      }, 10)
    }
    wait()
  }

  /** Calls `retire` off. */
  stay(): void {
    clearTimeout(this.looking)
    this.looking = undefined
  }

  /** Ends the epoch; resolves when nothing can arrive any more. */
  end(): Promise<void> {
    if (this.options.connection.state() !== "connected") {
      this.abandon()
      return Promise.resolve()
    }
    this.stay()
    const epoch = this.epoch
    this.epoch = undefined
    if (epoch !== undefined) {
      const ended = () => {
        if (this.epoch === undefined) this.asked = 0
      }
      // The client does not answer a drain whose connection is lost.
      const lost = new Promise<void>((resolve) => this.closed = resolve)
      this.closing = Promise.race([epoch.drain().then(ended, ended), lost])
    }
    return this.closing ?? Promise.resolve()
  }

  /** The connection is gone, and with it the requests and whatever was on its way. */
  abandon(): void {
    this.stay()
    this.closed?.()
    const epoch = this.epoch
    this.epoch = undefined
    this.asked = 0
    if (epoch !== undefined && !this.options.connection.nc.isClosed()) epoch.unsubscribe()
  }

  close(): void {
    clearTimeout(this.watchdog)
  }

  private receive(msg: Msg, epoch: Subscription): void {
    if (epoch === this.epoch) this.silentSince = 0n
    // What is said of a request is no message: there is nowhere to settle it. A message may look the same otherwise, and
    // have headers that the client throws at.
    if (msg.reply === undefined || !msg.reply.startsWith("$JS.ACK.")) {
      if (epoch === this.epoch && msg.headers !== undefined && msg.headers.code >= 100) {
        this.status(msg.headers.code, msg.headers.description, msg.headers.get("Nats-Pending-Messages"))
      }
      return
    }
    if (this.asked > 0) this.asked--
    if (this.expires > shortest) this.expires = shortest
    // The client reads a chunk of the socket synchronously: what it held is handed on together.
    if (this.chunk.push(new JetStreamDelivery(msg, this.options.life())) === 1) queueMicrotask(this.handOn)
  }

  private readonly handOn = (): void => {
    const chunk = this.chunk
    this.chunk = []
    this.cameAt = this.options.clock.monotonicTimeNanosUnsafe()
    this.options.onChunk(chunk)
  }

  private status(code: number, description: string, pending: string): void {
    if (code === 100) return
    if (code === 503) return this.options.onTrouble({ _tag: "missing", detail: "nothing answers for the consumer" })
    if (pending !== "") {
      this.asked = Math.max(0, this.asked - Number(pending))
      if (code === 408 && this.isIdle) this.expires = Math.min(4 * this.expires, this.options.bounds().expires)
      if (code === 409 && /exceeds maxbytes/i.test(description)) this.isOversized = true
      // Completed, expired, or refused with the rest of it: ask again. Messages that came with it do that by themselves.
      return this.chunk.length > 0 ? undefined : this.options.onChunk([])
    }
    const _tag = /consumer deleted/i.test(description) ? "missing" : "refused"
    this.options.onTrouble({ _tag, detail: `${description} (${code})` })
  }

  /**
   * Two heartbeats did not come, or no answer to a request that has expired: the server has no such consumer any more, or
   * forgot the request. (A request that reaches a consumer while that is being deleted is never answered.)
   */
  private readonly listen = (): void => {
    if (this.epoch === undefined || this.asked === 0 || this.options.connection.state() !== "connected") {
      this.silentSince = 0n
      return
    }
    const now = this.options.clock.monotonicTimeNanosUnsafe()
    if (this.silentSince === 0n) this.silentSince = now
    const since = this.silentSince
    const isLate = now - this.openUntil > BigInt(lateAfter) * 1_000_000n
    const patience = isLate ? lateAfter : 2 * this.heartbeat
    if (now - since <= BigInt(patience) * 1_000_000n) return
    if (this.askedAbout === since) return
    this.askedAbout = since
    // An answer may be on its way, or in the socket of a process that stood still: that to a flush comes behind it.
    const flushed = () => {
      if (this.silentSince !== since || this.epoch === undefined) return
      this.silentSince = this.options.clock.monotonicTimeNanosUnsafe()
      this.options.onTrouble({ _tag: "silent", detail: "the server does not answer requests for messages" })
    }
    this.options.connection.nc.flush().then(() => setImmediate(flushed), () => undefined)
  }
}
