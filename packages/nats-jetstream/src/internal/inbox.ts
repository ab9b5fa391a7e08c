import type { Demand } from "@millrace/core/Transport"
import { type Ending, type JetStreamDelivery, type Owner, timestampIn } from "./delivery.ts"
import { type AttemptLedger, judge, judgeUnrecorded, type Recorded } from "./ledger.ts"

export interface InboxOptions {
  readonly ledger: AttemptLedger
  /** Monotonic milliseconds. */
  readonly now: () => number
  /** Milliseconds since the epoch. */
  readonly date: () => number
  /** How long a delivery is surely ours after a sign of life, in milliseconds. */
  readonly lease: number
  /** As in `Transport.SubscribeOptions`. */
  readonly isolateFrom: number
  readonly ordered: boolean
  /** Messages of the group that were delivered and not settled when the subscription began. */
  readonly pending: number
  /** The connection was lost not long ago: the server may have sent deliveries that did not arrive. */
  readonly isInterrupted: () => boolean
  readonly extend: Owner["extend"]
  /** Acknowledges the redelivery of a message that is done. */
  readonly acknowledge: (copy: JetStreamDelivery) => void
  /** Gives back a suspect that finds no room here. */
  readonly postpone: (suspect: JetStreamDelivery) => void
  /** There may be something to give. */
  readonly onReady: () => void
}

/** A retry that this process requested: what has to be known of it, without its body. */
interface OwnRetry {
  readonly delivered: number
  readonly released: number
  readonly firstFailedAt: number | undefined
  readonly due: number
  /** Only where the retry may have to be handed over. */
  readonly reply: string | undefined
}

/** The server's clock for a retry starts when its request arrives, and its timers run a little late. Milliseconds. */
const dueMargin = 25

/**
 * An ordered subscription begins with at most so many messages that were delivered before, and bytes of their bodies: the
 * order of those beyond is the one in which the server has them.
 */
const maxInherited = 20_000
const maxInheritedBytes = 64 * 1024 * 1024

/** Suspects that are kept here until the engine wants one; more are given back. */
const maxIsolated = 64

/**
 * Deliveries that have arrived and are not settled: in order, with their attempts counted, no message twice at a time.
 */
export class Inbox implements Owner {
  private readonly options: InboxOptions
  /** In order of arrival, to be given to the next pull. */
  private queue: Array<JetStreamDelivery> = []
  /** Suspects from `isolateFrom` on: given as `Demand.suspects` allows. */
  private isolated: Array<JetStreamDelivery> = []
  private reading: Promise<void> | undefined
  /** Deliveries behind a read of the ledger, their own or an earlier one. */
  private readonly unread = new Set<Array<JetStreamDelivery>>()
  /**
   * Given and not settled, each at its `slot`. V8 keeps every old table of a Map that messages pass through, with what is
   * in it, until the next major collection; an array that is written over has none.
   */
  private readonly given: Array<JetStreamDelivery | undefined> = []
  private readonly free: Array<number> = []
  /** The highest sequence that has arrived: beyond it nothing is a redelivery. */
  private highest = 0
  /** Redeliveries of given messages, by sequence, until the first delivery has ended: the server took us for dead. */
  private readonly copies = new Map<string, JetStreamDelivery>()
  /** Messages that were acknowledged so late that a redelivery may be on its way, and until when. */
  private readonly late = new Map<string, number>()
  /** By sequence. */
  private readonly retries = new Map<string, OwnRetry>()
  private isClosed = false
  /** Ids of buffered messages that keys wait for: they are given whatever else there is no room for. */
  private expected: ReadonlySet<string> = new Set()
  /**
   * Messages that the process before has released are on their way: the server has them in the order of their releases,
   * before everything that was not delivered yet. None is given until all are here, and sorted.
   */
  private gathering: boolean
  /** Messages of `pending` that have arrived: those at the head of the queue do not count against the demand. */
  private inherited = 0

  constructor(options: InboxOptions) {
    this.options = options
    this.gathering = options.ordered && options.pending > 0
  }

  /** Arrived and not given; without isolated suspects, which have a bound of their own. */
  get size(): number {
    let size = this.queue.length + this.copies.size
    for (const waiting of this.unread) size += waiting.length
    return size
  }

  /** Arrived, not given, and counted against the demand. */
  get counted(): number {
    return this.gathering ? 0 : Math.max(0, this.size - this.inherited)
  }

  /** Arrived and not settled. */
  get owned(): number {
    return this.size + this.given.length - this.free.length
  }

  get isGathering(): boolean {
    return this.gathering
  }

