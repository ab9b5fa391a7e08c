import { keyOf } from "@millrace/core/Publisher"
import type * as Message from "@millrace/core/Message"
import type { Delivery, Outgoing } from "@millrace/core/Transport"
import type { Argument } from "./link.ts"

/** `id` and the flat list of field names and values, as the server sends them. */
export type RawEntry = readonly [Buffer, ReadonlyArray<Buffer>]

const nothing = Buffer.alloc(0)

const isBody = (name: Buffer): boolean =>
  name.length === 4 && name[0] === 0x62 && name[1] === 0x6f && name[2] === 0x64 && name[3] === 0x79

/** Reads what it is asked for out of the raw entry: most pipelines ask for the body and no more. */
export class RedisDelivery implements Delivery {
  readonly topic: string
  readonly attempt: number
  readonly suspect: boolean
  readonly redelivered: boolean
  /** The subscription that gave it out. */
  readonly source: unknown
  /** Given to the engine and not settled yet. */
  out = false
  private readonly raw: RawEntry
  private readId: string | undefined
  private readHeaders: Message.Headers | undefined

  constructor(source: unknown, topic: string, raw: RawEntry, attempt: number, redelivered: boolean, suspect: boolean) {
    this.source = source
    this.topic = topic
    this.raw = raw
    this.attempt = attempt
    this.redelivered = redelivered
    this.suspect = suspect
  }

  get id(): string {
    return this.readId ??= this.raw[0].toString("latin1")
  }

  get body(): Uint8Array {
    const fields = this.raw[1]
    for (let i = 0; i < fields.length; i += 2) if (isBody(fields[i]!)) return fields[i + 1]!
    return nothing
  }

  get fields(): ReadonlyMap<string, Uint8Array> {
    const map = new Map<string, Uint8Array>()
    const fields = this.raw[1]
    for (let i = 0; i < fields.length; i += 2) map.set(fields[i]!.toString(), fields[i + 1]!)
    return map
  }

  get headers(): Message.Headers {
    if (this.readHeaders !== undefined) return this.readHeaders
    const headers: Record<string, string> = Object.create(null)
    const fields = this.raw[1]
    for (let i = 0; i < fields.length; i += 2) {
      const name = fields[i]!
      if (!isBody(name)) headers[name.toString()] = fields[i + 1]!.toString()
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
