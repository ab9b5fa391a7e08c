import * as Formatter from "effect/Formatter"
import { NodeInspectSymbol } from "effect/Inspectable"

interface InspectOptions {
  readonly depth?: number | null | undefined
}

type Inspect = (value: unknown, options: InspectOptions) => string

/**
 * A value that shows what its `toJSON` gives, and nothing else of itself, under `console.log`, `util.inspect` at any
 * depth, `JSON.stringify`, a template and every logger of Effect.
 */
export abstract class Inspected {
  abstract toJSON(): unknown

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

/** A prototype for values that are no instances of a class. */
export const inspectedAs = (name: string): object => {
  const prototype = Object.create(Inspected.prototype)
  Object.defineProperty(prototype, "constructor", { value: { name }, enumerable: false })
  return prototype
}
