import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"

/** Something that must be done by then. */
export interface Timed {
  startedAt: number
}

/**
 * All running handlers of one `timeout` step, oldest first: one timer for the head instead of one for each.
 *
 * They share a duration, so the order in which they started is the order in which they are due, and a Set keeps it.
 */
export class Deadlines<A extends Timed> {
  private readonly running = new Set<A>()
  private readonly millis: number
  /** Monotonic: a clock that is set back must not hold timeouts up. */
  private readonly now: () => number
  private readonly run: <X, E>(effect: Effect.Effect<X, E>) => Fiber.Fiber<X, E>
  private readonly expire: (entry: A) => void
  private sleeping: Fiber.Fiber<void> | undefined

  constructor(
    duration: Duration.Duration,
    context: Context.Context<never>,
    now: () => number,
    expire: (entry: A) => void
  ) {
    this.millis = Duration.toMillis(duration)
    this.now = now
    this.run = Effect.runForkWith(context)
    this.expire = expire
  }

  add(entry: A): void {
    this.running.add(entry)
    if (this.sleeping === undefined) this.sleep(this.millis)
  }

  delete(entry: A): void {
    this.running.delete(entry)
  }

  close(): void {
    this.running.clear()
    this.sleeping?.interruptUnsafe()
  }

  private sleep(millis: number): void {
    this.sleeping = this.run(Effect.sleep(millis))
    this.sleeping.addObserver((exit) => {
      this.sleeping = undefined
      if (Exit.isFailure(exit)) return
      const now = this.now()
      const due: Array<A> = []
      for (const entry of this.running) {
        const left = entry.startedAt + this.millis - now
        if (left > 0) {
          this.sleep(Math.ceil(left))
          break
        }
        due.push(entry)
      }
      // Whatever begins while these are expired finds a timer running, or starts the one there is.
      for (const entry of due) {
        if (this.running.delete(entry)) this.expire(entry)
      }
    })
  }
}
