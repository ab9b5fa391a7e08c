import * as Duration from "effect/Duration"
import { invalidOption, type TransportError } from "../TransportError.ts"

/**
 * Input that cannot work. Constructors keep it, starting or publishing fails with it: a value never throws.
 *
 * @category models
 * @since 0.1.0
 */
export interface Invalid {
  readonly option: string
  readonly value: unknown
  readonly remedy: string
}

/** Holds what is wrong with a value, such as a topic; told when the value is first used. */
export const InvalidId = Symbol.for("@millrace/core/invalid")

export const invalidOf = (value: object): Invalid | undefined =>
  (value as { readonly [InvalidId]?: Invalid })[InvalidId]

/** The value itself, which keeps what is wrong with it. */
export const keepInvalid = <A extends object>(value: A, invalid: Invalid | undefined): A =>
  invalid === undefined ? value : Object.defineProperty(value, InvalidId, { value: invalid })

/** What is wrong with a number that has to lie between two others. A text is no number. */
export const invalidNumber = (
  option: string,
  value: unknown,
  least: number,
  most: number,
  remedy: string
): Invalid | undefined =>
  typeof value === "number" && value >= least && value <= most ? undefined : { option, value, remedy }

/** What is wrong with a maximum of handlers. */
export const invalidMax = (option: string, max: unknown): Invalid | undefined =>
  (Number.isInteger(max) && (max as number) >= 1) || max === Infinity
    ? undefined
    : { option, value: max, remedy: "give a whole number of at least 1, or Infinity for no bound" }

export const toError = (transport: string, { option, remedy, value }: Invalid): TransportError =>
  invalidOption(transport, option, value, remedy)

const units = ["weeks", "days", "hours", "minutes", "seconds", "milliseconds", "microseconds", "nanoseconds"]

/** Values that Effect reads as zero: `NaN`, and objects without a unit, such as a `Date` or a misspelt unit. */
const isNothing = (input: unknown): boolean => {
  if (typeof input !== "object" || input === null || Duration.isDuration(input)) return Number.isNaN(input)
  if (Array.isArray(input)) return input.some(Number.isNaN)
  const given = Object.entries(input).filter(([, n]) => n !== undefined)
  return given.length === 0 ||
    given.some(([unit, n]) => !units.includes(unit) || typeof n !== "number" || Number.isNaN(n))
}

/**
 * Reads a duration, or says why the input is none: JavaScript and casts get round its type.
 *
 * @category validation
 * @since 0.1.0
 */
export const durationOf = (
  option: string,
  input: unknown
): { readonly duration: Duration.Duration; readonly invalid: Invalid | undefined } => {
  try {
    const duration = Duration.fromInputUnsafe(input as Duration.Input)
    if (!Duration.isNegative(duration) && !isNothing(input)) return { duration, invalid: undefined }
  } catch {
    // not a duration
  }
  return {
    duration: Duration.zero,
    invalid: { option, value: input, remedy: "write a duration as \"5 seconds\" or as a number of milliseconds" }
  }
}

/** Reads a delay, which ends; a negative one means now. `undefined`: the input is none. */
export const delayOf = (input: unknown): Duration.Duration | undefined => {
  try {
    const duration = Duration.fromInputUnsafe(input as Duration.Input)
    if (isNothing(input) || !Number.isFinite(Duration.toMillis(duration))) return undefined
    return Duration.max(Duration.zero, duration)
  } catch {
    return undefined
  }
}

/** What is wrong with a list of pipelines: one that runs nothing is a mistake of the program that made it. */
export const invalidPipelines = (pipelines: unknown): Invalid | undefined =>
  Array.isArray(pipelines) && pipelines.length > 0
    ? undefined
    : { option: "pipelines", value: pipelines, remedy: "give at least one pipeline, as in [pipeline]" }

/** The error of an option that has to be a function, if it is another value. */
export const invalidFunction = (option: string, f: unknown): Invalid | undefined =>
  f === undefined ? undefined : invalidStep(option, f)

/** The error of a step that is not given a function, or one whose body a call does not run. */
export const invalidStep = (option: string, f: unknown): Invalid | undefined => {
  if (typeof f !== "function") return { option, value: f, remedy: "give a function" }
  const isGenerator = Object.prototype.toString.call(f).endsWith("GeneratorFunction]")
  const value = { toString: () => "a generator function" }
  return isGenerator
    ? { option, value, remedy: "nothing runs its body: give a function, or Effect.fnUntraced" }
    : undefined
}

/** The first option that `of` does not have. A text is not shown: a misspelt password is one. */
export const unknownOption = (of: string, options: unknown, known: ReadonlyArray<string>): Invalid | undefined => {
  if (typeof options !== "object" || options === null) {
    // A text may be a URL with a password.
    const value = typeof options === "string" ? { toString: () => "a text" } : options
    return { option: of, value, remedy: `give an object with the options ${known.join(", ")}` }
  }
  const name = Object.keys(options).find((name) => !known.includes(name))
  if (name === undefined) return undefined
  return {
    option: `${of}.${name}`,
    value: shown((options as Record<string, unknown>)[name]),
    remedy: `there is no such option, there are ${known.join(", ")}`
  }
}

const given = { toString: () => "given" }

const shown = (value: unknown): unknown => typeof value === "number" || typeof value === "boolean" ? value : given
