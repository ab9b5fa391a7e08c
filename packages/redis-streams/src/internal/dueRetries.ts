import * as Effect from "effect/Effect"
import { ErrorReply } from "redis"
import type { DelayedRetries } from "./delayedRetries.ts"
import type { Facts, RawEntry } from "./entry.ts"
import type { Lease, LeaseOptions } from "./leases.ts"
import { firstFailure, rawEntry } from "./reclaim.ts"
import { list, text } from "./reply.ts"
import { hand } from "./scripts/hand.ts"
import { evalsha } from "./scripts/script.ts"
import { chunk } from "./scripts/settle.ts"
import type { Server } from "./server.ts"
import type { WaitingRetries } from "./waitingRetries.ts"

/** A retry whose time has come, and whose attempt is counted. */
interface Due {
  readonly entry: RawEntry
  readonly facts: Omit<Facts, "arrival">
}

/** Asks the server for retries whose time has come. */
export class DueRetries {
  private readonly server: Server
  private readonly options: LeaseOptions
  private readonly waiting: WaitingRetries
  /** Retries that were requested, and whose answer did not arrive. */
  private readonly unanswered = new Set<string>()

  constructor(server: Server, options: LeaseOptions, waiting: WaitingRetries) {
    this.server = server
    this.options = options
    this.waiting = waiting
  }

  /** Takes as many as there is room for. Resolves to them, and to ids whose entries are gone. */
  take(
    retries: DelayedRetries,
    room: number,
    lease: Lease
  ): Effect.Effect<{ readonly entries: ReadonlyArray<Due>; readonly gone: ReadonlyArray<string> }, Error> {
    const ids = retries.take(Math.min(room, chunk))
    const { consumer, dues, group, key } = this.options
    const asked = ids.flatMap((id) => [id, this.unanswered.has(id) ? "1" : "0"])
    return this.server.control.one(key, evalsha(hand, [key, dues], [group, consumer, lease, ...asked])).pipe(
      Effect.tapError((error) =>
        Effect.sync(() => {
          // What the server refuses, it refuses before it counts.
          if (!(error instanceof ErrorReply)) { for (const id of ids) this.unanswered.add(id) }
          retries.putBack(ids)
        })
      ),
      Effect.map((reply) => {
        for (const id of ids) this.unanswered.delete(id)
        retries.forget(ids)
        const [given, gone] = list(reply)
        const entries = list(given).map((entry): Due => {
          const [id, fields, attempt, failed] = list(entry)
          return {
            entry: rawEntry(id, fields),
            facts: {
              attempt: Number(attempt),
              redelivered: true,
              suspect: false,
              firstFailedAt: firstFailure(failed),
              due: undefined,
              count: Number(attempt),
              isFirstHand: this.waiting.superseded(text(id))
            }
          }
        })
        this.waiting.left(ids)
        return { entries, gone: list(gone).map(text) }
      })
    )
  }
}
