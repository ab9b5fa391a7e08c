import type * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Semaphore from "effect/Semaphore"
import type { Delivery, Demand, Subscription } from "../Transport.ts"
import type { TransportError } from "../TransportError.ts"

/** Pulls deliveries whenever there is demand. */
export class Reader {
  private readonly options: {
    readonly subscription: Subscription
    readonly demand: () => Demand | undefined
    readonly take: (deliveries: Arr.NonEmptyReadonlyArray<Delivery>) => void
    readonly now: () => number
    readonly run: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
    /** The open pull was cancelled, and nothing new arrives. */
    readonly onWithdrawn: () => void
    /** The subscription can no longer heal. */
    readonly onFailure: (cause: Cause.Cause<TransportError>) => void
  }
  private fiber: Fiber.Fiber<void> | undefined
  /** Calls that start and stop the fiber take turns. */
  private readonly turns = Semaphore.makeUnsafe(1)
  private isStopped = false
  private isPaused = false
  private isWithdrawing = false
  private wake: (() => void) | undefined
  /** The demand of the open pull. */
  private open: Demand | undefined
  private openSince = 0
  /** How long pulls have been open in all, in milliseconds; and at the last look. */
  private openBefore = 0
  private openAtLook = 0

  constructor(options: Reader["options"]) {
    this.options = options
  }

  /** Messages may arrive: a pull is open, or is being cancelled. */
  get isOpen(): boolean {
    return this.open !== undefined || this.isWithdrawing
  }

  /** A pull is open that accepts messages which were never delivered. */
  get isAskingForFresh(): boolean {
    return this.open !== undefined && this.open.fresh > 0
  }

  /** Whether pulls were open for half of the last `millis`, or one is now; to be asked once in each `millis`. */
  wasOpen(millis: number): boolean {
    const since = this.openAtLook
    this.openAtLook = this.openBefore + (this.open === undefined ? 0 : this.options.now() - this.openSince)
    return this.open !== undefined || this.openAtLook - since >= millis / 2
  }

  /** The demand may have changed. An open pull is replaced only when it excludes what is wanted now. */
  demandChanged(): void {
    if (this.wake !== undefined) return this.wake()
    const { open } = this
    if (open === undefined || (open.suspects > 0 && open.fresh > 0)) return
    const demand = this.options.demand()
    if (demand === undefined) return
    if ((open.suspects === 0 && demand.suspects > 0) || (open.fresh === 0 && demand.fresh > 0)) this.replace()
  }

  /** Replaces the demand of an open pull, whatever it is. */
  replace(): void {
    if (this.open === undefined || this.isWithdrawing) return
    this.options.run(this.turns.withPermit(Effect.andThen(this.interrupt, this.goOn)))
  }

  /** Cancels the open pull; the next one is opened when there is demand. */
  withdraw(): void {
    if (this.isWithdrawing) return
    this.isWithdrawing = true
    const { onWithdrawn, subscription } = this.options
    const withdraw = Effect.andThen(this.interrupt, subscription.withdraw)
    this.options.run(this.turns.withPermit(withdraw)).addObserver(() => {
      this.isWithdrawing = false
      onWithdrawn()
      this.options.run(this.turns.withPermit(this.goOn))
    })
  }

  readonly start: Effect.Effect<void> = Effect.suspend(() => this.turns.withPermit(this.goOn))

  readonly pause: Effect.Effect<void> = Effect.suspend(() => {
    this.isPaused = true
    return this.turns.withPermit(Effect.andThen(this.interrupt, this.options.subscription.withdraw))
  })

  readonly resume: Effect.Effect<void> = Effect.suspend(() => {
    this.isPaused = false
    return this.turns.withPermit(this.goOn)
  })

  /** Stops for good. */
  readonly stop: Effect.Effect<void> = Effect.suspend(() => {
    this.isStopped = true
    return this.turns.withPermit(Effect.andThen(this.interrupt, this.options.subscription.withdraw))
  })

  private readonly goOn: Effect.Effect<void> = Effect.sync(() => {
    if (this.fiber !== undefined || this.isPaused || this.isStopped || this.isWithdrawing) return
    this.fiber = this.options.run(Effect.catchCause(this.read, (cause) =>
      Effect.sync(() => {
        if (Cause.hasInterruptsOnly(cause)) return
        this.isStopped = true
        this.options.onFailure(cause)
      })))
  })

  private readonly interrupt: Effect.Effect<void> = Effect.suspend(() => {
    const { fiber } = this
    this.fiber = undefined
    return fiber === undefined ? Effect.void : Effect.asVoid(Effect.andThen(Fiber.interrupt(fiber), Fiber.await(fiber)))
  })

  private readonly awaitDemand: Effect.Effect<Demand> = Effect.callback<Demand>((resume) => {
    const answer = () => {
      const demand = this.options.demand()
      if (demand === undefined) return
      this.wake = undefined
      resume(Effect.succeed(demand))
    }
    this.wake = answer
    answer()
    return Effect.sync(() => {
      this.wake = undefined
    })
  })

  private readonly read: Effect.Effect<never, TransportError> = Effect.uninterruptibleMask((restore) =>
    restore(this.awaitDemand).pipe(
      Effect.flatMap((demand) => {
        this.open = demand
        this.openSince = this.options.now()
        return restore(this.options.subscription.pull(demand))
      }),
      Effect.ensuring(
        Effect.sync(() => {
          if (this.open === undefined) return
          this.openBefore += this.options.now() - this.openSince
          this.open = undefined
        })
      ),
      // Not interruptible: the deliveries are owned now.
      Effect.map((deliveries) => this.options.take(deliveries)),
      Effect.forever({ disableYield: true })
    )
  )
}
