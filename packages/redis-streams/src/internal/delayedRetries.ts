const longest = 2 ** 31 - 1

interface Entry {
  readonly id: string
  /** On the clock of `performance.now`. */
  readonly due: number
}

/** Retries that wait in this process, soonest first: of each its id and when it is due. */
export class DelayedRetries {
  private entries: Array<Entry> = []
  private readonly dueOf = new Map<string, number>()
  private timer: ReturnType<typeof setTimeout> | undefined
  private timerAt = Infinity
  private readonly onDue: () => void

  constructor(onDue: () => void) {
    this.onDue = onDue
  }

  get size(): number {
    return this.dueOf.size
  }

  get ids(): ReadonlyArray<string> {
    return [...this.dueOf.keys()]
  }

  get isDue(): boolean {
    return this.entries.length > 0 && this.entries[0]!.due <= performance.now()
  }

  has(id: string): boolean {
    return this.dueOf.has(id)
  }

  add(id: string, ms: number): void {
    if (this.dueOf.has(id)) this.forget([id])
    const now = performance.now()
    const due = now + ms
    this.dueOf.set(id, due)
    this.entries.splice(this.indexAfter(due), 0, { id, due })
    // One that is due at once has no timer. One that becomes due while it is added has one: `now` is before it.
    if (ms <= 0) this.onDue()
    else this.arm(now)
  }

  /** The first `n` that are due. They count as waiting until they are forgotten. */
  take(n: number): ReadonlyArray<string> {
    const now = performance.now()
    let end = 0
    while (end < n && end < this.entries.length && this.entries[end]!.due <= now) end++
    return this.entries.splice(0, end).map(({ id }) => id)
  }

  putBack(ids: ReadonlyArray<string>): void {
    this.entries.unshift(...ids.map((id) => ({ id, due: this.dueOf.get(id)! })))
    this.arm()
  }

  forget(ids: Iterable<string>): void {
    const gone = new Set<string>()
    for (const id of ids) if (this.dueOf.delete(id)) gone.add(id)
    if (gone.size > 0) this.entries = this.entries.filter(({ id }) => !gone.has(id))
    this.arm()
  }

  /** Stops waiting; gives what has waited. */
  stop(): ReadonlyArray<string> {
    const { ids } = this
    this.forget(ids)
    clearTimeout(this.timer)
    this.timerAt = Infinity
    return ids
  }

  private indexAfter(due: number): number {
    let low = 0
    let high = this.entries.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.entries[middle]!.due <= due) low = middle + 1
      else high = middle
    }
    return low
  }

  /** One timer, for the soonest that is not due yet. */
  private arm(now = performance.now()): void {
    // A timer that is due and has not fired, in a busy loop, still has to tell.
    if (this.timerAt <= now) return
    const next = this.entries[this.indexAfter(now)]?.due ?? Infinity
    if (next === this.timerAt) return
    clearTimeout(this.timer)
    this.timerAt = next
    this.timer = next === Infinity
      ? undefined
      : setTimeout(() => {
        this.timerAt = Infinity
        this.arm()
        this.onDue()
      }, Math.min(longest, Math.ceil(next - now)))
  }
}
