import type { Attempt } from "./attempt.ts"

/** All messages of one key that are in this process, or come back to it. */
interface Lane {
  readonly key: string
  /** Begun and not left. */
  active: number
  /** Those of them that wait in an open batch: where all do, the next one may join them. */
  readonly batched: Set<Attempt>
  /** How many places have been given. */
  places: number
  /** Behind the active ones, by their places: nothing begins before the first one. */
  waiting: Array<Waiting>
}

interface Waiting {
  readonly id: string
  readonly lane: Lane
  /** The place of its message among those of the key: a message that fails keeps it for its retry. */
  readonly place: number
  /** `undefined`: it has not come back. */
  attempt: Attempt | undefined
}

/**
 * Keeps messages of one key in order and never in flight together, while other keys go on.
 *
 * A key has a lane only while messages of it are here, so that any number of distinct keys costs nothing.
 */
export class KeyedQueue {
  private readonly lanes = new Map<string, Lane>()
  /** Retries, and messages that were lost and may return, by their ids: they have not come back. */
  private readonly retries = new Map<string, Waiting>()
  private readonly keyOf: (attempt: Attempt) => string | undefined
  private readonly onReady: (attempt: Attempt) => void
  private readonly onBatched: () => void
  /** Messages behind another one of their key. */
  blocked = 0
  /** Messages in an open batch of their key. */
  batched = 0

  constructor(options: {
    /** `undefined`: no other message waits for this one. */
    readonly keyOf: (attempt: Attempt) => string | undefined
    /** Called with a message that was blocked and may begin. */
    readonly onReady: (attempt: Attempt) => void
    /** Called when a message waits in an open batch. */
    readonly onBatched: () => void
  }) {
    this.keyOf = options.keyOf
    this.onReady = options.onReady
    this.onBatched = options.onBatched
  }

  /** `true` when the message may begin as soon as there is a permit; otherwise it comes through `onReady`. */
  admit(attempt: Attempt): boolean {
    const waiting = this.retries.get(attempt.delivery.id) ?? this.entered(attempt)
    if (waiting === undefined) return true
    const { lane } = waiting
    this.retries.delete(waiting.id)
    attempt.key = lane.key
    attempt.place = waiting.place
    if (lane.waiting[0] === waiting && this.mayBegin(lane)) {
      this.begin(lane)
      return true
    }
    waiting.attempt = attempt
    this.blocked++
    return false
  }

  /** The message waits in an open batch of its key: the next one of the key may join it. */
  joined(attempt: Attempt): void {
    const lane = this.laneOf(attempt)
    if (lane === undefined) return
    this.batched++
    lane.batched.add(attempt)
    this.next(lane)
    this.onBatched()
  }

  /** The message waits in no open batch any more: the batch is handed over, or the message was taken from it. */
  parted(attempt: Attempt): void {
    if (this.laneOf(attempt)?.batched.delete(attempt) === true) this.batched--
  }

  /** The message has left this process. */
  left(attempt: Attempt): void {
    const lane = this.laneOf(attempt)
    if (lane === undefined) return
    lane.active--
    this.parted(attempt)
    this.next(lane)
  }

  /** The message comes again: its key waits for it. Call it before `left`; `gaveUp` ends the waiting. */
  retried(attempt: Attempt): void {
    const lane = this.laneOf(attempt)
    const { delivery: { id }, place } = attempt
    if (lane === undefined || this.retries.has(id)) return
    const retry = { id, lane, place, attempt: undefined }
    const at = lane.waiting.findIndex((other) => other.place > place)
    lane.waiting.splice(at < 0 ? lane.waiting.length : at, 0, retry)
    this.retries.set(id, retry)
  }

  /** A retry of an earlier process that is not due yet: its key waits until it is admitted. */
  expect(attempt: Attempt): void {
    // This process may have requested the retry itself, which then went to the earlier process.
    if (this.retries.has(attempt.delivery.id)) return
    const retry = this.entered(attempt)
    if (retry !== undefined) this.retries.set(retry.id, retry)
  }

  /** Whether the key of this message waits for it. */
  awaits(id: string): boolean {
    return this.retries.has(id)
  }

  /** The retry does not come back to this process. */
  gaveUp(id: string): void {
    const retry = this.retries.get(id)
    if (retry === undefined) return
    this.retries.delete(id)
    this.remove(retry)
  }

  /** Forgets a blocked message that a peer owns. */
  forget(attempt: Attempt): void {
    const waiting = this.laneOf(attempt)?.waiting.find((other) => other.attempt === attempt)
    if (waiting === undefined) return
    this.blocked--
    this.remove(waiting)
  }

  /** All that is blocked, each key in its order. */
  *all(): Iterable<Attempt> {
    for (const { waiting } of this.lanes.values()) {
      for (const { attempt } of waiting) if (attempt !== undefined) yield attempt
    }
  }

  /** Takes all blocked messages out; keys whose retry is waited for go on waiting for it. */
  takeAll(): Array<Attempt> {
    const blocked = [...this.all()]
    this.blocked = 0
    for (const lane of this.lanes.values()) {
      lane.waiting = lane.waiting.filter(({ attempt }) => attempt === undefined)
      this.deleteIfEmpty(lane)
    }
    return blocked
  }

  /** Gives a message the last place of its key; `undefined` when it has none. */
  private entered(attempt: Attempt): Waiting | undefined {
    const key = this.keyOf(attempt)
    if (key === undefined) return undefined
    let lane = this.lanes.get(key)
    if (lane === undefined) {
      lane = { key, active: 0, batched: new Set(), places: 0, waiting: [] }
      this.lanes.set(key, lane)
    }
    const waiting = { id: attempt.delivery.id, lane, place: lane.places++, attempt: undefined }
    lane.waiting.push(waiting)
    return waiting
  }

  private laneOf(attempt: Attempt): Lane | undefined {
    return attempt.key === undefined ? undefined : this.lanes.get(attempt.key)
  }

  private mayBegin(lane: Lane): boolean {
    return lane.active === lane.batched.size
  }

  /** Begins the first one that waits. */
  private begin(lane: Lane): void {
    lane.waiting.shift()
    lane.active++
  }

  private remove(waiting: Waiting): void {
    const { lane } = waiting
    lane.waiting.splice(lane.waiting.indexOf(waiting), 1)
    this.next(lane)
  }

  private next(lane: Lane): void {
    if (!this.mayBegin(lane)) return
    const attempt = lane.waiting[0]?.attempt
    if (attempt === undefined) return this.deleteIfEmpty(lane)
    this.blocked--
    this.begin(lane)
    this.onReady(attempt)
  }

  private deleteIfEmpty(lane: Lane): void {
    if (lane.active + lane.waiting.length === 0) this.lanes.delete(lane.key)
  }
}
