import type * as Arr from "effect/Array"
import * as Exit from "effect/Exit"
import type * as Message from "../Message.ts"
import type { Delivery, Outgoing } from "../Transport.ts"
import * as letters from "./letterHeaders.ts"
import { decodeHistory, encodeHeaders, encodeRecord, Failure, Record } from "./record.ts"

/**
 * The dead letter of a delivery. Its id makes the write idempotent by the source stream and its life, group and
 * source id. Headers that a redrive added are left out; the record of a message that was a dead letter is kept.
 */
export const outgoing = (topic: string, delivery: Delivery, record: Record): Outgoing => {
  const origin = record.origin ?? delivery.origin
  return {
    topic,
    body: delivery.body,
    fields: letters.withoutOurs(delivery.fields),
    headers: letters.wrap(delivery.headers, encodeRecord(new Record({ ...record, origin }))),
    key: delivery.key,
    id: `${origin}/${record.topic}/${record.group}/${record.id}`,
    delay: undefined
  }
}

/**
 * The ways to write a dead letter, to be tried in this order while the broker says that it is too large: whole, with a
 * short record, in two pieces.
 */
export const forms = (
  topic: string,
  delivery: Delivery,
  record: Record
): Arr.NonEmptyReadonlyArray<Arr.NonEmptyReadonlyArray<Outgoing>> => {
  const brief = new Record({
    ...record,
    error: { tag: record.error.tag.slice(0, 100), message: record.error.message.slice(0, 200), causes: [] },
    history: record.history.slice(-1).map((failure) => new Failure({ ...failure, error: failure.error.slice(0, 100) }))
  })
  const short = outgoing(topic, delivery, brief)
  const whole = [outgoing(topic, delivery, record)] as const
  // A broker may refuse a letter for another reason than its size. Pieces hold bodies and headers: fields would be lost.
  return hasOnlyFields(delivery) ? [whole, [short]] : [whole, [short], split(short)]
}

/** An entry that another program added: fields, and no body. */
const hasOnlyFields = ({ body, fields }: Delivery): boolean => fields !== undefined && body.byteLength === 0

/**
 * A letter in two pieces, the second one first: whoever finds the record finds all of it. The second piece's body is the
 * message's headers, as JSON, and half of its body: a message whose headers leave no room for a record fits too.
 */
export const split = (letter: Outgoing): readonly [rest: Outgoing, head: Outgoing] => {
  const half = Math.floor(letter.body.byteLength / 2)
  const id = letters.oneLine(letter.id!)
  const { message, records } = letters.separate(letter.headers)
  const prefix = new TextEncoder().encode(encodeHeaders(message))
  const body = new Uint8Array(prefix.byteLength + letter.body.byteLength - half)
  body.set(prefix)
  body.set(letter.body.subarray(half), prefix.byteLength)
  const rest = { [letters.restHeader]: id, [letters.headerBytesHeader]: String(prefix.byteLength) }
  return [
    { ...letter, body, fields: undefined, headers: rest, id: `${letter.id}/rest` },
    {
      ...letter,
      body: letter.body.subarray(0, half),
      fields: undefined,
      headers: { ...records, [letters.splitHeader]: id }
    }
  ]
}

/** How a redriven message failed before. */
export const historyOf = (headers: Message.Headers): ReadonlyArray<Failure> => {
  const text = headers[letters.historyHeader]
  if (text === undefined) return []
  const exit = decodeHistory(text)
  return Exit.isSuccess(exit) ? exit.value : []
}
