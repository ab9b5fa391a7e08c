const longest = 2 ** 31 - 1

/** The retries that wait in this process: of each only its id, and when it is due. */
export class Waiting {
  private readonly timers = new Map<string, ReturnType<typeof setTimeout> | undefined>()
  private due: Array<string> = []
  private readonly onDue: () => void

  constructor(onDue: () => void) {
    this.onDue = onDue
  }

  get size(): number {
    return this.timers.size
  }

  get ids(): ReadonlyArray<string> {
    return [...this.timers.keys()]
  }

  get isDue(): boolean {
    return this.due.length > 0
  }

  has(id: string): boolean {
    return this.timers.has(id)
  }

  add(id: string, ms: number): void {
    clearTimeout(this.timers.get(id))
    const expire = () => {
      if (ms > longest) return this.add(id, ms - longest)
      this.timers.set(id, undefined)
      this.due.push(id)
      this.onDue()
    }
    this.timers.set(id, setTimeout(expire, Math.min(ms, longest)))
  }

  /** The first `n` that are due. They count as waiting until they are forgotten. */
  take(n: number): ReadonlyArray<string> {
    return this.due.splice(0, n)
  }

  putBack(ids: ReadonlyArray<string>): void {
    this.due.unshift(...ids)
  }

  forget(ids: Iterable<string>): void {
    const gone = new Set(ids)
    for (const id of gone) {
      clearTimeout(this.timers.get(id))
      this.timers.delete(id)
    }
    this.due = this.due.filter((id) => !gone.has(id))
  }

  /** Stops waiting; gives what has waited. */
  stop(): ReadonlyArray<string> {
    const { ids } = this
    this.forget(ids)
    return ids
  }
}
