import { describe, expect, it } from "@effect/vitest"
import { Codec } from "@millrace/core"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import { plainOf } from "../src/internal/plain.ts"

/** The same numbers in every run. */
const makeRandom = (seed: number) => {
  let state = seed
  return (below: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state % below
  }
}
type Random = ReturnType<typeof makeRandom>

const pick = <A>(random: Random, from: ReadonlyArray<A>): A => from[random(from.length)]!

const names = ["id", "total", "__proto__", "toString", "toJSON", "1", "ö", "nested"]

/** Values of every kind, of which a field takes some. */
const values: ReadonlyArray<unknown> = [
  "",
  "text",
  "NaN",
  "\ud800",
  "a",
  0,
  -0,
  7,
  1.5,
  1e300,
  NaN,
  Infinity,
  true,
  false,
  null,
  undefined,
  [],
  {},
  { id: "x" }
]

const leaves: ReadonlyArray<Schema.Codec<any, any>> = [
  Schema.String,
  Schema.Finite,
  Schema.Number,
  Schema.Int,
  Schema.Boolean,
  Schema.Literal("a"),
  Schema.Literal(7),
  Schema.String.annotate({ title: "a title" }),
  // Not plain: the schema itself must be asked.
  Schema.NonEmptyString,
  Schema.optionalKey(Schema.String) as never,
  Schema.FiniteFromString,
  Schema.NullOr(Schema.String)
]

const fieldsOf = (random: Random, depth: number): ReadonlyArray<readonly [string, Schema.Codec<any, any>]> =>
  [...new Set(Array.from({ length: 1 + random(4) }, () => pick(random, names)))].map((name) => [
    name,
    depth > 0 && random(4) === 0 ? structOf(random, depth - 1) : pick(random, leaves)
  ])

const structOf = (random: Random, depth: number): Schema.Codec<any, any> =>
  Schema.Struct(Object.fromEntries(fieldsOf(random, depth)) as Record<string, Schema.Codec<any, any>>)

/** Fits the schema in most of its fields; fields may be missing, more, or in another order. */
const valueFor = (random: Random, schema: Schema.Codec<any, any>): unknown => {
  const { ast } = schema
  if (ast._tag !== "Objects") {
    const fitting = values.filter((value) => Exit.isSuccess(Schema.encodeUnknownExit(schema)(value)))
    return pick(random, random(8) === 0 || fitting.length === 0 ? values : fitting)
  }
  const entries = ast.propertySignatures.flatMap(({ name, type }) =>
    random(12) === 0 ? [] : [[String(name), valueFor(random, Schema.make(type) as Schema.Codec<any, any>)] as const]
  )
  if (random(8) === 0) entries.push(["more", pick(random, values)])
  if (random(8) === 0) entries.reverse()
  const value = random(16) === 0 ? Object.create({ inherited: "x" }) : {}
  for (const [name, field] of entries) {
    Object.defineProperty(value, name, { value: field, enumerable: true, writable: true, configurable: true })
  }
  return value
}

/** What a test can compare: values with the order of their fields, errors with their text. */
const shown = (exit: Exit.Exit<unknown, Schema.SchemaError>): unknown => {
  if (Exit.isSuccess(exit)) return { value: exit.value, text: JSON.stringify(exit.value) }
  return String(exit.cause)
}

describe("Codec.json", () => {
  it("decodes as the schema does, whatever the value", () => {
    const random = makeRandom(1)
    let plain = 0
    let values = 0
    for (let n = 0; n < 200; n++) {
      const schema = structOf(random, 2)
      const codec = Codec.json(schema)
      const decode = Schema.decodeUnknownExit(Schema.toCodecJson(schema))
      const isPlain = plainOf(schema)
      for (let m = 0; m < 8; m++) {
        const value = valueFor(random, schema)
        values++
        const body = JSON.stringify(value) ?? "null"
        if (isPlain?.(JSON.parse(body)) === true) plain++
        expect(shown(Effect.runSyncExit(codec.decode({ body: new TextEncoder().encode(body) })))).toEqual(
          shown(decode(JSON.parse(body)))
        )
      }
    }
    // Both ways are well tried.
    expect(plain / values).toBeGreaterThan(0.1)
    expect(plain / values).toBeLessThan(0.9)
  })

  it("encodes as the schema does, whatever the value", () => {
    const random = makeRandom(2)
    const text = (exit: Exit.Exit<Codec.Wire, Schema.SchemaError>) => Exit.map(exit, ({ body }) => [...body].join())
    let plain = 0
    for (let n = 0; n < 1600; n++) {
      const schema = structOf(random, 2)
      const encode = Schema.encodeUnknownExit(Schema.fromJsonString(Schema.toCodecJson(schema)))
      const value = valueFor(random, schema)
      if (plainOf(schema)?.(value) === true) plain++
      expect(shown(text(Effect.runSyncExit(Codec.json(schema).encode(value))))).toEqual(
        shown(Exit.map(encode(value), (written) => [...new TextEncoder().encode(written)].join()))
      )
    }
    expect(plain).toBeGreaterThan(160)
  })

  it("encodes an instance of a class by its schema, and not by its own toJSON", () => {
    class Order {
      readonly id = "a"
      toJSON() {
        return "nothing"
      }
    }
    const codec = Codec.json(Schema.Struct({ id: Schema.String }))
    const exit = Effect.runSyncExit(Effect.map(codec.encode(new Order()), ({ body }) => new TextDecoder().decode(body)))
    expect(exit).toEqual(Exit.succeed("{\"id\":\"a\"}"))
  })

  it("gives the parsed object itself where the schema changes nothing", () => {
    const isPlain = plainOf(Schema.Struct({ id: Schema.String, total: Schema.Finite }))!
    expect(isPlain({ id: "a", total: 1 })).toBe(true)
    expect(isPlain({ total: 1, id: "a" })).toBe(false)
    expect(isPlain({ id: "a", total: 1, more: true })).toBe(false)
    expect(isPlain({ id: "a", total: Infinity })).toBe(false)
  })
})
