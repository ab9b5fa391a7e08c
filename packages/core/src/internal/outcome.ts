/**
 * The life of a message that this process owns, from the end of its handler to its settlement. Whatever ends it, the
 * same path decides, tells the broker, and reports one outcome:
 *
 * 1. A handler succeeds: `Ack`. A filter says no: `Ack`, counted as filtered.
 * 2. A handler fails, with an error, a defect, or a settlement that it requests (`Settlement.retry`, `.terminate`).
 *    `retryDecision` decides: another attempt after a delay, or a dead letter.
 * 3. The user settles by hand (`Message.settle`): `retry` and `terminate` follow the same decision. A handler that fails
 *    afterwards is counted as `failedAfterSettle`.
 * 4. A dead letter is written, and only when the broker has confirmed it, `Terminate` is settled. A crash between the
 *    two writes the same dead letter again, under the same id.
 * 5. A dead letter that the broker refuses leaves the source unsettled: the message is delivered again after a backoff,
 *    and its letter is tried again, without its handler.
 * 6. Shutdown releases, without counting an attempt. A peer that owns the message ends everything: nothing is said.
 * 7. The broker deleted the message before its retry or release: what this process has of it becomes a dead letter.
 */
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type * as DeadLetter from "../DeadLetter.ts"
import * as Settlement from "../Settlement.ts"
import type * as Telemetry from "../Telemetry.ts"
import type { Attempt } from "./attempt.ts"
import type { DeadLetterWriter } from "./deadLetterWriter.ts"
import { loggable } from "./errorDetail.ts"
import type { End } from "./handler.ts"
import type { Program, Retry } from "./program.ts"
import { allowedAttempts, decideRetry, defaultRetry, requestedBy } from "./retryDecision.ts"
import type { Counts } from "./running.ts"

/** The rooms that an outcome reaches, given. */
interface Surroundings {
  readonly program: Program
  readonly deadLetters: DeadLetterWriter | undefined
  readonly run: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
  /** Tells the broker. */
  readonly settle: (attempt: Attempt) => void
  /** The attempt has left: its permit, its key and its place are free. */
  readonly left: (attempt: Attempt) => void
  /** The message runs again in this process after `millis`, as the same attempt. */
  readonly postpone: (attempt: Attempt, millis: number) => void
  /** Nothing begins in this process for `millis`. */
  readonly rest: (millis: number) => void
  /** Its handler has succeeded, and the user settles it. */
  readonly awaiting: (attempt: Attempt) => void
  /** Told of every outcome, in order. Never throws. */
  readonly report: (attempt: Attempt, kind: Telemetry.OutcomeKind) => void
  /** The broker refused a dead letter, which is tried again `after` a time; `undefined`: never. Never throws. */
  readonly refused: (attempt: Attempt, cause: Cause.Cause<unknown>, after: Duration.Duration | undefined) => void
}

/** A message that was handled, for the user to settle within `settleWithin`. */
interface Awaited {
  readonly value: unknown
  readonly timer: Fiber.Fiber<void>
}

/** How long a retry that does not count waits when its handler does not say. */
const uncountedDelay = Duration.seconds(1)

const retryRequested = (cause: Cause.Cause<unknown>): Settlement.Retry | undefined => {
  const requested = requestedBy(cause)
  return requested?._tag === "Retry" ? requested : undefined
}

export class Outcomes {
  readonly counts: { -readonly [K in keyof Counts]: Counts[K] } = {
    handled: 0,
    filtered: 0,
    retried: 0,
    deadLettered: 0,
    discarded: 0,
    released: 0,
    failedAfterSettle: 0,
    lost: 0,
    vanished: 0,
    resettled: 0,
    unsettled: 0
  }
  /** The allowed attempts. */
  readonly limit: number
  private readonly around: Surroundings
  private readonly retry: Retry
  /** Outcomes that take time: a schedule is asked, a dead letter is written. */
  private readonly concluding = new Map<Attempt, Fiber.Fiber<void>>()
  private readonly awaited = new Map<Attempt, Awaited>()
  /** Settlements by hand that are being decided, with what is done if the broker is not told: the handler may have ended. */
  private readonly byHand = new Map<Attempt, (() => void) | undefined>()

