import { isObject, type Json, listOf, resolve } from "./values.ts"

/** Keywords that are compared as they stand: a change of one of them is reported, whatever it means. */
const opaque = ["format", "contains", "dependencies", "if", "then", "else", "contentEncoding"]

const never: Json = { not: {} }

const isNever = ({ not }: Json): boolean => not === true || (isObject(not) && Object.keys(not).length === 0)

const same = (one: unknown, other: unknown): boolean => JSON.stringify(one) === JSON.stringify(other)

/** The values, where they are few; `undefined`: any. */
const enumOf = (schema: Json): ReadonlyArray<unknown> | undefined =>
  Array.isArray(schema["enum"])
    ? schema["enum"]
    : "const" in schema
    ? [schema["const"]]
    : schema["type"] === "boolean"
    ? [true, false]
    : undefined

const typeOf = (value: unknown): string =>
  value === null ? "null" : Array.isArray(value) ? "array" : Number.isInteger(value) ? "integer" : typeof value

/** Types of the values; `undefined`: any. */
const typesOf = (schema: Json): ReadonlyArray<unknown> | undefined => {
  const values = enumOf(schema)
  if (values !== undefined) return [...new Set(values.map(typeOf))]
  const { type } = schema
  return type === undefined ? undefined : Array.isArray(type) ? type : [type]
}

const mayBe = (schema: Json, type: string): boolean => typesOf(schema)?.includes(type) ?? true

const isMatch = (pattern: string, text: string): boolean => {
  try {
    return new RegExp(pattern, "u").test(text)
  } catch {
    return false
  }
}

interface Bound {
  readonly name: string
  readonly of: (value: unknown) => number | undefined
  /** 1: from below, -1: from above. */
  readonly sign: 1 | -1
  /** The keyword whose bound itself does not belong to it. */
  readonly exclusive?: string
}

const numberOf = (value: unknown) => typeof value === "number" ? value : undefined
const lengthOf = (value: unknown) => typeof value === "string" ? Array.from(value).length : undefined
const itemsOf = (value: unknown) => Array.isArray(value) ? value.length : undefined
const propertiesOf = (value: unknown) => isObject(value) ? Object.keys(value).length : undefined

const bounds: ReadonlyArray<Bound> = [
  { name: "minimum", exclusive: "exclusiveMinimum", of: numberOf, sign: 1 },
  { name: "maximum", exclusive: "exclusiveMaximum", of: numberOf, sign: -1 },
  { name: "minLength", of: lengthOf, sign: 1 },
  { name: "maxLength", of: lengthOf, sign: -1 },
  { name: "minItems", of: itemsOf, sign: 1 },
  { name: "maxItems", of: itemsOf, sign: -1 },
  { name: "minProperties", of: propertiesOf, sign: 1 },
  { name: "maxProperties", of: propertiesOf, sign: -1 }
]

/** The narrowest bound that a schema has, and its keyword. */
const boundIn = (schema: Json, { exclusive, name, sign }: Bound) => {
  const found = [name, ...(exclusive === undefined ? [] : [exclusive])].flatMap((keyword) => {
    const at = schema[keyword]
    return typeof at === "number" ? [{ at, keyword, isExclusive: keyword === exclusive }] : []
  })
  return found.toSorted((a, b) => sign * (b.at - a.at) || Number(b.isExclusive) - Number(a.isExclusive))[0]
}

/** One schema for what fits all of `allOf` too. */
const merged = (document: Json, schema: Json): Json =>
  listOf(schema["allOf"]).reduce<Json>((sum, part) => {
    const found = resolve(document, part)
    if (!isObject(found)) return sum
    const other = merged(document, found)
    const properties: Record<string, unknown> = isObject(sum["properties"]) ? { ...sum["properties"] } : {}
    for (const [name, property] of Object.entries(isObject(other["properties"]) ? other["properties"] : {})) {
      properties[name] = name in properties ? { allOf: [properties[name], property] } : property
    }
    const required = [...new Set([...listOf(sum["required"]), ...listOf(other["required"])])]
    return {
      ...other,
      ...sum,
      ...(Object.keys(properties).length === 0 ? {} : { properties }),
      ...(required.length === 0 ? {} : { required })
    }
  }, without(schema, "allOf"))

