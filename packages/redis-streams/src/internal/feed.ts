import type { Delivery } from "@millrace/core/Transport"
import type { TransportError } from "@millrace/core/TransportError"
import type * as Arr from "effect/Array"
import type * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import { EntryReader, type RawEntry, RedisDelivery } from "./entry.ts"
import * as keys from "./keys.ts"
import type { Command } from "./link.ts"
import { Quarantine } from "./quarantine.ts"
import type { Reader } from "./reader.ts"
import { list, text } from "./reply.ts"
import * as scripts from "./scripts.ts"
import type { Server } from "./server.ts"
import { Waiting } from "./waiting.ts"

type Resume = (effect: Effect.Effect<Arr.NonEmptyReadonlyArray<RedisDelivery>, TransportError>) => void

/** Entries that one call of a script is about. */
const chunk = 500

export interface FeedOptions {
  readonly topic: string
  readonly key: string
  readonly group: string
  readonly consumer: string
  readonly minIdle: number
  readonly block: number
  readonly waiting: number
}

/** What one subscription has asked for, got and holds. The reader fills it, the engine empties it. */
export class Feed {
  readonly options: FeedOptions
  readonly dues: string
  /** What the last pull left asked for. */
  credit = 0
  /** The last read filled what was asked: more is there. */
  isHot = false
  closing = false
  /** Open while no claim is under way that will bring something. */
  readonly nothingOnItsWay = Latch.makeUnsafe(true)
  failure: TransportError | undefined
  /** Something can be claimed, as far as the last look at it goes. */
  claimable = false
  readonly reader: Reader
  private readonly server: Server
  private readonly entries = new EntryReader()
  private readonly clock: Clock.Clock
  private buffer: Array<RedisDelivery> = []
  private bufferedAt = 0
  private keptAt = 0
  private waiter: { readonly resume: Resume; readonly max: number } | undefined
  private readonly waiting: Waiting
  private cursor = "-"
  private owned = 0
  private extendedAt = 0
  private unsettled = false
  /** The answer to the last hand-out of due retries did not arrive. */
  private isHandLost = false
  private readonly refusals = new Set<string>()
  /** The engine took its asking back. */
  private withdrawn = true
  private readonly quarantine = new Quarantine()

  constructor(server: Server, reader: Reader, clock: Clock.Clock, options: FeedOptions) {
    this.server = server
    this.reader = reader
    this.clock = clock
    this.options = options
    this.dues = keys.dues(options.key, options.group)
    this.waiting = new Waiting(() => reader.wake(this, true))
  }

  private now(): number {
    return this.clock.currentTimeMillisUnsafe()
  }

  get isHealthy(): boolean {
    return this.failure === undefined && this.refusals.size === 0
  }

  // --- the engine's side

  readonly pull = (max: number): Effect.Effect<Arr.NonEmptyReadonlyArray<RedisDelivery>, TransportError> =>
    Effect.callback((resume) => {
      if (this.failure !== undefined) return resume(Effect.fail(this.failure))
      this.withdrawn = false
      this.credit = Math.max(0, max - this.buffer.length)
      if (this.buffer.length > 0) this.give(resume, max)
      else this.waiter = { resume, max }
      this.reader.wake(this)
      return Effect.sync(() => {
        this.waiter = undefined
        this.withdrawn = true
        this.credit = 0
        this.reader.withdraw(this)
      })
    })

  private give(resume: Resume, max: number): void {
    const [first, ...rest] = this.buffer.length <= max ? this.buffer : this.buffer.slice(0, max)
    this.buffer = this.buffer.length <= max ? [] : this.buffer.slice(max)
    if (first === undefined) return
    const given: Arr.NonEmptyReadonlyArray<RedisDelivery> = [first, ...rest]
    for (const delivery of given) delivery.out = true
    this.owned += given.length
    this.waiter = undefined
    resume(Effect.succeed(given))
  }

  fail(error: TransportError): void {
    this.failure ??= error
    this.waiter?.resume(Effect.fail(this.failure))
    this.waiter = undefined
  }

  /** It was settled, or a peer has it. */
  ended(delivery: RedisDelivery): void {
    if (!delivery.out) return
    delivery.out = false
    this.owned--
    if (!this.leave(delivery) && this.owned === 0) this.reader.wake(this, true)
  }

  private leave(delivery: RedisDelivery): boolean {
    const rest = this.quarantine.leave(delivery, this.now())
    if (rest !== undefined) this.later(rest)
    return rest !== undefined
  }

  private later(ms: number): void {
    setTimeout(() => this.reader.wake(this, true), ms)
  }

  extended(): void {
    this.extendedAt = this.now()
  }

  settling(isFailing: boolean): void {
    this.unsettled = isFailing
  }

