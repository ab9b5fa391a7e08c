import * as Effect from "effect/Effect"
import type { GroupInfo } from "../Transport.ts"
import type { TransportError } from "../TransportError.ts"

/** What the watchdog looks at; all of it is cheap but `group`. */
export interface Watched {
  /** A pull is open that asks for messages which were never delivered. */
  readonly isPulling: () => boolean
  /** Settlements that were sent and are not confirmed. */
  readonly unconfirmed: () => number
  /** Why they were sent again, where they were. */
  readonly unconfirmedBecause: () => string | undefined
  /** Asks the broker about the group. */
  readonly group: Effect.Effect<GroupInfo | undefined, TransportError>
}

/** Milliseconds. */
export interface WatchdogOptions {
  /** A pull may be open for so long, without a message, until the broker is asked whether there are any. */
  readonly silence: number
  /** Settlements may be unconfirmed for so long. */
  readonly unconfirmed: number
}

export interface Verdict {
  readonly since: number
  readonly reason: string
}

/**
 * Finds a pipeline that says it consumes and does not: pulls are open and the broker has messages that do not arrive, or
 * settlements are not confirmed. It is told of every delivery and every confirmation, and looks now and then.
 */
export class Watchdog {
  private readonly watched: Watched
  private readonly options: WatchdogOptions
  private deliveries = 0
  private confirmations = 0
  private seenDeliveries = 0
  private seenConfirmations = 0
  private silentSince: number | undefined
  private askedAt: number | undefined
  /** The broker had messages when it was last asked, and nothing has arrived since. */
  private isStarved = false
  private starved: Verdict | undefined
  private unconfirmedSince: number | undefined
  private unsettled: Verdict | undefined

  constructor(watched: Watched, options: WatchdogOptions) {
    this.watched = watched
    this.options = options
  }

  get verdict(): Verdict | undefined {
    return this.unsettled ?? this.starved
  }

  delivered(): void {
    this.deliveries++
  }

  confirmed(): void {
    this.confirmations++
  }

  /** Looks once; `now` in milliseconds since the epoch. */
  look(now: number): Effect.Effect<void> {
    this.lookAtSettlements(now)
    return this.lookAtPulls(now)
  }

  private lookAtSettlements(now: number): void {
    const count = this.watched.unconfirmed()
    if (count === 0) this.unconfirmedSince = undefined
    else if (this.unconfirmedSince === undefined || this.confirmations !== this.seenConfirmations) {
      this.unconfirmedSince = now
    }
    this.seenConfirmations = this.confirmations
    const since = this.unconfirmedSince
    const why = this.watched.unconfirmedBecause()
    this.unsettled = since === undefined || now - since < this.options.unconfirmed
      ? undefined
      : {
        since,
        reason: `the broker does not confirm settlements: ${count} wait${why === undefined ? "" : ` (${why})`}`
      }
  }

  private lookAtPulls(now: number): Effect.Effect<void> {
    if (!this.watched.isPulling() || this.deliveries !== this.seenDeliveries) {
      this.seenDeliveries = this.deliveries
      this.silentSince = this.askedAt = this.starved = undefined
      this.isStarved = false
      if (!this.watched.isPulling()) return Effect.void
    }
    const since = this.silentSince ??= now
    if (now - (this.askedAt ?? since) < this.options.silence) return Effect.void
    this.askedAt = now
    const { deliveries } = this
    return this.watched.group.pipe(
      Effect.map((group) => {
        if (this.deliveries !== deliveries) return
        const lag = group?.lag ?? 0
        // A message may be on its way when the broker is asked; twice in a row, it is not.
        this.starved = lag > 0 && this.isStarved
          ? { since, reason: `the broker has ${lag} messages for the group and delivers none` }
          : undefined
        this.isStarved = lag > 0
      }),
      // An outage: health tells that without the watchdog.
      Effect.ignore
    )
  }
}