const without = (schema: Json, ...names: ReadonlyArray<string>): Json =>
  Object.fromEntries(Object.entries(schema).filter(([name]) => !names.includes(name)))

/** Cases that make up a schema, each narrower: of a union, of several values, of several types. */
const casesOf = (document: Json, schema: Json): ReadonlyArray<unknown> => {
  for (const union of ["anyOf", "oneOf"]) {
    const cases = listOf(schema[union])
    if (cases.length === 0) continue
    const rest = without(schema, union)
    return Object.keys(rest).every((name) => ["title", "description", "examples"].includes(name))
      ? cases
      : cases.map((one) => merged(document, { ...rest, allOf: [one] }))
  }
  const values = enumOf(schema)
  if (values !== undefined) {
    return values.length === 1 ? [] : values.map((value) => ({ ...without(schema, "const"), enum: [value] }))
  }
  const types = listOf(schema["type"])
  return types.length > 1 ? types.map((type) => ({ ...schema, type })) : []
}

/** One question: does everything that fits `narrow` fit `wide`? Each is of a document of its own. */
export class Comparison {
  readonly problems: Array<string> = []
  private readonly wideDocument: Json
  private readonly narrowDocument: Json
  /** Pairs that are being compared: a schema that refers to itself fits unless something else does not. */
  private readonly open: Set<string>

  constructor(wideDocument: Json, narrowDocument: Json, open = new Set<string>()) {
    this.wideDocument = wideDocument
    this.narrowDocument = narrowDocument
    this.open = open
  }

  compare(wideRef: unknown, narrowRef: unknown, path: string): void {
    const pair = `${JSON.stringify(wideRef)} ${JSON.stringify(narrowRef)}`
    if (this.open.has(pair)) return
    this.open.add(pair)
    this.resolved(this.at(this.wideDocument, wideRef), this.at(this.narrowDocument, narrowRef), path)
    this.open.delete(pair)
  }

  private at(document: Json, ref: unknown): Json {
    const found = resolve(document, ref)
    return found === false ? never : isObject(found) ? found : {}
  }

  private resolved(wide: Json, wholeNarrow: Json, path: string): void {
    const narrow = merged(this.narrowDocument, wholeNarrow)
    if (isNever(narrow) || Object.keys(wide).length === 0) return
    if (isNever(wide)) {
      this.say(path, "no value is taken any more")
      return
    }
    for (const part of listOf(wide["allOf"])) this.compare(part, narrow, path)
    for (const union of ["anyOf", "oneOf"]) this.union(listOf(wide[union]), narrow, path)
    this.plain(without(wide, "allOf", "anyOf", "oneOf"), narrow, path)
  }

  /** Each case of `narrow` has to fit some case of `wide`. */
  private union(wideCases: ReadonlyArray<unknown>, narrowRef: unknown, path: string): void {
    if (wideCases.length === 0) return
    const attempts = wideCases.map((one) => this.attempt(one, narrowRef, path))
    if (attempts.some((problems) => problems.length === 0)) return
    const narrow = this.whole(narrowRef)
    const cases = casesOf(this.narrowDocument, narrow)
    if (cases.length > 0) {
      for (const one of cases) this.union(wideCases, one, path)
      return
    }
    const values = enumOf(narrow)
    this.problems.push(
      wideCases.length === 1
        ? attempts[0]![0]!
        : `${path}: none of ${wideCases.length} cases takes ${
          values === undefined ? "it" : values.map((value) => JSON.stringify(value)).join(", ")
        } any more`
    )
  }

  private whole(ref: unknown): Json {
    return merged(this.narrowDocument, this.at(this.narrowDocument, ref))
  }

  private attempt(wide: unknown, narrow: unknown, path: string): ReadonlyArray<string> {
    const inner = new Comparison(this.wideDocument, this.narrowDocument, this.open)
    inner.compare(wide, narrow, path)
    return inner.problems
  }

