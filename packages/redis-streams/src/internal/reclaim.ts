import type * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type { DelayedRetries } from "./delayedRetries.ts"
import { type EntryReader, type Facts, type RawEntry, RedisDelivery } from "./entry.ts"
import type { Inbox } from "./inbox.ts"
import type { LeaseOptions } from "./leases.ts"
import { list, text } from "./reply.ts"
import * as claims from "./scripts/claim.ts"
import { evalsha } from "./scripts/script.ts"
import type { Server } from "./server.ts"

/** Entries that one call takes at most. */
const maxClaimed = 256

/** Retries of other processes that wait here at most; the rest stay where they are until there is room. */
const maxInherited = 10_000

export interface ReclaimOptions extends LeaseOptions {
  readonly isolateFrom: number
  readonly ordered: boolean
  readonly server: Server
  readonly inbox: Inbox
  /** Retries of other processes. */
  readonly inherited: DelayedRetries
  /** Whether a retry waits in this process. */
  readonly isWaiting: (id: string) => boolean
  readonly entries: EntryReader
  readonly origin: () => string
  readonly clock: Clock.Clock
}

interface Candidate {
  readonly id: string
  readonly count: number
  readonly how: "lost" | "unsettled"
  readonly delivery: RedisDelivery | undefined
}

/** What one subscription takes back: releases, entries of dead consumers, and its own that were not settled. */
export class Reclaim {
  /** Set by the first look: until then nothing unread may be read, since something older may be there. */
  hasLooked = false
  /** Isolated suspects that were left at the server. */
  isolatedLeft = 0
  private isClaimable = false
  private cursor: readonly [consumer: string, id: string] = ["", ""]
  private candidates: ReadonlyArray<Candidate> = []
  /** Own ones that are to be isolated, and wait until the engine takes one. */
  private isolated: ReadonlyArray<Candidate> = []
  private lookedAtOwn = -Infinity
  private fullLookAt: number
  private seesAll = false
  private readonly options: ReclaimOptions

  constructor(options: ReclaimOptions) {
    this.options = options
    this.fullLookAt = performance.now() + options.minIdle * Math.random()
  }

  /** Something older than whatever is unread may be taken now. */
  get isReady(): boolean {
    const { inbox } = this.options
    if (inbox.freshRoom === 0) return false
    return this.candidates.length > 0 || this.isClaimable ||
      this.isolatedLeft + this.isolated.length > 0 && inbox.suspectRoom > 0
  }

  /** Something older than whatever is unread is there, isolated suspects apart. */
  get isAhead(): boolean {
    return !this.hasLooked || this.isClaimable || this.candidates.length > 0
  }

  /** A look at the server, or this process itself, knows of something to claim. */
  found(): void {
    this.isClaimable = true
  }

  /** Takes what there is room for. Resolves to ids whose entries are gone. */
  readonly take: Effect.Effect<ReadonlyArray<string>, Error> = Effect.suspend(() =>
    this.candidates.length > 0 || this.isolated.length > 0 && this.options.inbox.suspectRoom > 0
      ? this.takeBack
      : this.claim
  )

  private readonly claim: Effect.Effect<ReadonlyArray<string>, Error> = Effect.suspend(() => {
    const { consumer, dues, group, inbox, inherited, isWaiting, key, minIdle, ordered, server } = this.options
    const command = evalsha(claims.claim, [key, dues], [
      group,
      consumer,
      String(minIdle),
      String(Math.min(inbox.freshRoom, maxClaimed)),
      String(Math.max(0, maxInherited - inherited.size)),
      String(inbox.suspectRoom),
      this.isolateFromArgument,
      String(inbox.byteRoom),
      this.seesAll ? "1" : "0",
      ...this.cursor,
      ordered ? "1" : "0"
    ])
    return Effect.map(server.control.one(key, command), (reply) => {
      const [, waiting, , left, consumer, id] = list(reply)
      for (const entry of list(waiting)) {
        const [id, ms] = list(entry)
        if (!isWaiting(text(id))) inherited.add(text(id), Number(ms))
      }
      const isNew = this.cursor[0] === ""
      this.cursor = [text(consumer), text(id)]
      this.isClaimable = this.cursor[0] !== ""
      this.isolatedLeft = isNew ? Number(left) : this.isolatedLeft + Number(left)
      if (!this.isClaimable) this.seesAll = false
      return this.accept(reply)
    })
  })

  /** As scripts take it: Lua reads no "Infinity". */
  private get isolateFromArgument(): string {
    const { isolateFrom } = this.options
    return Number.isFinite(isolateFrom) ? String(isolateFrom) : "1e300"
  }

  private accept(reply: unknown): ReadonlyArray<string> {
    const now = performance.now()
    const [given, , gone] = list(reply)
    this.options.inbox.put(list(given).map((entry) => this.read(entry, now)), now)
    return list(gone).map(text)
  }

  private read(entry: unknown, now: number): RedisDelivery {
    const { clock, entries, isolateFrom, origin } = this.options
    const [id, fields, attempt, suspect, failed, count, left] = list(entry)
    const isSuspect = suspect === 1
    const facts: Facts = {
      attempt: Number(attempt),
      redelivered: true,
      suspect: isSuspect,
      firstFailedAt: firstFailure(failed),
      due: left === undefined ? undefined : clock.currentTimeMillisUnsafe() + Number(left),
      count: Number(count),
      arrival: isSuspect && Number(attempt) >= isolateFrom ? "isolated" : "fresh",
      isFirstHand: false
    }
    return entries.read(origin(), rawEntry(id, fields), now, facts)
  }

  // --- its own

