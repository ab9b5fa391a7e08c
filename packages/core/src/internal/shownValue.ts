import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Redacted from "effect/Redacted"
import { summarize } from "./errorDetail.ts"
import { Inspected } from "./inspection.ts"
import { withoutSecrets } from "./secrets.ts"

/**
 * A value that an option cannot have, as an error shows it: texts without the user of an address, and of what is no plain
 * data its kind only. A URL or an array may hold a password, a function anything.
 */
export const shownValue = (value: unknown): string => {
  try {
    if (typeof value === "string") return JSON.stringify(withoutSecrets(value, 200))
    if (typeof value === "function") return "a function"
    if (typeof value !== "object" || value === null) return String(value)
    const showsItself = Redacted.isRedacted(value) || Duration.isDuration(value) || value instanceof Inspected
    if (showsItself || Object.hasOwn(value, "toString")) return String(value)
    if (value instanceof Error) return summarize(Cause.fail(value))
    if (Array.isArray(value)) return value.length === 0 ? "an empty array" : "an array"
    const { name } = value.constructor ?? Object
    return name === "Object" ? "an object" : `an instance of ${name}`
  } catch {
    return "a value that cannot be shown"
  }
}
