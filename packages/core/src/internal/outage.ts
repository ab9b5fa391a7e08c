import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { oneLine } from "./printable.ts"
import type { Health } from "./running.ts"

/** The outages of one broker, as the pipelines on it see them: one line at the beginning, one at the end. */
export class Outages {
  private readonly label: string
  private readonly affected = new Set<object>()
  /** By reason, when it was first seen in this outage. */
  private readonly reasons = new Map<string, number>()
  private readonly logged = new Set<string>()
  private since = 0
  private most = 0

  private static readonly all = new WeakMap<object, Outages>()

  /** The outages that all pipelines on one transport share. */
  static of(transport: { readonly name: string; readonly address: string }): Outages {
    let outages = Outages.all.get(transport)
    if (outages === undefined) Outages.all.set(transport, outages = new Outages(labelOf(transport)))
    return outages
  }

  private constructor(label: string) {
    this.label = label
  }

  /** What to log about the health that a pipeline has now; `now` in milliseconds since the epoch. */
  saw(pipeline: object, name: string, health: Health, now: number): Effect.Effect<void> {
    if (health.state !== "reconnecting" && health.state !== "impaired") return this.ended(pipeline, now)
    const isNew = this.affected.size === 0
    if (isNew) {
      this.since = health.since > 0 ? health.since : now
      this.most = 0
      this.reasons.clear()
      this.logged.clear()
    }
    this.affected.add(pipeline)
    this.most = Math.max(this.most, this.affected.size)
    const reason = health.reason ?? (health.state === "reconnecting" ? "no connection" : "the broker refuses something")
    // Most of what follows is a consequence; another reason that lasts is news.
    const seenAt = this.reasons.get(reason) ?? now
    if (this.reasons.size < maxReasons) this.reasons.set(reason, seenAt)
    if (this.logged.has(reason) || (!isNew && now - seenAt < newsAfter)) return Effect.void
    this.logged.add(reason)
    return Effect.logWarning(`${this.label}: ${oneLine(name)} cannot consume: ${oneLine(reason)}`).pipe(
      Effect.annotateLogs({ pipeline: name, state: health.state, reason })
    )
  }

  private ended(pipeline: object, now: number): Effect.Effect<void> {
    if (!this.affected.delete(pipeline) || this.affected.size > 0) return Effect.void
    const lasted = Duration.format(Duration.seconds(Math.max(1, Math.round((now - this.since) / 1000))))
    const who = this.most === 1 ? "1 pipeline" : `${this.most} pipelines`
    return Effect.logInfo(`${this.label}: consuming again after ${lasted} (${who} affected)`)
  }

  /** The pipeline has stopped. */
  left(pipeline: object): void {
    this.affected.delete(pipeline)
  }
}

/** A broker as logs name it. */
export const labelOf = ({ address, name }: { readonly name: string; readonly address: string }): string =>
  address === undefined || address === name ? name : address.includes("://") ? address : `${name} at ${address}`

/** In one outage. */
const maxReasons = 5

/** In milliseconds: a reason that passes sooner is a part of the outage that was logged. */
const newsAfter = 10_000
