/** A time in which something does not happen. */
export class Rest {
  private readonly options: {
    /** Monotonic milliseconds. */
    readonly now: () => number
    readonly after: (millis: number, f: () => void) => () => void
    readonly onEnd: () => void
  }
  private until = -Infinity
  private cancel: (() => void) | undefined

  constructor(options: Rest["options"]) {
    this.options = options
  }

  get isOver(): boolean {
    return this.until === -Infinity || this.options.now() >= this.until
  }

  /** Milliseconds until it is over. */
  get left(): number {
    return this.isOver ? 0 : this.until - this.options.now()
  }

  /** Begins, or goes on; `false` when it lasts as long already. */
  begin(millis: number): boolean {
    const until = this.options.now() + millis
    if (until <= this.until) return false
    this.until = until
    this.wait()
    return true
  }

  /** A timer may fire early: the rest has ended when the clock says so. */
  private wait(): void {
    this.cancel?.()
    const left = this.until - this.options.now()
    if (left > 0) {
      this.cancel = this.options.after(Math.ceil(left) + 1, () => this.wait())
    } else {
      this.until = -Infinity
      this.options.onEnd()
    }
  }

  close(): void {
    this.cancel?.()
  }
}
