import type * as Telemetry from "../Telemetry.ts"
import type { Attempt } from "./attempt.ts"
import type { Counts } from "./running.ts"

/** Counts and reports what became of each attempt; the only writer of `Attempt.hasOutcome` and of the counts. */
export class Report {
  readonly counts = noCounts()
  /** Told of every outcome, in order. Never throws. */
  private readonly listener: (attempt: Attempt, kind: Telemetry.OutcomeKind) => void

  constructor(listener: Report["listener"]) {
    this.listener = listener
  }

  /** The outcome of an attempt: the first one stands. */
  outcome(attempt: Attempt, kind: Telemetry.OutcomeKind): void {
    if (!attempt.hasOutcome) this.addition(attempt, kind)
  }

  /** What shows after the outcome: `Lost`, `FailedAfterSettle`, `Vanished` and what follows from it. */
  addition(attempt: Attempt, kind: Telemetry.OutcomeKind): void {
    attempt.hasOutcome = true
    this.counts[countOf[kind._tag]]++
    this.listener(attempt, kind)
  }
}

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

export const noCounts = (): { -readonly [K in keyof Counts]: Counts[K] } => ({
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
})
