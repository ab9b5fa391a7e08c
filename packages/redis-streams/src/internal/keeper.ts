import * as Effect from "effect/Effect"
import { RedisDelivery } from "./entry.ts"
import type { Inbox } from "./inbox.ts"
import { chunk, type Lease, type Leases, type Operation } from "./leases.ts"
import { matters } from "./scripts/settle.ts"
import type { WaitingRetries } from "./waitingRetries.ts"

/** A pipeline that pauses keeps what has arrived for so long; then a peer may have it. */
const keepsWithdrawn = 1_000

/** What a subscription does with what is not kept. */
interface Ways {
  /** Releases what the inbox holds. */
  readonly release: Effect.Effect<void>
  /** Tells of entries that nobody has any more. */
  readonly vanished: (ids: ReadonlyArray<string>) => Effect.Effect<void>
}

/** Keeps what waits in this process from being claimed: entries that were not pulled yet, and retries that are not due. */
export class Keeper {
  /** When the retries were last extended; while none waits, now. */
  private retriesKeptAt: number
  private readonly leases: Leases
  private readonly inbox: Inbox
  private readonly retries: WaitingRetries
  private readonly minIdle: number
  private readonly now: () => number
  private readonly ways: Ways

  constructor(
    leases: Leases,
    inbox: Inbox,
    retries: WaitingRetries,
    minIdle: number,
    now: () => number,
    ways: Ways
  ) {
    this.leases = leases
    this.inbox = inbox
    this.retries = retries
    this.minIdle = minIdle
    this.now = now
    this.ways = ways
    this.retriesKeptAt = now()
  }

  /** The lease of the retries that wait here. */
  get leaseOfRetries(): Lease {
    return this.leases.since(this.retriesKeptAt, "held")
  }

  /** Extends what would be claimed soon, and releases what has arrived for an engine that wants nothing. */
  readonly tick: Effect.Effect<void> = Effect.suspend(() => {
    const { inbox, minIdle } = this
    const now = this.now()
    if (this.retries.size === 0) this.retriesKeptAt = now
    if (inbox.isWithdrawn && inbox.size > 0 && now - inbox.keptAt > keepsWithdrawn) return this.ways.release
    const keepsBuffered = inbox.size > 0 && now - inbox.keptAt > minIdle / 3
    // Of these there may be many, and each costs the server some microseconds.
    const keepsRetries = now - this.retriesKeptAt > minIdle / 2
    return keepsBuffered || keepsRetries ? this.keep(now, keepsRetries) : Effect.void
  })

  private keep(now: number, keepsRetries: boolean): Effect.Effect<void> {
    const { leaseOfRetries, leases, retries } = this
    const buffered = this.inbox.deliveries.slice()
    const operations = [
      ...buffered.map((delivery) => leases.extend(delivery)),
      ...(keepsRetries ? retries.ids : []).map((id): Operation => [
        "keep",
        id,
        String(retries.attemptOf(id) ?? ""),
        leaseOfRetries,
        ""
      ])
    ]
    return Effect.flatMap(leases.send(operations), (replies) => {
      if (replies.some((reply) => reply instanceof Error)) return Effect.void
      if (keepsRetries) this.retriesKeptAt = now
      if (this.inbox.size > 0) this.inbox.keptAt = now
      const lost = new Set<string>()
      const gone = new Set<string>()
      const unowned = new Set<string>()
      replies.forEach((reply, i) => {
        const found = matters(reply, operations.slice(i * chunk, (i + 1) * chunk))
        for (const [, id] of found.lost) lost.add(id)
        for (const [, id] of found.gone) gone.add(id)
        for (const [, id] of found.unowned) unowned.add(id)
      })
      for (const delivery of buffered) {
        const state = RedisDelivery.state(delivery)
        if (!lost.has(delivery.id)) state.keptAt = now
        // A body that has been read is handled, whether or not its entry is still there.
        if (gone.has(delivery.id)) state.isGone = true
      }
      // Of a retry only the id is here.
      const vanished = [...gone].filter((id) => retries.has(id))
      for (const id of vanished) lost.add(id)
      if (lost.size > 0) {
        this.inbox.drop(lost)
        retries.forget(lost)
      }
      return this.ways.vanished(vanished).pipe(
        Effect.andThen(leases.takeBack(buffered.filter(({ id }) => unowned.has(id))))
      )
    })
  }
}