  /** How many messages that were delivered before have still to come; `undefined` while arrivals are looked up. */
  get missing(): number | undefined {
    return this.reading === undefined ? Math.min(maxInherited, this.options.pending) - this.inherited : undefined
  }

  /** The messages that the process before has released are here, or cannot all come. */
  gathered(): void {
    if (!this.gathering) return
    this.gathering = false
    this.queue.sort((one, other) => Number(one.sequence) - Number(other.sequence))
  }

  /** Bodies of what has arrived and is not given, in bytes. */
  get bytes(): number {
    let bytes = 0
    for (const delivery of this.queue) bytes += delivery.body.length
    return bytes
  }

  /** Deliveries in the order in which they were read, sent no earlier than `sentSince`. */
  receive(chunk: Array<JetStreamDelivery>, sentSince = this.options.now()): void {
    const heldUntil = sentSince + this.options.lease
    let toRead: Array<JetStreamDelivery> | undefined
    let fresh = chunk
    for (const delivery of chunk) {
      delivery.heldUntil = heldUntil
      delivery.ownedBy(this)
      if (this.isCopy(delivery)) {
        fresh = fresh === chunk ? chunk.slice() : fresh
        fresh.splice(fresh.indexOf(delivery), 1)
      } else if (delivery.delivered > 1 && !this.recall(delivery)) {
        ;(toRead ??= []).push(delivery)
      }
    }
    const read = toRead === undefined ? undefined : this.options.ledger.read(toRead)
    if (toRead !== undefined && read === undefined) {
      for (const delivery of toRead) judgeUnrecorded(delivery, this.options.isInterrupted())
    }
    if (read === undefined && this.reading === undefined) return this.admit(fresh)
    // Later arrivals wait, so that the order of arrival is kept.
    const waiting = fresh.slice()
    this.unread.add(waiting)
    const turn: Promise<void> = Promise.all([this.reading, read]).then(([, records]) => {
      if (this.reading === turn) this.reading = undefined
      if (!this.unread.delete(waiting)) return
      if (read !== undefined) {
        const isInterrupted = this.options.isInterrupted()
        toRead?.forEach((delivery, index) =>
          records === undefined
            ? judgeUnrecorded(delivery, isInterrupted)
            : judge(delivery, records[index], this.options.isolateFrom, isInterrupted)
        )
      }
      this.admit(waiting)
    })
    this.reading = turn
  }

  /** Takes out what the demand allows. Isolated suspects come first: they were delivered before. */
  give(demand: Demand): Array<JetStreamDelivery> {
    this.dropExpired()
    if (this.gathering) return []
    let given = this.isolated.splice(0, Math.min(demand.suspects, demand.total))
    // The server chooses what it sends: for a due retry, another message may have come.
    let fresh = demand.fresh >= demand.total ? Infinity : demand.fresh + this.due()
    let bytes = given.reduce((left, { body }) => left - body.length, demand.bytes)
    if (given.length === 0 && fresh === Infinity && demand.total >= this.queue.length && bytes >= this.bytes) {
      given = this.queue
      this.queue = []
    } else {
      const rest: Array<JetStreamDelivery> = []
      for (const delivery of this.queue) {
        const isRetry = delivery.isOwnRetry || this.expected.size > 0 && this.expected.has(delivery.id)
        const isAllowed = given.length < demand.total && (bytes > 0 || given.length === 0) && (isRetry || fresh > 0)
        if (!isAllowed) {
          rest.push(delivery)
          continue
        }
        if (!isRetry) fresh--
        bytes -= delivery.body.length
        given.push(delivery)
      }
      this.queue = rest
    }
    this.inherited = Math.max(0, this.inherited - given.length)
    for (const delivery of given) {
      delivery.slot = this.free.pop() ?? this.given.length
      this.given[delivery.slot] = delivery
    }
    return given
  }

  /** Takes out what is buffered beyond `most`, or everything, to be released. */
  takeOut(most: number, everything: boolean): Array<JetStreamDelivery> {
    this.gathered()
    if (!everything) return this.queue.splice(this.inherited + most)
    this.inherited = 0
    return [...this.queue.splice(0), ...this.isolated.splice(0)]
  }

  /** Whether a later delivery of the same message has arrived. */
  holdsLater(delivery: JetStreamDelivery): boolean {
    const isLater = (other: JetStreamDelivery | undefined) =>
      other !== undefined && other.delivered > delivery.delivered && other.isSameMessage(delivery)
    return this.given.some(isLater) || this.queue.some(isLater) || this.isolated.some(isLater)
  }

