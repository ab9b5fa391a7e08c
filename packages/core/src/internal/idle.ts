import * as Effect from "effect/Effect"

/** Lets fibers wait until a room has nothing left to do. */
export class Idle {
  private readonly isIdle: () => boolean
  private readonly waiters = new Set<() => void>()

  constructor(isIdle: () => boolean) {
    this.isIdle = isIdle
  }

  readonly wait: Effect.Effect<void> = Effect.callback<void>((resume) => {
    if (this.isIdle()) return resume(Effect.void)
    const wake = () => resume(Effect.void)
    this.waiters.add(wake)
    return Effect.sync(() => this.waiters.delete(wake))
  })

  /** Call it when there may be nothing left to do. */
  check(): void {
    if (this.waiters.size === 0 || !this.isIdle()) return
    const waiters = [...this.waiters]
    this.waiters.clear()
    for (const wake of waiters) wake()
  }
}
