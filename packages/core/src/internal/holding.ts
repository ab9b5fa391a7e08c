import type { Demand } from "../Transport.ts"
import type { Attempt } from "./attempt.ts"
import { demandOf, type Holdings, refillAt } from "./demand.ts"
import type { Handler } from "./handler.ts"
import { Idle } from "./idle.ts"
import type { Intake } from "./intake.ts"
import type { Outcomes } from "./outcome.ts"
import type { Permits } from "./permit.ts"
import type { Prefetch } from "./prefetch.ts"
import type { RetryWatch } from "./retryWatch.ts"
import type { Settler } from "./settler.ts"

/** The messages that this process holds, and how many more it can take. */
export class Holding {
  private readonly options: {
    readonly now: () => number
    readonly source: { readonly maxBlocked: number; readonly waiting: number; readonly prefetchBytes: number }
    /** How many messages one permit can stand for. */
    readonly perPermit: number
    readonly permits: Permits
    readonly prefetch: Prefetch
    readonly intake: Intake
    readonly handler: Handler
    readonly outcomes: Outcomes
    readonly settler: Settler<Attempt>
    readonly retries: RetryWatch
  }
  /** Begun and not left. */
  inFlight = 0
  /** With more than this in the buffer, no demand is computed. */
  private refillAt = 0
  /** No handler runs. */
  readonly idle = new Idle(() => this.begun === 0)

  constructor(options: Holding["options"]) {
    this.options = options
  }

  add(): void {
    this.inFlight++
  }

  delete(): void {
    this.inFlight--
    this.options.prefetch.done()
  }

  /** Owned and not begun. */
  get buffered(): number {
    return this.options.intake.size
  }

  /** Begun and not left; without those that are handled and wait for the user to settle them. */
  get begun(): number {
    return this.inFlight - this.options.outcomes.byHand.awaitedCount
  }

  /** All that the broker counts as ours: settlements that are still in the settler's list, too. */
  get owned(): number {
    return this.buffered + this.inFlight + this.options.settler.pending.length
  }

  /** Attempts that are owned, as far as the broker knows, and not settled. */
  *unsettled(): Iterable<Attempt> {
    const { handler, intake, outcomes } = this.options
    yield* intake.all()
    const isHeld = (attempt: Attempt) => !attempt.isSettled || outcomes.byHand.isDeciding(attempt)
    for (const attempt of handler.waiting.all()) if (isHeld(attempt)) yield attempt
    for (const attempt of outcomes.held()) if (isHeld(attempt)) yield attempt
  }

  demand(): Demand | undefined {
    const { holdings } = this
    this.refillAt = refillAt(holdings)
    return demandOf(holdings)
  }

  /** Whether the demand may have changed. */
  get isLow(): boolean {
    return this.options.intake.buffer.size <= this.refillAt
  }

  private get holdings(): Holdings {
    const { intake, now, perPermit, permits, prefetch, retries, settler, source } = this.options
    return {
      permits: permits.max,
      perPermit,
      prefetch: prefetch.current(now()),
      prefetchBytes: source.prefetchBytes,
      averageBytes: prefetch.averageBytes,
      buffered: intake.buffer.size,
      blocked: intake.blocked + intake.earlyCount,
      batched: intake.batched,
      maxBlocked: source.maxBlocked,
      owned: this.owned,
      delayed: retries.size + intake.earlyCount,
      due: retries.due,
      maxDelayed: source.waiting,
      unconfirmed: settler.unconfirmed,
      suspects: intake.suspects,
      isIsolating: intake.alone !== undefined
    }
  }
}