  /** Returns `false` when a redelivery of this message is already being handled. */
  ended(delivery: JetStreamDelivery, how: Ending, time = this.options.now()): boolean {
    if (delivery.confirming) return true
    const isDone = how === "done"
    const isFirst = delivery.slot >= 0
    if (isFirst) {
      // This process did not die of it.
      if ((how === "lost" || !delivery.mayHaveBegun) && !delivery.suspect && !delivery.isVoid) this.retried(delivery, 0)
      this.given[delivery.slot] = undefined
      this.free.push(delivery.slot)
      delivery.slot = -1
    }
    if (delivery.isVoid) return isFirst
    const copy = this.copies.size > 0 ? this.copies.get(delivery.sequence) : undefined
    if (copy !== undefined) {
      this.copies.delete(delivery.sequence)
      if (isDone) this.options.acknowledge(copy)
      else this.receive([copy])
    } else if (isDone && time >= delivery.heldUntil - this.options.lease / 2) {
      // The server answers a flush before it has taken up the acknowledgements written before that.
      this.late.set(delivery.sequence, time + 60_000)
    }
    return isFirst || !this.given.some((given) => given?.isSameMessage(delivery))
  }

  /** When it comes again to this process, its attempt does not count; a peer, which knows nothing of this, counts it. */
  neverBegan(delivery: JetStreamDelivery): void {
    // `ended` is still to come, and counts it.
    if (delivery.slot >= 0 || delivery.suspect || delivery.isVoid) return
    const again = [...this.queue, ...this.given].find((other) =>
      other?.isSameMessage(delivery) === true && other.delivered > delivery.delivered
    )
    const isLast = (this.retries.get(delivery.sequence)?.delivered ?? 0) <= delivery.delivered
    if (again === undefined && isLast) this.retried(delivery, 0)
    if (again?.isOwnRetry === true && again.delivered === delivery.delivered + 1) again.released++
  }

  extend(delivery: JetStreamDelivery) {
    return this.options.extend(delivery)
  }

  retried(delivery: JetStreamDelivery, delay: number): void {
    const { delivered, firstFailedAt, mayHaveBegun } = delivery
    const released = delivery.released + (mayHaveBegun ? 0 : 1)
    const due = this.options.now() + delay + dueMargin
    const reply = this.options.ordered ? delivery.reply : undefined
    this.retries.set(delivery.sequence, { delivered, released, firstFailedAt, due, reply })
  }

  /** How many retries of this process are due and have not come back. After the lease they have gone to a peer. */
  due(time = this.options.now()): number {
    let due = 0
    for (const retry of this.retries.values()) if (retry.due <= time && time < retry.due + this.options.lease) due++
    return due
  }

  /** Milliseconds until the next retry of this process is due; `Infinity` when none waits. */
  nextDue(time = this.options.now()): number {
    let next = Infinity
    for (const { due } of this.retries.values()) if (due > time && due < next) next = due
    return next - time
  }

  /** Retries of this process that wait, for a peer that has to keep their order. */
  get waitingRetries(): ReadonlyArray<Recorded> {
    const time = this.options.now()
    return [...this.retries].flatMap(([sequence, { due, reply, ...retry }]) =>
      reply === undefined || due <= time
        ? []
        : [{
          ...retry,
          sequence,
          reply,
          timestamp: timestampIn(reply),
          suspect: false,
          due: Math.round(this.options.date() + due - dueMargin - time)
        }]
    )
  }

  /** Which of these messages have arrived and were not given. Their keys wait for them: they are given next. */
  expect(ids: ReadonlyArray<string>): ReadonlySet<string> {
    const kept = new Set(this.ungiven.map(({ id }) => id))
    this.expected = new Set(ids.filter((id) => kept.has(id)))
    if (this.expected.size > 0 && !this.isClosed) this.options.onReady()
    return this.expected
  }

  private get ungiven(): Array<JetStreamDelivery> {
    return [...this.queue, ...this.isolated, ...this.copies.values(), ...[...this.unread].flat()]
  }

  /** Deliveries that were not given: the transport extends them. Ends those that neither it nor the engine extended. */
  sweep(): ReadonlyArray<JetStreamDelivery> {
    const time = this.options.now()
    const { lease } = this.options
    const kept = this.ungiven
    for (const delivery of this.given) {
      if (delivery?.confirming) kept.push(delivery)
      else if (delivery !== undefined) {
        // The engine extends every third of the lease: a delivery that has come again is not its any more.
        const grace = this.copies.has(delivery.sequence) ? lease / 2 : lease
        if (time > delivery.heldUntil + grace) this.ended(delivery, "neglected", time)
      }
    }
    for (const [sequence, until] of this.late) if (time > until) this.late.delete(sequence)
    // While the connection is lost nothing comes again.
    if (!this.options.isInterrupted()) {
      for (const [sequence, { due }] of this.retries) if (time > due + 2 * lease) this.retries.delete(sequence)
    }
    return kept
  }

