import * as Effect from "effect/Effect"
import { RedisDelivery } from "./entry.ts"
import type { Inbox } from "./inbox.ts"
import type { Lease, Leases, Operation } from "./leases.ts"
import { matters } from "./scripts/settle.ts"
import type { WaitingRetries } from "./waitingRetries.ts"

/** A pipeline that pauses keeps what has arrived for so long; then a peer may have it. */
const keepsWithdrawn = 1_000

/** Keeps what waits in this process from being claimed: entries that were not pulled yet, and retries that are not due. */
export class Keeper {
  /** When the retries were last extended; while none waits, now. */
  private retriesKeptAt = performance.now()
  private readonly options: {
    readonly leases: Leases
    readonly inbox: Inbox
    readonly retries: WaitingRetries
    readonly minIdle: number
    /** Releases what the inbox holds. */
    readonly release: Effect.Effect<void>
    /** Tells of entries that nobody has any more. */
    readonly vanished: (ids: ReadonlyArray<string>) => Effect.Effect<void>
  }

  constructor(options: Keeper["options"]) {
    this.options = options
  }

  /** The lease of the retries that wait here. */
  get leaseOfRetries(): Lease {
    return this.options.leases.since(this.retriesKeptAt, "held")
  }

  /** Extends what would be claimed soon, and releases what has arrived for an engine that wants nothing. */
  readonly tick: Effect.Effect<void> = Effect.suspend(() => {
    const { inbox, minIdle, release, retries } = this.options
    const now = performance.now()
    if (retries.size === 0) this.retriesKeptAt = now
    if (inbox.isWithdrawn && inbox.size > 0 && now - inbox.keptAt > keepsWithdrawn) return release
    const keepsBuffered = inbox.size > 0 && now - inbox.keptAt > minIdle / 3
    // Of these there may be many, and each costs the server some microseconds.
    const keepsRetries = now - this.retriesKeptAt > minIdle / 2
    return keepsBuffered || keepsRetries ? this.keep(now, keepsRetries) : Effect.void
  })

  private keep(now: number, keepsRetries: boolean): Effect.Effect<void> {
    const { leaseOfRetries } = this
    const { inbox, leases, retries, vanished } = this.options
    const buffered = inbox.deliveries.slice()
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
      if (inbox.size > 0) inbox.keptAt = now
      const found = matters(replies, operations.map(([, id]) => id))
      const lost = new Set(found.lost)
      const gone = new Set(found.gone)
      const unowned = new Set(found.unowned)
      for (const delivery of buffered) {
        const state = RedisDelivery.state(delivery)
        if (!lost.has(delivery.id)) state.keptAt = now
        // A body that has been read is handled, whether or not its entry is still there.
        if (gone.has(delivery.id)) state.isGone = true
      }
      // Of a retry only the id is here.
      const goneRetries = [...gone].filter((id) => retries.has(id))
      for (const id of goneRetries) lost.add(id)
      if (lost.size > 0) {
        inbox.drop(lost)
        retries.forget(lost)
      }
      return vanished(goneRetries).pipe(
        Effect.andThen(leases.takeBack(buffered.filter(({ id }) => unowned.has(id))))
      )
    })
  }
}
