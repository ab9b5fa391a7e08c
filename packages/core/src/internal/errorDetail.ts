import * as Cause from "effect/Cause"
import * as Redacted from "effect/Redacted"
import { isSecretName, withoutSecrets } from "./secrets.ts"

/**
 * A failure as data, for dead letters, logs and spans: the user's own error, within bounds.
 *
 * - `tag`: `_tag`, or the name of the error's class
 * - `causes`: the chain of `cause`, and the other failures that happened with this one
 * - `fields`: what else the error holds, as far as that is plain data; secrets are left out
 */
export interface ErrorDetail {
  readonly tag: string
  readonly message: string
  readonly stack?: string
  readonly causes: ReadonlyArray<string>
  readonly fields?: { readonly [name: string]: unknown }
}

/** What of an error is recorded beside its name and its message. */
export interface ErrorDetailOptions {
  readonly stack: boolean
  readonly fields: boolean
}

/** Describes a cause. Never throws, whatever was thrown: a dead letter depends on that. */
export const describe = (cause: Cause.Cause<unknown>, options: ErrorDetailOptions): ErrorDetail =>
  safely(() => described(cause, options), { tag: "_OTHER", message: unreadable, causes: [] })

const described = (cause: Cause.Cause<unknown>, options: ErrorDetailOptions): ErrorDetail => {
  const [error, ...others] = errorsOf(cause)
  const stack = options.stack ? stackOf(error) : undefined
  const fields = options.fields ? fieldsOf(error) : undefined
  const message = messageOf(error)
  return {
    tag: tagOf(error),
    // A tagged error often says all in its fields.
    message: message === "" && fields !== undefined ? bound(JSON.stringify(fields), 1000) : message,
    ...(stack === undefined ? {} : { stack }),
    causes: causesOf(error, others),
    ...(fields === undefined ? {} : { fields })
  }
}

/** One line: `Declined: card expired`. */
export const summarize = (cause: Cause.Cause<unknown>): string => summary(errorsOf(cause)[0])

/** An error as logs and spans show it: bounded, without secrets, and safe to read whatever was thrown. */
export class ShownError extends Error {
  readonly _tag: string
  constructor(cause: Cause.Cause<unknown>) {
    const { message, stack, tag } = describe(cause, { stack: true, fields: false })
    super(message)
    this.name = this._tag = tag
    this.stack = stack ?? `${tag}: ${message}`
  }
}

/** The cause for a log line. */
export const loggable = (cause: Cause.Cause<unknown>): Cause.Cause<unknown> => Cause.die(new ShownError(cause))

/** The value of `error.type`: bounded in length; one error class gives one value. */
export const typeOf = (cause: Cause.Cause<unknown>): string => {
  const [error] = errorsOf(cause)
  const tag = tagOf(error)
  return /^[\w.$@/-]+$/.test(tag) ? tag : "_OTHER"
}

/** What failed, first of all what was raised as a failure; never empty. */
const errorsOf = (cause: Cause.Cause<unknown>): ReadonlyArray<unknown> => {
  const failures: Array<unknown> = []
  const defects: Array<unknown> = []
  for (const reason of cause.reasons) {
    if (Cause.isFailReason(reason)) failures.push(reason.error)
    if (Cause.isDieReason(reason)) defects.push(reason.defect)
  }
  const errors = [...failures, ...defects].map(own)
  return errors.length > 0 ? errors : [safely(() => Cause.squash(cause), undefined)]
}

/** A rejection that the user gave no type is the error that was thrown, not the box around it. */
const own = (error: unknown): unknown =>
  safely(() => Cause.isUnknownError(error) && "cause" in error && !isEmpty(error) ? error.cause : error, error)

/** A promise was rejected with nothing: only the box says so. */
const isEmpty = (error: unknown): boolean =>
  safely(() => Cause.isUnknownError(error) && property(error, "cause") === undefined, false)

/** Of this realm or another. */
const isError = (u: unknown): u is Error =>
  safely(() => u instanceof Error || Object.prototype.toString.call(u) === "[object Error]", false)

/** `undefined` also where reading it throws. */
export const property = (u: unknown, name: string): unknown =>
  safely(
    () => (typeof u === "object" && u !== null) || typeof u === "function" ? Reflect.get(u, name) : undefined,
    undefined
  )

const tagOf = (error: unknown): string => {
  if (isEmpty(error)) return "undefined"
  const tag = property(error, "_tag")
  if (typeof tag === "string" && tag !== "") return shownName(tag, 200)
  const name = isError(error) ? property(error, "name") : undefined
  // Most classes of errors inherit their name, and most other objects have none.
  if (typeof name === "string" && name !== "" && name !== "Error") return shownName(name, 200)
  const type = typeof error === "object" ? property(property(error, "constructor"), "name") : undefined
  if (typeof type === "string" && type !== "" && type !== "Object") return bound(type, 200)
  return isError(error) ? "Error" : error === null ? "null" : typeof error
}

const messageOf = (error: unknown): string => {
  const message = property(error, "message")
  if (typeof message === "string" && (message !== "" || isError(error))) return withoutSecrets(message, 1000)
  return withoutSecrets(typeof error === "string" ? error : show(error), 1000)
}

const stackOf = (error: unknown): string | undefined => {
  const stack = isError(error) && !isEmpty(error) ? property(error, "stack") : undefined
  return typeof stack === "string" ? withoutSecrets(stack.split("\n").filter(isOutside).join("\n"), 2000) : undefined
}

/** The way through the engine is the same for each error. In a bundle nothing tells its frames from others. */
const isOutside = (frame: string): boolean => engine === undefined || !frame.includes(engine)

const engine = /[\\/]([^\\/]+[\\/][^\\/]+[\\/]internal[\\/])errorDetail\.[jt]s$/.exec(import.meta.url)?.[1]