  constructor(around: Surroundings) {
    this.around = around
    this.retry = around.program.policies.retry ?? defaultRetry
    this.limit = allowedAttempts(this.retry)
  }

  /** Attempts whose outcome is not settled yet. */
  get held(): Iterable<Attempt> {
    return [...this.concluding.keys(), ...this.awaited.keys(), ...this.byHand.keys()]
  }

  /** Whether a settlement by hand has not been told to the broker yet. */
  isDecidedByHand(attempt: Attempt): boolean {
    return this.byHand.has(attempt)
  }

  get awaitingCount(): number {
    return this.awaited.size
  }

  // --- what a handler's end means

  /** A handler has ended; `payload` is its value or the cause of its failure. */
  readonly ended = (attempt: Attempt, end: End, payload: unknown): void => {
    if (attempt.isLost) return this.leave(attempt)
    if (this.byHand.size > 0 && this.waitsForHand(attempt, () => this.ended(attempt, end, payload))) return
    switch (end) {
      case "succeeded": {
        const isManual = this.around.program.policies.ackPolicy === "manual"
        if (isManual && !attempt.isSettled) return this.awaitSettlement(attempt, payload)
        this.report(attempt, { _tag: "Handled", value: payload })
        return this.finish(attempt, Settlement.ack)
      }
      case "filtered": {
        this.report(attempt, { _tag: "Filtered" })
        return this.finish(attempt, Settlement.ack)
      }
      case "failed":
        return this.failed(attempt, payload as Cause.Cause<unknown>)
      case "undecodable":
        return this.conclude(attempt, this.deadLetter(attempt, payload as Cause.Cause<unknown>, "undecodable"))
      case "interrupted":
        return this.released(attempt)
    }
  }

  private failed(attempt: Attempt, cause: Cause.Cause<unknown>): void {
    attempt.failure = cause
    if (this.around.program.policies.ackPolicy === "on-receive") {
      return this.conclude(attempt, this.deadLetter(attempt, cause, "exhausted"))
    }
    if (attempt.isSettled) {
      attempt.hasOutcome = false
      this.report(attempt, { _tag: "FailedAfterSettle", cause })
      return this.leave(attempt)
    }
    this.conclude(attempt, this.decided(attempt, cause))
  }

  /** Asks the retry policy and does what it says. */
  private decided(attempt: Attempt, cause: Cause.Cause<unknown>): Effect.Effect<void> {
    const requested = retryRequested(cause)
    this.pause(requested)
    if (requested?.countsAttempt === false && attempt.uncounted < this.retry.uncounted) {
      return Effect.sync(() => this.postponed(attempt, cause, requested.after ?? uncountedDelay))
    }
    return Effect.flatMap(this.decision(attempt, cause), (decision) => {
      if (decision._tag === "End") return this.deadLetter(attempt, cause, decision.reason)
      this.report(attempt, { _tag: "Retried", delay: Duration.toMillis(decision.delay), cause })
      this.finish(attempt, { _tag: "Retry", after: decision.delay })
      return Effect.void
    })
  }

  private pause(requested: Settlement.Retry | undefined): void {
    if (requested?.pausesPipeline) this.around.rest(Duration.toMillis(requested.after ?? uncountedDelay))
  }

  /** The message stays here: nothing is said to the broker, which would count. */
  private postponed(attempt: Attempt, cause: Cause.Cause<unknown>, after: Duration.Duration): void {
    const delay = Duration.toMillis(after)
    this.report(attempt, { _tag: "Retried", delay, cause })
    if (attempt.claim()) this.around.postpone(attempt, delay)
    this.leave(attempt)
  }

