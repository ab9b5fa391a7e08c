import * as Effect from "effect/Effect"
import type { Connection } from "./connection.ts"
import type { JetStreamDelivery } from "./delivery.ts"
import type { Note, Notes } from "./notes.ts"
import { backoff } from "./resources.ts"

export interface ArrivalsOptions {
  readonly connection: Connection
  readonly notes: Notes | undefined
  /** Monotonic milliseconds. */
  readonly now: () => number
  /** How long a delivery is surely ours after a sign of life, in milliseconds. */
  readonly lease: number
  /** Whether this process may have been sent messages that did not reach it: its connection was lost not long ago. */
  readonly interrupted: () => boolean
  readonly run: <A, E>(effect: Effect.Effect<A, E>) => { readonly addObserver: (f: () => void) => void }
  /** Says once more that a message is done: of it, a copy has come. */
  readonly acknowledge: (copy: JetStreamDelivery) => void
  /** There may be something to give. */
  readonly onReady: () => void
}

/**
 * What has arrived and is not settled: in order, counted as the contract counts, no message twice at a time.
 */
export class Arrivals {
  private readonly options: ArrivalsOptions
  /** In order of arrival, to be given to the next pull. */
  private queue: Array<JetStreamDelivery> = []
  /** Given one at a time: see `suspect` of the contract. */
  private suspects: Array<JetStreamDelivery> = []
  private suspect: JetStreamDelivery | undefined
  /** Suspects that are not given before they have been noted. */
  private noting = 0
  private lookup: Promise<void> | undefined
  /** What waits for a lookup, its own or that of one before it. */
  private readonly lookingUp = new Set<Array<JetStreamDelivery>>()
  /**
   * Given and not settled, each at its `slot`. V8 keeps every old table of a Map that messages pass through, with what is
   * in it, until the next major collection; an array that is written over has none.
   */
  private readonly given: Array<JetStreamDelivery | undefined> = []
  private readonly free: Array<number> = []
  /** The highest number that has arrived: what is beyond it cannot be a copy. */
  private highest = 0
  /** Deliveries of what is given already: the server took us for dead. They wait until the first has ended. */
  private readonly copies = new Map<string, JetStreamDelivery>()
  /** Acknowledged so late that a copy may be on its way, and until when. */
  private readonly late = new Map<string, number>()
  /** Retries that this process asked for, by id. */
  private readonly retries = new Map<
    string,
    {
      readonly delivered: number
      readonly released: number
      readonly firstFailedAt: number | undefined
      readonly due: number
    }
  >()
  private closed = false

  constructor(options: ArrivalsOptions) {
    this.options = options
  }

  /** Arrived and not given. */
  get size(): number {
    let size = this.queue.length + this.suspects.length + this.copies.size + this.noting
    for (const waiting of this.lookingUp) size += waiting.length
    return size
  }

  /** Can be given now, but for the one that runs alone. */
  get ready(): number {
    return this.queue.length - (this.suspect !== undefined && this.queue.includes(this.suspect) ? 1 : 0)
  }

  /** Messages in the order in which they were read, sent no earlier than that. */
  receive(chunk: Array<JetStreamDelivery>, sentSince = this.options.now()): void {
    const heldUntil = sentSince + this.options.lease
    let unknown: Array<Promise<void>> | undefined
    let fresh = chunk
    for (const delivery of chunk) {
      delivery.heldUntil = heldUntil
      delivery.owner = this
      if (this.isCopy(delivery)) {
        fresh = fresh === chunk ? chunk.slice() : fresh
        fresh.splice(fresh.indexOf(delivery), 1)
        continue
      }
      const found = this.lookUp(delivery)
      if (found !== undefined) (unknown ??= []).push(found)
    }
    if (unknown === undefined && this.lookup === undefined) return this.admit(fresh)
    // What comes behind waits, so that the order of arrival is kept.
    const waiting = fresh.slice()
    this.lookingUp.add(waiting)
    const turn: Promise<void> = Promise.all([this.lookup, ...unknown ?? []]).then(() => {
      if (this.lookup === turn) this.lookup = undefined
      this.lookingUp.delete(waiting)
      this.admit(waiting)
    })
    this.lookup = turn
  }

