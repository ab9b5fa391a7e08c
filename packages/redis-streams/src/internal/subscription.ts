import type { Delivery, Demand, Health } from "@millrace/core/Transport"
import type { TransportError } from "@millrace/core/TransportError"
import type * as Arr from "effect/Array"
import type * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import type { DelayedRetries } from "./delayedRetries.ts"
import { DueRetries } from "./dueRetries.ts"
import { type Arrival, EntryReader, type RawEntry, RedisDelivery } from "./entry.ts"
import * as groups from "./groups.ts"
import { HealthRecord, Refusals } from "./health.ts"
import { Inbox } from "./inbox.ts"
import { Keeper } from "./keeper.ts"
import * as keys from "./keys.ts"
import { Leases } from "./leases.ts"
import type { ReadLoop } from "./readLoop.ts"
import { Reclaim } from "./reclaim.ts"
import { isLasting, transportError } from "./reply.ts"
import { leave } from "./scripts/prune.ts"
import { evalsha } from "./scripts/script.ts"
import { matters } from "./scripts/settle.ts"
import type { Server } from "./server.ts"
import { Survivors } from "./survivors.ts"
import { WaitingRetries } from "./waitingRetries.ts"

/** How long an operation that is refused waits for its next turn. */
const refusedFor = 1_000

const reclaiming = "taking over entries of"

export interface SubscriptionOptions {
  readonly topic: string
  readonly key: string
  readonly group: string
  readonly consumer: string
  readonly minIdle: number
  readonly block: number
  readonly isolateFrom: number
  readonly ordered: boolean
  readonly onVanished: (ids: ReadonlyArray<string>) => void
}

/** One group's subscription to one stream: the read loop and the reclaim scan fill it, the engine empties it. */
export class RedisSubscription {
  readonly options: SubscriptionOptions
  readonly dues: string
  readonly inbox = new Inbox()
  readonly reclaim: Reclaim
  readonly refusals = new Refusals()
  /** The last read gave as many as it asked for: more is there. */
  isHot = false
  closing = false
  origin: string
  /** Open while nothing that was asked for may still come. */
  readonly nothingUnderWay = Latch.makeUnsafe(true)
  readonly readLoop: ReadLoop
  private readonly server: Server
  private readonly entries: EntryReader
  private readonly clock: Clock.Clock
  readonly leases: Leases
  private readonly retries: WaitingRetries
  private readonly survivors = new Survivors(this.inbox.outstanding)
  private readonly keeper: Keeper
  private readonly dueRetries: DueRetries
  private readonly record = new HealthRecord()

  constructor(server: Server, readLoop: ReadLoop, clock: Clock.Clock, origin: string, options: SubscriptionOptions) {
    this.server = server
    this.readLoop = readLoop
    this.clock = clock
    this.origin = origin
    this.options = options
    this.dues = keys.dues(options.key, options.group)
    this.entries = new EntryReader(options.topic, this)
    const leaseOptions = { ...options, dues: this.dues }
    this.leases = new Leases(server, leaseOptions, clock)
    this.retries = new WaitingRetries(() => readLoop.wake(this, true))
    this.dueRetries = new DueRetries(server, leaseOptions, this.retries)
    const { entries, inbox, leases, retries, vanished } = this
    this.keeper = new Keeper({
      leases,
      inbox,
      retries,
      minIdle: options.minIdle,
      release: this.releaseInbox,
      vanished
    })
    this.reclaim = new Reclaim({
      ...leaseOptions,
      server,
      inbox,
      inherited: retries.inherited,
      isWaiting: (id) => retries.has(id),
      entries,
      origin: () => this.origin,
      clock
    })
  }

  readonly isMine = (delivery: Delivery): delivery is RedisDelivery =>
    delivery instanceof RedisDelivery && RedisDelivery.state(delivery).source === this

  // --- the engine's side

  readonly pull = (demand: Demand): Effect.Effect<Arr.NonEmptyReadonlyArray<RedisDelivery>, TransportError> =>
    Effect.callback((resume) => {
      this.inbox.pull(demand, resume)
      this.readLoop.changed(this)
      return Effect.sync(() => this.inbox.interrupt())
    })

  readonly withdraw: Effect.Effect<void> = Effect.suspend(() => {
    this.inbox.withdraw()
    return this.readLoop.withdraw(this)
  })