  /** A policy of the user's that throws is replaced by the default one. */
  private decision(attempt: Attempt, cause: Cause.Cause<unknown>) {
    const { name } = this.around.program
    return Effect.suspend(() => decideRetry(this.retry, cause, attempt.delivery.attempt, attempt.message)).pipe(
      Effect.catchCause((defect) =>
        Effect.andThen(
          Effect.exit(
            Effect.logError(`${name}: the retry policy failed; the default policy decides`, loggable(defect))
          ),
          decideRetry({ ...defaultRetry, times: this.retry.times }, cause, attempt.delivery.attempt, undefined)
        )
      )
    )
  }

  /** Stores the message, and only then says that it will not be tried again. */
  private deadLetter(
    attempt: Attempt,
    cause: Cause.Cause<unknown>,
    reason: DeadLetter.DeadLetterReason,
    attempts = attempt.delivery.attempt
  ): Effect.Effect<void> {
    const { deadLetters } = this.around
    const { delivery } = attempt
    const end = (kind: "DeadLettered" | "Discarded") => {
      this.report(attempt, { _tag: kind, cause, reason, attempts })
      this.finish(attempt, { _tag: "Terminate", reason })
    }
    if (deadLetters === undefined) return Effect.sync(() => end("Discarded"))
    return Effect.matchCauseEffect(deadLetters.write(delivery, cause, reason, attempts), {
      onSuccess: () => Effect.sync(() => end("DeadLettered")),
      onFailure: (refusal) => {
        if (Cause.hasInterruptsOnly(refusal)) return Effect.failCause(refusal as Cause.Cause<never>)
        if (attempt.isSettled) {
          // On-receive: at most once means that it is gone.
          return Effect.sync(() => {
            this.around.refused(attempt, refusal, undefined)
            end("Discarded")
          })
        }
        const after = deadLetters.backoff(delivery)
        return Effect.sync(() => {
          this.counts.unsettled++
          this.around.refused(attempt, refusal, after)
          this.report(attempt, { _tag: "Retried", delay: Duration.toMillis(after), cause })
          this.finish(attempt, { _tag: "Retry", after })
        })
      }
    })
  }

  // --- messages whose handler does not run

  /** A message that was redriven for one group is not for the others. */
  filtered(attempt: Attempt): void {
    attempt.to("concluding")
    this.ended(attempt, "filtered", undefined)
  }

  /** The function that gives its key has failed. */
  keyFailed(attempt: Attempt, cause: Cause.Cause<unknown>): void {
    attempt.to("concluding")
    this.failed(attempt, cause)
  }

  /** On-receive: acknowledges before the handler begins. */
  receive(attempt: Attempt): Effect.Effect<boolean> {
    return Effect.suspend(() => attempt.claim() ? this.tell(attempt, Settlement.ack) : Effect.succeed(false))
  }

  /** Releases a message that has not begun. */
  releaseUnbegun(attempt: Attempt): void {
    attempt.to("left")
    if (!attempt.claim()) return
    this.report(attempt, { _tag: "Released" })
    attempt.settlement = Settlement.release
    this.around.settle(attempt)
  }

  /**
   * Ends a message that has no attempt left: the broker gave it up, it is a suspect that used all of them, or its dead
   * letter was refused before. `false` when its handler may run.
   */
  endSpent(attempt: Attempt, isExhaustedSuspect: boolean): boolean {
    const { delivery } = attempt
    const refused = this.around.deadLetters?.pending(delivery)
    let ending: Effect.Effect<void>
    if (refused !== undefined) {
      ending = this.deadLetter(attempt, refused.cause, refused.reason, refused.attempts)
    } else if (delivery.givenUp !== undefined) {
      const attempts = Math.max(1, delivery.attempt - 1)
      ending = this.deadLetter(attempt, Cause.die(new Error(delivery.givenUp)), "exhausted", attempts)
    } else if (isExhaustedSuspect) {
      ending = this.deadLetter(attempt, Cause.die(new Error(crashedText)), "crashed", delivery.attempt - 1)
    } else if (delivery.attempt > this.limit && delivery.firstFailedAt !== undefined) {
      ending = this.deadLetter(attempt, Cause.die(new Error(spentText)), "exhausted", this.limit)
    } else {
      return false
    }
    attempt.to("concluding")
    this.conclude(attempt, ending)
    return true
  }