  forget(lost: ReadonlyArray<unknown>): void {
    if (lost.length === 0) return
    this.queue = this.queue.filter((delivery) => !lost.includes(delivery))
    this.isolated = this.isolated.filter((delivery) => !lost.includes(delivery))
    for (const [sequence, copy] of this.copies) if (lost.includes(copy)) this.copies.delete(sequence)
  }

  /** The stream was created again: sequences begin again, and deliveries of its earlier life are void. */
  renew(): void {
    for (const delivery of this.given) if (delivery !== undefined) delivery.isVoid = true
    this.queue = []
    this.isolated = []
    this.unread.clear()
    this.copies.clear()
    this.late.clear()
    this.retries.clear()
    this.highest = 0
    this.gathering = false
    this.inherited = 0
  }

  /** Gives nothing more; resolves with what is left once the ledger has been read for the last of it. */
  close(): Promise<ReadonlyArray<JetStreamDelivery>> {
    this.isClosed = true
    return (this.reading ?? Promise.resolve()).then(() => [...this.queue, ...this.isolated, ...this.copies.values()])
  }

  private isCopy(delivery: JetStreamDelivery): boolean {
    const sequence = Number(delivery.sequence)
    if (sequence > this.highest) {
      this.highest = sequence
      return false
    }
    const isSame = (other: JetStreamDelivery | undefined) => other?.isSameMessage(delivery) === true
    const first = this.given.find(isSame)
    if (first !== undefined) {
      // Whatever the handler of the first does now, this one is what counts.
      first.heldUntil = Math.min(first.heldUntil, this.options.now())
      this.copies.set(delivery.sequence, delivery)
      delivery.isCopy = true
      return true
    }
    const place = this.queue.findIndex(isSame)
    // The last delivery but this one, and no handler has begun it: its place is kept, for the order of its key.
    if (place >= 0 && delivery.delivered <= this.queue[place]!.delivered + 1) {
      delivery.replaces(this.queue[place]!)
      this.queue[place] = delivery
      return true
    }
    for (const list of [this.queue, this.isolated, ...this.unread]) {
      const index = list.findIndex(isSame)
      // That one has been given to no pull, and need not be.
      if (index >= 0) list.splice(index, 1)
    }
    return this.late.size > 0 && this.isDone(delivery)
  }

  /** Whether the message was done after it had been delivered again; then this delivery is acknowledged too. */
  private isDone(delivery: JetStreamDelivery): boolean {
    if (!this.late.has(delivery.sequence)) return false
    this.options.acknowledge(delivery)
    return true
  }

  /** Counts the attempts of a retry that this process requested; `false` where it did not. */
  private recall(delivery: JetStreamDelivery): boolean {
    const retry = this.retries.get(delivery.sequence)
    if (retry === undefined) return false
    this.retries.delete(delivery.sequence)
    if (retry.delivered !== delivery.delivered - 1) return false
    delivery.released = retry.released
    delivery.firstFailedAt = retry.firstFailedAt
    delivery.isOwnRetry = true
    return true
  }

  /** Buffers deliveries in their order. */
  admit(chunk: ReadonlyArray<JetStreamDelivery>): void {
    for (const delivery of chunk) {
      if (this.gathering && delivery.redelivered) this.inherited++
      if (!delivery.suspect || delivery.attempt < this.options.isolateFrom) this.queue.push(delivery)
      else if (this.isolated.length < maxIsolated) {
        this.isolated.push(delivery)
        this.options.ledger.arrived(delivery)
      } else this.options.postpone(delivery)
    }
    // Everything that was released comes before the first message that was never delivered.
    const isComplete = chunk.some(({ redelivered }) => !redelivered) || this.missing === 0 ||
      this.bytes > maxInheritedBytes
    if (this.gathering && isComplete) this.gathered()
    if (!this.isClosed) this.options.onReady()
  }

  private dropExpired(): void {
    if (this.late.size > 0) {
      this.queue = this.queue.filter((delivery) => !this.isDone(delivery))
      this.isolated = this.isolated.filter((delivery) => !this.isDone(delivery))
    }
    // This process stood still: a peer may own what came before.
    const time = this.options.now()
    const isOurs = (delivery: JetStreamDelivery) => delivery.heldUntil > time
    if (this.queue.length > 0 && !isOurs(this.queue[0]!)) {
      this.queue = this.queue.filter(isOurs)
      this.inherited = Math.min(this.inherited, this.queue.length)
    }
    if (this.isolated.length > 0 && !isOurs(this.isolated[0]!)) this.isolated = this.isolated.filter(isOurs)
  }
}
