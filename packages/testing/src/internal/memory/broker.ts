import type * as Message from "@millrace/core/Message"
import type * as Settlement from "@millrace/core/Settlement"
import type * as Transport from "@millrace/core/Transport"
import type * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"

/**
 * A settlement as the broker received it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Settled {
  readonly topic: string
  readonly group: string
  readonly id: string
  readonly attempt: number
  readonly settlement: Settlement.Settlement
}

/** What is stored: one message of one topic. */
export interface Entry {
  readonly id: string
  readonly origin: string
  readonly topic: string
  readonly key: string | undefined
  readonly headers: Message.Headers
  readonly body: Uint8Array
  readonly fields: ReadonlyMap<string, Uint8Array> | undefined
  readonly publishedAt: number
}

/** One subscription of one process. */
export interface Consumer {
  readonly name: string
  /** As in `Transport.SubscribeOptions`. */
  readonly isolateFrom: number
  readonly ordered: boolean
  isClosed: boolean
}

/** An entry on its way through one group, once it was delivered for the first time. */
export class Passage {
  readonly entry: Entry
  attempts = 0
  deliveries = 0
  suspect = false
  owner: Consumer | undefined
  /** The delivery that may settle it; older deliveries are fenced. */
  delivery: Transport.Delivery | undefined
  /** Whether the present delivery has been counted as an attempt. */
  counted = true
  touchedAt = 0
  due = 0
  firstFailedAt: number | undefined
  constructor(entry: Entry) {
    this.entry = entry
  }
}

class Delivery implements Transport.Delivery {
  readonly passage: Passage
  readonly attempt: number
  readonly redelivered: boolean
  readonly suspect: boolean
  readonly firstFailedAt: number | undefined
  readonly due: number | undefined
  constructor(passage: Passage, due: number | undefined) {
    this.due = due
    this.passage = passage
    this.attempt = passage.attempts
    this.redelivered = passage.deliveries > 1
    this.suspect = passage.suspect
    this.firstFailedAt = passage.firstFailedAt
  }
  get id(): string {
    return this.passage.entry.id
  }
  get origin(): string {
    return this.passage.entry.origin
  }
  get topic(): string {
    return this.passage.entry.topic
  }
  get key(): string | undefined {
    return this.passage.entry.key
  }
  get headers(): Message.Headers {
    return this.passage.entry.headers
  }
  get body(): Uint8Array {
    return this.passage.entry.body
  }
  get fields(): ReadonlyMap<string, Uint8Array> | undefined {
    return this.passage.entry.fields
  }
  get publishedAt(): number {
    return this.passage.entry.publishedAt
  }
}

/** One group of one topic: its position, and what it has not settled. */
export class Group {
  readonly topic: Topic
  readonly name: string
  /** Index in the topic's log of the next entry never delivered. */
  next: number
  /** Delivered and not settled, the one that was left alone longest first. */
  readonly pending = new Map<string, Passage>()
  /** Available at once, in the order of the topic. */
  readonly released: Array<Passage> = []
  /** Retries, the one that is due first in front. */
  readonly delayed: Array<Passage> = []
  readonly waiters = new Set<() => void>()

  constructor(topic: Topic, name: string, next: number) {
    this.topic = topic
    this.name = name
    this.next = next
  }

  get lag(): number {
    let lag = 0
    for (let i = this.next; i < this.topic.end; i++) if (this.topic.at(i) !== undefined) lag++
    return lag
  }

  has(entry: Entry, index: number): boolean {
    return index >= this.next || this.pending.has(entry.id) || this.released.some((p) => p.entry === entry) ||
      this.delayed.some((p) => p.entry === entry)
  }

  /** The next instant after `now` at which a message becomes available without anything else happening. */
  nextDue(consumer: Consumer, now: number): number | undefined {
    let due = this.topic.scheduled[0]?.due ?? Infinity
    // Already available messages exceed the demand: the next pull asks again.
    for (const { due: at } of this.delayed) {
      if (at <= now) continue
      due = Math.min(due, at)
      break
    }
    for (const passage of this.pending.values()) {
      const at = this.abandonedAt(passage, consumer)
      if (at <= now) continue
      due = Math.min(due, at)
      if (passage.owner !== consumer) break
    }
    return Number.isFinite(due) ? due : undefined
  }