  /** `wide` is no union. */
  private plain(wide: Json, narrow: Json, path: string): void {
    if (Object.keys(wide).length === 0) return
    if (listOf(narrow["anyOf"]).length + listOf(narrow["oneOf"]).length > 0) {
      for (const one of casesOf(this.narrowDocument, narrow)) this.plain(wide, this.whole(one), path)
      return
    }
    if (!this.types(wide, narrow, path)) return
    this.values(wide, narrow, path)
    if (mayBe(narrow, "object") && mayBe(wide, "object")) this.object(wide, narrow, path)
    if (mayBe(narrow, "array") && mayBe(wide, "array")) this.array(wide, narrow, path)
  }

  private say(path: string, problem: string): void {
    this.problems.push(`${path}: ${problem}`)
  }

  private types(wide: Json, narrow: Json, path: string): boolean {
    const types = typesOf({ type: wide["type"] })
    if (types === undefined) return true
    const left = (typesOf(narrow) ?? ["anything"]).filter((type) =>
      !types.includes(type) && !(type === "integer" && types.includes("number"))
    )
    if (left.length > 0) this.say(path, `${left.join(", ")} does not fit ${types.join(", ")}`)
    return left.length === 0
  }

  private values(wide: Json, narrow: Json, path: string): void {
    const values = enumOf(narrow)
    const taken = enumOf(wide)
    if (taken !== undefined) {
      const left = values?.filter((value) => !taken.some((other) => same(value, other)))
      if (left === undefined) this.say(path, `any value does not fit ${JSON.stringify(taken)}`)
      else if (left.length > 0) {
        this.say(path, `${left.map((value) => JSON.stringify(value)).join(", ")} is not among the values`)
      }
    }
    const { multipleOf, pattern } = wide
    if (typeof pattern === "string" && pattern !== narrow["pattern"] && mayBe(narrow, "string")) {
      const left = values?.filter((value) => typeof value === "string" && !isMatch(pattern, value))
      if (left === undefined || left.length > 0) this.asked(path, "pattern", pattern, narrow["pattern"])
    }
    if (typeof multipleOf === "number") {
      const steps = values ?? [narrow["multipleOf"]]
      if (steps.some((step) => typeof step !== "number" || !Number.isInteger(step / multipleOf))) {
        this.asked(path, "multipleOf", multipleOf, narrow["multipleOf"])
      }
    }
    for (const name of opaque) {
      if (wide[name] !== undefined && !same(wide[name], narrow[name]) && values === undefined) {
        this.asked(path, name, wide[name], narrow[name])
      }
    }
    if (wide["not"] !== undefined && !same(wide["not"], narrow["not"])) {
      this.asked(path, "not", wide["not"], narrow["not"])
    }
    for (const bound of bounds) this.bound(bound, wide, narrow, path)
  }

  private asked(path: string, name: string, now: unknown, before: unknown): void {
    this.say(path, `${name} ${JSON.stringify(now)} is asked for, it was ${JSON.stringify(before) ?? "not"}`)
  }

  private bound(bound: Bound, wide: Json, narrow: Json, path: string): void {
    const asked = boundIn(wide, bound)
    if (asked === undefined) return
    const isBeyond = (at: number, isExclusive: boolean) =>
      bound.sign * (asked.at - at) > 0 || (asked.at === at && asked.isExclusive && !isExclusive)
    const values = enumOf(narrow)
    if (values !== undefined) {
      const left = values.filter((value) => {
        const measure = bound.of(value)
        return measure !== undefined && isBeyond(measure, false)
      })
      if (left.length > 0) {
        this.say(path, `${asked.keyword} ${asked.at} is asked for, ${JSON.stringify(left[0])} is less or more`)
      }
      return
    }
    const kept = boundIn(narrow, bound)
    if (kept !== undefined && !isBeyond(kept.at, kept.isExclusive)) return
    const type = { Length: "string", Items: "array", Properties: "object" }[bound.name.slice(3)]
    const applies = type === undefined ? mayBe(narrow, "number") || mayBe(narrow, "integer") : mayBe(narrow, type)
    const isLeast = kept === undefined && bound.sign === 1 && asked.at <= 0 && type !== undefined
    if (applies && !isLeast) {
      this.say(path, `${asked.keyword} ${asked.at} is asked for, it was ${kept?.at ?? "not bounded"}`)
    }
  }