const summary = (error: unknown): string => {
  const message = messageOf(error)
  return message === "" ? tagOf(error) : bound(`${tagOf(error)}: ${message}`, 500)
}

/** The chain of causes, then the parts of those that are sums, then the other failures. */
const causesOf = (error: unknown, others: ReadonlyArray<unknown>): ReadonlyArray<string> => {
  const causes = chain(error)
  const parts = [error, ...causes].flatMap(partsOf)
  return [...shortened(causes), ...[...parts, ...others].map((other) => `also ${summary(other)}`)].slice(0, maxCauses)
}

const chain = (error: unknown): ReadonlyArray<unknown> => {
  const seen = new Set<unknown>([error])
  for (
    let next = own(property(error, "cause"));
    next !== undefined && next !== null && !seen.has(next) && seen.size <= maxDepth;
    next = own(property(next, "cause"))
  ) {
    seen.add(next)
  }
  return [...seen].slice(1)
}

/** Of a long chain the first causes and the last one, which is where it began. */
const shortened = (causes: ReadonlyArray<unknown>): ReadonlyArray<string> => {
  if (causes.length <= maxCauses) return causes.map(summary)
  const left = causes.length - maxCauses + 1
  return [...causes.slice(0, maxCauses - 2).map(summary), `… ${left} more`, summary(causes.at(-1))]
}

/** The errors that an `AggregateError` sums up, and the one that a `SuppressedError` stands for. */
const partsOf = (error: unknown): ReadonlyArray<unknown> => {
  const suppressed = isError(error) ? property(error, "suppressed") : undefined
  const parts = suppressed === undefined ? property(error, "errors") : [property(error, "error"), suppressed]
  return safely(() => Array.isArray(parts) ? parts.slice(0, maxCauses).map(own) : [], [])
}

const maxCauses = 5
const maxDepth = 1000

/** The text of an error, on one line and without a secret; `undefined` where it has none. */
export const plainText = (error: unknown): string | undefined => {
  if (error === undefined || error === null) return undefined
  const message = messageOf(error).replace(/\s*[\r\n]+\s*/g, " ")
  return message === "" ? undefined : bound(message, 300)
}

// --- fields

const fieldsOf = (error: unknown): { readonly [name: string]: unknown } | undefined => {
  if (typeof error !== "object" || error === null || isList(error)) return undefined
  const fields: Record<string, unknown> = {}
  let left = 2000
  let count = 0
  for (const name of safely(() => Object.keys(error), [])) {
    // Brands of types begin with `~`.
    if (known.has(name) || name.startsWith("~")) continue
    const value = isSecretName(name) ? "<redacted>" : plain(property(error, name), 0)
    if (value === undefined) continue
    left -= name.length + JSON.stringify(value).length
    if (left < 0 || ++count > maxFields) break
    Object.defineProperty(fields, shownName(name, 100), { value, enumerable: true })
  }
  return count === 0 ? undefined : fields
}

const isList = (error: object): boolean => safely(() => Array.isArray(error) || ArrayBuffer.isView(error), true)

const known = new Set(["_tag", "name", "message", "stack", "cause", "errors"])

const maxFields = 20

/** Data only: an instance of a class may hold anything, such as a connection with its password. */
const plain = (value: unknown, depth: number): unknown => {
  switch (typeof value) {
    case "string":
      return withoutSecrets(value, 500)
    case "boolean":
      return value
    case "number":
      return Number.isFinite(value) ? value : String(value)
    case "bigint":
      return bound(String(value), 500)
    case "object":
      return safely(() => plainObject(value, depth), undefined)
    default:
      return undefined
  }
}

const plainObject = (value: object | null, depth: number): unknown => {
  if (value === null) return null
  if (Redacted.isRedacted(value)) return "<redacted>"
  if (value instanceof Date) return Number.isNaN(value.getTime()) ? "Invalid Date" : value.toISOString()
  if (depth >= 2) return undefined
  if (Array.isArray(value)) {
    // Raw headers: a name, then its value.
    const isHidden = (i: number) => typeof value[i - 1] === "string" && isSecretName(value[i - 1])
    return value.slice(0, maxFields).map((item, i) => isHidden(i) ? "<redacted>" : plain(item, depth + 1) ?? null)
  }
  const prototype = Object.getPrototypeOf(value)
  // Of this realm or another.
  if (prototype !== null && Object.getPrototypeOf(prototype) !== null) return undefined
  const data: Record<string, unknown> = {}
  for (const name of Object.keys(value).slice(0, maxFields)) {
    const item = isSecretName(name) ? "<redacted>" : plain(property(value, name), depth + 1)
    if (item !== undefined) Object.defineProperty(data, shownName(name, 100), { value: item, enumerable: true })
  }
  return data
}

// --- text

const safely = <A>(read: () => A, otherwise: A): A => {
  try {
    return read()
  } catch {
    return otherwise
  }
}

const bound = (text: string, length: number): string => text.length > length ? `${text.slice(0, length - 1)}…` : text

/** The name of an error or a field: usually a word, but any text may be one. */
const shownName = (name: string, length: number): string =>
  /^[\w.$@/-]+$/.test(name) ? bound(name, length) : withoutSecrets(name, length)

const show = (u: unknown): string => {
  if (typeof u === "object" && u !== null) {
    const data = plain(u, 0)
    if (data !== undefined) return safely(() => JSON.stringify(data), unreadable)
  }
  // Not its source, which may hold anything.
  if (typeof u === "function") return safely(() => `function ${u.name}`, unreadable)
  return safely(() => typeof u === "object" && u !== null ? Object.prototype.toString.call(u) : String(u), unreadable)
}

const unreadable = "an error that cannot be read"