  /** Due retries first, then released and abandoned messages, then unread ones: see `Transport.Subscription.pull`. */
  take(consumer: Consumer, demand: Transport.Demand, now: number): Array<Transport.Delivery> {
    const taken: Array<Transport.Delivery> = []
    let { bytes, fresh, suspects } = demand
    const isFull = () => taken.length >= demand.total || (bytes <= 0 && taken.length > 0)
    const give = (passage: Passage, isRetry: boolean, due?: number): boolean => {
      const isIsolated = passage.suspect && passage.attempts + 1 >= consumer.isolateFrom
      if ((isIsolated && suspects <= 0) || (!isRetry && fresh <= 0)) return false
      if (isIsolated) suspects--
      if (!isRetry) fresh--
      bytes -= passage.entry.body.byteLength
      taken.push(this.deliver(passage, consumer, now, !isIsolated, due))
      return true
    }
    this.topic.appendDue(now)
    for (let i = 0; !isFull() && i < this.delayed.length && this.delayed[i]!.due <= now;) {
      // Without a living owner a due retry is fresh to whoever takes it.
      const passage = this.delayed[i]!
      if (give(passage, passage.owner === consumer)) this.delayed.splice(i, 1)
      else i++
    }
    if (consumer.ordered) {
      const orphans = this.delayed.filter(({ due, owner }) => due > now && owner!.isClosed)
      for (const passage of orphans.sort(inOrder)) {
        if (isFull() || !give(passage, false, passage.due)) break
        this.delayed.splice(this.delayed.indexOf(passage), 1)
      }
    }
    for (let i = 0; !isFull() && i < this.released.length;) {
      if (give(this.released[i]!, false)) this.released.splice(i, 1)
      else i++
    }
    const abandoned: Array<Passage> = []
    for (const passage of this.pending.values()) {
      if (passage.touchedAt + this.topic.broker.options.minIdle > now) break
      if (this.abandonedAt(passage, consumer) <= now) abandoned.push(passage)
    }
    for (const passage of abandoned) {
      if (isFull()) break
      if (passage.counted) passage.suspect = true
      else passage.attempts--
      if (!give(passage, false) && !passage.counted) passage.attempts++
    }
    for (; !isFull() && fresh > 0 && this.next < this.topic.end; this.next++) {
      const entry = this.topic.at(this.next)
      if (entry !== undefined) give(new Passage(entry), false)
    }
    if (taken.length > 0) this.topic.broker.activity++
    return taken
  }

  /** An abandoned message is available to peers first, and half a lease later to its former owner. */
  private abandonedAt({ owner, touchedAt }: Passage, consumer: Consumer): number {
    const { minIdle } = this.topic.broker.options
    return touchedAt + (owner === consumer ? 1.5 * minIdle : minIdle)
  }

  private deliver(
    passage: Passage,
    consumer: Consumer,
    now: number,
    counted: boolean,
    due: number | undefined
  ): Transport.Delivery {
    passage.due = 0
    passage.owner = consumer
    passage.attempts++
    passage.counted = counted
    passage.deliveries++
    passage.touchedAt = now
    const delivery = passage.delivery = new Delivery(passage, due)
    this.pending.delete(passage.entry.id)
    this.pending.set(passage.entry.id, passage)
    return delivery
  }

  /** `false` when `consumer` no longer owns the delivery. */
  settle(consumer: Consumer, delivery: Transport.Delivery, settlement: Settlement.Settlement): boolean {
    const { broker } = this.topic
    const pending = this.pending.get(delivery.id)
    const owned = pending !== undefined && pending.owner === consumer && pending.delivery === delivery
    // The same settlement again is not news: it has arrived before.
    if (!owned && settlement._tag !== "Ack") return this.isWaiting(delivery)
    // An acknowledgement stands, wherever the message is now: its work is done.
    const passage = pending ?? this.takeBack(delivery.id)
    if (passage === undefined) return true
    broker.activity++
    if (broker.options.history) {
      broker.settled.push({
        topic: this.topic.name,
        group: this.name,
        id: delivery.id,
        attempt: delivery.attempt,
        settlement
      })
    }
    this.pending.delete(delivery.id)
    switch (settlement._tag) {
      case "Ack":
      case "Terminate": {
        this.topic.acknowledged(passage.entry)
        break
      }
      case "Release": {
        passage.attempts--
        if (delivery.due !== undefined && delivery.due > broker.clock.currentTimeMillisUnsafe()) {
          this.delay(passage, delivery.due)
        } else {
          passage.owner = undefined
          const after = this.released.findIndex((other) => inOrder(other, passage) > 0)
          this.released.splice(after < 0 ? this.released.length : after, 0, passage)
        }
        this.wake()
        break
      }
      case "Retry": {
        const now = broker.clock.currentTimeMillisUnsafe()
        passage.suspect = false
        passage.firstFailedAt ??= now
        this.delay(passage, now + (settlement.after === undefined ? 0 : Duration.toMillis(settlement.after)))
        this.wake()
        break
      }
    }
    return true
  }

