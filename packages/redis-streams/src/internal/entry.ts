import type * as Codec from "@millrace/core/Codec"
import type * as Message from "@millrace/core/Message"
import type { Delivery, Outgoing } from "@millrace/core/Transport"
import { keyOf } from "@millrace/core/TransportAuthor"
import { isAscii } from "node:buffer"
import type { Argument } from "./command.ts"

/** `id` and the flat list of field names and values, as the server sends them. */
export type RawEntry = readonly [Buffer, ReadonlyArray<Buffer>]

const nothing = Buffer.alloc(0)

const same = (a: Buffer, b: Buffer): boolean => {
  if (a.length !== b.length) return false
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false
  return true
}

const bodyName = Buffer.from("body")
const contentTypeName = Buffer.from("content-type")

/** How an entry came: read for the first time, as a retry of this process, or as an isolated suspect. */
export type Arrival = "fresh" | "retry" | "isolated"

/** What a delivery knows beside the message. */
export interface Facts {
  readonly attempt: number
  readonly redelivered: boolean
  readonly suspect: boolean
  readonly firstFailedAt: number | undefined
  /** When a retry may run that is given out early. */
  readonly due: number | undefined
  /** The delivery count that the server has for it: an attempt that has not begun may not be counted yet. */
  readonly count: number
  readonly arrival: Arrival
  /** No other consumer ever had it. */
  readonly isFirstHand: boolean
}

const fresh: Facts = {
  attempt: 1,
  redelivered: false,
  suspect: false,
  firstFailedAt: undefined,
  due: undefined,
  count: 1,
  arrival: "fresh",
  isFirstHand: true
}

/**
 * Reads entries. Most have a body and the content type of the one before: they share their headers, and nothing of the
 * reply but the body stays.
 */
export class EntryReader {
  private contentType = nothing
  private headers: Message.Headers = {}
  private readonly topic: string
  private readonly source: object | undefined

  /** `source`: the subscription that gives the deliveries out. */
  constructor(topic: string, source?: object) {
    this.topic = topic
    this.source = source
  }

  read(origin: string, entry: RawEntry, now: number, facts: Facts = fresh): RedisDelivery {
    const [id, fields] = entry
    const delivery = new RedisDelivery(this.source, this.topic, origin, id.toString("latin1"), facts, now)
    if (fields.length === 4 && same(fields[0]!, bodyName) && same(fields[2]!, contentTypeName)) {
      const contentType = fields[3]!
      if (!same(contentType, this.contentType)) {
        this.contentType = Buffer.from(contentType)
        this.headers = Object.freeze(Object.assign(Object.create(null), { "content-type": contentType.toString() }))
      }
      delivery.body = fields[1]!
      delivery.readHeaders = this.headers
    } else {
      for (let i = 0; i < fields.length; i += 2) if (same(fields[i]!, bodyName)) delivery.body = fields[i + 1]!
      delivery.raw = fields
    }
    return delivery
  }
}

/** The fields of an entry as the server has them: also names that repeat, and that are not text. */
class RawFields extends Map<string, Buffer> implements Codec.FieldMap {
  readonly raw: ReadonlyArray<Buffer>
  /** The values of names that repeat. */
  private readonly repeated = new Map<string, Array<Buffer>>()

  constructor(raw: ReadonlyArray<Buffer>) {
    super()
    this.raw = raw
    for (let i = 0; i < raw.length; i += 2) {
      const name = raw[i]!.toString()
      const value = raw[i + 1]!
      const values = this.repeated.get(name)
      const before = this.get(name)
      if (values !== undefined) values.push(value)
      else if (before !== undefined) this.repeated.set(name, [before, value])
      this.set(name, value)
    }
  }

  getAll(name: string): ReadonlyArray<Uint8Array> {
    const value = this.get(name)
    return this.repeated.get(name) ?? (value === undefined ? [] : [value])
  }

  without(isOut: (name: string) => boolean): RawFields {
    return new RawFields(this.raw.filter((_, i) => !isOut(this.raw[i - i % 2]!.toString())))
  }
}

/** One entry, given to this consumer. */
export class RedisDelivery implements Delivery {
  readonly topic: string
  readonly origin: string
  readonly id: string
  readonly attempt: number
  readonly suspect: boolean
  readonly redelivered: boolean
  readonly firstFailedAt: number | undefined
  readonly due: number | undefined
  body: Uint8Array = nothing
  raw: ReadonlyArray<Buffer> | undefined
  readHeaders: Message.Headers | undefined
  // Not for whoever prints a delivery.
  readonly #state: DeliveryState

