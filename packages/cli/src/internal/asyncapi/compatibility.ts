import { Comparison } from "./schemas.ts"
import { isObject, type Json, listOf, resolve } from "./values.ts"

type Messages = ReadonlyArray<readonly [name: string, message: Json]>

interface Operation {
  readonly action: "send" | "receive"
  readonly address: string
  readonly group: string | undefined
  readonly messages: Messages
}

const objectAt = (document: Json, value: unknown): Json => {
  const found = resolve(document, value)
  return isObject(found) ? found : {}
}

const partsOf = (document: Json, name: string): ReadonlyArray<readonly [string, Json]> =>
  Object.entries(isObject(document[name]) ? document[name] : {}).map(([key, raw]) => [key, objectAt(document, raw)])

const messagesOf = (document: Json, refs: ReadonlyArray<unknown>): Messages =>
  refs.map((ref) => {
    const found = objectAt(document, ref)
    return [String(found["name"]), found]
  })

/** The address of each channel, with its messages. */
const channelsOf = (document: Json): ReadonlyMap<string, Messages> =>
  new Map(
    partsOf(document, "channels").map(([, channel]) => [
      String(channel["address"]),
      messagesOf(document, Object.values(isObject(channel["messages"]) ? channel["messages"] : {}))
    ])
  )

const operationsOf = (document: Json): ReadonlyMap<string, Operation> =>
  new Map(
    partsOf(document, "operations").map(([name, operation]) => {
      const channel = objectAt(document, operation["channel"])
      const own = operation["x-millrace"]
      const group = isObject(own) ? own["group"] : undefined
      const all = Object.values(isObject(channel["messages"]) ? channel["messages"] : {})
      return [name, {
        action: operation["action"] === "send" ? "send" : "receive",
        address: String(channel["address"]),
        group: typeof group === "string" ? group : undefined,
        messages: messagesOf(document, Array.isArray(operation["messages"]) ? listOf(operation["messages"]) : all)
      }]
    })
  )

/** The two documents, and the changes between them. */
class Check {
  readonly problems = new Set<string>()
  private readonly before: Json
  private readonly after: Json

  constructor(before: Json, after: Json) {
    this.before = before
    this.after = after
  }

  /** `receive`: messages of the old document must fit the new one. `send`: messages of the new one must fit the old one. */
  messages(action: "send" | "receive", at: string, before: Messages, after: Messages): void {
    for (const [name, was] of before) {
      const is = after.find(([other]) => other === name)?.[1]
      if (is === undefined) {
        this.problems.add(`${at}: message ${name} is gone`)
        continue
      }
      if (was["contentType"] !== is["contentType"]) {
        this.problems.add(`${at}: content type ${String(is["contentType"])}, was ${String(was["contentType"])}`)
      }
      for (const part of ["payload", "headers"]) {
        const [wide, narrow] = action === "receive" ? [is, was] : [was, is]
        const documents = action === "receive" ? [this.after, this.before] as const : [this.before, this.after] as const
        const comparison = new Comparison(...documents)
        comparison.compare(wide[part] ?? {}, narrow[part] ?? {}, part)
        for (const problem of comparison.problems) this.problems.add(`${at}: ${problem}`)
      }
    }
  }
}

/**
 * What in the new document breaks programs and stored messages of the old one, a line each. A receiver must take what
 * was sent before; a sender must send what receivers of before take. A topic without operations, as one that
 * `Publisher.publish` writes, may be used both ways: its schema must hold in both.
 */
export const breakingChanges = (before: Json, after: Json): ReadonlyArray<string> => {
  const check = new Check(before, after)
  const channels = channelsOf(after)
  const operations = operationsOf(after)
  const old = operationsOf(before)
  for (const [address, messages] of channelsOf(before)) {
    const kept = channels.get(address)
    if (kept === undefined) check.problems.add(`topic ${address} is gone`)
    else if (![...old.values()].some((operation) => operation.address === address)) {
      check.messages("receive", `topic ${address}, stored messages`, messages, kept)
      check.messages("send", `topic ${address}, its receivers`, messages, kept)
    }
  }
  for (const [name, { action, address, group, messages }] of old) {
    // A step of a group that was renamed sends as before.
    const now = operations.get(name) ??
      [...operations.values()].find((other) =>
        action === "send" && other.action === "send" && other.address === address
      )
    if (now !== undefined) check.messages(action, `${action} ${address}`, messages, now.messages)
    else if (channels.has(address)) {
      check.problems.add(
        action === "send"
          ? `nothing sends to ${address} any more (${name})`
          : `no pipeline receives from ${address}${group === undefined ? "" : ` as group ${group}`} any more (${name})`
      )
    }
  }
  return [...check.problems]
}
