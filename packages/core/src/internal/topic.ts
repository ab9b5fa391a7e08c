import * as Predicate from "effect/Predicate"

export const TypeId = "~@millrace/core/Topic"

/** Never throws, whatever it is given. */
export const isTopic = (u: unknown): u is { readonly name: string } => {
  try {
    return Predicate.hasProperty(u, TypeId)
  } catch {
    return false
  }
}
