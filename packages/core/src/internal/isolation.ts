import type { Delivery } from "../Transport.ts"
import type { Attempt } from "./attempt.ts"

/**
 * Keeps a message that crashes its process from taking others with it, at no cost for the usual crash.
 *
 * Only suspects (deliveries whose earlier one was never settled) are concerned. With `limit` allowed attempts, one at
 * attempt `a` has `limit - a` left after this one:
 *
 * - 3 or more: it runs like any other message
 * - 2: beside fresh messages, at most one such suspect in this process
 * - 1 or 0: alone; nothing else is owned or runs, and all settlements are confirmed. On a last attempt that is its third or
 *   a later one nothing of the other pipelines of the process runs either: see `Neighbours`
 *
 * A poison message takes its first two crashes with company. An innocent neighbour is then at most at its third attempt,
 * where the two can no longer meet, and the poison message crashes alone until its limit. A milder rule (alone with 0
 * left, one at a time with 1 left) lets an innocent message reach its limit beside two poison messages.
 */
export type Degree = "free" | "single" | "alone"

export class Isolation {
  private readonly limit: number
  /** The suspect that is to run alone, or does. */
  current: Attempt | undefined
  private since = 0

  /** `limit`: the allowed attempts. */
  constructor(limit: number) {
    this.limit = limit
  }

  degree(delivery: Delivery): Degree {
    if (!delivery.suspect || delivery.attempt < isolateFrom(this.limit)) return "free"
    return this.limit - delivery.attempt >= 2 ? "single" : "alone"
  }

  /** Whether a suspect has used all its attempts: it is dead-lettered unseen. */
  isExhausted({ attempt, suspect }: Delivery): boolean {
    // A pipeline without retries runs a suspect once more, alone: its handler may never have begun.
    return suspect && attempt > Math.max(2, this.limit)
  }

  /**
   * Whether a message that was never settled would be dead-lettered if it crashed now, and has crashed more than once: one
   * crash makes suspects of all that a process owned, and must not stop its other pipelines for each.
   */
  isLast({ attempt, suspect }: Delivery): boolean {
    return suspect && attempt === this.limit && attempt > 2
  }

  enter(attempt: Attempt, now: number): void {
    this.current = attempt
    this.since = now
  }

  /** Gives how many milliseconds the others get: as many as the suspect took, for a queue of suspects must not stop a pipeline. */
  leave(now: number): number {
    this.current = undefined
    return Math.min(maxRest, now - this.since)
  }
}

/** Suspects from this attempt on are isolated: see {@link Isolation}. */
export const isolateFrom = (limit: number): number => Math.max(2, limit - 2)

const maxRest = 30_000
