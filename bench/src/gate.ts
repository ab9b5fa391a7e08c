/** Bounds how many messages are on their way, for loops written by hand. */
export class Gate {
  private open = 0
  private readonly max: number
  private full: Promise<void> | undefined
  private wake = () => {}

  constructor(max: number) {
    this.max = max
  }

  /** Counts in; the promise, where there is one, is to be awaited before more is sent. */
  enter(count = 1): Promise<void> | undefined {
    this.open += count
    if (this.open < this.max) return undefined
    return this.full ??= new Promise((resolve) => this.wake = resolve)
  }

  /** Counts out, and wakes the loop when half of the room is free. */
  readonly leave = (count = 1): void => {
    this.open -= count
    if (this.full === undefined || this.open > this.max / 2) return
    this.full = undefined
    this.wake()
  }

  /** Waits until nothing is on its way. */
  async empty(): Promise<void> {
    while (this.open > 0) await new Promise((resolve) => setImmediate(resolve))
  }
}
