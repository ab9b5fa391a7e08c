import type * as Cause from "effect/Cause"
import type * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as DeadLetter from "../DeadLetter.ts"
import type { PublishError } from "../Publisher.ts"
import type { Delivery, Outgoing, Transport } from "../Transport.ts"
import { describe, type ErrorDetailOptions } from "./errorDetail.ts"
import { forms, historyOf } from "./letters.ts"
import type { Program } from "./program.ts"
import { publishUntilAnswered } from "./publish.ts"
import { traceOf } from "./traceContext.ts"
import { deadLetterTopic } from "./validate.ts"
import { sdk } from "./version.ts"

/** A dead letter that the broker refused: its message comes again, and its handler must not run again. */
export interface Refused {
  readonly cause: Cause.Cause<unknown>
  readonly reason: DeadLetter.DeadLetterReason
  readonly attempts: number
  readonly times: number
  /** How many letters had been stored when this one was refused first. */
  readonly storedBefore: number
}

/** Writes the dead letters of one pipeline. */
export class DeadLetterWriter {
  private readonly options: {
    readonly program: Program
    readonly topic: string
    readonly transport: Transport["Service"]
    readonly clock: Clock.Clock
    readonly errors: ErrorDetailOptions
  }
  private stored = 0
  private lastRefusal: { readonly since: number; readonly at: number; readonly reason: string } | undefined
  /** Of this process, by origin and id; a bound keeps a broker that refuses everything from filling the memory. */
  private readonly refused = new Map<string, Refused>()

  /** `undefined` where the pipeline discards. */
  static of(options: Omit<DeadLetterWriter["options"], "topic">): DeadLetterWriter | undefined {
    const topic = deadLetterTopic(options.program)
    return topic === undefined ? undefined : new DeadLetterWriter({ ...options, topic })
  }

  private constructor(options: DeadLetterWriter["options"]) {
    this.options = options
  }

  /**
   * Ends when the broker has confirmed the letter: whole, else with a short record, else in two pieces where one would be
   * too large. While the broker cannot be reached it waits. Fails when the broker refuses the letter, and remembers that.
   */
  write(
    delivery: Delivery,
    cause: Cause.Cause<unknown>,
    reason: DeadLetter.DeadLetterReason,
    attempts: number
  ): Effect.Effect<void, PublishError> {
    return Effect.suspend(() => {
      const { clock, errors, program, topic } = this.options
      const failedAt = clock.currentTimeMillisUnsafe()
      const firstFailedAt = delivery.firstFailedAt ?? (delivery.attempt === 1 ? failedAt : undefined)
      const trace = traceOf(delivery)
      const record = new DeadLetter.Record({
        version: 1,
        sdk,
        topic: delivery.topic,
        id: delivery.id,
        group: program.source.group,
        pipeline: program.name,
        reason,
        attempts,
        publishedAt: delivery.publishedAt,
        ...(firstFailedAt === undefined ? {} : { firstFailedAt }),
        failedAt,
        error: describe(cause, errors),
        ...(trace === undefined ? {} : { trace }),
        history: historyOf(delivery.headers)
      })
      const key = keyOf(delivery)
      return this.publishFitting(forms(topic, delivery, record)).pipe(
        Effect.tap(() =>
          Effect.sync(() => {
            this.stored++
            this.lastRefusal = undefined
            this.refused.delete(key)
          })
        ),
        Effect.tapError(({ message, reason: { _tag } }) =>
          Effect.sync(() => {
            const { storedBefore, times } = this.refused.get(key) ?? { storedBefore: this.stored, times: 0 }
            // Others were stored since: the broker refuses this letter for its content, and will take the next ones.
            const isAlone = this.stored > storedBefore
            if (!isAlone && (_tag === "Refused" || _tag === "Unauthorized")) {
              const at = clock.currentTimeMillisUnsafe()
              const since = this.refusal?.since ?? at
              this.lastRefusal = { since, at, reason: `dead letters are not stored: ${message}` }
            }
            this.refused.delete(key)
            this.refused.set(key, { cause, reason, attempts, times: times + 1, storedBefore })
            if (this.refused.size > maxRefused) this.refused.delete(this.refused.keys().next().value!)
          })
        )
      )
    })
  }

  /** Publishes the first form that the broker takes; a limit on headers shows as a refusal. */
  private publishFitting(
    [form, ...smaller]: ReadonlyArray<ReadonlyArray<Outgoing>>
  ): Effect.Effect<void, PublishError> {
    const published = Effect.forEach(form ?? [], (part) => publishUntilAnswered(this.options.transport, part), {
      discard: true
    })
    if (smaller.length === 0) return published
    return Effect.catch(published, (error) =>
      error.reason._tag === "TooLarge" || error.reason._tag === "Refused"
        ? Effect.catch(this.publishFitting(smaller), (last) =>
          // The first refusal says why; a smaller form may be refused for what it is.
          Effect.fail(last.reason._tag === "TooLarge" ? last : error))
        : Effect.fail(error))
  }

  /** The refused letter of a message that has come again. */
  pending(delivery: Delivery): Refused | undefined {
    return this.refused.size === 0 ? undefined : this.refused.get(keyOf(delivery))
  }

  /**
   * Since when the broker refuses letters, and its words. `undefined` when it has stored one since, or when no letter was
   * refused for two minutes. A letter that is refused again after others were stored does not count.
   */
  get refusal(): { readonly since: number; readonly reason: string } | undefined {
    const { at = -Infinity, reason = "", since = 0 } = this.lastRefusal ?? {}
    return this.options.clock.currentTimeMillisUnsafe() - at > 2 * maxBackoff ? undefined : { since, reason }
  }

  /** How long a message whose letter was refused waits until the letter is tried again. */
  backoff(delivery: Delivery): Duration.Duration {
    const times = this.pending(delivery)?.times ?? 1
    return Duration.millis(Math.min(maxBackoff, 1000 * 2 ** (times - 1)))
  }
}

const keyOf = ({ id, origin }: Delivery): string => `${origin}/${id}`

const maxRefused = 10_000

/** In milliseconds. */
const maxBackoff = 60_000
