import type { Demand } from "@millrace/core/Transport"
import type { TransportError } from "@millrace/core/TransportError"
import type * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import { Outstanding, RedisDelivery } from "./entry.ts"

type Resume = (effect: Effect.Effect<Arr.NonEmptyReadonlyArray<RedisDelivery>, TransportError>) => void

/** One read asks for about this many bytes at most: a larger reply would hold up whatever else its connection carries. */
const maxReadBytes = 4 * 1024 * 1024

/** Until the first entries have shown how large they are. */
const assumedBytes = 32 * 1024

/** What has arrived and the engine has not pulled yet, what it has pulled and not settled, and what it still wants. */
export class Inbox {
  readonly outstanding = new Outstanding()
  failure: TransportError | undefined
  /** When what is here began to be here, or was last extended, on the clock of `performance.now`. */
  keptAt = 0
  /** Nothing may be requested: before the first pull, and after `withdraw`. */
  isWithdrawn = true
  /** Something older was released: what is here goes back too, so that the order stays. Retries are not concerned. */
  isHeld = false
  private buffer: Array<RedisDelivery> = []
  private waiter: { readonly resume: Resume; readonly demand: Demand } | undefined
  private total = 0
  private freshLeft = 0
  private suspectsLeft = 0
  private bytesLeft = 0
  private averageBytes = assumedBytes

  get size(): number {
    return this.buffer.length
  }

  get deliveries(): ReadonlyArray<RedisDelivery> {
    return this.buffer
  }

  get isWaitedFor(): boolean {
    return this.waiter !== undefined
  }

  /** How many retries of this process are wanted. */
  get retryRoom(): number {
    return Math.max(0, this.total)
  }

  /** How many others are wanted. */
  get freshRoom(): number {
    return Math.max(0, Math.min(this.total, this.freshLeft))
  }

  get suspectRoom(): number {
    return Math.max(0, this.suspectsLeft)
  }

  get byteRoom(): number {
    return Math.max(1, Math.min(this.bytesLeft, maxReadBytes))
  }

  /** How many to read at once, so that they take no more bytes than they may. */
  get readRoom(): number {
    const { freshRoom } = this
    if (freshRoom === 0 || this.bytesLeft <= 0 && this.buffer.length > 0) return 0
    return Math.min(freshRoom, Math.max(1, Math.floor(this.byteRoom / this.averageBytes)))
  }

  has(id: string): boolean {
    return this.buffer.some((delivery) => delivery.id === id)
  }

  /** Replaces what was wanted before. */
  pull(demand: Demand, resume: Resume): void {
    if (this.failure !== undefined) return resume(Effect.fail(this.failure))
    this.isWithdrawn = false
    this.waiter = { demand, resume }
    this.total = demand.total
    this.freshLeft = demand.fresh
    this.suspectsLeft = demand.suspects
    this.bytesLeft = demand.bytes
    for (const delivery of this.buffer) this.count(delivery)
    this.give()
  }

  /** Nobody waits any more; what was requested stays so. */
  interrupt(): void {
    this.waiter = undefined
  }

  withdraw(): void {
    this.isWithdrawn = true
    this.total = this.freshLeft = this.suspectsLeft = 0
  }

  fail(error: TransportError): void {
    this.failure ??= error
    this.waiter?.resume(Effect.fail(this.failure))
    this.waiter = undefined
  }

  /** Takes what has arrived; `give` passes it on. */
  put(deliveries: ReadonlyArray<RedisDelivery>, now: number): void {
    if (deliveries.length === 0) return
    if (this.buffer.length === 0) this.keptAt = now
    let bytes = 0
    for (const delivery of deliveries) {
      bytes += this.count(delivery)
      this.buffer.push(delivery)
    }
    const average = Math.max(1, bytes / deliveries.length)
    this.averageBytes = Math.max(average, (this.averageBytes + average) / 2)
  }

  private count(delivery: RedisDelivery): number {
    const { arrival } = RedisDelivery.state(delivery)
    const { size } = delivery
    this.total--
    if (arrival !== "retry") this.freshLeft--
    if (arrival === "isolated") this.suspectsLeft--
    this.bytesLeft -= size
    return size
  }

  /** Gives the engine what it waits for, as far as that is here. */
  readonly give = (): void => {
    const { buffer, waiter } = this
    if (waiter === undefined || buffer.length === 0) return
    let { bytes, fresh, suspects, total } = waiter.demand
    const given: Array<RedisDelivery> = []
    let kept: Array<RedisDelivery> | undefined
    for (const delivery of buffer) {
      const { arrival } = RedisDelivery.state(delivery)
      const fits = total > 0 && (bytes > 0 || given.length === 0) &&
        (arrival === "retry" || fresh > 0 && !this.isHeld) && (arrival !== "isolated" || suspects > 0)
      if (!fits) {
        ;(kept ??= []).push(delivery)
        continue
      }
      total--
      bytes -= delivery.size
      if (arrival !== "retry") fresh--
      if (arrival === "isolated") suspects--
      given.push(delivery)
    }
    const [first, ...rest] = given
    if (first === undefined) return
    this.buffer = kept ?? []
    for (const delivery of given) this.outstanding.add(delivery)
    this.waiter = undefined
    waiter.resume(Effect.succeed([first, ...rest]))
  }

  /** Forgets those that somebody else has. */
  drop(lost: ReadonlySet<string>): void {
    this.buffer = this.buffer.filter(({ id }) => !lost.has(id))
  }

  /** Takes everything out. */
  clear(): ReadonlyArray<RedisDelivery> {
    return this.buffer.splice(0)
  }

  /** Takes everything out but the retries of this process, and has room for it again. */
  clearHeld(): ReadonlyArray<RedisDelivery> {
    const held = this.buffer.filter((delivery) => RedisDelivery.state(delivery).arrival !== "retry")
    if (held.length > 0) {
      this.buffer = this.buffer.filter((delivery) => RedisDelivery.state(delivery).arrival === "retry")
    }
    for (const delivery of held) {
      this.total++
      this.freshLeft++
      if (RedisDelivery.state(delivery).arrival === "isolated") this.suspectsLeft++
      this.bytesLeft += delivery.size
    }
    return held
  }
}