  private object(wide: Json, narrow: Json, path: string): void {
    const required = listOf(narrow["required"])
    for (const name of listOf(wide["required"])) {
      if (!required.includes(name)) this.say(`${path}.${String(name)}`, "required, and may be absent")
    }
    const properties = isObject(narrow["properties"]) ? narrow["properties"] : {}
    const known = isObject(wide["properties"]) ? wide["properties"] : {}
    const patterns = isObject(wide["patternProperties"]) ? wide["patternProperties"] : {}
    const others = isObject(narrow["patternProperties"]) ? narrow["patternProperties"] : {}
    // An open object may hold anything, but nobody sends what the schema does not name.
    const rest = narrow["additionalProperties"]
    for (const [name, schema] of Object.entries(known)) {
      if (Object.hasOwn(properties, name)) this.compare(schema, properties[name], `${path}.${name}`)
      else if (isObject(rest)) this.compare(schema, rest, `${path}.${name}`)
    }
    for (const [pattern, schema] of Object.entries(patterns)) {
      if (Object.hasOwn(others, pattern)) this.compare(schema, others[pattern], `${path}.*`)
      else if (isObject(rest)) this.compare(schema, rest, `${path}.*`)
      for (const [name, property] of Object.entries(properties)) {
        if (isMatch(pattern, name)) this.compare(schema, property, `${path}.${name}`)
      }
    }
    if (wide["propertyNames"] !== undefined) {
      this.compare(wide["propertyNames"], narrow["propertyNames"] ?? { type: "string" }, `${path}.*`)
    }
    this.others(wide, narrow, path)
  }

  /** What the schema of a receiver does not name. */
  private others(wide: Json, narrow: Json, path: string): void {
    const taken = wide["additionalProperties"]
    if (taken === undefined || taken === true) return
    const properties = isObject(narrow["properties"]) ? narrow["properties"] : {}
    const known = isObject(wide["properties"]) ? wide["properties"] : {}
    const patterns = Object.keys(isObject(wide["patternProperties"]) ? wide["patternProperties"] : {})
    const isNamed = (name: string) => Object.hasOwn(known, name) || patterns.some((pattern) => isMatch(pattern, name))
    const rest = narrow["additionalProperties"] ?? true
    const left = Object.entries(properties).filter(([name]) => !isNamed(name))
    if (taken === false) {
      for (const [name] of left) this.say(`${path}.${name}`, "not allowed")
      if (rest !== false) this.say(path, "properties that the schema does not name are not allowed")
      return
    }
    for (const [name, schema] of left) this.compare(taken, schema, `${path}.${name}`)
    if (isObject(rest)) this.compare(taken, rest, `${path}.*`)
    else if (rest === true && Object.keys(properties).length === 0) this.compare(taken, {}, `${path}.*`)
  }

  private array(wide: Json, narrow: Json, path: string): void {
    if (wide["uniqueItems"] === true && narrow["uniqueItems"] !== true) this.asked(path, "uniqueItems", true, undefined)
    const first = (schema: Json) => Array.isArray(schema["items"]) ? schema["items"] : []
    const later = (schema: Json): unknown =>
      (Array.isArray(schema["items"]) ? schema["additionalItems"] : schema["items"]) ?? {}
    const most = typeof narrow["maxItems"] === "number" ? narrow["maxItems"] : Infinity
    const places = Math.max(first(wide).length, first(narrow).length)
    for (let i = 0; i < Math.min(places, most); i++) {
      this.compare(first(wide)[i] ?? later(wide), first(narrow)[i] ?? later(narrow), `${path}[${i}]`)
    }
    if (most > places) this.compare(later(wide), later(narrow), `${path}[]`)
  }
}