  // --- settled by hand

  /** `Message.settle`: `false` when it was settled before or a peer owns it. */
  readonly settle = (
    attempt: Attempt,
    settlement: Settlement.Settlement
  ): Effect.Effect<boolean, Settlement.SettleError> =>
    Effect.suspend(() => {
      if (!tags.has(settlement._tag)) return Effect.die(new TypeError("Message.settle was given no settlement"))
      if (!attempt.claim()) return Effect.succeed(false)
      switch (settlement._tag) {
        case "Ack":
          return this.tell(attempt, settlement)
        case "Release": {
          this.report(attempt, { _tag: "Released" })
          return this.tell(attempt, settlement)
        }
        case "Retry":
        case "Terminate": {
          const cause = Cause.fail(new Settlement.SettlementRequested({ settlement }))
          this.pause(retryRequested(cause))
          this.byHand.set(attempt, undefined)
          return Effect.onExit(
            Effect.flatMap(this.decision(attempt, cause), (decision) => {
              if (decision._tag === "End") return this.deadLetterByHand(attempt, cause, decision.reason)
              this.report(attempt, { _tag: "Retried", delay: Duration.toMillis(decision.delay), cause })
              return this.tell(attempt, { _tag: "Retry", after: decision.delay })
            }),
            () => Effect.sync(() => this.leftHand(attempt))
          )
        }
      }
    })

  private deadLetterByHand(
    attempt: Attempt,
    cause: Cause.Cause<unknown>,
    reason: DeadLetter.DeadLetterReason
  ): Effect.Effect<boolean, Settlement.SettleError> {
    const { delivery } = attempt
    const written = this.around.deadLetters?.write(delivery, cause, reason, delivery.attempt) ?? Effect.void
    return Effect.mapError(written, (cause) => new Settlement.SettleError({ id: delivery.id, cause })).pipe(
      Effect.andThen(Effect.suspend(() => {
        const kind = this.around.deadLetters === undefined ? "Discarded" : "DeadLettered"
        this.report(attempt, { _tag: kind, cause, reason, attempts: delivery.attempt })
        return this.tell(attempt, { _tag: "Terminate", reason })
      }))
    )
  }

  /** While a settlement by hand is decided, nothing else ends the attempt: `then` is called when that is over. */
  private waitsForHand(attempt: Attempt, then: () => void): boolean {
    if (!this.byHand.has(attempt)) return false
    this.byHand.set(attempt, then)
    return true
  }

  /** The settlement by hand is with the settler; or it was refused or interrupted, and the policies settle. */
  private leftHand(attempt: Attempt): void {
    const then = this.byHand.get(attempt)
    if (!this.byHand.delete(attempt)) return
    if (!attempt.hasOutcome) attempt.unclaim()
    then?.()
  }

  /** Tells the broker and waits for its answer; the handler may go on meanwhile. */
  private tell(attempt: Attempt, settlement: Settlement.Settlement): Effect.Effect<boolean> {
    // The pipeline stopped, or a peer took the message, while the settlement was decided.
    if (attempt.state === "left") return Effect.succeed(false)
    const owned = Deferred.makeUnsafe<boolean>()
    attempt.settlement = settlement
    attempt.onSettled = (answer) => Deferred.doneUnsafe(owned, Exit.succeed(answer))
    this.around.settle(attempt)
    this.settledAwaited(attempt)
    this.leftHand(attempt)
    return Deferred.await(owned)
  }

  // --- handled, for the user to settle

