/**
 * How many messages may wait in this process: about 200 ms of work at the pipeline's own recent rate.
 *
 * Prefetch is worth more than any other detail at full speed and is harm with slow handlers: a worker that hoards
 * starves its peers and outlives its claim. So it is measured in time. It may grow no faster than what was handled
 * since the window began doubles, so that one fast message does not fetch 1,024 slow ones.
 */
export class Prefetch {
  static readonly max = 1024
  /** What a limit of the broker must have room for where the number is not fixed. A limit below `max` makes fewer wait. */
  static readonly expected = 512
  private readonly fixed: number | undefined
  private handled = 0
  private busy = 0
  private previousHandled = 0
  private previousBusy = 0
  private busySince: number | undefined
  /** Of one message: a moving average. */
  averageBytes = 0

  constructor(fixed: number | undefined) {
    this.fixed = fixed
  }

  /** Called when the process comes to own messages, and when it owns none any more. Milliseconds. */
  began(now: number): void {
    this.busySince ??= now
  }

  ended(now: number): void {
    this.advance(now)
    this.busySince = undefined
  }

  /** A body of so many bytes has been pulled. */
  sampled(bytes: number): void {
    this.averageBytes = this.averageBytes === 0 ? bytes : this.averageBytes * 0.8 + bytes * 0.2
  }

  done(): void {
    this.handled++
  }

  current(now: number): number {
    if (this.fixed !== undefined) return this.fixed
    this.advance(now)
    const handled = this.handled + this.previousHandled
    const busy = this.busy + this.previousBusy
    const work = busy === 0 ? Prefetch.max : Math.floor(handled / busy * window)
    return Math.min(Prefetch.max, work, 2 * handled)
  }

  private advance(now: number): void {
    if (this.busySince === undefined) return
    this.busy += now - this.busySince
    this.busySince = now
    if (this.busy < window) return
    this.previousHandled = this.handled
    this.previousBusy = this.busy
    this.handled = 0
    this.busy = 0
  }
}

const window = 200