  /** Whether it is time to look for own entries that were not settled. */
  get wantsOwnLook(): boolean {
    return this.candidates.length === 0 &&
      performance.now() - this.lookedAtOwn > Math.max(100, this.options.minIdle / 3)
  }

  /** Whether it is time to look at the entries of consumers that live, which may have left some behind. */
  get wantsFullLook(): boolean {
    return performance.now() > this.fullLookAt
  }

  /** Costs in proportion to what is pending: so not more often than once in the claim time, and a fiftieth of the time. */
  readonly lookAtAll: Effect.Effect<void, Error> = Effect.suspend(() => {
    const { consumer, group, key, minIdle, server } = this.options
    const began = performance.now()
    this.fullLookAt = began + minIdle
    return Effect.map(
      server.control.one(key, ["XPENDING", key, group, "IDLE", String(minIdle), "-", "+", "1"]),
      (reply) => {
        const now = performance.now()
        this.fullLookAt = now + Math.max(1_000, minIdle, 50 * (now - began)) * (0.5 + Math.random() / 2)
        const owner = list(list(reply)[0])[1]
        if (owner !== undefined && text(owner) !== consumer) this.seesAll = this.isClaimable = true
      }
    )
  })

  /**
   * Looks for own entries that were neither settled nor extended for the claim time. One that the engine has must be found
   * by two looks a heartbeat apart: the process may have stood still. One that it does not have was lost with a
   * connection, unless a read that may bring it is still under way.
   */
  readonly lookAtOwn = (isReading: boolean): Effect.Effect<void, Error> =>
    Effect.suspend(() => {
      const { consumer, group, inbox, isolateFrom, isWaiting, key, minIdle, server } = this.options
      this.lookedAtOwn = performance.now()
      return Effect.map(
        server.control.one(key, ["XPENDING", key, group, "IDLE", String(minIdle), "-", "+", "100", consumer]),
        (reply) => {
          const now = performance.now()
          const found: Array<Candidate> = []
          for (const entry of list(reply)) {
            const [rawId, , idle, count] = list(entry)
            const id = text(rawId)
            if (isWaiting(id) || inbox.has(id)) continue
            const delivery = inbox.outstanding.find(id)
            if (delivery === undefined) {
              // Delivered before this process began: a process of the same name had it, and may have died of it.
              const how = Number(idle) > now ? "unsettled" : "lost"
              if (!isReading) found.push({ id, count: Number(count), how, delivery })
              continue
            }
            const state = RedisDelivery.state(delivery)
            if (state.isSettling || state.count !== Number(count)) continue
            const isSure = state.unsettledAt > 0 && now - state.unsettledAt >= minIdle / 3
            if (state.unsettledAt === 0 || now - state.unsettledAt > 2 * minIdle) state.unsettledAt = now
            else if (isSure) found.push({ id, count: Number(count), how: "unsettled", delivery })
          }
          const isIsolated = ({ count, how }: Candidate) => how === "unsettled" && count + 1 >= isolateFrom
          this.candidates = found.filter((candidate) => !isIsolated(candidate))
          this.isolated = found.filter(isIsolated)
        }
      )
    })

  /** Looks for own entries after `lastRead` that never arrived: the connection of their read is gone. */
  lookForLost(lastRead: string): Effect.Effect<void, Error> {
    const { consumer, group, inbox, isWaiting, key, server } = this.options
    return Effect.map(
      server.control.one(key, ["XPENDING", key, group, `(${lastRead}`, "+", String(maxInherited), consumer]),
      (reply) => {
        const found: Array<Candidate> = []
        for (const entry of list(reply)) {
          const [rawId, , , count] = list(entry)
          const id = text(rawId)
          if (isWaiting(id) || inbox.has(id) || inbox.outstanding.find(id) !== undefined) continue
          found.push({ id, count: Number(count), how: "lost", delivery: undefined })
        }
        this.candidates = found
      }
    )
  }

  private readonly takeBack: Effect.Effect<ReadonlyArray<string>, Error> = Effect.suspend(() => {
    const { consumer, dues, group, inbox, key, minIdle, server } = this.options
    const { freshRoom, suspectRoom } = inbox
    const suspects = this.isolated.slice(0, Math.min(freshRoom, suspectRoom))
    const taken = [...suspects, ...this.candidates.slice(0, freshRoom - suspects.length)]
    this.isolated = this.isolated.slice(suspects.length)
    // Those that found no room are found again by the next look.
    this.candidates = []
    if (taken.length === 0) return Effect.succeed([])
    const args = taken.flatMap(({ count, how, id }) => [id, String(count), how])
    const command = evalsha(
      claims.takeBack,
      [key, dues],
      [group, consumer, String(minIdle), this.isolateFromArgument, ...args]
    )
    return Effect.map(server.control.one(key, command), (reply) => {
      const given = new Set(list(list(reply)[0]).map((entry) => text(list(entry)[0])))
      for (const { delivery, id } of taken) {
        if (delivery === undefined || !given.has(id)) continue
        RedisDelivery.state(delivery).isSuperseded = true
        inbox.outstanding.delete(delivery)
      }
      return this.accept(reply)
    })
  })
}

export const firstFailure = (at: unknown): number | undefined => {
  const millis = Number(at === undefined || at === null ? "" : text(at))
  return millis > 0 ? millis : undefined
}

export const rawEntry = (id: unknown, fields: unknown): RawEntry => [
  Buffer.isBuffer(id) ? id : Buffer.from(String(id)),
  list(fields).map((field) => Buffer.isBuffer(field) ? field : Buffer.from(String(field)))
]
