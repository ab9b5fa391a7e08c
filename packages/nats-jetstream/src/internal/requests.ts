import type * as Transport from "@millrace/core/Transport"
import type { TransportError } from "@millrace/core/TransportError"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { Connection } from "./connection.ts"
import type { JetStreamDelivery } from "./delivery.ts"
import type { Inbox } from "./inbox.ts"
import type { PullLoop } from "./pullLoop.ts"

type Deliveries = Arr.NonEmptyReadonlyArray<JetStreamDelivery>

export interface RequestsOptions {
  readonly connection: Connection
  /** Monotonic milliseconds. */
  readonly now: () => number
  /** As in `Transport.SubscribeOptions`. */
  readonly isolateFrom: number
  readonly inbox: () => Inbox
  readonly loop: () => PullLoop
  /** What is read is being created again. */
  readonly isHealing: () => boolean
  readonly release: (deliveries: ReadonlyArray<JetStreamDelivery>) => Effect.Effect<void, TransportError>
  readonly runPromise: (effect: Effect.Effect<void>) => Promise<void>
}

/** What the engine wants, and how much of it the pull loop asks for. */
export class Requests {
  readonly #options: RequestsOptions
  /** What is still wanted; a pull replaces it, what is given reduces it. */
  private wanted: Transport.Demand = nothing
  private waiter: ((exit: Exit.Exit<Deliveries, TransportError>) => void) | undefined
  private failure: TransportError | undefined
  private closed = false
  /** The engine has withdrawn its demand. */
  private withdrawn = false
  private readonly withdrawals: Array<() => void> = []
  private releaseTimer: NodeJS.Timeout | undefined
  private dueTimer: NodeJS.Timeout | undefined
  private released = Promise.resolve()
  /** The first request of `gather` was sent. */
  private gathered = false
  /** Of recent messages, in bytes. */
  private averageSize = 0

  constructor(options: RequestsOptions) {
    this.#options = options
  }

  /** Nothing is read any more. */
  get isOver(): boolean {
    return this.closed || this.failure !== undefined
  }

  /** Requests that are open here would be given released messages. */
  get isExcessive(): boolean {
    return this.withdrawn || this.isTooMuch
  }

  readonly pull = (demand: Transport.Demand): Effect.Effect<Deliveries, TransportError> =>
    Effect.callback((resume) => {
      const { isHealing, loop } = this.#options
      if (this.failure !== undefined) return resume(Exit.fail(this.failure))
      this.wanted = demand
      this.withdrawn = false
      clearTimeout(this.releaseTimer)
      if (!loop().open && !isHealing() && !this.closed) loop().begin()
      const given = this.give()
      this.waiter = resume
      this.ask()
      if (given !== undefined) {
        this.waiter = undefined
        return resume(Exit.succeed(given))
      }
      return Effect.sync(() => {
        this.waiter = undefined
      })
    })

  readonly withdraw: Effect.Effect<void> = Effect.callback((resume) => {
    const { connection, inbox, isHealing, loop } = this.#options
    this.withdrawn = true
    inbox().gathered()
    this.wanted = nothing
    clearTimeout(this.dueTimer)
    if (this.closed || isHealing() || !loop().open || connection.state() !== "connected") {
      this.withdrawalEnded()
      return resume(Effect.void)
    }
    this.withdrawals.push(() => resume(Effect.void))
    this.retire()
  })

  /** Gives what has arrived, or asks for more. */
  readonly wake = (): void => {
    const given = this.waiter === undefined ? undefined : this.give()
    if (this.waiter === undefined || given === undefined) return this.ask()
    const resume = this.waiter
    this.waiter = undefined
    resume(Exit.succeed(given))
  }

  readonly fail = (error: TransportError): void => {
    this.failure ??= error
    const resume = this.waiter
    this.waiter = undefined
    resume?.(Exit.fail(this.failure))
  }

  readonly ask = (): void => {
    const { inbox, isHealing, loop } = this.#options
    if (this.closed || isHealing() || !loop().open) return
    if (this.isExcessive) return this.retire()
    if (this.waiter === undefined) return
    loop().stay()
    if (inbox().isGathering) return this.gather()
    const most = this.credit()
    const open = inbox().size + loop().asked
    // Small requests cost as much as large ones: while some are open, wait for a quarter to be missing.
    const missing = most - open
    if (missing <= 0 || (open > 0 && missing * 4 < most)) return
    if (this.wanted.bytes === Infinity) return loop().ask(missing)
    const bytes = this.wanted.bytes - inbox().bytes - loop().asked * this.averageSize
    if (bytes > 0 || open === 0) loop().ask(missing, bytes)
  }