  /** The server does not allow the operation, or allows it again; gives whether that is news. */
  refused(operation: string, isRefused: boolean): boolean {
    return isRefused
      ? !this.refusals.has(operation) && this.refusals.add(operation).size > 0
      : this.refusals.delete(operation)
  }

  /** A retry is recorded at the server and waits here. */
  wait(id: string, ms: number): void {
    this.waiting.add(id, ms)
  }

  // --- the reader's side

  private get isFull(): boolean {
    return this.waiting.size >= this.options.waiting
  }

  private get isOpen(): boolean {
    return this.credit > 0 && !this.closing && this.failure === undefined
  }

  /** Wants entries that nobody was given yet. */
  get wantsNew(): boolean {
    return this.isOpen && !this.isFull && !this.quarantine.holdsBack(this.now())
  }

  /** Can take due retries, or what was left behind. */
  get wantsOld(): boolean {
    return this.isOpen && this.quarantine.isEmpty &&
      (this.waiting.isDue || this.claimable && (this.quarantine.known === 0 || this.admitsSuspect))
  }

  /** Also while the engine wants nothing: what is found is there when it does. */
  get wantsScan(): boolean {
    return !this.closing && this.failure === undefined && this.quarantine.isEmpty
  }

  private get admitsSuspect(): boolean {
    return this.quarantine.admits(this.now(), this.owned + this.buffer.length)
  }

  /** A look at the server has found what can be claimed. */
  foundSomething(): void {
    if (this.claimable) return
    this.claimable = true
    this.reader.wake(this, true)
  }

  received(entries: ReadonlyArray<RawEntry>, asked: number): void {
    this.isHot = entries.length >= asked
    this.take(entries.map((entry) => this.entries.read(this, this.options.topic, entry, 1, false, false)))
  }

  private take(deliveries: ReadonlyArray<RedisDelivery>): void {
    if (deliveries.length === 0) return
    this.credit = Math.max(0, this.credit - deliveries.length)
    if (this.buffer.length === 0) {
      this.bufferedAt = this.now()
      this.buffer = deliveries.slice()
    } else {
      for (const delivery of deliveries) this.buffer.push(delivery)
    }
    if (this.waiter === undefined) return
    // Its handlers may keep the loop busy: let the next read go out first.
    if (this.isHot && this.wantsNew) setImmediate(() => setImmediate(this.giveNow))
    else this.giveNow()
  }

  private readonly giveNow = (): void => {
    if (this.waiter !== undefined && this.buffer.length > 0) this.give(this.waiter.resume, this.waiter.max)
  }

  /** Due retries first, then what can be claimed. */
  readonly takeOld: Effect.Effect<void, Error> = Effect.suspend(() => {
    this.nothingOnItsWay.closeUnsafe()
    return this.waiting.isDue ? this.takeDue : this.claimable ? this.claim : Effect.void
  }).pipe(Effect.ensuring(Effect.sync(() => this.nothingOnItsWay.openUnsafe())))

  private readonly takeDue: Effect.Effect<void, Error> = Effect.suspend(() => {
    const ids = this.waiting.take(Math.min(this.credit, chunk))
    const { consumer, group, key } = this.options
    const args = [group, consumer, this.isHandLost ? "1" : "0", ...ids]
    return this.server.keep.one(key, scripts.evalsha(scripts.hand, [key, this.dues], args)).pipe(
      Effect.tapError(() =>
        Effect.sync(() => {
          this.isHandLost = true
          this.waiting.putBack(ids)
        })
      ),
      Effect.map((reply) => {
        this.isHandLost = false
        this.waiting.forget(ids)
        const [given] = list(reply)
        this.take(
          list(given).map((entry) => {
            const [id, fields, attempt, failed] = list(entry)
            const delivery = this.entries.read(
              this,
              this.options.topic,
              rawEntry(id, fields),
              Number(attempt),
              true,
              false
            )
            return delivery.failedFirst(failed)
          })
        )
      })
    )
  })

