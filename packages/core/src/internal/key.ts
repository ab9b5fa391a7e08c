import type { Headers } from "./headers.ts"
import type { Invalid } from "./invalid.ts"

/** What is wrong with the key that a function of the user's gave: keys are compared as texts. */
export const invalidKeyType = (option: string, key: unknown): Invalid | undefined =>
  key === undefined || typeof key === "string"
    ? undefined
    : { option, value: key, remedy: "a key is a text, or undefined for none: convert it with String(…)" }

/** Reads the key back from the headers of a delivery. */
export const keyOf = (headers: Headers): string | undefined => {
  const key = headers["millrace-key"]
  if (key === undefined) return undefined
  try {
    return decodeURIComponent(key)
  } catch {
    return key // written by somebody else
  }
}
