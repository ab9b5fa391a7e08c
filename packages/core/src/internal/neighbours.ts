import type { Transport } from "../Transport.ts"

/** A pipeline, as the others of its process see it. */
export interface Neighbour {
  /** Monotonic milliseconds. */
  readonly now: () => number
  readonly after: (millis: number, f: () => void) => () => void
  /** No handler of it runs. */
  readonly isQuiet: () => boolean
  /** It may begin what it could not. */
  readonly pump: () => void
  /** It takes no isolated suspect for so many milliseconds. */
  readonly rest: (millis: number) => void
}

/**
 * The pipelines of one transport in one process: a crash ends the handlers of all of them.
 *
 * Each isolates its own suspects. But a poison message of one pipeline may have more attempts than an innocent message of
 * another one, and be beside it in each of them. So the last attempt of a suspect waits until no handler of the others
 * runs, and none begins until it has ended. Long handlers must not stop their neighbours: this lasts `maxHold` at most.
 */
export class Neighbours {
  private static readonly known = new WeakMap<Transport["Service"], Neighbours>()
  private readonly all = new Set<Neighbour>()
  /** Those with a suspect on its last attempt; the first one has its turn. */
  private readonly alone: Array<{ readonly one: Neighbour; readonly until: number; readonly cancel: () => void }> = []

  static of(transport: Transport["Service"]): Neighbours {
    let neighbours = this.known.get(transport)
    if (neighbours === undefined) this.known.set(transport, neighbours = new Neighbours())
    return neighbours
  }

  add(one: Neighbour): void {
    this.all.add(one)
  }

  delete(one: Neighbour): void {
    this.all.delete(one)
    this.leave(one, 0)
  }

  /** A suspect of this pipeline is to run with no handler of the others. */
  enter(one: Neighbour): void {
    const cancel = one.after(maxHold, () => this.pump())
    this.alone.push({ one, until: one.now() + maxHold, cancel })
  }

  /** It runs no more: the others get as much time as it took. */
  leave(one: Neighbour, rest: number): void {
    const at = this.alone.findIndex((entry) => entry.one === one)
    if (at < 0) return
    this.alone[at]!.cancel()
    this.alone.splice(at, 1)
    for (const other of this.all) if (other !== one) other.rest(rest)
    this.pump()
  }

  /** Whether nothing of this pipeline may begin. */
  holdUp(one: Neighbour): boolean {
    const first = this.first(one)
    return first !== undefined && first !== one
  }

  /** Whether the suspect of this pipeline may begin. */
  admits(one: Neighbour): boolean {
    if (this.first(one) !== one) return true
    for (const other of this.all) if (other !== one && !other.isQuiet()) return false
    return true
  }

  /** A handler of this pipeline has ended. */
  ended(one: Neighbour): void {
    const first = this.first(one)
    if (first !== one) first?.pump()
  }

  private first({ now }: Neighbour): Neighbour | undefined {
    if (this.alone.length === 0) return undefined
    const time = now()
    return this.alone.find(({ until }) => until > time)?.one
  }

  private pump(): void {
    for (const one of this.all) one.pump()
  }
}

/** Milliseconds. */
const maxHold = 30_000
