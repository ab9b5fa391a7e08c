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
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import type * as DeadLetter from "../DeadLetter.ts"
import * as Settlement from "../Settlement.ts"
import type * as Telemetry from "../Telemetry.ts"
import type { Attempt } from "./attempt.ts"
import { ByHand } from "./byHand.ts"
import type { DeadLetterWriter } from "./deadLetterWriter.ts"
import { loggable } from "./errorDetail.ts"
import type { End } from "./handler.ts"
import type { Program, Retry } from "./program.ts"
import { ignore } from "./promise.ts"
import { Report } from "./report.ts"
import { allowedAttempts, decideRetry, defaultRetry, requestedBy, type RetryDecision } from "./retryDecision.ts"
import { Vanished } from "./vanished.ts"

/** The rooms that an outcome reaches, given. */
interface Surroundings {
  readonly program: Program
  readonly deadLetters: DeadLetterWriter | undefined
  readonly run: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
  /** Tells the broker. */
  readonly settle: (attempt: Attempt, settlement: Settlement.Settlement) => void
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

/** How long a retry that does not count waits when its handler does not say. */
const uncountedDelay = Duration.seconds(1)

export class Outcomes {
  readonly report: Report
  readonly byHand: ByHand
  readonly vanished: Vanished
  /** The allowed attempts. */
  readonly limit: number
  private readonly around: Surroundings
  private readonly retry: Retry
  /** Outcomes that take time: a schedule is asked, a dead letter is written. */
  private readonly concluding = new Map<Attempt, Fiber.Fiber<void>>()

  constructor(around: Surroundings) {
    this.around = around
    const { deadLetters, program, run } = around
    this.retry = program.policies.retry ?? defaultRetry
    this.limit = allowedAttempts(this.retry)
    const report = this.report = new Report(around.report)
    this.vanished = new Vanished({ name: program.name, deadLetters, report, run })
    this.byHand = new ByHand({
      program,
      report,
      deadLetters,
      run,
      decide: (attempt, cause) => {
        this.pause(retryRequested(cause))
        return this.decide(attempt, cause)
      },
      settle: around.settle,
      onAwaiting: around.awaiting,
      onLeft: (attempt) => this.leave(attempt),
      onForgotten: (attempt, cause) => this.failed(attempt, cause),
      onReleased: (attempt) => this.released(attempt)
    })
  }

  /** Attempts whose outcome is not settled yet. */
  *held(): Iterable<Attempt> {
    yield* this.concluding.keys()
    yield* this.byHand.held()
  }

  // --- what a handler's end means

