/** A bounded number of handlers over a buffer, written by hand: what the raw arms use where handlers take time. */
export interface Pool<A> {
  readonly push: (items: ReadonlyArray<A>) => void
  /** Taken and not ended. */
  readonly owned: () => number
}

export const makePool = <A>(options: {
  readonly concurrency: number
  readonly work: (item: A) => Promise<void>
  /** Called once a loop turn with what has ended in it. */
  readonly settle: (items: ReadonlyArray<A>) => void
  /** Called when half of what may wait is gone. */
  readonly refill: () => void
  readonly prefetch: number
}): Pool<A> => {
  let waiting: Array<A> = []
  let head = 0
  let running = 0
  let ended: Array<A> = []
  const flush = () => {
    const batch = ended
    ended = []
    options.settle(batch)
    if (waiting.length - head <= options.prefetch / 2) options.refill()
  }
  const start = () => {
    while (running < options.concurrency && head < waiting.length) {
      const item = waiting[head++]!
      running++
      void options.work(item).then(() => {
        running--
        if (ended.push(item) === 1) setImmediate(flush)
        start()
      })
    }
  }
  return {
    push(items) {
      waiting = waiting.slice(head).concat(items)
      head = 0
      start()
    },
    owned: () => waiting.length - head + running
  }
}
