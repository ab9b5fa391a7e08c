import type * as Message from "../Message.ts"
import type { Attempt } from "./attempt.ts"

/** All messages of one key that are in this process: one is on its way, the others stand behind it. */
interface Lane {
  readonly key: string
  readonly parked: Array<Attempt>
  /** The id of a head that waits for its retry, without a slot: only its own key waits with it. */
  retrying: string | undefined
  /** Takes the place of a head that does not come back here. */
  giveUp: (() => void) | undefined
}

/**
 * Keeps messages of one key in order and never in flight together, while other keys go on.
 *
 * A key has a lane only while messages of it are here, so that any number of distinct keys costs nothing.
 */
export class Lanes {
  private readonly keyOf: (message: Message.Any) => string | undefined
  private readonly lanes = new Map<string, Lane>()
  private readonly retrying = new Map<string, Lane>()
  private readonly whenPatienceEnds: (delay: number, f: () => void) => () => void
  private readonly onReady: (attempt: Attempt) => void
  /** Standing behind another message of their key. */
  parked = 0

  constructor(options: {
    readonly key: (message: Message.Any) => string | undefined
    readonly whenPatienceEnds: (delay: number, f: () => void) => () => void
    readonly onReady: (attempt: Attempt) => void
  }) {
    this.keyOf = options.key
    this.whenPatienceEnds = options.whenPatienceEnds
    this.onReady = options.onReady
  }

  /** `true` when it may begin as soon as there is a slot; otherwise it is parked and comes through `onReady`. */
  admit(attempt: Attempt): boolean {
    const head = this.retrying.get(attempt.delivery.id)
    if (head !== undefined) {
      this.unblock(head)
      attempt.lane = head.key
      return true
    }
    const key = attempt.keyBy(this.keyOf)
    if (key === undefined) return true
    attempt.lane = key
    const lane = this.lanes.get(key)
    if (lane === undefined) {
      this.lanes.set(key, { key, parked: [], retrying: undefined, giveUp: undefined })
      return true
    }
    lane.parked.push(attempt)
    this.parked++
    return false
  }

  /** The message has left this process: the next of its key may begin. */
  ended(attempt: Attempt): void {
    const lane = this.laneOf(attempt)
    if (lane !== undefined && lane.retrying === undefined) this.next(lane)
  }

  /** It comes again after `delay`: its key waits for it, but not for ever, for a peer may have been given it. */
  retried(attempt: Attempt, delay: number): void {
    const lane = this.laneOf(attempt)
    if (lane === undefined) return
    lane.retrying = attempt.delivery.id
    this.retrying.set(lane.retrying, lane)
    lane.giveUp = this.whenPatienceEnds(delay, () => {
      this.unblock(lane)
      this.next(lane)
    })
  }

  /** Forgets one that a peer has taken. */
  forget(attempt: Attempt): void {
    const lane = this.laneOf(attempt)
    const index = lane?.parked.indexOf(attempt) ?? -1
    if (index < 0) return
    lane!.parked.splice(index, 1)
    this.parked--
  }

  /** All that is parked, each key in its order. */
  *all(): Iterable<Attempt> {
    for (const lane of this.lanes.values()) yield* lane.parked
  }

  /** Hands everything back but `head`; keys whose head waits for a retry go on waiting for it. */
  handBack(head: Attempt | undefined): Array<Attempt> {
    const parked = [...this.all()]
    this.parked = 0
    for (const lane of this.lanes.values()) {
      lane.parked.length = 0
      if (lane.retrying === undefined && lane.key !== head?.lane) this.lanes.delete(lane.key)
    }
    return parked
  }

  close(): void {
    for (const lane of this.lanes.values()) lane.giveUp?.()
  }

  private laneOf(attempt: Attempt): Lane | undefined {
    return attempt.lane === undefined ? undefined : this.lanes.get(attempt.lane)
  }

  private unblock(lane: Lane): void {
    this.retrying.delete(lane.retrying!)
    lane.retrying = undefined
    lane.giveUp?.()
    lane.giveUp = undefined
  }

  private next(lane: Lane): void {
    const attempt = lane.parked.shift()
    if (attempt === undefined) {
      this.lanes.delete(lane.key)
      return
    }
    this.parked--
    this.onReady(attempt)
  }
}
