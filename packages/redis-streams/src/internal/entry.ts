import type * as Message from "@millrace/core/Message"
import { keyOf } from "@millrace/core/Publisher"
import type { Delivery, Outgoing } from "@millrace/core/Transport"
import type { Argument } from "./link.ts"
import { text } from "./reply.ts"

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

/**
 * Reads entries. Most have a body and the content type of the one before: they share their headers, and nothing of the
 * reply but the body stays.
 */
export class EntryReader {
  private contentType = nothing
  private headers: Message.Headers = {}

  read(
    source: unknown,
    topic: string,
    entry: RawEntry,
    attempt: number,
    redelivered: boolean,
    suspect: boolean
  ): RedisDelivery {
    const [id, fields] = entry
    const delivery = new RedisDelivery(source, topic, id.toString("latin1"), attempt, redelivered, suspect)
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

/** One entry, given to this consumer. */
export class RedisDelivery implements Delivery {
  readonly topic: string
  readonly id: string
  readonly attempt: number
  readonly suspect: boolean
  readonly redelivered: boolean
  /** The subscription that gave it out. */
  readonly source: unknown
  body: Uint8Array = nothing
  firstFailedAt: number | undefined
  /** Given to the engine and not settled yet. */
  out = false
  raw: ReadonlyArray<Buffer> | undefined
  readHeaders: Message.Headers | undefined

  constructor(source: unknown, topic: string, id: string, attempt: number, redelivered: boolean, suspect: boolean) {
    this.source = source
    this.topic = topic
    this.id = id
    this.attempt = attempt
    this.redelivered = redelivered
    this.suspect = suspect
  }

  /** As a script replies: not at all where nothing is known. */
  failedFirst(at: unknown): this {
    const millis = Number(at === undefined || at === null ? "" : text(at))
    if (millis > 0) this.firstFailedAt = millis
    return this
  }

  get fields(): ReadonlyMap<string, Uint8Array> {
    const map = new Map<string, Uint8Array>()
    if (this.raw === undefined) {
      map.set("body", this.body)
      map.set("content-type", Buffer.from(this.headers["content-type"] ?? ""))
      return map
    }
    for (let i = 0; i < this.raw.length; i += 2) map.set(this.raw[i]!.toString(), this.raw[i + 1]!)
    return map
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

const isReserved = (name: string) => name === "content-type" || name === "traceparent" || name.startsWith("millrace-")

const bytes = (value: Uint8Array): Buffer =>
  Buffer.isBuffer(value) ? value : Buffer.from(value.buffer, value.byteOffset, value.byteLength)

/** The fields of an entry: the codec's own, or `body`, and each header beside them. */
export const fieldsOf = (message: Outgoing): Array<Argument> => {
  const { body, fields, headers } = message
  const args: Array<Argument> = []
  if (fields === undefined) args.push("body", bytes(body))
  else {
    for (const [name, value] of fields) {
      // A field of the message wins over a header of its name, but not over what the envelope says.
      if (!(isReserved(name) && name in headers)) args.push(name, bytes(value))
    }
  }
  for (const name in headers) {
    if (fields === undefined || isReserved(name) || !fields.has(name)) args.push(name, headers[name]!)
  }
  return args
}
