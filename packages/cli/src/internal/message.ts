import * as DeadLetter from "@millrace/core/DeadLetter"
import type { Delivery } from "@millrace/core/Transport"
import { clean, cleanLines, cut, many, paint, time, when, width } from "./text.ts"

const utf8 = new TextDecoder("utf-8", { fatal: true })

/** The body as text, or `undefined` for bytes that are none. */
export const bodyText = (body: Uint8Array): string | undefined => {
  try {
    const text = utf8.decode(body)
    // oxlint-disable-next-line no-control-regex
    return /[\u0000-\u0008\u000e-\u001f]/.test(text) ? undefined : text
  } catch {
    return undefined
  }
}

/** The fields of an entry that another program has added, without a body: `XADD clicks * user 7`. */
const foreignFields = <A>(
  { fields }: Delivery,
  bytes: (value: Uint8Array) => A
): Readonly<Record<string, string | A>> | undefined =>
  fields === undefined || fields.size === 0 || fields.has("body")
    ? undefined
    : Object.fromEntries(Array.from(fields, ([name, value]) => [name, bodyText(value) ?? bytes(value)]))

const base64Of = (bytes: Uint8Array) => ({ base64: Buffer.from(bytes).toString("base64") })

const bytesOf = (bytes: Uint8Array): string => many(bytes.byteLength, "byte")

/** A message as `--json` has it: `body` is JSON or text, else `base64` has the bytes; `fields` of an entry without a body. */
export const asJson = (message: Delivery) => {
  const { body, headers, id, key, publishedAt, topic } = message
  const fields = foreignFields(message, base64Of)
  if (fields !== undefined) return { topic, id, publishedAt, key, headers: {}, fields }
  const text = bodyText(body)
  const content = text === undefined ? base64Of(body) : { body: parsed(text) }
  return { topic, id, publishedAt, key, headers: readable(headers), ...content }
}

const parsed = (text: string): unknown => {
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}

/** Headers without the record of a dead letter, which is shown on its own. */
const readable = (headers: Delivery["headers"]) =>
  Object.fromEntries(Object.entries(headers).filter(([name]) => !name.startsWith(DeadLetter.header)))

const indented = (text: string) => {
  const value = parsed(text)
  return cleanLines(typeof value === "string" ? text : JSON.stringify(value, undefined, 2))
}

/** The first bytes; `--json` has all. */
const base64Lines = (body: Uint8Array): ReadonlyArray<string> => {
  const text = Buffer.from(body.subarray(0, 400)).toString("base64")
  const lines = text.match(/.{1,96}/g) ?? []
  return body.byteLength > 400 ? [...lines, "…"] : lines
}

export const renderMessage = (message: Delivery, now: number, hasColor: boolean): ReadonlyArray<string> => {
  const color = paint(hasColor)
  const { body, headers, id, key, publishedAt, topic } = message
  const fields = foreignFields(message, bytesOf)
  const named = (values: Readonly<Record<string, string>>) =>
    Object.entries(values).map(([name, value]) => cut(`${color("dim", clean(name))}: ${clean(value)}`, width))
  const top = [
    `${color("bold", clean(topic))} ${clean(id)}   published ${when(publishedAt, now)}`,
    ...(key === undefined ? [] : [`key ${clean(key)}`])
  ]
  if (fields !== undefined) return [...top, "fields, no body:", ...named(fields)]
  const text = bodyText(body)
  return [
    ...top,
    ...named(readable(headers)),
    "",
    ...(text === undefined
      ? [`${bytesOf(body)}, not text:`, ...base64Lines(body)]
      : indented(text).map((line) => `  ${line}`))
  ]
}

/** How a dead letter came to be, and how it failed before. */
export const renderRecord = (record: DeadLetter.Record, now: number, hasColor: boolean): ReadonlyArray<string> => {
  const color = paint(hasColor)
  const { attempts, error, failedAt, firstFailedAt, group, history, id, pipeline, reason, topic } = record
  return [
    `${color("red", `${clean(error.tag)}: ${clean(error.message)}`)}`,
    ...error.causes.map((cause) => `  because of ${clean(cause)}`),
    `${reason} after ${many(attempts, "attempt")}, ${when(failedAt, now)}` +
    (firstFailedAt === undefined ? "" : `, failed first ${time(firstFailedAt)}`),
    `message ${clean(id)} of ${clean(topic)}, group ${clean(group)}, pipeline ${clean(pipeline)}`,
    ...(history.length === 0 ? [] : ["before:"]),
    ...history.map(({ attempts, error, failedAt, id }) =>
      cut(`  ${time(failedAt)}  ${clean(id)}  ${many(attempts, "attempt")}  ${clean(error)}`, width)
    ),
    ...(error.stack === undefined
      ? []
      : ["", ...cleanLines(error.stack).map((line) => color("dim", `  ${line.trim()}`))])
  ]
}

/** A message on one line of the terminal. */
export const renderLine = (message: Delivery): string => {
  const fields = foreignFields(message, bytesOf)
  const text = fields === undefined
    ? bodyText(message.body)
    : Object.entries(fields).map(([name, value]) => `${name}=${value}`).join(" ")
  const body = text === undefined ? bytesOf(message.body) : clean(text.replaceAll(/\s+/g, " "))
  return cut(
    `${time(message.publishedAt)}  ${clean(message.id)}  ${
      message.key === undefined ? "" : `${clean(message.key)}  `
    }${body}`,
    width
  )
}

/** A dead letter as `--json` has it. */
export const letterJson = ({ earlier, id, incomplete, message, record }: DeadLetter.DeadLetter) => ({
  ...asJson(message),
  id,
  record,
  earlier,
  incomplete
})
