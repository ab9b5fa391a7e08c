import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import type * as DeadLetter from "../DeadLetter.ts"
import * as Settlement from "../Settlement.ts"
import { invalidOption } from "../TransportError.ts"
import type { Attempt } from "./attempt.ts"
import type { DeadLetterWriter } from "./deadLetterWriter.ts"
import type { Program } from "./program.ts"
import type { Report } from "./report.ts"
import type { RetryDecision } from "./retryDecision.ts"

/** A message that was handled, for the user to settle within `settleWithin`. */
interface Awaited {
  readonly value: unknown
  readonly timer: Fiber.Fiber<void>
}

/**
 * Messages that the user settles: `Message.settle`, and with `ackPolicy("manual")` those that were handled and are not
 * settled yet.
 */
export class ByHand {
  private readonly options: {
    readonly program: Program
    readonly report: Report
    readonly deadLetters: DeadLetterWriter | undefined
    readonly run: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
    readonly decide: (attempt: Attempt, cause: Cause.Cause<unknown>) => Effect.Effect<RetryDecision>
    /** Tells the broker. */
    readonly settle: (attempt: Attempt, settlement: Settlement.Settlement) => void
    /** The user settles the message; its handler has ended. */
    readonly onAwaiting: (attempt: Attempt) => void
    /** The user has settled it in time, or has not. */
    readonly onLeft: (attempt: Attempt) => void
    readonly onForgotten: (attempt: Attempt, cause: Cause.Cause<unknown>) => void
    readonly onReleased: (attempt: Attempt) => void
  }
  private readonly awaited = new Map<Attempt, Awaited>()
  /** Settlements that are being decided, each with its fallback if the broker is not told: the handler may have ended. */
  private readonly deciding = new Map<Attempt, (() => void) | undefined>()

  constructor(options: ByHand["options"]) {
    this.options = options
  }

  *held(): Iterable<Attempt> {
    yield* this.awaited.keys()
    yield* this.deciding.keys()
  }

  get awaitedCount(): number {
    return this.awaited.size
  }

  // --- settled

  /** `Message.settle`: `false` when it was settled before or a peer owns it. */
  readonly settle = (
    attempt: Attempt,
    given: Settlement.Settlement | Settlement.SettlementRequested
  ): Effect.Effect<boolean, Settlement.SettleError> =>
    Effect.suspend(() => {
      const settlement = Settlement.read(given)
      if (settlement === undefined) {
        return Effect.die(invalidOption("core", "settlement of Message.settle", given, remedy))
      }
      if (!attempt.claim()) return Effect.succeed(false)
      const { decide, report } = this.options
      switch (settlement._tag) {
        case "Ack":
          return this.tell(attempt, settlement)
        case "Release": {
          report.outcome(attempt, { _tag: "Released" })
          return this.tell(attempt, settlement)
        }
        case "Retry":
        case "Terminate": {
          const cause = Cause.fail(new Settlement.SettlementRequested({ settlement }))
          this.deciding.set(attempt, undefined)
          return Effect.onExit(
            Effect.flatMap(decide(attempt, cause), (decision) => {
              if (decision._tag === "End") return this.deadLetter(attempt, cause, decision.reason)
              report.outcome(attempt, { _tag: "Retried", delay: Duration.toMillis(decision.delay), cause })
              return this.tell(attempt, { _tag: "Retry", after: decision.delay })
            }),
            () => Effect.sync(() => this.decided(attempt))
          )
        }
      }
    })

  private deadLetter(
    attempt: Attempt,
    cause: Cause.Cause<unknown>,
    reason: DeadLetter.DeadLetterReason
  ): Effect.Effect<boolean, Settlement.SettleError> {
    const { deadLetters, report } = this.options
    const { delivery } = attempt
    const written = deadLetters?.write(delivery, cause, reason, delivery.attempt) ?? Effect.void
    return Effect.mapError(written, (cause) => new Settlement.SettleError({ id: delivery.id, cause })).pipe(
      Effect.andThen(Effect.suspend(() => {
        const _tag = deadLetters === undefined ? "Discarded" : "DeadLettered"
        report.outcome(attempt, { _tag, cause, reason, attempts: delivery.attempt })
        return this.tell(attempt, { _tag: "Terminate", reason })
      }))
    )
  }

