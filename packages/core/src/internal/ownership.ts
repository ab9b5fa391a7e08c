import * as Arr from "effect/Array"
import type * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import type { Delivery, Subscription } from "../Transport.ts"
import type { Attempt } from "./attempt.ts"
import { summarize } from "./errorDetail.ts"
import { elapsed, type Instant, instant, PauseDetector } from "./pauseDetector.ts"

/**
 * Whether this process still owns what it holds.
 *
 * A heartbeat extends everything every third of the lease. A process that stood still for longer may have lost
 * deliveries that it has not begun: it asks the broker before it begins any of them.
 */
export class Ownership {
  private readonly options: {
    readonly name: string
    readonly clock: Clock.Clock
    readonly subscription: Subscription
    /** All attempts that are owned and not settled. */
    readonly held: () => Iterable<Attempt>
    readonly onLost: (attempt: Attempt) => void
    /** The broker has answered: `isSure` may have changed. */
    readonly onSure: () => void
    readonly run: (effect: Effect.Effect<void>) => Fiber.Fiber<void>
  }
  /** How long a confirmation of ownership is good, in milliseconds. */
  readonly goodFor: number
  /** Milliseconds. */
  private readonly lease: number
  private readonly pauses: PauseDetector
  private confirmedAt: Instant
  /** Confirmations of requests that were sent before this moment are worth nothing. Monotonic milliseconds. */
  private doubtedAt = -Infinity
  private lookedAt = NaN
  private wasSure = true
  private isVerifying = false

  constructor(options: Ownership["options"]) {
    this.options = options
    const { clock, subscription } = options
    this.lease = subscription.lease === undefined ? Infinity : Duration.toMillis(subscription.lease)
    this.goodFor = this.lease * 2 / 3
    this.pauses = new PauseDetector(clock, this.goodFor)
    this.confirmedAt = instant(clock)
  }

  /** Deliveries have been pulled. `isEmpty`: nothing else was buffered. */
  pulled(isEmpty: boolean): void {
    if (this.pauses.hasPaused()) {
      const { monotonic } = instant(this.options.clock)
      this.doubtedAt = monotonic
      this.confirmedAt = { wall: -Infinity, monotonic: -Infinity }
      this.lookedAt = NaN
    } else if (isEmpty) {
      this.confirmed(instant(this.options.clock))
    }
  }

  /** Whether buffered deliveries may begin, else the broker is asked; looks at the clock once per millisecond. */
  isSure(now: number): boolean {
    if (now !== this.lookedAt) {
      this.lookedAt = now
      this.wasSure = elapsed(this.confirmedAt, instant(this.options.clock)) <= this.goodFor
    }
    if (!this.wasSure && !this.isVerifying) {
      this.isVerifying = true
      this.options.run(this.extend).addObserver(() => {
        this.isVerifying = false
      })
    }
    return this.wasSure
  }

  private confirmed(at: Instant): void {
    if (at.monotonic < this.doubtedAt) return
    this.confirmedAt = at
    this.lookedAt = NaN
  }

  /** Extends everything that is held, and reports what a peer owns. */
  readonly extend: Effect.Effect<void> = Effect.suspend(() => {
    const { clock, held, name, onLost, onSure, subscription } = this.options
    this.pauses.hasPaused()
    const attempts = new Map<Delivery, Attempt>()
    for (const attempt of held()) attempts.set(attempt.delivery, attempt)
    const deliveries = [...attempts.keys()]
    if (!Arr.isArrayNonEmpty(deliveries)) return Effect.void
    const askedAt = instant(clock)
    return Effect.suspend(() => subscription.extend(deliveries)).pipe(
      Effect.timeout(this.lease),
      Effect.map((lost) => {
        for (const delivery of lost) {
          // Settled while the request was on its way, it is no longer ours because it is done.
          const attempt = attempts.get(delivery)!
          if (!attempt.isSettled) onLost(attempt)
        }
        this.confirmed(askedAt)
        onSure()
      }),
      Effect.catchCause((cause) =>
        // The line of the outage tells why.
        Effect.logDebug(`${name}: could not extend ownership of in-flight messages: ${summarize(cause)}`)
      )
    )
  })

  /** Extends for as long as it runs; an extension without an answer does not delay the next one. */
  readonly heartbeat: Effect.Effect<void> = Effect.suspend(() =>
    this.lease === Infinity
      ? Effect.void
      : Effect.forever(Effect.delay(Effect.forkChild(this.extend, { startImmediately: true }), this.lease / 3))
  )
}