  give(max: number): Array<JetStreamDelivery> {
    if (this.late.size > 0) this.queue = this.queue.filter((delivery) => !this.isDone(delivery))
    // This process stood still: a peer may have what has come before.
    const time = this.options.now()
    if (this.queue.length > 0 && this.queue[0]!.heldUntil <= time) {
      this.queue = this.queue.filter((delivery) => delivery.heldUntil > time)
    }
    const given = max >= this.queue.length ? this.queue : this.queue.splice(0, max)
    if (given === this.queue) this.queue = []
    for (const delivery of given) {
      delivery.slot = this.free.pop() ?? this.given.length
      this.given[delivery.slot] = delivery
    }
    return given
  }

  /** Takes out what is ready beyond `most`, or all there is, to be handed back. */
  takeOut(most: number, all: boolean): Array<JetStreamDelivery> {
    const out = all ? [...this.queue.splice(0), ...this.suspects.splice(0)] : this.queue.splice(most)
    const alone = this.suspect === undefined ? -1 : out.indexOf(this.suspect)
    if (alone >= 0 && all) this.suspect = undefined
    else if (alone >= 0) this.queue.push(...out.splice(alone, 1))
    return out
  }

  /** `false`: of what is done, a copy has been given to a handler before. */
  ended(delivery: JetStreamDelivery, how: Ending, time = this.options.now()): boolean {
    if (delivery.confirming) return true
    const done = how === "done"
    const first = delivery.slot >= 0
    if (first) {
      // This process did not die of it.
      if (how === "lost" && !delivery.suspect) this.retried(delivery, 0)
      this.given[delivery.slot] = undefined
      this.free.push(delivery.slot)
      delivery.slot = -1
    }
    const copy = this.copies.size > 0 ? this.copies.get(delivery.id) : undefined
    if (copy !== undefined) {
      this.copies.delete(delivery.id)
      if (done) this.options.acknowledge(copy)
      else this.receive([copy])
      // The server answers a flush before it has taken up the acknowledgements written before that.
    } else if (done && time >= delivery.heldUntil - this.options.lease / 2) {
      this.late.set(nameOf(delivery), time + 60_000)
    }
    if (delivery === this.suspect) {
      this.suspect = undefined
      this.beginSuspect()
    }
    return first || !this.given.some((given) => given !== undefined && isSame(given, delivery))
  }

  retried(delivery: JetStreamDelivery, delay: number): void {
    const { delivered, firstFailedAt, id, released } = delivery
    this.retries.set(id, { delivered, released, firstFailedAt, due: this.options.now() + delay })
  }

  /** Milliseconds until there are fewer than `most` retries that wait. Those that are due come back, here or elsewhere. */
  fullFor(most: number): number {
    if (this.retries.size < most) return 0
    const time = this.options.now()
    let next = Infinity
    for (const [id, { due }] of this.retries) {
      if (due <= time) this.retries.delete(id)
      else if (due < next) next = due
    }
    return this.retries.size < most ? 0 : next - time + 1
  }

  /** What nobody has been given: it is kept alive here. */
  get kept(): ReadonlyArray<JetStreamDelivery> {
    const time = this.options.now()
    // Nobody says so when a message that was not settled has been given up.
    if (this.suspect !== undefined && time > this.suspect.heldUntil) this.ended(this.suspect, "lost", time)
    const kept = [...this.queue, ...this.suspects, ...this.copies.values(), ...[...this.lookingUp].flat()]
    for (const delivery of this.given) {
      if (delivery?.confirming) kept.push(delivery)
      else if (delivery !== undefined && time > delivery.heldUntil + this.options.lease) {
        this.ended(delivery, "lost", time)
      }
    }
    for (const [name, until] of this.late) if (time > until) this.late.delete(name)
    return kept
  }

  forget(lost: ReadonlyArray<unknown>): void {
    if (lost.length === 0) return
    this.queue = this.queue.filter((delivery) => !lost.includes(delivery))
    this.suspects = this.suspects.filter((delivery) => !lost.includes(delivery))
    for (const [id, copy] of this.copies) if (lost.includes(copy)) this.copies.delete(id)
  }

  /** Gives nothing more; resolves with what is left, when the last of it has been looked up. */
  close(): Promise<ReadonlyArray<JetStreamDelivery>> {
    this.closed = true
    return (this.lookup ?? Promise.resolve()).then(() => [...this.queue, ...this.suspects, ...this.copies.values()])
  }

