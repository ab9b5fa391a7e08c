import * as TransportError from "@millrace/core/TransportError"
import { JetStreamApiError } from "@nats-io/jetstream"
import { failure } from "./connection.ts"

/** An option of a stream or consumer that is not as it has to be. */
export interface Difference {
  readonly name: string
  readonly expected: string
  readonly found: string
}

/** Absent, or the server's way of saying so. */
const isDefault = (value: unknown): boolean =>
  value === undefined || value === null || value === false || value === 0 || value === -1 || value === "" ||
  (typeof value === "object" && Object.values(value).every(isDefault))

/**
 * Whether the server has what was asked for. It adds fields of its own to objects, leaves out what is off, and writes
 * "unbounded" as 0 or -1.
 */
const isAsAsked = (found: unknown, asked: unknown): boolean => {
  if (isDefault(asked)) return isDefault(found)
  if (Array.isArray(asked)) {
    return Array.isArray(found) && found.length === asked.length && asked.every((item, i) => isAsAsked(found[i], item))
  }
  if (typeof asked !== "object" || asked === null) return found === asked
  if (typeof found !== "object" || found === null) return false
  const values = new Map<string, unknown>(Object.entries(found))
  return Object.entries(asked).every(([name, value]) => value === undefined || isAsAsked(values.get(name), value))
}

/** Compares a configuration that the server has with the options that were asked for. */
export const differences = (found: object, asked: object): ReadonlyArray<Difference> => {
  const values = new Map<string, unknown>(Object.entries(found))
  return Object.entries(asked).flatMap(([name, value]) =>
    value === undefined || isAsAsked(values.get(name), value)
      ? []
      : [{ name, expected: JSON.stringify(value), found: JSON.stringify(values.get(name)) ?? "absent" }]
  )
}

/** Names of options that are set beside those that may be. */
export const beside = (found: object, allowed: ReadonlySet<string>): ReadonlyArray<Difference> =>
  Object.entries(found).flatMap(([name, value]) =>
    allowed.has(name) || isDefault(value) ? [] : [{ name, expected: "absent", found: JSON.stringify(value) }]
  )

/** Codes of refusals that several rooms know. */
export const streamNotFound = 10059
export const noMessage = 10037
export const maxBytesRequired = 10113

export const isCode = (error: unknown, ...codes: ReadonlyArray<number>): boolean =>
  error instanceof JetStreamApiError && codes.includes(error.code)

export const mismatch = (name: string, expected: string, found: string): TransportError.TransportError =>
  failure(new TransportError.Mismatch({ name, expected, found }))
