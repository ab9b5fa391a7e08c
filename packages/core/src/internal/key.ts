import type { Headers } from "./headers.ts"

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