  private isCopy(delivery: JetStreamDelivery): boolean {
    const sequence = Number(delivery.id)
    if (sequence > this.highest) {
      this.highest = sequence
      return false
    }
    const isFirst = (given: JetStreamDelivery | undefined) => given !== undefined && isSame(given, delivery)
    const first = this.given.find(isFirst) ?? (isFirst(this.suspect) ? this.suspect : undefined)
    if (first !== undefined) {
      // Whatever the handler of the first does now, this one is what counts.
      first.heldUntil = Math.min(first.heldUntil, this.options.now())
      this.copies.set(delivery.id, delivery)
      return true
    }
    for (const list of [this.queue, this.suspects, ...this.lookingUp]) {
      const index = list.findIndex(isFirst)
      // Nobody has been given that one, and nobody needs to be.
      if (index >= 0) list.splice(index, 1)
    }
    return this.late.size > 0 && this.isDone(delivery)
  }

  /** Whether it is done since it was sent once more; then that is said of this one too. */
  private isDone(delivery: JetStreamDelivery): boolean {
    if (!this.late.has(nameOf(delivery))) return false
    this.options.acknowledge(delivery)
    if (delivery === this.suspect) {
      this.suspect = undefined
      this.beginSuspect()
    }
    return true
  }

  /** Settles how often it counts; a promise where that has to be asked. */
  private lookUp(delivery: JetStreamDelivery): Promise<void> | undefined {
    if (delivery.delivered === 1) return undefined
    const retry = this.retries.get(delivery.id)
    this.retries.delete(delivery.id)
    if (retry !== undefined && retry.delivered === delivery.delivered - 1) {
      delivery.released = retry.released
      delivery.firstFailedAt = retry.firstFailedAt
      return undefined
    }
    if (this.options.notes === undefined) {
      delivery.suspect = this.mayHaveKilled(delivery, undefined)
      return undefined
    }
    return this.options.notes.read(delivery).then((note) => {
      // Of the deliveries since the note one at most was run: those beyond would have left a note before. The server goes
      // on sending to a connection that it does not know to be dead.
      const unnoted = delivery.delivered - 1 - (note?.delivered ?? 0)
      delivery.released = (note?.released ?? 0) + Math.max(0, unnoted - (note === undefined || note.settled ? 1 : 0))
      delivery.suspect = this.mayHaveKilled(delivery, note)
      delivery.firstFailedAt = note?.firstFailedAt
    })
  }

  /** One delivery that nobody settled may have been lost with our own connection; then it killed nobody. */
  private mayHaveKilled(delivery: JetStreamDelivery, note: Note | undefined): boolean {
    if (note !== undefined && !note.settled) return true
    const unsettled = delivery.delivered - 1 - (note?.delivered ?? 0)
    return unsettled > (this.options.interrupted() ? 1 : 0)
  }

  /** What is ready to be given, in its order. */
  admit(chunk: ReadonlyArray<JetStreamDelivery>): void {
    for (const delivery of chunk) {
      if (!delivery.suspect) this.queue.push(delivery)
      else {
        this.suspects.push(delivery)
        if (this.options.connection.state() === "connected") this.options.notes?.arrived(delivery)
      }
    }
    this.beginSuspect()
    this.options.onReady()
  }

  /** Notes that the next of them counts, before anybody is given it: it may be the last thing this process does. */
  private beginSuspect(): void {
    if (this.suspect !== undefined || this.closed) return
    const next = this.suspects.shift()
    if (next === undefined) return
    this.suspect = next
    this.noting++
    const begun = this.options.notes === undefined
      ? Effect.void
      : Effect.retry(this.options.notes.begins(next), backoff)
    this.options.run(begun).addObserver(() => {
      this.noting--
      if (this.closed) return this.suspects.push(next)
      // Unless it has come again meanwhile.
      if (this.suspect === next) this.queue.push(next)
      this.options.onReady()
    })
  }
}

/** `again`: it is to be delivered once more. `lost`: it may be somebody else's. */
export type Ending = "done" | "again" | "lost"

const isSame = (one: JetStreamDelivery, other: JetStreamDelivery) =>
  one.id === other.id && one.timestamp === other.timestamp

/** A stream that was created again begins again with its numbers. */
const nameOf = ({ id, timestamp }: JetStreamDelivery) => `${id} ${timestamp}`
