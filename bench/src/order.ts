import * as Result from "effect/Result"
import * as Schema from "effect/Schema"

/** What travels: about 100 bytes of JSON, padded by `note`. `amount` is its number within the round. */
export const Order = Schema.Struct({
  id: Schema.String,
  customer: Schema.String,
  amount: Schema.Finite,
  /** When it was to be sent: monotonic milliseconds. */
  at: Schema.Finite,
  note: Schema.String
})
export type Order = typeof Order.Type

export const contentType = "application/json"

/** How long `note` must be for a body of `size` bytes. */
export const padding = (size: number): string => "n".repeat(Math.max(0, size - bodyOf(0, 0, "").length))

export const bodyOf = (index: number, at: number, note: string): string => {
  const digits = String(index)
  const id = `o${digits.padStart(7, "0")}`
  const customer = `customer-${digits.slice(-3).padStart(3, "0")}`
  return `{"id":"${id}","customer":"${customer}","amount":${index},"at":${at},"note":"${note}"}`
}

/** The codec that a topic of this schema has. */
const decodeUnknown = Schema.decodeUnknownResult(Schema.toCodecJson(Order))

export const decode = (text: string): Order => Result.getOrThrow(decodeUnknown(JSON.parse(text)))

/** The text of a value, as the topic's codec writes it. */
export const encode: (order: Order) => string = Schema.encodeSync(Schema.fromJsonString(Schema.toCodecJson(Order)))

/** Values to publish, of about `size` bytes each. */
export const ordersOf = (count: number, size: number): ReadonlyArray<Order> => {
  const note = padding(size)
  return Array.from({ length: count }, (_, index) => decode(bodyOf(index, 0, note)))
}

const utf8 = new TextDecoder()

export const decodeBytes = (bytes: Uint8Array): Order => decode(utf8.decode(bytes))

/** The same clock in all processes of the machine. */
export const monotonic = (): number => Number(process.hrtime.bigint()) / 1e6