  private isWaiting(delivery: Transport.Delivery): boolean {
    return [...this.released, ...this.delayed].some((passage) => passage.delivery === delivery)
  }

  private delay(passage: Passage, due: number): void {
    passage.due = due
    const after = this.delayed.findIndex((other) => other.due > due)
    this.delayed.splice(after < 0 ? this.delayed.length : after, 0, passage)
  }

  /** Takes a message out of those that wait for somebody to ask. */
  private takeBack(id: string): Passage | undefined {
    for (const waiting of [this.released, this.delayed]) {
      const index = waiting.findIndex(({ entry }) => entry.id === id)
      if (index < 0) continue
      return waiting.splice(index, 1)[0]
    }
    return undefined
  }

  /** Counts the attempt of an isolated suspect. */
  begin(consumer: Consumer, delivery: Transport.Delivery): boolean {
    if (!this.extend(consumer, delivery)) return false
    this.pending.get(delivery.id)!.counted = true
    return true
  }

  extend(consumer: Consumer, delivery: Transport.Delivery): boolean {
    const passage = this.pending.get(delivery.id)
    if (passage === undefined) return false
    if (passage.owner !== consumer || passage.delivery !== delivery) return false
    passage.touchedAt = this.topic.broker.clock.currentTimeMillisUnsafe()
    this.pending.delete(delivery.id)
    this.pending.set(delivery.id, passage)
    return true
  }

  wake(): void {
    // Whoever is woken may wait again at once.
    const waiters = [...this.waiters]
    this.waiters.clear()
    for (const waiter of waiters) waiter()
  }
}

/** A log of entries; removed ones leave a hole until the front of the log is cut. */
export class Topic {
  readonly broker: Broker
  readonly name: string
  /** A topic that is deleted and created again is another one. */
  readonly origin: string
  readonly groups = new Map<string, Group>()
  /** Published with a delay, the one that is due first in front. */
  readonly scheduled: Array<{ readonly due: number; readonly message: Transport.Outgoing }> = []
  private log: Array<Entry | undefined> = []
  private offset = 0
  /** How many entries at the front of the log are gone. */
  private front = 0
  private readonly index = new Map<string, number>()
  private sequence: number

  constructor(broker: Broker, name: string, life: number) {
    this.broker = broker
    this.name = name
    this.origin = `${broker.origin}/${name}/${life}`
    // Ids stay unique when a topic is created again.
    this.sequence = life * 1_000_000_000
  }

  get end(): number {
    return this.offset + this.log.length
  }

  get size(): number {
    return this.index.size
  }

  at(index: number): Entry | undefined {
    return this.log[index - this.offset]
  }

  entries(options: Transport.BrowseOptions = {}): ReadonlyArray<Entry> {
    this.appendDue(this.broker.clock.currentTimeMillisUnsafe())
    const after = options.after === undefined ? -Infinity : Number(options.after)
    const before = options.before === undefined ? Infinity : Number(options.before)
    const within = this.log.filter((entry) =>
      entry !== undefined && Number(entry.id) > after && Number(entry.id) < before
    ) as Array<Entry>
    if (options.reverse === true) within.reverse()
    return options.limit === undefined ? within : within.slice(0, options.limit)
  }

  get(id: string): Entry | undefined {
    const index = this.index.get(id)
    return index === undefined ? undefined : this.at(index)
  }

  group(name: string, startFrom: "new" | "beginning"): Group {
    let group = this.groups.get(name)
    if (group === undefined) {
      group = new Group(this, name, startFrom === "new" ? this.end : this.offset)
      this.groups.set(name, group)
    }
    return group
  }

  schedule(message: Transport.Outgoing, due: number): void {
    const after = this.scheduled.findIndex((other) => other.due > due)
    this.scheduled.splice(after < 0 ? this.scheduled.length : after, 0, { due, message })
    for (const group of this.groups.values()) group.wake()
  }