  /** A handler has ended; `payload` is its value or the cause of its failure. */
  readonly ended = (attempt: Attempt, end: End, payload: unknown): void => {
    if (attempt.isLost) return this.leave(attempt)
    const { byHand, report } = this
    if (byHand.isDeciding(attempt)) return byHand.afterwards(attempt, () => this.ended(attempt, end, payload))
    switch (end) {
      case "succeeded": {
        const isManual = this.around.program.policies.ackPolicy === "manual"
        if (isManual && !attempt.isSettled) return byHand.await(attempt, payload)
        report.outcome(attempt, { _tag: "Handled", value: payload })
        return this.finish(attempt, Settlement.ack)
      }
      case "filtered": {
        report.outcome(attempt, { _tag: "Filtered" })
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
    for (const reason of cause.reasons) ignore("error" in reason ? reason.error : "defect" in reason && reason.defect)
    if (this.around.program.policies.ackPolicy === "on-receive") {
      return this.conclude(attempt, this.deadLetter(attempt, cause, "exhausted"))
    }
    if (attempt.isSettled) {
      this.report.addition(attempt, { _tag: "FailedAfterSettle", cause })
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
    return Effect.flatMap(this.decide(attempt, cause), (decision) =>
      decision._tag === "End"
        ? this.deadLetter(attempt, cause, decision.reason)
        : Effect.sync(() => this.retried(attempt, cause, decision.delay)))
  }

  private pause(requested: Settlement.Retry | undefined): void {
    if (requested?.pausesPipeline) this.around.rest(Duration.toMillis(requested.after ?? uncountedDelay))
  }

  /** The message stays here: nothing is said to the broker, which would count. */
  private postponed(attempt: Attempt, cause: Cause.Cause<unknown>, after: Duration.Duration): void {
    const delay = Duration.toMillis(after)
    this.report.outcome(attempt, { _tag: "Retried", delay, cause })
    if (attempt.claim()) this.around.postpone(attempt, delay)
    this.leave(attempt)
  }

  private retried(attempt: Attempt, cause: Cause.Cause<unknown>, after: Duration.Duration): void {
    this.report.outcome(attempt, { _tag: "Retried", delay: Duration.toMillis(after), cause })
    this.finish(attempt, { _tag: "Retry", after })
  }

  /** A policy of the user's that throws is replaced by the default one. */
  private decide(attempt: Attempt, cause: Cause.Cause<unknown>): Effect.Effect<RetryDecision> {
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
    const { deadLetters, refused } = this.around
    const { delivery } = attempt
    const end = (_tag: "DeadLettered" | "Discarded") => {
      this.report.outcome(attempt, { _tag, cause, reason, attempts })
      this.finish(attempt, { _tag: "Terminate", reason })
    }
    if (deadLetters === undefined) return Effect.sync(() => end("Discarded"))
    return Effect.matchCauseEffect(deadLetters.write(delivery, cause, reason, attempts), {
      onSuccess: () => Effect.sync(() => end("DeadLettered")),
      onFailure: (refusal) => {
        if (Cause.hasInterruptsOnly(refusal)) return Effect.failCause(refusal as Cause.Cause<never>)
        return Effect.sync(() => {
          // On-receive: at most once means that it is gone.
          const after = attempt.isSettled ? undefined : deadLetters.backoff(delivery)
          refused(attempt, refusal, after)
          if (after === undefined) return end("Discarded")
          this.report.counts.unsettled++
          this.retried(attempt, cause, after)
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
    return Effect.suspend(() => attempt.claim() ? this.byHand.tell(attempt, Settlement.ack) : Effect.succeed(false))
      .pipe(
        Effect.orElseSucceed(() => false)
      )
  }

  /** Releases a message that has not begun. */
  releaseUnbegun(attempt: Attempt): void {
    attempt.to("left")
    if (!attempt.claim()) return
    this.report.outcome(attempt, { _tag: "Released" })
    this.around.settle(attempt, Settlement.release)
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

  // --- taken away

  /** Releases an attempt that this process does not finish, without counting it. */
  released(attempt: Attempt): void {
    if (attempt.isLost) return this.leave(attempt)
    if (attempt.isSettled) {
      const cause = attempt.failure ?? Cause.interrupt()
      // On-receive: acknowledged, and neither handled nor dead-lettered: it is gone.
      const isGone = this.around.program.policies.ackPolicy === "on-receive"
      this.report.outcome(
        attempt,
        isGone
          ? { _tag: "Discarded", cause, reason: "exhausted", attempts: attempt.delivery.attempt }
          : { _tag: "FailedAfterSettle", cause }
      )
      return this.leave(attempt)
    }
    this.report.outcome(attempt, { _tag: "Released" })
    this.finish(attempt, Settlement.release)
  }

  /** A peer owns the message. */
  lost(attempt: Attempt): void {
    attempt.isLost = true
    this.report.addition(attempt, { _tag: "Lost" })
    if (this.byHand.lost(attempt)) this.leave(attempt)
    else this.concluding.get(attempt)?.interruptUnsafe()
  }

  /** The drain's deadline has passed. */
  interrupt(): void {
    for (const fiber of Array.from(this.concluding.values())) fiber.interruptUnsafe()
    this.byHand.interrupt()
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
    this.retried(attempt, exit.cause, Duration.minutes(1))
  }

  /** Settles, unless it is settled, and leaves. */
  private finish(attempt: Attempt, settlement: Settlement.Settlement): void {
    if (attempt.claim()) this.around.settle(attempt, settlement)
    this.leave(attempt)
  }

  private leave(attempt: Attempt): void {
    attempt.to("left")
    this.around.left(attempt)
  }
}

const retryRequested = (cause: Cause.Cause<unknown>): Settlement.Retry | undefined => {
  const requested = requestedBy(cause)
  return requested?._tag === "Retry" ? requested : undefined
}

const crashedText = "every allowed attempt ended without a settlement: its process may have crashed because of it"

const spentText = "the last allowed attempt failed in another process, which could not write the dead letter"