  private awaitSettlement(attempt: Attempt, value: unknown): void {
    const { program, run } = this.around
    attempt.to("awaiting")
    const { settleWithin } = program.policies
    const timer = run(Effect.sync(() => this.forgotten(attempt)).pipe(Effect.delay(settleWithin)))
    this.awaited.set(attempt, { value, timer })
    this.around.awaiting(attempt)
  }

  /** The user has settled it in time. */
  private settledAwaited(attempt: Attempt): void {
    const awaited = this.awaited.get(attempt)
    if (awaited === undefined) return
    this.awaited.delete(attempt)
    awaited.timer.interruptUnsafe()
    attempt.to("concluding")
    if (!attempt.hasOutcome) this.report(attempt, { _tag: "Handled", value: awaited.value })
    this.leave(attempt)
  }

  private forgotten(attempt: Attempt): void {
    const awaited = this.awaited.get(attempt)
    if (awaited === undefined || this.waitsForHand(attempt, () => this.forgotten(attempt))) return
    // An operation of the broker has settled it.
    if (attempt.isSettled) return this.settledAwaited(attempt)
    this.awaited.delete(attempt)
    attempt.to("concluding")
    this.counts.unsettled++
    const { name, policies } = this.around.program
    const text = `message ${attempt.delivery.id} was not settled within ${
      Duration.format(policies.settleWithin)
    } of being handled`
    this.around.run(Effect.logError(`${name}: ${text}; the retry policy decides`))
    this.failed(attempt, Cause.fail(new Unsettled(text)))
  }

  /** Releases what the user has not settled when the pipeline stops. */
  releaseAwaited(): void {
    for (const [attempt, { timer }] of Array.from(this.awaited)) {
      timer.interruptUnsafe()
      this.awaited.delete(attempt)
      attempt.to("concluding")
      if (this.byHand.delete(attempt)) attempt.unclaim()
      this.released(attempt)
    }
  }

  // --- taken away

  /** Releases an attempt that this process does not finish, without counting it. */
  released(attempt: Attempt): void {
    if (attempt.isLost) return this.leave(attempt)
    if (attempt.isSettled) {
      const cause = attempt.failure ?? Cause.interrupt()
      // On-receive: acknowledged, and neither handled nor dead-lettered: it is gone.
      const isGone = this.around.program.policies.ackPolicy === "on-receive"
      this.report(
        attempt,
        isGone
          ? { _tag: "Discarded", cause, reason: "exhausted", attempts: attempt.delivery.attempt }
          : { _tag: "FailedAfterSettle", cause }
      )
      return this.leave(attempt)
    }
    this.report(attempt, { _tag: "Released" })
    this.finish(attempt, Settlement.release)
  }

  /** A peer owns the message. */
  lost(attempt: Attempt): void {
    attempt.isLost = true
    attempt.hasOutcome = false
    this.report(attempt, { _tag: "Lost" })
    const awaited = this.awaited.get(attempt)
    if (awaited === undefined) return this.concluding.get(attempt)?.interruptUnsafe()
    awaited.timer.interruptUnsafe()
    this.awaited.delete(attempt)
    this.leave(attempt)
  }

  /** The broker stores the message no longer: its retry or release came to nothing. */
  vanished(attempt: Attempt): void {
    const { deadLetters, program, run } = this.around
    const { delivery } = attempt
    const cause = attempt.failure ?? Cause.die(new Error(vanishedText))
    const end = (kind: "DeadLettered" | "Discarded") => {
      attempt.hasOutcome = false
      this.report(attempt, { _tag: kind, cause, reason: "vanished", attempts: delivery.attempt })
    }
    attempt.hasOutcome = false
    this.report(attempt, { _tag: "Vanished" })
    if (deadLetters === undefined) return end("Discarded")
    const writing = run(Effect.matchCauseEffect(deadLetters.write(delivery, cause, "vanished", delivery.attempt), {
      onSuccess: () => Effect.sync(() => end("DeadLettered")),
      onFailure: (refusal) =>
        Effect.andThen(
          Effect.exit(Effect.logError(
            `${program.name}: the broker refused the dead letter of message ${delivery.id}, which it stores no longer; the message is discarded`,
            refusal
          )),
          Effect.sync(() => end("Discarded"))
        )
    }))
    this.writing.add(writing)
    writing.addObserver(() => this.writing.delete(writing))
  }

