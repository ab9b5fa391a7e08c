import type { Attempt } from "./attempt.ts"

/** All messages of one key that are in this process, or come back to it. */
interface Lane {
  readonly key: string
  /** Begun and not left. */
  active: number
  /** All that are active wait in an open batch: the next one may join them. */
  isBatching: boolean
  /** Behind the active ones, in order. */
  readonly blocked: Array<Attempt>
  /** Retries of this key that are waited for, in order, by their ids; the first one must come before anything else. */
  readonly retrying: Array<string>
  /** Retries that have come back before an earlier one of their key. */
  readonly returned: Map<string, Attempt>
}

/**
 * Keeps messages of one key in order and never in flight together, while other keys go on.
 *
 * A key has a lane only while messages of it are here, so that any number of distinct keys costs nothing.
 */
export class KeyedQueue {
  private readonly lanes = new Map<string, Lane>()
  /** The lanes of retries that are waited for, by their ids. */
  private readonly retrying = new Map<string, Lane>()
  private readonly keyOf: (attempt: Attempt) => string | undefined
  private readonly onReady: (attempt: Attempt) => void
  /** Messages behind another one of their key. */
  blocked = 0

  constructor(options: {
    /** `undefined`: no other message waits for this one. */
    readonly keyOf: (attempt: Attempt) => string | undefined
    /** Called with a message that was blocked and may begin. */
    readonly onReady: (attempt: Attempt) => void
  }) {
    this.keyOf = options.keyOf
    this.onReady = options.onReady
  }

  /** `true` when the message may begin as soon as there is a permit; otherwise it comes through `onReady`. */
  admit(attempt: Attempt): boolean {
    const { id } = attempt.delivery
    const waiting = this.retrying.get(id)
    if (waiting !== undefined) {
      attempt.key = waiting.key
      if (waiting.retrying[0] === id && waiting.active === 0) {
        this.begin(waiting)
        this.stopWaiting(waiting, id)
        return true
      }
      waiting.returned.set(id, attempt)
      this.blocked++
      return false
    }
    const key = this.keyOf(attempt)
    if (key === undefined) return true
    attempt.key = key
    const lane = this.laneFor(key)
    if (this.mayBegin(lane) && lane.retrying.length === 0 && lane.blocked.length === 0) {
      this.begin(lane)
      return true
    }
    lane.blocked.push(attempt)
    this.blocked++
    return false
  }

  /** The message waits in an open batch of its key: the next one of the key may join it. */
  joined(attempt: Attempt): void {
    const lane = this.laneOf(attempt)
    if (lane === undefined) return
    lane.isBatching = true
    this.next(lane)
  }

  /** The batch of a key is handed over: nothing joins it any more. */
  closed(key: string): void {
    const lane = this.lanes.get(key)
    if (lane !== undefined) lane.isBatching = false
  }

  /** The message has left this process. */
  left(attempt: Attempt): void {
    const lane = this.laneOf(attempt)
    if (lane === undefined) return
    lane.active--
    if (lane.active === 0) lane.isBatching = false
    this.next(lane)
  }

  /** The message comes again: its key waits for it. Call it before `left`; `gaveUp` ends the waiting. */
  retried(attempt: Attempt): void {
    const lane = this.laneOf(attempt)
    if (lane === undefined) return
    lane.retrying.push(attempt.delivery.id)
    this.retrying.set(attempt.delivery.id, lane)
  }

  /** A retry of an earlier process that is not due yet: its key waits until it is admitted. */
  expect(attempt: Attempt): void {
    // This process may have requested the retry itself, which then went to the earlier process.
    if (this.retrying.has(attempt.delivery.id)) return
    const key = this.keyOf(attempt)
    if (key === undefined) return
    const lane = this.laneFor(key)
    lane.retrying.push(attempt.delivery.id)
    this.retrying.set(attempt.delivery.id, lane)
  }

  /** The retry does not come back to this process. */
  gaveUp(id: string): void {
    const lane = this.retrying.get(id)
    if (lane === undefined) return
    this.stopWaiting(lane, id)
    this.next(lane)
  }

  /** Forgets a blocked message that a peer owns. */
  forget(attempt: Attempt): void {
    const lane = this.laneOf(attempt)
    if (lane === undefined) return
    const index = lane.blocked.indexOf(attempt)
    if (index >= 0) lane.blocked.splice(index, 1)
    else if (!lane.returned.delete(attempt.delivery.id)) return
    else this.stopWaiting(lane, attempt.delivery.id)
    this.blocked--
    this.next(lane)
  }

  /** All that is blocked, each key in its order. */
  *all(): Iterable<Attempt> {
    for (const lane of this.lanes.values()) {
      yield* lane.returned.values()
      yield* lane.blocked
    }
  }

  /** Takes all blocked messages out; keys whose retry is waited for go on waiting for it. */
  takeAll(): Array<Attempt> {
    const blocked = [...this.all()]
    this.blocked = 0
    for (const lane of this.lanes.values()) {
      lane.blocked.length = 0
      for (const id of lane.returned.keys()) this.stopWaiting(lane, id)
      lane.returned.clear()
      this.deleteIfEmpty(lane)
    }
    return blocked
  }

  private laneFor(key: string): Lane {
    let lane = this.lanes.get(key)
    if (lane === undefined) {
      lane = { key, active: 0, isBatching: false, blocked: [], retrying: [], returned: new Map() }
      this.lanes.set(key, lane)
    }
    return lane
  }

  private laneOf(attempt: Attempt): Lane | undefined {
    return attempt.key === undefined ? undefined : this.lanes.get(attempt.key)
  }

  private mayBegin(lane: Lane): boolean {
    return lane.active === 0 || lane.isBatching
  }

  private begin(lane: Lane): void {
    lane.active++
    lane.isBatching = false
  }

  private stopWaiting(lane: Lane, id: string): void {
    this.retrying.delete(id)
    const index = lane.retrying.indexOf(id)
    if (index >= 0) lane.retrying.splice(index, 1)
  }

  private next(lane: Lane): void {
    if (!this.mayBegin(lane)) return
    let attempt: Attempt | undefined
    const [first] = lane.retrying
    if (first === undefined) {
      attempt = lane.blocked.shift()
    } else {
      attempt = lane.returned.get(first)
      if (attempt === undefined) return
      lane.returned.delete(first)
      this.stopWaiting(lane, first)
    }
    if (attempt === undefined) return this.deleteIfEmpty(lane)
    this.blocked--
    this.begin(lane)
    this.onReady(attempt)
  }

  private deleteIfEmpty(lane: Lane): void {
    if (lane.active + lane.blocked.length + lane.retrying.length + lane.returned.size === 0) this.lanes.delete(lane.key)
  }
}