  constructor(
    source: object | undefined,
    topic: string,
    origin: string,
    id: string,
    facts: Facts,
    now: number
  ) {
    this.topic = topic
    this.origin = origin
    this.id = id
    this.attempt = facts.attempt
    this.redelivered = facts.redelivered
    this.suspect = facts.suspect
    this.firstFailedAt = facts.firstFailedAt
    this.due = facts.due
    this.#state = {
      source,
      count: facts.count,
      arrival: facts.arrival,
      isFirstHand: facts.isFirstHand,
      keptAt: now,
      isOut: false,
      isSettling: false,
      isAcknowledged: false,
      isGone: false,
      isSuperseded: false,
      isBeginning: false,
      unsettledAt: 0,
      previous: undefined,
      next: undefined
    }
  }

  static state(delivery: RedisDelivery): DeliveryState {
    return delivery.#state
  }

  get vanished(): boolean {
    return this.#state.isGone
  }

  get fields(): ReadonlyMap<string, Uint8Array> {
    if (this.raw === undefined) {
      return new Map([["body", this.body], ["content-type", Buffer.from(this.headers["content-type"] ?? "")]])
    }
    return new RawFields(this.raw)
  }

  /** In bytes, without the names of fields. */
  get size(): number {
    if (this.raw === undefined) return this.body.length
    let size = 0
    for (const part of this.raw) size += part.length
    return size
  }

  get headers(): Message.Headers {
    if (this.readHeaders !== undefined) return this.readHeaders
    const headers: Record<string, string> = Object.create(null)
    const fields = this.raw ?? []
    for (let i = 0; i < fields.length; i += 2) {
      const name = fields[i]!
      if (!same(name, bodyName)) headers[name.toString()] = fields[i + 1]!.toString()
    }
    return this.readHeaders = headers
  }

  get key(): string | undefined {
    return keyOf(this.headers)
  }

  get publishedAt(): number {
    return Number.parseInt(this.id, 10)
  }
}

/** What a subscription notes about a delivery. */
export interface DeliveryState {
  readonly source: object | undefined
  readonly arrival: Arrival
  readonly isFirstHand: boolean
  count: number
  /** When this consumer was last known to own it, on the clock of `performance.now`. */
  keptAt: number
  /** Given to the engine and not settled. */
  isOut: boolean
  /** A settlement is under way. */
  isSettling: boolean
  /** An acknowledgement was sent. */
  isAcknowledged: boolean
  /** This consumer was given the entry again: this delivery has no say any more. */
  isSuperseded: boolean
  /** Its attempt is being counted: which count the server holds is not known, and counting renews the lease. */
  isBeginning: boolean
  /** The entry was deleted from the stream, and no other consumer has it. */
  isGone: boolean
  /** When it was first seen to be neither settled nor extended; 0: never. */
  unsettledAt: number
  previous: RedisDelivery | undefined
  next: RedisDelivery | undefined
}

/** The deliveries that the engine has. */
export class Outstanding {
  size = 0
  private first: RedisDelivery | undefined

  add(delivery: RedisDelivery): void {
    const state = RedisDelivery.state(delivery)
    state.isOut = true
    state.next = this.first
    if (this.first !== undefined) RedisDelivery.state(this.first).previous = delivery
    this.first = delivery
    this.size++
  }

  /** Gives `false` when it was not there. */
  delete(delivery: RedisDelivery): boolean {
    const state = RedisDelivery.state(delivery)
    if (!state.isOut) return false
    const { next, previous } = state
    if (previous === undefined) this.first = next
    else RedisDelivery.state(previous).next = next
    if (next !== undefined) RedisDelivery.state(next).previous = previous
    state.isOut = false
    state.previous = state.next = undefined
    this.size--
    return true
  }

  all(): ReadonlyArray<RedisDelivery> {
    const all: Array<RedisDelivery> = []
    for (let one = this.first; one !== undefined; one = RedisDelivery.state(one).next) all.push(one)
    return all
  }

  /** In proportion to how many there are. */
  find(id: string): RedisDelivery | undefined {
    let delivery = this.first
    while (delivery !== undefined && delivery.id !== id) delivery = RedisDelivery.state(delivery).next
    return delivery
  }
}

const isReserved = (name: string) => name === "content-type" || name === "traceparent" || name.startsWith("millrace-")

const bytes = (value: Uint8Array): Buffer =>
  Buffer.isBuffer(value) ? value : Buffer.from(value.buffer, value.byteOffset, value.byteLength)

/** Beyond that a copy costs more than a write of its own. */
const maxText = 16 * 1024

/** The client writes each buffer apart, and joins texts: a text of ASCII is the same bytes. */
export const written = (value: Uint8Array): Argument => {
  const buffer = bytes(value)
  return buffer.byteLength <= maxText && isAscii(buffer) ? buffer.toString("latin1") : buffer
}

/** Adds the fields of an entry to `args`: the codec's own, or `body`, and each header beside them. */
export const appendFields = (args: Array<Argument>, message: Outgoing): Array<Argument> => {
  const { body, fields, headers } = message
  if (fields === undefined) args.push("body", written(body))
  else if (fields instanceof RawFields) {
    const { raw } = fields.without((name) => isReserved(name) && name in headers)
    for (const part of raw) args.push(written(part))
  } else {
    for (const [name, value] of fields) {
      // A field of the message wins over a header of its name, but not over what the envelope says.
      if (!(isReserved(name) && name in headers)) args.push(name, written(value))
    }
  }
  for (const name in headers) {
    if (fields === undefined || isReserved(name) || !fields.has(name)) args.push(name, headers[name]!)
  }
  return args
}

/** How many fields the entry has. */
export const fieldCount = ({ fields, headers }: Outgoing): number => {
  let count = fields === undefined ? 1 : fields instanceof RawFields ? fields.raw.length / 2 : fields.size
  for (const _ in headers) count++
  return count
}

/** In bytes, the largest field: a server bounds each argument of a command. */
export const largestField = ({ body, fields, headers }: Outgoing): number => {
  let largest = body.byteLength
  if (fields !== undefined) {
    largest = 0
    const raw = fields instanceof RawFields ? fields.raw : fields.values()
    for (const value of raw) largest = Math.max(largest, value.byteLength)
  }
  for (const name in headers) if (headers[name]!.length > largest) largest = Buffer.byteLength(headers[name]!)
  return largest
}