  /** Dead letters of messages that have vanished. */
  private readonly writing = new Set<Fiber.Fiber<void>>()

  /** Resolves when they are written. */
  readonly awaitWriting: Effect.Effect<void> = Effect.suspend(() =>
    Effect.forEach([...this.writing], (fiber) => Fiber.await(fiber), { discard: true })
  )

  /** The drain's deadline has passed. */
  interrupt(): void {
    for (const fiber of Array.from(this.concluding.values())) fiber.interruptUnsafe()
    for (const [attempt, then] of Array.from(this.byHand)) {
      if (then === undefined || attempt.state !== "concluding") continue
      this.byHand.delete(attempt)
      attempt.unclaim()
      this.released(attempt)
    }
  }

  // --- ends

  /** Runs an outcome that takes time; taken away meanwhile, the message is released. */
  private conclude(attempt: Attempt, effect: Effect.Effect<void>): void {
    const fiber = this.around.run(effect)
    const exit = fiber.pollUnsafe()
    if (exit !== undefined) return this.concluded(attempt, exit)
    this.concluding.set(attempt, fiber)
    fiber.addObserver((exit) => {
      this.concluding.delete(attempt)
      this.concluded(attempt, exit)
    })
  }

  private concluded(attempt: Attempt, exit: Exit.Exit<void>): void {
    if (Exit.isSuccess(exit)) return
    if (Cause.hasInterruptsOnly(exit.cause)) return this.released(attempt)
    // A fault of ours must not be tried without counting.
    const { name } = this.around.program
    this.around.run(
      Effect.logError(`${name}: handling the outcome of message ${attempt.delivery.id} failed`, loggable(exit.cause))
    )
    if (attempt.state === "left") return
    const after = Duration.minutes(1)
    this.report(attempt, { _tag: "Retried", delay: Duration.toMillis(after), cause: exit.cause })
    this.finish(attempt, { _tag: "Retry", after })
  }

  /** Settles, unless it is settled, and leaves. */
  private finish(attempt: Attempt, settlement: Settlement.Settlement): void {
    if (attempt.claim()) {
      attempt.settlement = settlement
      this.around.settle(attempt)
    }
    this.leave(attempt)
  }

  private leave(attempt: Attempt): void {
    attempt.to("left")
    this.around.left(attempt)
  }

  /** The one event of an attempt. A settlement that came too late adds `Lost`, a late failure `FailedAfterSettle`. */
  private report(attempt: Attempt, kind: Telemetry.OutcomeKind): void {
    if (attempt.hasOutcome) return
    attempt.hasOutcome = true
    this.counts[countOf[kind._tag]]++
    this.around.report(attempt, kind)
  }
}

/** A message of a pipeline with `ackPolicy("manual")` was handled and not settled in time. */
class Unsettled extends Error {
  readonly _tag = "Unsettled"
  override readonly name = "Unsettled"
}

const tags: ReadonlySet<unknown> = new Set<Settlement.Settlement["_tag"]>(["Ack", "Release", "Retry", "Terminate"])

const countOf = {
  Handled: "handled",
  Filtered: "filtered",
  Retried: "retried",
  DeadLettered: "deadLettered",
  Discarded: "discarded",
  Released: "released",
  FailedAfterSettle: "failedAfterSettle",
  Lost: "lost",
  Vanished: "vanished"
} as const satisfies { readonly [K in Telemetry.OutcomeKind["_tag"]]: keyof Counts }

const crashedText = "every allowed attempt ended without a settlement: its process may have crashed because of it"

const vanishedText = "the broker deleted the message before it was settled: by a bound, an operator or eviction"

const spentText = "the last allowed attempt failed in another process, which could not write the dead letter"
