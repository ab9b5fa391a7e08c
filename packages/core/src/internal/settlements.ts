import type * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import type * as Scheduler from "effect/Scheduler"
import type * as Settlement from "../Settlement.ts"
import type { Subscription } from "../Transport.ts"
import type { Attempt } from "./attempt.ts"
import type { Intake } from "./intake.ts"
import type { Outcomes } from "./outcome.ts"
import type { RetryWatch } from "./retryWatch.ts"
import { Settler } from "./settler.ts"
import type { Sight } from "./sight.ts"

/** What settlements and the broker's answers to them mean for the other rooms. */
export class Settlements {
  readonly settler: Settler<Attempt>
  private readonly options: {
    readonly subscription: Subscription
    readonly clock: Clock.Clock
    readonly context: Context.Context<never>
    readonly dispatcher: Scheduler.SchedulerDispatcher
    readonly intake: Intake
    readonly outcomes: Outcomes
    readonly retries: RetryWatch
    readonly sight: Sight
    readonly onHandedOver: () => void
    readonly onLost: (attempt: Attempt) => void
  }

  constructor(options: Settlements["options"]) {
    this.options = options
    const { outcomes, sight } = options
    this.settler = new Settler<Attempt>({
      ...options,
      onSettled: (attempt, owned) => this.settled(attempt, owned),
      onUnconfirmed: (attempt) => attempt.onSettled?.(undefined),
      onConfirmed: (millis) => sight.settled(millis),
      onResend: (size, cause) => {
        outcomes.report.counts.resettled += size
        sight.resent(size, cause)
      }
    })
  }

  settle(attempt: Attempt, settlement: Settlement.Settlement): void {
    attempt.settlement = settlement
    const { intake: { keys }, retries } = this.options
    const { id } = attempt.delivery
    // Released by hand: its handler has begun, and its key waits for its return.
    const isReleased = settlement._tag === "Release" && keys !== undefined && attempt.state !== "left"
    if (settlement._tag === "Retry" || isReleased) {
      const delay = settlement._tag === "Release" || settlement.after === undefined
        ? 0
        : Duration.toMillis(settlement.after)
      retries.add(id, delay, keys === undefined ? undefined : () => keys.gaveUp(id))
      // Now: settled by hand, the message may come back before its handler has ended.
      keys?.retried(attempt)
    }
    this.settler.add(attempt)
  }

  /** The broker has answered. */
  private settled(attempt: Attempt, owned: boolean): void {
    if (!owned) {
      const { onLost, outcomes, retries } = this.options
      if (attempt.delivery.vanished === true && !attempt.isLost && isMeantToReturn(attempt)) {
        retries.gaveUp(attempt.delivery.id)
        outcomes.vanished.add(attempt)
      } else {
        onLost(attempt)
      }
    }
    attempt.onSettled?.(owned)
  }

  /** The broker deleted messages that no attempt here stands for. */
  vanished(ids: ReadonlyArray<string>): void {
    const { outcomes, retries, sight } = this.options
    for (const id of ids) retries.gaveUp(id)
    outcomes.report.counts.vanished += ids.length
    sight.vanished(ids.length)
  }
}

/** Its settlement asked for another delivery. */
const isMeantToReturn = ({ settlement }: Attempt): boolean =>
  settlement._tag === "Retry" || settlement._tag === "Release"
