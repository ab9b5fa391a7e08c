import type * as Codec from "../Codec.ts"
import type * as Message from "../Message.ts"
import type { Delivery } from "../Transport.ts"

/** The record of a dead letter. */
export const recordHeader = "millrace-dead-letter"
/** The group that a redriven message is for. */
export const groupHeader = "millrace-group"
/** How a redriven message failed before. */
export const historyHeader = "millrace-history"
/** On the first piece of a letter in two pieces: the letter's id. */
export const splitHeader = "millrace-split"
/** On the second piece: the letter's id. */
export const restHeader = "millrace-rest-of"
/** On a second piece that begins with the message's headers, as JSON: how many bytes they take. */
export const headerBytesHeader = "millrace-header-bytes"

const added: ReadonlySet<string> = new Set([groupHeader, historyHeader, splitHeader, restHeader, headerBytesHeader])

/** Written by this package or a transport of it, and of no use on another message. */
export const isOurs = (name: string): boolean =>
  isOfLetter(name) || name === "millrace-key" || name === "millrace-subject"

const isOfLetter = (name: string): boolean => added.has(name) || depthOf(name) !== undefined

/** A record's depth: 1 for the letter itself, 2 for the dead letter that the message was before, and so on. */
const depthOf = (name: string): number | undefined => {
  if (name === recordHeader) return 1
  const match = /^millrace-dead-letter-(\d+)$/.exec(name)
  return match === null ? undefined : Number(match[1])
}

const nameOf = (depth: number): string => depth === 1 ? recordHeader : `${recordHeader}-${depth}`

/** Has no prototype: a header may have the name `__proto__`. */
const none = (): Record<string, string> => Object.create(null)

/** Moves each record by `by`; a record that would be above depth 1 and the headers of a redrive are left out. */
const shifted = (headers: Message.Headers, by: number): Record<string, string> => {
  const all = none()
  for (const [name, text] of Object.entries(headers)) {
    const depth = depthOf(name)
    if (depth === undefined && !added.has(name)) all[name] = text
    if (depth !== undefined && depth + by >= 1) all[nameOf(depth + by)] = text
  }
  return all
}

/** The headers of a message, whatever a letter's second piece has among them: anybody may have written that one. */
export const withoutRecords = (headers: Message.Headers): Message.Headers => shifted(headers, -Infinity)

/** The headers of the message in a dead letter, and those that hold the records. */
export const separate = (
  headers: Message.Headers
): { readonly message: Message.Headers; readonly records: Message.Headers } => {
  const [message, records] = [none(), none()]
  for (const [name, text] of Object.entries(headers)) (depthOf(name) === undefined ? message : records)[name] = text
  return { message, records }
}

/** The headers of the dead letter that a message becomes. */
export const wrap = (headers: Message.Headers, record: string): Message.Headers => ({
  ...shifted(headers, 1),
  [recordHeader]: oneLine(record)
})

/** The message in a dead letter as it was before, and the records that it had as a dead letter itself. */
export const unwrap = (
  letter: Delivery
): { readonly message: Delivery; readonly earlier: ReadonlyArray<string> } => {
  const headers = shifted(letter.headers, -1)
  const earlier: Array<string> = []
  for (let depth = 1; headers[nameOf(depth)] !== undefined; depth++) earlier.push(headers[nameOf(depth)]!)
  return {
    earlier,
    // A delivery's fields may be getters.
    message: {
      id: letter.id,
      origin: letter.origin,
      topic: letter.topic,
      key: letter.key,
      headers,
      body: letter.body,
      fields: withoutOurs(letter.fields),
      attempt: letter.attempt,
      redelivered: letter.redelivered,
      suspect: letter.suspect,
      publishedAt: letter.publishedAt
    }
  }
}

/** A broker whose entries are fields stores our headers among them. */
export const withoutOurs = (
  fields: ReadonlyMap<string, Uint8Array> | undefined
): ReadonlyMap<string, Uint8Array> | undefined => {
  if (fields === undefined) return undefined
  if (isFieldMap(fields)) return fields.without(isOfLetter)
  const kept = new Map<string, Uint8Array>()
  for (const [name, value] of fields) if (!isOfLetter(name)) kept.set(name, value)
  return kept
}

/** A header is one line of printable ASCII on the strictest broker. */
export const oneLine = (json: string): string =>
  json.replace(/[^\x20-\x7e]/g, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`)

const isFieldMap = (fields: ReadonlyMap<string, Uint8Array>): fields is Codec.FieldMap =>
  typeof (fields as Partial<Codec.FieldMap>).without === "function"
