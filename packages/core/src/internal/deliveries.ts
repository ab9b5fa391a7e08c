import type * as Arr from "effect/Array"
import type { Delivery } from "../Transport.ts"
import type { Attempt } from "./attempt.ts"
import type { Handler } from "./handler.ts"
import type { Holding } from "./holding.ts"
import type { Intake } from "./intake.ts"
import type { Outcomes } from "./outcome.ts"
import type { Ownership } from "./ownership.ts"
import type { Prefetch } from "./prefetch.ts"
import type { RetryWatch } from "./retryWatch.ts"
import type { Sight } from "./sight.ts"

/** How deliveries come in, and how attempts leave whose messages a peer owns, or may own. */
export class Deliveries {
  private readonly options: {
    /** Monotonic, in milliseconds. */
    readonly now: () => number
    readonly sight: Sight
    readonly holding: Holding
    readonly prefetch: Prefetch
    readonly ownership: Ownership
    readonly retries: RetryWatch
    readonly intake: Intake
    readonly outcomes: Outcomes
    readonly handler: Handler
    readonly pump: () => void
  }

  constructor(options: Deliveries["options"]) {
    this.options = options
  }

  take(deliveries: Arr.NonEmptyReadonlyArray<Delivery>): void {
    const { holding, intake, now, ownership, prefetch, pump, retries, sight } = this.options
    sight.delivered(deliveries)
    if (holding.owned === 0) prefetch.began(now())
    ownership.pulled(holding.buffered === 0)
    prefetch.sampled(deliveries[0].body.byteLength)
    for (const delivery of deliveries) {
      // A broker that was killed may have forgotten that it delivered the message before.
      if (delivery.redelivered || retries.size > 0) this.arrivedAgain(delivery)
      if (!intake.take(delivery)) this.awaitReturn(delivery.id)
    }
    pump()
  }

  /** A message is delivered again some time: its key waits for it where it has a place. */
  private awaitReturn(id: string): void {
    const { intake: { keys }, retries } = this.options
    if (keys?.awaits(id) === true) retries.add(id, 0, () => keys.gaveUp(id))
  }

  private arrivedAgain({ id, origin, redelivered }: Delivery): void {
    const { holding, retries } = this.options
    if (retries.seen(id) || !redelivered) return
    // The lease of an attempt that is still here has ended, and no peer has taken the message.
    for (const attempt of holding.unsettled()) {
      if (attempt.delivery.id !== id || attempt.delivery.origin !== origin) continue
      this.lost(attempt, true)
      // Its place in its key is for this delivery.
      return void retries.seen(id)
    }
  }

  /** The attempt leaves, wherever it is, and nothing is settled. Its key keeps the place of a message that may return. */
  lost(attempt: Attempt, mayReturn = attempt.delivery.mayReturn === true): void {
    if (attempt.isLost) return
    const { handler, intake, outcomes, pump } = this.options
    const { keys } = intake
    const returns = mayReturn && keys !== undefined && !attempt.isSettled
    if (returns) {
      keys.retried(attempt)
      this.awaitReturn(attempt.delivery.id)
    }
    outcomes.lost(attempt)
    switch (attempt.state) {
      case "buffered": {
        attempt.delivery.neverBegan?.()
        intake.lost(attempt, returns)
        attempt.to("left")
        intake.leftIsolation(attempt)
        return pump()
      }
      case "confirming":
        return outcomes.ended(attempt, "interrupted", undefined)
      case "running":
        return handler.interrupt(attempt, new Error("another consumer owns this message"))
    }
  }
}
