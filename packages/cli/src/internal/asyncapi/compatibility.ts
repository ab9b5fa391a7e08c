import type { Json } from "./document.ts"

const isObject = (u: unknown): u is Json => typeof u === "object" && u !== null && !Array.isArray(u)

const listOf = (u: unknown): ReadonlyArray<unknown> => Array.isArray(u) ? u : []

/** Follows a reference within its own document. */
const resolve = (document: Json, schema: unknown): Json => {
  let found = schema
  for (let hops = 0; hops < 20 && isObject(found) && typeof found["$ref"] === "string"; hops++) {
    let target: unknown = document
    for (const part of found["$ref"].slice(2).split("/")) target = isObject(target) ? target[part] : undefined
    found = target
  }
  return isObject(found) ? found : {}
}

const typesOf = ({ type }: Json): ReadonlyArray<unknown> | undefined =>
  type === undefined ? undefined : Array.isArray(type) ? type : [type]

const enumOf = (schema: Json): ReadonlyArray<unknown> | undefined =>
  Array.isArray(schema["enum"]) ? schema["enum"] : "const" in schema ? [schema["const"]] : undefined

/** Bounds from below, then from above. */
const least = ["minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"]
const most = ["maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"]

/** One question: does everything that fits `narrow` fit `wide`? Each is of a document of its own. */
class Comparison {
  readonly problems: Array<string> = []
  private readonly seen = new Set<string>()
  private readonly wideDocument: Json
  private readonly narrowDocument: Json

  constructor(wideDocument: Json, narrowDocument: Json) {
    this.wideDocument = wideDocument
    this.narrowDocument = narrowDocument
  }

  compare(wideRef: unknown, narrowRef: unknown, path: string): void {
    const pair = `${JSON.stringify(wideRef)} ${JSON.stringify(narrowRef)}`
    if (this.seen.has(pair)) return
    this.seen.add(pair)
    const wide = resolve(this.wideDocument, wideRef)
    const narrow = resolve(this.narrowDocument, narrowRef)
    if (Object.keys(wide).length === 0) return
    const narrowCases = listOf(narrow["anyOf"] ?? narrow["oneOf"])
    if (narrowCases.length > 0) {
      for (const one of narrowCases) this.compare(wideRef, one, path)
      return
    }
    const wideCases = listOf(wide["anyOf"] ?? wide["oneOf"])
    if (wideCases.length > 0) {
      const attempts = wideCases.map((one) => this.attempt(one, narrowRef, path))
      if (!attempts.some((problems) => problems.length === 0)) {
        this.problems.push(
          wideCases.length === 1 ? attempts[0]![0]! : `${path}: none of ${wideCases.length} cases takes it any more`
        )
      }
      return
    }
    this.values(wide, narrow, path)
    this.object(wide, narrow, path)
    this.array(wide, narrow, path)
  }

  private attempt(wide: unknown, narrow: unknown, path: string): ReadonlyArray<string> {
    const inner = new Comparison(this.wideDocument, this.narrowDocument)
    inner.compare(wide, narrow, path)
    return inner.problems
  }

  private values(wide: Json, narrow: Json, path: string): void {
    const say = (problem: string) => this.problems.push(`${path}: ${problem}`)
    const wideTypes = typesOf(wide)
    const narrowTypes = typesOf(narrow) ?? enumOf(narrow)?.map((value) => value === null ? "null" : typeof value)
    if (wideTypes !== undefined) {
      const left = (narrowTypes ?? ["anything"]).filter((type) =>
        !wideTypes.includes(type) && !(type === "integer" && wideTypes.includes("number"))
      )
      if (left.length > 0) say(`${left.join(", ")} does not fit ${wideTypes.join(", ")}`)
    }
    const wideEnum = enumOf(wide)
    if (wideEnum !== undefined) {
      const narrowEnum = enumOf(narrow)
      if (narrowEnum === undefined) say(`any value does not fit ${JSON.stringify(wideEnum)}`)
      else {
        const left = narrowEnum.filter((value) =>
          !wideEnum.some((other) => JSON.stringify(other) === JSON.stringify(value))
        )
        if (left.length > 0) say(`${left.map((value) => JSON.stringify(value)).join(", ")} is not among the values`)
      }
    }
    for (const name of ["pattern", "format", "multipleOf"]) {
      if (wide[name] !== undefined && wide[name] !== narrow[name] && enumOf(narrow) === undefined) {
        say(`${name} ${JSON.stringify(wide[name])} is asked for, it was ${JSON.stringify(narrow[name]) ?? "not"}`)
      }
    }
    for (
      const [names, isStricter] of [[least, (a: number, b: number) => a > b], [
        most,
        (a: number, b: number) => a < b
      ]] as const
    ) {
      for (const name of names) {
        const bound = wide[name]
        const other = narrow[name]
        if (typeof bound === "number" && (typeof other !== "number" || isStricter(bound, other))) {
          say(`${name} ${bound} is asked for, it was ${typeof other === "number" ? other : "not bounded"}`)
        }
      }
    }
  }