  readonly health: Effect.Effect<Health> = Effect.sync(() => {
    const { failure } = this.inbox
    const { disconnected, trouble } = this.readLoop
    // Without a connection nothing is refused: what was, shows again afterwards.
    const refusal = disconnected === undefined ? this.refusals.reason ?? this.server.refusals.reason : undefined
    const reason = failure?.message ?? refusal
    const now = this.clock.currentTimeMillisUnsafe()
    return reason !== undefined
      ? this.record.note("impaired", reason, now)
      : this.record.note(trouble === undefined ? "consuming" : "reconnecting", trouble, now)
  })

  fail(error: TransportError): void {
    this.inbox.fail(error)
  }

  /** A retry is recorded at the server and waits here. */
  wait(delivery: RedisDelivery, ms: number): void {
    this.retries.add(delivery, ms)
  }

  /** It was settled, or somebody else has it. */
  ended(delivery: RedisDelivery): void {
    this.inbox.outstanding.delete(delivery)
  }

  // --- the read loop's side

  private get isOpen(): boolean {
    return !this.closing && !this.inbox.isWithdrawn && this.inbox.failure === undefined
  }

  /** How many unread entries to ask for. Whatever is older goes first. */
  get wantsNew(): number {
    return this.isOpen && !this.isReadLost && !this.reclaim.isAhead && !this.hasInherited ? this.inbox.readRoom : 0
  }

  /** Can take due retries, or something that was released or abandoned. */
  get wantsOld(): boolean {
    if (!this.isOpen || performance.now() < this.refusedUntil) return false
    return this.inbox.isHeld || this.isReadLost || this.retries.own.isDue && this.inbox.retryRoom > 0 ||
      this.hasInherited ||
      this.reclaim.isReady
  }

  private get hasInherited(): boolean {
    return this.retries.inherited.isDue && this.inbox.freshRoom > 0
  }

  /** Also while the engine wants nothing: what is found is there when it does. */
  get wantsScan(): boolean {
    return !this.closing && this.inbox.failure === undefined
  }

  /** A look at the server is over. */
  looked(isClaimable: boolean): void {
    const isNews = !this.reclaim.hasLooked || isClaimable && !this.reclaim.isAhead
    this.reclaim.hasLooked = true
    if (isClaimable) this.reclaim.found()
    if (isNews) this.readLoop.wake(this, true)
  }

  received(entries: ReadonlyArray<RawEntry>, asked: number): void {
    this.isHot = entries.length >= asked
    const now = performance.now()
    const deliveries = entries.map((entry) => this.entries.read(this.origin, entry, now))
    this.inbox.put(this.survivors.without(deliveries, now), now)
    if (!this.inbox.isWaitedFor) return
    // Its handlers may keep the loop busy: let the next read go out first.
    if (this.isHot && this.wantsNew > 0) setImmediate(() => setImmediate(this.inbox.give))
    else this.inbox.give()
  }

  /** Entries may have been delivered to this consumer that never arrived: they come before anything unread. */
  private isReadLost = false

  readLost(): void {
    this.isReadLost = true
  }

  private readonly lookForLost: Effect.Effect<void, Error> = Effect.suspend(() =>
    Effect.map(this.reclaim.lookForLost(this.survivors.lastRead), () => {
      this.isReadLost = false
    })
  )

  /** Due retries first, then what was released or abandoned. */
  readonly takeOld: Effect.Effect<void, Error> = Effect.suspend(() => {
    this.nothingUnderWay.closeUnsafe()
    if (this.inbox.isHeld) return this.releaseHeld
    if (this.isReadLost) return this.lookForLost
    if (this.retries.own.isDue && this.inbox.retryRoom > 0) {
      return this.handOut(this.retries.own, this.inbox.retryRoom, "retry")
    }
    if (this.hasInherited) return this.handOut(this.retries.inherited, this.inbox.freshRoom, "fresh")
    return this.reclaim.isReady ? Effect.flatMap(this.reclaim.take, this.vanished) : Effect.void
  }).pipe(
    Effect.tap(Effect.sync(() => void this.refusals.clear(reclaiming))),
    Effect.catchIf(isLasting, (error) => this.refuse(reclaiming, error)),
    Effect.ensuring(Effect.sync(() => {
      this.inbox.give()
      this.nothingUnderWay.openUnsafe()
    }))
  )

