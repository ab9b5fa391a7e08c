import * as Cause from "effect/Cause"
import { type Limit, make as makeLimit } from "../Concurrency.ts"
import type { Attempt, Permit } from "./attempt.ts"

/**
 * The permits of a pipeline: each is one of its own limit and one of the limit that all pipelines of a broker share. Where
 * both are the same limit, a handler takes one permit of it, not two.
 */
export class Permits implements Permit {
  private readonly own: Limit
  private readonly common: Limit
  private readonly on: {
    readonly onFree: () => void
    readonly onResize: () => void
    /** The algorithm of the limit has thrown; told once. */
    readonly onFailure: (cause: Cause.Cause<never>) => void
  }
  private awaited: Limit | undefined
  private cancelWait: (() => void) | undefined
  private readonly cancelResize: () => void
  private hasFailed = false

  constructor(own: Limit, common: Limit, on: Permits["on"]) {
    this.own = own
    this.common = common === own ? makeLimit(Infinity) : common
    this.on = on
    const listeners = [own, this.common].map((limit) => limit.onResizeUnsafe(on.onResize))
    this.cancelResize = () => listeners.forEach((cancel) => cancel())
  }

  get max(): number {
    return Math.min(this.own.max, this.common.max)
  }

  /** No permit was free, and `onFree` has not been called since. */
  get isWaiting(): boolean {
    return this.awaited !== undefined
  }

  /** Takes a permit; without a free one, `onFree` is called when there may be one. */
  take(): boolean {
    if (!this.own.tryTakeUnsafe()) return this.waitFor(this.own)
    if (!this.common.tryTakeUnsafe()) {
      this.own.releaseUnsafe()
      return this.waitFor(this.common)
    }
    return true
  }

  readonly release = (): void => {
    this.common.releaseUnsafe()
    this.own.releaseUnsafe()
  }

  /** Tells the algorithm of the limit how long a handler took. Monotonic milliseconds. */
  sample({ failure, startedAt }: Attempt, endedAt: number): void {
    try {
      this.own.sampleUnsafe?.({ endedAt, latency: endedAt - startedAt, failed: failure !== undefined })
    } catch (error) {
      if (!this.hasFailed) this.on.onFailure(Cause.die(error))
      this.hasFailed = true
    }
  }

  private readonly freed = (): void => {
    this.awaited = this.cancelWait = undefined
    this.on.onFree()
  }

  private waitFor(limit: Limit): false {
    if (this.awaited === limit) return false
    this.cancelWait?.()
    this.awaited = limit
    this.cancelWait = limit.onFreeUnsafe(this.freed)
    return false
  }

  close(): void {
    this.cancelWait?.()
    this.awaited = undefined
    this.cancelResize()
  }
}