  private readonly claim: Effect.Effect<void, Error> = Effect.suspend(() => {
    const { consumer, group, key, minIdle, waiting } = this.options
    const now = this.now()
    // What this consumer itself has left idle is lost to it, unless it may just not have been able to say otherwise.
    const own = !this.unsettled &&
      (this.owned === 0 || now - this.extendedAt < minIdle) &&
      (this.buffer.length === 0 || now - Math.max(this.bufferedAt, this.keptAt) < minIdle)
    const command = scripts.evalsha(scripts.claim, [key, this.dues], [
      group,
      consumer,
      String(minIdle),
      String(Math.min(this.credit, 256)),
      String(Math.max(0, waiting - this.waiting.size)),
      this.admitsSuspect ? "1" : "0",
      own ? "1" : "0",
      String(Math.floor(performance.now())),
      this.cursor
    ])
    return this.server.keep.one(key, command).pipe(Effect.flatMap((reply) => {
      const [given, waiting, gone, left, next] = list(reply)
      this.cursor = next === undefined || text(next) === "" ? "-" : text(next)
      this.quarantine.known = Number(left)
      this.claimable = this.cursor !== "-" || this.quarantine.known > 0
      for (const entry of list(waiting)) {
        const [id, ms] = list(entry)
        if (!this.waiting.has(text(id))) this.wait(text(id), Number(ms))
      }
      const deliveries = list(given).map((entry) => {
        const [id, fields, attempt, suspect, failed] = list(entry)
        const raw = rawEntry(id, fields)
        return this.entries.read(this, this.options.topic, raw, Number(attempt), true, suspect === 1).failedFirst(
          failed
        )
      })
      const suspect = deliveries.find((delivery) => delivery.suspect)
      if (suspect !== undefined) this.quarantine.enter(suspect, this.now())
      else if (this.quarantine.known > 0) this.later(this.quarantine.wait(this.now()))
      this.take(deliveries)
      const ids = list(gone).map(text)
      return ids.length === 0
        ? Effect.void
        : Effect.logWarning(
          `redis: ${key}: ${ids.length} entries were deleted before group ${group} had settled them`,
          ids
        )
    }))
  })

  // --- keeping and handing back

  private ops(ids: ReadonlyArray<readonly [op: string, id: string, arg: string]>): ReadonlyArray<Command> {
    const { consumer, group, key } = this.options
    const commands: Array<Command> = []
    for (let i = 0; i < ids.length; i += chunk) {
      commands.push(
        scripts.evalsha(scripts.settle, [key, this.dues], [group, consumer, ...ids.slice(i, i + chunk).flat()])
      )
    }
    return commands
  }

  /** Keeps what waits here from being claimed, and hands back what was fetched for a pull that was taken back. */
  readonly tick: Effect.Effect<void> = Effect.suspend(() => {
    const now = this.now()
    const effects: Array<Effect.Effect<unknown>> = []
    if (this.withdrawn && this.buffer.length > 0 && now - this.bufferedAt > 1_000) {
      effects.push(this.releaseBuffer)
    }
    const soon = this.options.minIdle / 3
    if (now - this.keptAt > soon && (this.waiting.size > 0 || this.buffer.length > 0 && now - this.bufferedAt > soon)) {
      effects.push(this.keepAll(now))
    }
    return effects.length === 0 ? Effect.void : Effect.all(effects, { discard: true })
  })

  private keepAll(now: number): Effect.Effect<void> {
    const buffered = this.buffer.slice()
    const ids = [...buffered.map((delivery) => delivery.id), ...this.waiting.ids]
    return Effect.map(
      this.server.keep.send(this.options.key, this.ops(ids.map((id) => ["extend", id, ""]))),
      (replies) => {
        if (replies.some((reply) => reply instanceof Error)) return
        this.keptAt = now
        const lost = new Set<string>()
        replies.forEach((reply, i) => {
          for (const index of list(reply)) lost.add(ids[i * chunk + Number(index)]!)
        })
        if (lost.size === 0) return
        this.buffer = this.buffer.filter((delivery) => {
          if (lost.has(delivery.id)) this.leave(delivery)
          return !lost.has(delivery.id)
        })
        this.waiting.forget(lost)
      }
    )
  }

  private readonly releaseBuffer: Effect.Effect<void> = Effect.suspend(() => {
    const buffered = this.buffer.splice(0)
    for (const delivery of buffered) this.leave(delivery)
    return buffered.length === 0 ? Effect.void : Effect.asVoid(
      this.server.keep.send(this.options.key, this.ops(buffered.map((d) => ["release", d.id, String(d.attempt - 1)])))
    )
  })

  /** Hands everything back: fetched entries uncounted, waiting retries with their due time and count. */
  readonly close: Effect.Effect<void> = Effect.suspend(() => {
    const waiting = this.waiting.stop()
    const { consumer, group, key } = this.options
    return this.releaseBuffer.pipe(
      Effect.andThen(this.server.keep.send(key, [
        ...this.ops(waiting.map((id) => ["leave", id, ""])),
        scripts.evalsha(scripts.prune, [key], [group, consumer, "0"])
      ])),
      Effect.asVoid
    )
  })
}

const rawEntry = (id: unknown, fields: unknown): RawEntry => [
  Buffer.isBuffer(id) ? id : Buffer.from(String(id)),
  list(fields).map((field) => Buffer.isBuffer(field) ? field : Buffer.from(String(field)))
]

export const isOf = (feed: Feed) => (delivery: Delivery): delivery is RedisDelivery =>
  delivery instanceof RedisDelivery && delivery.source === feed