  /** Tells the broker and waits for its answer; the handler may go on meanwhile. */
  tell(attempt: Attempt, settlement: Settlement.Settlement): Effect.Effect<boolean, Settlement.SettleError> {
    // The pipeline stopped, or a peer took the message, while the settlement was decided.
    if (attempt.state === "left") return Effect.succeed(false)
    const owned = Deferred.makeUnsafe<boolean, Settlement.SettleError>()
    attempt.onSettled = (answer) =>
      Deferred.doneUnsafe(owned, answer === undefined ? unanswered(attempt) : Exit.succeed(answer))
    this.options.settle(attempt, settlement)
    this.settledInTime(attempt)
    this.decided(attempt)
    return Deferred.await(owned)
  }

  // --- being decided

  /** Whether a settlement is being decided: the broker does not know of it, and nothing else may end the attempt. */
  isDeciding(attempt: Attempt): boolean {
    return this.deciding.has(attempt)
  }

  /** `then` is called when the settlement is decided. */
  afterwards(attempt: Attempt, then: () => void): void {
    this.deciding.set(attempt, then)
  }

  /** The settlement is with the settler; or it was refused or interrupted, and the policies settle. */
  private decided(attempt: Attempt): void {
    const then = this.deciding.get(attempt)
    if (!this.deciding.delete(attempt)) return
    if (!attempt.hasOutcome) attempt.unclaim()
    then?.()
  }

  /** The drain's deadline has passed: releases messages whose handlers have ended. */
  interrupt(): void {
    for (const [attempt, then] of Array.from(this.deciding)) {
      if (then !== undefined && attempt.state === "concluding") this.release(attempt)
    }
  }

  // --- handled, for the user to settle

  await(attempt: Attempt, value: unknown): void {
    const { onAwaiting, program, run } = this.options
    attempt.to("awaiting")
    const timer = run(Effect.delay(Effect.sync(() => this.forgotten(attempt)), program.policies.settleWithin))
    this.awaited.set(attempt, { value, timer })
    onAwaiting(attempt)
  }

  /** The user has settled it, by `settle` or by an operation of the broker. */
  readonly settledInTime = (attempt: Attempt): void => {
    const awaited = this.taken(attempt)
    if (awaited === undefined) return
    attempt.to("concluding")
    this.options.report.outcome(attempt, { _tag: "Handled", value: awaited.value })
    this.options.onLeft(attempt)
  }

  private forgotten(attempt: Attempt): void {
    if (!this.awaited.has(attempt)) return
    if (this.isDeciding(attempt)) return this.afterwards(attempt, () => this.forgotten(attempt))
    // An operation of the broker is settling it.
    if (attempt.isSettled) return this.settledInTime(attempt)
    this.awaited.delete(attempt)
    attempt.to("concluding")
    const { onForgotten, program: { name, policies }, report, run } = this.options
    report.counts.unsettled++
    const within = Duration.format(policies.settleWithin)
    const text = `message ${attempt.delivery.id} was not settled within ${within} of being handled`
    run(Effect.logError(`${name}: ${text}; the retry policy decides`))
    onForgotten(attempt, Cause.fail(new Unsettled(text)))
  }

  /** Takes a message away from the user: `false` when it was not for the user to settle. */
  lost(attempt: Attempt): boolean {
    return this.taken(attempt) !== undefined
  }

  /** Releases what the user has not settled when the pipeline stops. */
  releaseAll(): void {
    for (const attempt of Array.from(this.awaited.keys())) {
      if (attempt.isSettled && !this.isDeciding(attempt)) {
        this.settledInTime(attempt)
        continue
      }
      this.taken(attempt)
      attempt.to("concluding")
      this.release(attempt)
    }
  }

  private taken(attempt: Attempt): Awaited | undefined {
    const awaited = this.awaited.get(attempt)
    awaited?.timer.interruptUnsafe()
    this.awaited.delete(attempt)
    return awaited
  }

  private release(attempt: Attempt): void {
    if (this.deciding.delete(attempt)) attempt.unclaim()
    this.options.onReleased(attempt)
  }
}

const unanswered = ({ delivery: { id } }: Attempt): Exit.Exit<never, Settlement.SettleError> =>
  Exit.fail(new Settlement.SettleError({ id, cause: new Error("the pipeline stopped before the broker confirmed it") }))

/** A message of a pipeline with `ackPolicy("manual")` was handled and not settled in time. */
class Unsettled extends Error {
  readonly _tag = "Unsettled"
  override readonly name = "Unsettled"
}

const remedy = "give Settlement.ack, .release, .terminate(reason), or .retry(after) with a finite duration"