  private handOut(retries: DelayedRetries, room: number, arrival: Arrival): Effect.Effect<void, Error> {
    return Effect.flatMap(this.dueRetries.take(retries, room, this.keeper.leaseOfRetries), ({ entries, gone }) => {
      const now = performance.now()
      this.inbox.put(
        entries.map(({ entry, facts }) => this.entries.read(this.origin, entry, now, { ...facts, arrival })),
        now
      )
      return this.vanished(gone)
    })
  }

  private refusedUntil = -Infinity

  /** The server refuses an operation: health tells the reason, which the pipeline logs. Tries again a little later. Other topics go on meanwhile. */
  refuse(operation: string, error: Error): Effect.Effect<void> {
    return Effect.suspend(() => {
      this.refusedUntil = performance.now() + refusedFor
      const beside = keys.besideDues(this.dues)
      const { message } = transportError(`${operation} ${this.options.key}`, this.server.settings.label, error, beside)
      return Effect.andThen(
        this.refusals.add(operation, message) ? Effect.logDebug(message) : Effect.void,
        Effect.sync(() => {
          this.refusedTimer = setTimeout(() => this.readLoop.wake(this, true), refusedFor + 1)
        })
      )
    })
  }

  private refusedTimer: ReturnType<typeof setTimeout> | undefined

  /** Entries that nobody has any more, and of which the engine has no delivery. */
  readonly vanished = (ids: ReadonlyArray<string>): Effect.Effect<void> =>
    Effect.suspend(() => {
      if (ids.length > 0) this.options.onVanished(ids)
      return this.reportGone(ids)
    })

  readonly reportGone = (ids: ReadonlyArray<string>): Effect.Effect<void> => {
    const { group, key } = this.options
    return ids.length === 0
      ? Effect.void
      : Effect.logWarning(
        `redis: ${key}: ${ids.length} entries were deleted before group ${group} had settled them`,
        ids
      )
  }

  /** Looks for entries that live consumers have left behind, this one too, when it is time to. */
  readonly lookFurther: Effect.Effect<void, Error> = Effect.suspend(() => {
    const { reclaim } = this
    const own = reclaim.wantsOwnLook
      ? reclaim.lookAtOwn(this.readLoop.isReadingSince(this.options.minIdle))
      : Effect.void
    return Effect.map(Effect.andThen(own, reclaim.wantsFullLook ? reclaim.lookAtAll : Effect.void), () => {
      if (reclaim.isReady) this.readLoop.wake(this, true)
    })
  })

  /** The group is gone: creates it again. A stream that was created again is another one. */
  readonly recreated: Effect.Effect<void, Error> = Effect.suspend(() => {
    const { group, key } = this.options
    return Effect.flatMap(groups.recreate(this.server, key, group), (isNew) =>
      isNew
        ? Effect.map(groups.origin(this.server, key, group), (origin) => {
          this.origin = origin
          this.survivors.note()
        })
        : Effect.void)
  })

  // --- keeping and releasing

  /** Keeps what waits here from being claimed, and releases what has arrived for an engine that wants nothing. */
  get tick(): Effect.Effect<void> {
    return this.keeper.tick
  }

  /** This process has released something: it comes again before anything that is unread. */
  released(): void {
    this.reclaim.found()
    this.inbox.isHeld = true
    this.readLoop.wake(this, true)
  }

  private readonly releaseHeld: Effect.Effect<void> = Effect.suspend(() => {
    this.inbox.isHeld = false
    return this.release(this.inbox.clearHeld())
  })

  private readonly releaseInbox: Effect.Effect<void> = Effect.suspend(() => this.release(this.inbox.clear()))

  private release(deliveries: ReadonlyArray<RedisDelivery>): Effect.Effect<void> {
    this.reclaim.found()
    if (deliveries.length === 0) return Effect.void
    return Effect.flatMap(this.leases.send(deliveries.map((delivery) => this.leases.release(delivery))), (replies) => {
      return this.vanished(matters(replies, deliveries).gone.map(({ id }) => id))
    })
  }

  /** Releases everything: arrived entries uncounted, retries that wait with their due time and count. */
  readonly close: Effect.Effect<void> = Effect.suspend(() => {
    clearTimeout(this.refusedTimer)
    const waiting = this.retries.stop()
    const { consumer, group, key } = this.options
    return this.releaseInbox.pipe(
      Effect.andThen(this.server.control.send(key, [
        ...this.leases.commands(waiting.map((id) => ["leave", id, "", "", ""])),
        evalsha(leave, [key], [group, consumer])
      ])),
      Effect.asVoid
    )
  })
}
