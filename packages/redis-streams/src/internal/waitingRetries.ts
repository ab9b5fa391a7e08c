import { DelayedRetries } from "./delayedRetries.ts"
import { type DeliveryState, RedisDelivery } from "./entry.ts"

/** A retry whose earlier delivery this process had, and no other consumer ever did. */
interface FirstHand {
  readonly attempt: number
  readonly state: DeliveryState
}

/** Retries that wait in this process: its own, and those of processes that are gone. */
export class WaitingRetries {
  readonly own: DelayedRetries
  readonly inherited: DelayedRetries
  private readonly firstHand = new Map<string, FirstHand>()

  constructor(onDue: () => void) {
    this.own = new DelayedRetries(onDue)
    this.inherited = new DelayedRetries(onDue)
  }

  get size(): number {
    return this.own.size + this.inherited.size
  }

  get ids(): ReadonlyArray<string> {
    return [...this.own.ids, ...this.inherited.ids]
  }

  has(id: string): boolean {
    return this.own.has(id) || this.inherited.has(id)
  }

  /** A retry that this process requested waits so many milliseconds. */
  add(delivery: RedisDelivery, millis: number): void {
    const state = RedisDelivery.state(delivery)
    if (state.isFirstHand) this.firstHand.set(delivery.id, { attempt: delivery.attempt, state })
    this.own.add(delivery.id, millis)
  }

  /** The attempts so far, where no other consumer ever had it. */
  attemptOf(id: string): number | undefined {
    return this.firstHand.get(id)?.attempt
  }

  /** It is given out again: a settlement of the earlier delivery may still be on its way, and would take it back. */
  superseded(id: string): boolean {
    const earlier = this.firstHand.get(id)
    if (earlier === undefined) return false
    earlier.state.isSuperseded = true
    return true
  }

  /** The server has answered about them: they do not wait any more. */
  left(ids: Iterable<string>): void {
    for (const id of ids) this.firstHand.delete(id)
  }

  forget(ids: ReadonlySet<string>): void {
    this.own.forget(ids)
    this.inherited.forget(ids)
    this.left(ids)
  }

  /** Stops waiting; gives what has waited. */
  stop(): ReadonlyArray<string> {
    return [...this.own.stop(), ...this.inherited.stop()]
  }
}
