/** A JSON object: a document, a schema, or a part of one. */
export type Json = { readonly [name: string]: unknown }

export const isObject = (u: unknown): u is Json => typeof u === "object" && u !== null && !Array.isArray(u)

export const listOf = (u: unknown): ReadonlyArray<unknown> => Array.isArray(u) ? u : []

/** Follows a reference within its own document. */
export const resolve = (document: Json, value: unknown): unknown => {
  let found = value
  for (let hops = 0; hops < 20 && isObject(found) && typeof found["$ref"] === "string"; hops++) {
    let target: unknown = document
    for (const part of found["$ref"].slice(2).split("/")) {
      target = isObject(target) ? target[part.replaceAll("~1", "/").replaceAll("~0", "~")] : undefined
    }
    found = target
  }
  return found
}
