import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"

/** Something that must be done by then; `place` is where it stands in each queue it is in. */
export interface Timed {
  readonly startedAt: number
  readonly places: Array<number>
}

/**
 * All running handlers of one `timeout` step, oldest first: one timer for the head instead of one for each.
 *
 * They share a duration, so the order in which they started is the order in which they are due. One that has ended leaves
 * a hole, and the front of the queue is cut off now and then (see `slots.ts` for why it is no Set).
 */
export class Deadlines<A extends Timed> {
  private queue: Array<A | undefined> = []
  private head = 0
  /** The place of the first entry of `queue`. */
  private base = 0
  /** Which of the queues it is, by which an entry keeps its place. */
  private readonly number: number
  private readonly millis: number
  /** Monotonic: a clock that is set back must not hold timeouts up. */
  private readonly now: () => number
  private readonly run: <X, E>(effect: Effect.Effect<X, E>) => Fiber.Fiber<X, E>
  private readonly expire: (entry: A) => void
  private sleeping: Fiber.Fiber<void> | undefined

  constructor(
    number: number,
    duration: Duration.Duration,
    context: Context.Context<never>,
    now: () => number,
    expire: (entry: A) => void
  ) {
    this.number = number
    this.millis = Duration.toMillis(duration)
    this.now = now
    this.run = Effect.runForkWith(context)
    this.expire = expire
  }

  add(entry: A): void {
    entry.places[this.number] = this.base + this.queue.push(entry) - 1
    if (this.sleeping === undefined) this.sleep(this.millis)
  }

  delete(entry: A): void {
    const place = entry.places[this.number]
    if (place === undefined) return
    entry.places[this.number] = undefined as never
    this.queue[place - this.base] = undefined
    while (this.head < this.queue.length && this.queue[this.head] === undefined) this.head++
    if (this.head < 1024 && this.head < this.queue.length) return
    this.queue = this.queue.slice(this.head)
    this.base += this.head
    this.head = 0
  }

  close(): void {
    this.sleeping?.interruptUnsafe()
  }

  private sleep(millis: number): void {
    this.sleeping = this.run(Effect.sleep(millis))
    this.sleeping.addObserver((exit) => {
      this.sleeping = undefined
      if (Exit.isFailure(exit)) return
      const now = this.now()
      const due: Array<A> = []
      for (let i = this.head; i < this.queue.length; i++) {
        const entry = this.queue[i]
        if (entry === undefined) continue
        const left = entry.startedAt + this.millis - now
        if (left > 0) {
          this.sleep(Math.ceil(left))
          break
        }
        due.push(entry)
      }
      // Whatever begins while these are expired finds a timer running, or starts the one there is.
      for (const entry of due) {
        if (entry.places[this.number] === undefined) continue
        this.delete(entry)
        this.expire(entry)
      }
    })
  }
}
