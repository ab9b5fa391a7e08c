import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import type { Subscription } from "../Transport.ts"
import type { TransportError } from "../TransportError.ts"
import type { Attempt } from "./attempt.ts"
import type { Handler } from "./handler.ts"
import { type Intake, isFor } from "./intake.ts"
import type { Outcomes } from "./outcome.ts"
import { settleBackoff } from "./settler.ts"

/** The steps between the permit of an attempt and its handler: some attempts end here, some are confirmed first. */
export class Beginning {
  private readonly options: {
    readonly group: string
    readonly acksFirst: boolean
    readonly subscription: Subscription
    readonly intake: Intake
    readonly outcomes: Outcomes
    readonly handler: Handler
    readonly now: () => number
    /** How long a confirmation of ownership is good, in milliseconds. */
    readonly goodFor: number
    readonly run: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
    readonly onLost: (attempt: Attempt) => void
  }

  constructor(options: Beginning["options"]) {
    this.options = options
  }

  begin(attempt: Attempt): void {
    const { acksFirst, group, handler, intake, outcomes, subscription } = this.options
    const { delivery } = attempt
    if (!isFor(delivery, group)) return outcomes.filtered(attempt)
    if (delivery.redelivered && outcomes.endSpent(attempt, intake.isolation.isExhausted(delivery))) return
    if (attempt.keyFailure !== undefined) return outcomes.keyFailed(attempt, attempt.keyFailure)
    if (intake.isIsolated(attempt)) return this.confirm(attempt, this.recently(subscription.begin(delivery)))
    if (acksFirst) return this.confirm(attempt, outcomes.receive(attempt))
    handler.begin(attempt)
  }

  /** Asks again when the answer is so old that the lease may have ended since. */
  private recently(confirmation: Effect.Effect<boolean, TransportError>): Effect.Effect<boolean, TransportError> {
    const { goodFor, now } = this.options
    return Effect.suspend(() => {
      const askedAt = now()
      return Effect.flatMap(
        confirmation,
        (owned) => owned && now() - askedAt > goodFor ? this.recently(confirmation) : Effect.succeed(owned)
      )
    })
  }

  /** Begins when the broker has confirmed that it may: its attempt is recorded, or it is acknowledged. */
  private confirm(attempt: Attempt, confirmation: Effect.Effect<boolean, TransportError>): void {
    const { acksFirst, handler, onLost, outcomes, run } = this.options
    attempt.to("confirming")
    handler.waiting.add(attempt)
    run(Effect.retry(confirmation, settleBackoff)).addObserver((exit) => {
      if (attempt.state !== "confirming" || Exit.isFailure(exit)) return
      if (!exit.value) return onLost(attempt)
      if (acksFirst && !attempt.isSettled) return this.confirm(attempt, outcomes.receive(attempt))
      handler.begin(attempt)
    })
  }
}
