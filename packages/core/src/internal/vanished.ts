import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { Attempt } from "./attempt.ts"
import type { DeadLetterWriter } from "./deadLetterWriter.ts"
import type { Report } from "./report.ts"

/** Messages that the broker deleted before their retry or release: what this process has of them becomes dead letters. */
export class Vanished {
  private readonly options: {
    readonly name: string
    readonly deadLetters: DeadLetterWriter | undefined
    readonly report: Report
    readonly run: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
  }
  private readonly writing = new Set<Fiber.Fiber<void>>()

  constructor(options: Vanished["options"]) {
    this.options = options
  }

  add(attempt: Attempt): void {
    const { deadLetters, name, report, run } = this.options
    const { delivery } = attempt
    const cause = attempt.failure ?? Cause.die(new Error(vanishedText))
    const end = (_tag: "DeadLettered" | "Discarded") =>
      report.addition(attempt, { _tag, cause, reason: "vanished", attempts: delivery.attempt })
    report.addition(attempt, { _tag: "Vanished" })
    if (deadLetters === undefined) return end("Discarded")
    const writing = run(Effect.matchCauseEffect(deadLetters.write(delivery, cause, "vanished", delivery.attempt), {
      onSuccess: () => Effect.sync(() => end("DeadLettered")),
      onFailure: (refusal) =>
        Effect.andThen(
          Effect.exit(Effect.logError(
            `${name}: the broker refused the dead letter of message ${delivery.id}, which it stores no longer; the message is discarded`,
            refusal
          )),
          Effect.sync(() => end("Discarded"))
        )
    }))
    this.writing.add(writing)
    writing.addObserver(() => this.writing.delete(writing))
  }

  /** Resolves when the dead letters are written. */
  readonly awaitWritten: Effect.Effect<void> = Effect.suspend(() =>
    Effect.forEach([...this.writing], (fiber) => Fiber.await(fiber), { discard: true })
  )
}

const vanishedText = "the broker deleted the message before it was settled: by a bound, an operator or eviction"
