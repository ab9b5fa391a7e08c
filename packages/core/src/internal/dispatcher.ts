import type * as Clock from "effect/Clock"
import type * as Scheduler from "effect/Scheduler"
import type { Attempt } from "./attempt.ts"
import { Deque } from "./deque.ts"

/** The gates that the dispatcher asks before it begins anything. */
export interface Gates {
  /** Nothing may begin now, no batch either: a handler has paused the pipeline. */
  readonly isResting: () => boolean
  /** Nothing that is buffered may begin now: the pipeline drains, ownership is in doubt. */
  readonly isShut: (now: number) => boolean
  /** Whether this attempt may begin now; `false` stops the queue until the next `pump`. */
  readonly admits: (attempt: Attempt) => boolean
}

/**
 * Begins attempts while there are permits, oldest first; full batches come before any of them.
 *
 * It is plain code that gives way to the event loop after a millisecond, and nothing else may begin anything until it
 * goes on: a batch of cheap handlers must not block its neighbours.
 */
export class Dispatcher {
  private readonly options: {
    readonly clock: Clock.Clock
    /** Attempts that are ready to begin. */
    readonly buffer: Deque<Attempt>
    readonly scheduler: Scheduler.SchedulerDispatcher
    readonly gates: Gates
    readonly takePermit: () => boolean
    /** A turn begins, or a batch has run: the next attempt does not begin at the end of another one. */
    readonly onTurn: () => void
    readonly begin: (attempt: Attempt) => void
    readonly onBegun: () => void
    readonly onPumped: () => void
  }
  private readonly batches = new Deque<() => void>()
  /** Handlers that are started between two looks at the clock. */
  private stride = 16
  private isPumping = false

  constructor(options: Dispatcher["options"]) {
    this.options = options
  }

  get isIdle(): boolean {
    return !this.isPumping
  }

  get hasWork(): boolean {
    return this.options.buffer.size > 0 || this.batches.size > 0
  }

  /** Runs a batch as soon as there is a permit for it. */
  readonly batchReady = (run: () => void): void => {
    this.batches.push(run)
    this.pump()
  }

  readonly pump = (): void => {
    if (this.isPumping) return
    this.isPumping = true
    const more = this.start()
    if (more) return this.options.scheduler.scheduleTask(this.goOn, 0)
    this.isPumping = false
    this.options.onPumped()
  }

  /** Pumps in another turn of the event loop. */
  pumpLater(): void {
    this.options.scheduler.scheduleTask(this.pump, 0)
  }

  private readonly goOn = (): void => {
    this.isPumping = false
    this.pump()
  }

  /** Starts what may start; `true` when there is more and the event loop must have its turn first. */
  private start(): boolean {
    const { begin, buffer, clock, gates, onBegun, onTurn, takePermit } = this.options
    const since = clock.currentTimeMillisUnsafe()
    onTurn()
    for (let n = this.stride;; n--) {
      if (gates.isResting()) return false
      if (this.batches.size > 0) {
        if (!takePermit()) return false
        this.batches.shift()!()
        onTurn()
      } else {
        const next = buffer.peek()
        if (next === undefined || gates.isShut(since) || !gates.admits(next) || !takePermit()) return false
        buffer.shift()
        begin(next)
        // Half empty, the next ones are asked for, so that they come while these are handled.
        onBegun()
      }
      if (n > 1) continue
      // Looking at the clock costs as much as starting a cheap handler; after slow ones it is looked at more often.
      const isLate = Math.abs(clock.currentTimeMillisUnsafe() - since) >= 1
      this.stride = isLate ? Math.max(1, this.stride >> 1) : Math.min(16, this.stride << 1)
      if (isLate) return true
      n = this.stride + 1
    }
  }
}