  private object(wide: Json, narrow: Json, path: string): void {
    const required = listOf(narrow["required"])
    for (const name of listOf(wide["required"])) {
      if (!required.includes(name)) this.problems.push(`${path}.${String(name)}: required, and may be absent`)
    }
    const properties = isObject(narrow["properties"]) ? narrow["properties"] : {}
    const known = isObject(wide["properties"]) ? wide["properties"] : {}
    for (const [name, schema] of Object.entries(known)) {
      if (name in properties) this.compare(schema, properties[name], `${path}.${name}`)
    }
    if (wide["additionalProperties"] === false) {
      for (const name of Object.keys(properties)) {
        if (!(name in known)) this.problems.push(`${path}.${name}: not allowed`)
      }
    } else if (isObject(wide["additionalProperties"])) {
      for (const [name, schema] of Object.entries(properties)) {
        if (!(name in known)) this.compare(wide["additionalProperties"], schema, `${path}.${name}`)
      }
      if (isObject(narrow["additionalProperties"])) {
        this.compare(wide["additionalProperties"], narrow["additionalProperties"], `${path}.*`)
      }
    }
  }

  private array(wide: Json, narrow: Json, path: string): void {
    const [wideItems, narrowItems] = [wide["items"], narrow["items"]]
    if (isObject(wideItems) && isObject(narrowItems)) this.compare(wideItems, narrowItems, `${path}[]`)
    else if (Array.isArray(wideItems) && Array.isArray(narrowItems)) {
      wideItems.forEach((item, i) => this.compare(item, narrowItems[i] ?? {}, `${path}[${i}]`))
    }
  }
}

interface Operation {
  readonly action: "send" | "receive"
  readonly address: string
  readonly messages: ReadonlyArray<readonly [name: string, message: Json]>
}

const operationsOf = (document: Json): ReadonlyMap<string, Operation> => {
  const all = new Map<string, Operation>()
  const operations = isObject(document["operations"]) ? document["operations"] : {}
  for (const [name, raw] of Object.entries(operations)) {
    const operation = resolve(document, raw)
    const channel = resolve(document, operation["channel"])
    all.set(name, {
      action: operation["action"] === "send" ? "send" : "receive",
      address: String(channel["address"]),
      messages: listOf(operation["messages"]).map((message) => {
        const found = resolve(document, message)
        return [String(found["name"]), found]
      })
    })
  }
  return all
}

const addressesOf = (document: Json): ReadonlySet<string> =>
  new Set(
    Object.values(isObject(document["channels"]) ? document["channels"] : {}).map((channel) =>
      String(resolve(document, channel)["address"])
    )
  )

/**
 * What in the new document breaks programs and stored messages of the old one, a line each. A receiver must take what
 * was sent before; a sender must send what receivers of before take.
 */
export const breakingChanges = (before: Json, after: Json): ReadonlyArray<string> => {
  const problems: Array<string> = []
  const kept = addressesOf(after)
  for (const address of addressesOf(before)) if (!kept.has(address)) problems.push(`topic ${address} is gone`)
  const now = operationsOf(after)
  for (const [name, old] of operationsOf(before)) {
    const operation = now.get(name)
    if (operation === undefined) {
      if (old.action === "send" && kept.has(old.address)) {
        problems.push(`nothing sends to ${old.address} any more (${name})`)
      }
      continue
    }
    for (const [messageName, was] of old.messages) {
      const is = operation.messages.find(([other]) => other === messageName)?.[1]
      if (is === undefined) {
        problems.push(`${old.action} ${old.address}: message ${messageName} is gone`)
        continue
      }
      if (was["contentType"] !== is["contentType"]) {
        problems.push(
          `${old.action} ${old.address}: content type ${String(is["contentType"])}, was ${String(was["contentType"])}`
        )
      }
      for (const part of ["payload", "headers"]) {
        const comparison = old.action === "receive" ? new Comparison(after, before) : new Comparison(before, after)
        if (old.action === "receive") comparison.compare(is[part] ?? {}, was[part] ?? {}, part)
        else comparison.compare(was[part] ?? {}, is[part] ?? {}, part)
        problems.push(...comparison.problems.map((problem) => `${old.action} ${old.address}: ${problem}`))
      }
    }
  }
  return [...new Set(problems)]
}
