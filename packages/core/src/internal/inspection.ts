import * as Formatter from "effect/Formatter"
import { NodeInspectSymbol } from "effect/Inspectable"
import { symbolRedactable } from "effect/Redactable"

interface InspectOptions {
  readonly depth?: number | null | undefined
}

type Inspect = (value: unknown, options: InspectOptions) => string

/**
 * A value that shows what its `toJSON` gives, and nothing else of itself, under `console.log`, `util.inspect` at any
 * depth, `JSON.stringify`, a template and every logger of Effect, also inside of other values.
 */
export abstract class Inspected {
  abstract toJSON(): unknown

  /** Effect shows all fields of a value inside of an Exit or a Context, unless the value is redactable. */
  [symbolRedactable](): unknown {
    return this.toJSON()
  }

  toString(): string {
    return `${nameOf(this)}(${Formatter.formatJson(this.toJSON())})`
  }

  [NodeInspectSymbol](depth: number, options: InspectOptions, inspect: Inspect): unknown {
    if (depth < 0) return `[${nameOf(this)}]`
    const data = this.toJSON()
    // Called by hand, or by another inspector than Node's.
    if (typeof inspect !== "function") return data
    return `${nameOf(this)} ${inspect(data, { ...options, depth: Math.max(depth, minDepth) })}`
  }
}

/** Enough to show a pipeline with branches whole. */
const minDepth = 8

const nameOf = (self: object): string => self.constructor.name

/**
 * Makes a value show `data` and nothing else of itself, under `console.log`, `JSON.stringify` and every logger: a service
 * that holds a connection, and with it a password. Gives the value back.
 *
 * @category formatting
 * @since 0.1.0
 */
export const showAs = <A extends object>(self: A, name: string, data: object): A => {
  const { [NodeInspectSymbol]: inspect, toString } = inspectedAs(name) as Inspected
  const hidden = (value: unknown) => ({ value, enumerable: false, configurable: true })
  return Object.defineProperties(self, {
    constructor: hidden({ name }),
    toJSON: hidden(() => data),
    toString: hidden(toString),
    [NodeInspectSymbol]: hidden(inspect),
    [symbolRedactable]: hidden(() => data)
  })
}

/** A prototype for values that are no instances of a class. */
export const inspectedAs = (name: string): object => {
  const prototype = Object.create(Inspected.prototype)
  Object.defineProperty(prototype, "constructor", { value: { name }, enumerable: false })
  return prototype
}
