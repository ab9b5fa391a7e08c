import * as Predicate from "effect/Predicate"
import type { Invalid } from "./invalid.ts"

export const TypeId = "~@millrace/core/Topic"

/** What is wrong with a topic; told when it is first used. */
export const InvalidId = Symbol.for("@millrace/core/Topic/invalid")

/** Never throws, whatever it is given. */
export const isTopic = (u: unknown): u is { readonly name: string } => {
  try {
    return Predicate.hasProperty(u, TypeId)
  } catch {
    return false
  }
}

export const invalidOf = (topic: object): Invalid | undefined =>
  (topic as { readonly [InvalidId]?: Invalid })[InvalidId]