  /** Requests were answered without a message: nothing that was released is left. */
  answered(): void {
    const { inbox, loop } = this.#options
    if (loop().asked === 0 && this.gathered && inbox().isGathering) {
      inbox().gathered()
      this.wake()
    }
    this.ask()
  }

  /** The connection is back, or what is read has been created again. */
  resume(): void {
    const { connection, isHealing, loop } = this.#options
    if (this.closed || this.withdrawn) return this.withdrawalEnded()
    if (isHealing() || connection.state() !== "connected") return
    loop().begin()
    this.ask()
  }

  /** Nothing arrives any more for a demand that was withdrawn. */
  withdrawalEnded(): void {
    for (const resume of this.withdrawals.splice(0)) resume()
    // What has arrived is for the next pull, if there is one soon; else for a peer.
    clearTimeout(this.releaseTimer)
    if (!this.withdrawn || this.closed) return
    const releaseAll = () => this.release(this.#options.inbox().takeOut(0, true))
    this.releaseTimer = setTimeout(releaseAll, keepAfterWithdrawal)
  }

  /** Ends the requests that are open; resolves when what was released has been written. */
  async close(): Promise<void> {
    const { loop } = this.#options
    this.closed = true
    this.withdrawalEnded()
    clearTimeout(this.dueTimer)
    if (loop().open && loop().asked > 0) {
      loop().stay()
      await new Promise<void>((resolve) => loop().retire(() => true, resolve))
    }
    loop().close()
    await loop().end()
    await this.released
  }

  /** The server chooses what it sends: beyond `fresh` it is asked for as many messages as there are due retries. */
  private credit(): number {
    const { inbox, now } = this.#options
    const { fresh, total } = this.wanted
    if (fresh >= total) return total
    // One reading of the clock: a retry that became due between two would be neither counted nor waited for.
    const time = now()
    const due = inbox().due(time)
    const nextDue = inbox().nextDue(time)
    clearTimeout(this.dueTimer)
    if (Number.isFinite(nextDue)) this.dueTimer = setTimeout(this.wake, nextDue)
    return Math.min(total, fresh + due)
  }

  private get isTooMuch(): boolean {
    const { inbox, loop } = this.#options
    const { counted } = inbox()
    const { total } = this.wanted
    return counted > total || loop().asked > 0 && !inbox().isGathering && counted + loop().asked > total
  }

  /** Asks for what the process before has released. The first request is not larger than the demand: peers may own it all. */
  private gather(): void {
    const { inbox, loop } = this.#options
    const { missing } = inbox()
    if (missing === undefined || loop().asked > 0) return
    loop().ask(Math.min(missing, this.gathered ? maxGather : this.wanted.total))
    this.gathered = true
  }

  /** Ends requests that are open beyond what is wanted, and releases deliveries beyond it. */
  private retire(): void {
    const { connection, inbox, isHealing, loop } = this.#options
    if (this.closed || !loop().open) return
    loop().retire(() => this.withdrawn, () => {
      if (this.withdrawn) return this.withdrawalEnded()
      this.release(inbox().takeOut(this.wanted.total, false))
      if (this.closed || isHealing() || connection.state() !== "connected") return
      if (!loop().open) loop().begin()
      this.ask()
    })
  }

  private release(deliveries: ReadonlyArray<JetStreamDelivery>): void {
    const { inbox, release, runPromise } = this.#options
    if (deliveries.length === 0) return
    const unheard = Effect.catch(release(deliveries), () => Effect.sync(() => inbox().admit(deliveries)))
    this.released = this.released.then(() => runPromise(unheard))
  }

  private give(): Deliveries | undefined {
    const { inbox, isolateFrom } = this.#options
    const given = inbox().give(this.wanted)
    if (!Arr.isArrayNonEmpty(given)) return undefined
    let { bytes, fresh, suspects } = this.wanted
    for (const delivery of given) {
      bytes -= delivery.body.length
      if (!delivery.isOwnRetry) fresh--
      if (delivery.suspect && delivery.attempt >= isolateFrom) suspects--
    }
    this.averageSize = 0.8 * this.averageSize + 0.2 * (this.wanted.bytes - bytes) / given.length
    const total = this.wanted.total - given.length
    this.wanted = { total, fresh: Math.max(0, fresh), suspects, bytes: Math.max(0, bytes) }
    return given
  }
}

const nothing: Transport.Demand = { total: 0, fresh: 0, suspects: 0, bytes: 0 }

/** Milliseconds for which arrivals are kept for a pull after the demand was withdrawn. */
const keepAfterWithdrawal = 1000

/** The most messages that one request of `gather` asks for. */
const maxGather = 512