  appendDue(now: number): void {
    while (this.scheduled.length > 0 && this.scheduled[0]!.due <= now) this.append(this.scheduled.shift()!.message)
  }

  append(message: Transport.Outgoing): string {
    const id = String(++this.sequence)
    this.index.set(id, this.end)
    this.log.push({
      id,
      origin: this.origin,
      topic: this.name,
      key: message.key,
      headers: message.headers,
      body: message.body,
      fields: message.fields,
      publishedAt: this.broker.clock.currentTimeMillisUnsafe()
    })
    this.broker.activity++
    for (const group of this.groups.values()) if (group.waiters.size > 0) group.wake()
    return id
  }

  remove(id: string): boolean {
    const index = this.index.get(id)
    if (index === undefined) return false
    this.index.delete(id)
    this.log[index - this.offset] = undefined
    this.cut()
    return true
  }

  acknowledged(entry: Entry): void {
    if (!this.broker.options.untilAcked) return
    const index = this.index.get(entry.id)
    if (index === undefined) return
    for (const group of this.groups.values()) if (group.has(entry, index)) return
    this.remove(entry.id)
  }

  private cut(): void {
    while (this.front < this.log.length && this.log[this.front] === undefined) this.front++
    if (this.front < 1024 && this.front < this.log.length) return
    this.log = this.log.slice(this.front)
    this.offset += this.front
    this.front = 0
  }
}

export interface BrokerOptions {
  readonly minIdle: number
  readonly untilAcked: boolean
  readonly maxBody: number
  readonly history: boolean
}

let brokers = 0

/** What names a broker in place of its number in this process: the ids of what a pipeline publishes derive from it. */
export const Origin = Context.Reference<string | undefined>("@millrace/testing/internal/memory/Origin", {
  defaultValue: () => undefined
})

export class Broker {
  readonly clock: Clock.Clock
  readonly options: BrokerOptions
  readonly topics = new Map<string, Topic>()
  readonly published: Array<Transport.Outgoing> = []
  readonly settled: Array<Settled> = []
  /** Milliseconds since the epoch. */
  readonly startedAt: number
  /** Two brokers in one process must not be confused: see `Transport.Delivery.origin`. */
  readonly origin: string
  consumers = 0
  activity = 0
  /** How many topics were deleted. */
  private deleted = 0
  private readonly seen = new Map<string, { readonly id: string; readonly until: number }>()

  constructor(clock: Clock.Clock, options: BrokerOptions, origin = `memory-${++brokers}`) {
    this.clock = clock
    this.origin = origin
    this.options = options
    this.startedAt = clock.currentTimeMillisUnsafe()
  }

  topic(name: string): Topic {
    let topic = this.topics.get(name)
    if (topic === undefined) {
      topic = new Topic(this, name, this.deleted)
      this.topics.set(name, topic)
    }
    return topic
  }

  deleteTopic(name: string): void {
    const topic = this.topics.get(name)
    if (topic === undefined) return
    this.topics.delete(name)
    this.deleted++
    for (const group of topic.groups.values()) group.wake()
  }

  deleteGroup(name: string, group: string): void {
    const topic = this.topics.get(name)
    const found = topic?.groups.get(group)
    topic?.groups.delete(group)
    found?.wake()
  }

  publish(message: Transport.Outgoing): Transport.Published {
    const known = message.id === undefined ? undefined : this.known(`${message.topic}\n${message.id}`)
    if (known !== undefined) return { id: known, duplicate: true }
    const topic = this.topic(message.topic)
    let id = "scheduled"
    if (message.delay === undefined) id = topic.append(message)
    else topic.schedule(message, this.clock.currentTimeMillisUnsafe() + Duration.toMillis(message.delay))
    if (this.options.history) this.published.push(message)
    if (message.id !== undefined) {
      this.seen.set(`${message.topic}\n${message.id}`, {
        id,
        until: this.clock.currentTimeMillisUnsafe() + dedupWindow
      })
    }
    return { id, duplicate: false }
  }

  private known(key: string): string | undefined {
    const now = this.clock.currentTimeMillisUnsafe()
    for (const [key, { until }] of this.seen) {
      if (until > now) break
      this.seen.delete(key)
    }
    return this.seen.get(key)?.id
  }
}

/** Two minutes, as NATS has it. */
export const dedupWindow = 120_000

const inOrder = (self: Passage, that: Passage): number => Number(self.entry.id) - Number(that.entry.id)
