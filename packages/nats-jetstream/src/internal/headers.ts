import type * as Message from "@millrace/core/Message"
import type { MsgHdrs } from "@nats-io/nats-core"
import * as Predicate from "effect/Predicate"

/** As quick as an ordinary object, without inheriting names that a header may have. */
class Bare {
  [name: string]: string
}
Object.setPrototypeOf(Bare.prototype, null)
Reflect.deleteProperty(Bare.prototype, "constructor")

/** Names in lower case, without what is said to the server: a copy of them must not repeat an id or an expectation. */
const put = (headers: Bare, name: string, value: string): void => {
  const lower = name.toLowerCase()
  if (!lower.startsWith("nats-")) headers[lower] ??= value
}

export const toHeaders = (given: MsgHdrs | undefined): Message.Headers => {
  const headers = new Bare()
  if (given !== undefined) { for (const [name, values] of given) put(headers, name, values[0] ?? "") }
  return headers
}

/**
 * The headers of a message. The client decodes them at four times the cost of the rest of its work on a message, so they
 * are read from its bytes, which it keeps to itself; a client that keeps them elsewhere is asked.
 */
export const headersOf = (msg: { readonly headers?: MsgHdrs | undefined }): Message.Headers => {
  const bytes = bytesOf(msg)
  if (bytes === undefined) return toHeaders(msg.headers)
  if (bytes.length === 0) return none
  if (isLast(bytes)) return lastHeaders
  lastBytes = new Uint8Array(bytes)
  return lastHeaders = headersIn(bytes)
}

const bytesOf = (msg: object): Uint8Array | undefined => {
  if (!("_msg" in msg && "_rdata" in msg)) return undefined
  const { _msg: at, _rdata: bytes } = msg
  if (!Predicate.hasProperty(at, "hdr") || typeof at.hdr !== "number" || !(bytes instanceof Uint8Array)) {
    return undefined
  }
  return bytes.subarray(0, Math.max(0, at.hdr))
}

/** Whether the server has left out a body, as it does for a consumer with `headers_only`. */
export const isBodyLeftOut = (msg: { readonly headers?: MsgHdrs | undefined; readonly data: Uint8Array }): boolean => {
  if (msg.data.length > 0) return false
  const bytes = bytesOf(msg)
  const size = bytes === undefined
    ? msg.headers?.last("Nats-Msg-Size")
    : /\r\nNats-Msg-Size:\s*(\d+)/i.exec(textOf(bytes))?.[1]
  return Number(size ?? 0) > 0
}

/** An answer of the server: a status, or a stored message with headers that the server has added. */
export interface Answer {
  readonly status: number
  readonly description: string
  /** Empty where the server has added no such header. */
  readonly added: (name: string) => string
  readonly headers: Message.Headers
}

export const answerIn = (msg: { readonly headers?: MsgHdrs | undefined }): Answer => {
  const bytes = bytesOf(msg)
  if (bytes === undefined) {
    const { headers } = msg
    return {
      status: headers?.code ?? 0,
      description: headers?.description ?? "",
      added: (name) => headers?.last(name) ?? "",
      headers: toHeaders(headers)
    }
  }
  const text = textOf(bytes)
  // Behind the headers of the publisher, whatever those end with.
  const at = text.lastIndexOf("Nats-Stream:")
  const ours = at < 0 ? "" : `\r\n${text.slice(at)}`
  const [, status = "0", description = ""] = /^NATS\/1\.0(?: (\d{3})(?: ([^\r]*))?)?\r\n/.exec(text) ?? []
  return {
    status: Number(status),
    description,
    added: (name) => {
      const from = ours.indexOf(`\r\n${name}:`)
      return from < 0 ? "" : ours.slice(from + name.length + 3, ours.indexOf("\r\n", from + 2)).trim()
    },
    headers: parse(at < 0 ? text : text.slice(0, at))
  }
}

/** Headers as they were stored, whoever wrote them: the client refuses names that are no token. */
export const headersIn = (bytes: Uint8Array): Message.Headers => parse(textOf(bytes))

const none: Message.Headers = Object.freeze(new Bare())

const decoder = new TextDecoder()

const textOf = (bytes: Uint8Array): string => bytes instanceof Buffer ? bytes.toString("utf8") : decoder.decode(bytes)

/** Often all messages have the same. */
let lastBytes = new Uint8Array(0)
let lastHeaders = none

const isLast = (bytes: Uint8Array): boolean => {
  if (bytes.length !== lastBytes.length) return false
  for (let i = bytes.length - 1; i >= 0; i--) if (bytes[i] !== lastBytes[i]) return false
  return true
}

const parse = (text: string): Message.Headers => {
  const headers = new Bare()
  // `NATS/1.0`, then a line each.
  for (let start = text.indexOf("\r\n") + 2; start > 1 && start < text.length;) {
    const end = text.indexOf("\r\n", start)
    if (end < 0) break
    const colon = text.indexOf(":", start)
    if (colon > start && colon < end) put(headers, text.slice(start, colon), text.slice(colon + 1, end).trim())
    start = end + 2
  }
  return Object.freeze(headers)
}
