import * as Cause from "effect/Cause"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Predicate from "effect/Predicate"
import * as Result from "effect/Result"
import { types } from "node:util"
import * as Settlement from "../Settlement.ts"
import { invalidOption } from "../TransportError.ts"
import { type Invalid, invalidStep } from "./invalid.ts"

/** Whether something is to be waited for as a promise is. */
export const isThenable = (u: unknown): u is PromiseLike<unknown> =>
  typeof u === "object" && u !== null && "then" in u && typeof u.then === "function"

/** Calls one of both when the promise settles, also when its `then` throws (a Proxy of a promise has no `then`). */
export const settledAs = (
  promise: PromiseLike<unknown>,
  onFulfilled: (value: unknown) => void,
  onRejected: (error: unknown) => void
): void => {
  try {
    promise.then(onFulfilled, onRejected)
  } catch (error) {
    onRejected(error)
  }
}

/** A promise that nothing awaits, of this realm or another, must not end the process. Other thenables are left alone. */
export const ignore = (u: unknown): void => {
  try {
    if (types.isPromise(u)) Promise.prototype.then.call(u, () => {}, () => {})
  } catch {
    // a subclass that cannot be waited for
  }
}

/** The answer of a function that is not waited for; a promise would count as one, whatever it resolves with. */
export const answered = <A>(option: string, answer: A): A => {
  if (!isThenable(answer)) return answer
  ignore(answer)
  const value = { toString: () => "an async function" }
  throw invalidOption("core", option, value, "give a function that returns the answer itself, not a promise")
}

/** The Effect that a function of a codec returned; anything else is a defect. */
export const effectOfCodec = <A, E, R>(
  name: "decode" | "encode",
  returned: Effect.Effect<A, E, R>
): typeof returned => {
  if (Effect.isEffect(returned)) return returned
  ignore(returned)
  const what = isThenable(returned) ? "a Promise: wrap the promise in Effect.tryPromise" : "something that is no Effect"
  return Exit.die(new TypeError(`the codec's ${name} returned ${what}`))
}

/**
 * The error of a plain function whose result is a Promise or an Effect that nothing would wait for, or a settlement
 * that was returned. The types refuse most of it, JavaScript and casts do not.
 */
export const misreturned = (step: string, result: unknown): Cause.Cause<never> | undefined => {
  if (isThenable(result)) {
    ignore(result)
    return misused(step, "returned a Promise: use Pipeline.mapPromise")
  }
  const problem = unwaited(result)
  return problem === undefined ? undefined : misused(step, `returned ${problem}`)
}

/** The same for the value of a promise. */
export const misresolved = (result: unknown): Cause.Cause<never> | undefined => {
  const error = resolvedWrongly(result)
  return error === undefined ? undefined : Cause.die(error)
}

const resolvedWrongly = (result: unknown): TypeError | undefined => {
  const problem = unwaited(result)
  return problem === undefined ? undefined : new TypeError(`an async function of the pipeline returned ${problem}`)
}

export const misused = (step: string, problem: string): Cause.Cause<never> =>
  Cause.die(new TypeError(`a function given to Pipeline.${step} ${problem}`))

const unwaited = (u: unknown): string | undefined => {
  if (typeof u !== "object" || u === null) return undefined
  try {
    if (Settlement.isRequested(u)) return "a settlement: throw it, or fail with it"
    return Effect.isEffect(u) && !(u instanceof Error)
      ? "an Effect, which nothing runs: use Pipeline.mapEffect or Pipeline.tap"
      : undefined
  } catch {
    return undefined
  }
}

/** What a rejection means: a settlement that was asked for, or what the user's `catch` makes of it. */
export const rejection = (onRejected: (cause: unknown) => unknown, error: unknown): Cause.Cause<unknown> => {
  ignore(error)
  if (Settlement.isRequested(error)) return Cause.fail(error)
  try {
    return Cause.fail(onRejected(error))
  } catch (defect) {
    return Cause.die(defect)
  }
}

/** A rejection without `catch`: the error says what the rejection says. */
export const unknownRejection = (cause: unknown): Cause.UnknownError => new Cause.UnknownError(cause, textOf(cause))

const textOf = (cause: unknown): string => {
  try {
    if (cause instanceof Error) return cause.message === "" ? cause.name : cause.message
    return typeof cause === "object" && cause !== null ? JSON.stringify(cause) : `rejected with ${String(cause)}`
  } catch {
    return "rejected with a value that cannot be shown"
  }
}

/** What `invalid` says is told when the pipeline starts. */
interface PromiseForm {
  readonly invalid?: Invalid
  readonly try: (value: unknown, message: unknown) => PromiseLike<any>
  readonly catch: (cause: unknown) => unknown
}

/** A function, or `{ try, catch }`. */
export const promiseForm = (step: string, f: unknown): PromiseForm => {
  const form = typeof f === "function" ? { try: f, catch: unknownRejection } : f
  const remedy = "give an async function, or { try, catch }"
  const hasBoth = Predicate.hasProperty(form, "try") && typeof form.try === "function" &&
    Predicate.hasProperty(form, "catch") && typeof form.catch === "function"
  const invalid = hasBoth ? invalidStep(step, form.try) : { option: step, value: f, remedy }
  return invalid === undefined
    ? form as PromiseForm
    : { try: () => Promise.resolve(), catch: unknownRejection, invalid }
}

/** Passes the value on, whatever the function resolves with. */
export const tapped = (f: PromiseForm["try"]) => async (value: unknown, message: unknown): Promise<unknown> => {
  const result = await f(value, message)
  // What succeeded already has nothing left to run.
  const error = Exit.isExit(result) && Exit.isSuccess(result) ? undefined : resolvedWrongly(result)
  if (error !== undefined) throw error
  return value
}

/** The same function with an Effect of the promise, whose rejections `catch` explains. */
export const fromPromise = (form: PromiseForm) => (value: unknown, message: unknown): Effect.Effect<any, unknown> =>
  awaited(() => form.try(value, message), (error) => rejection(form.catch, error))

/** As `await` does: what is no promise is its own value, and a throw is a rejection. */
const awaited = <A, E>(
  evaluate: () => PromiseLike<A>,
  causeOf: (error: unknown) => Cause.Cause<E>
): Effect.Effect<A, E> =>
  Effect.callback<A, E>((resume) => {
    const succeed = (value: any) => resume(exitOfResolved(value))
    const fail = (error: unknown) => resume(Exit.failCause(causeOf(error)))
    try {
      const returned: unknown = evaluate()
      if (isThenable(returned)) settledAs(returned, succeed, fail)
      else succeed(returned)
    } catch (error) {
      fail(error)
    }
  })

/** The value of a promise, or the error of one that nothing would wait for. */
export const exitOfResolved = (value: unknown): Exit.Exit<any> => {
  const cause = misresolved(value)
  return cause === undefined ? Exit.succeed(value) : Exit.failCause(cause)
}

/** Each item of `Promise.allSettled` as a `Result`. */
export const settledResults = (onRejected: (cause: unknown) => unknown) =>
(
  items: ReadonlyArray<PromiseSettledResult<unknown>>
): Effect.Effect<ReadonlyArray<Result.Result<unknown, unknown>>> =>
  Array.isArray(items) && items.every((item) => item?.status === "fulfilled" || item?.status === "rejected")
    ? Effect.succeed(
      items.map((item) =>
        item.status === "fulfilled"
          ? Result.succeed(item.value)
          : Result.fail(Settlement.isRequested(item.reason) ? item.reason : onRejected(item.reason))
      )
    )
    : Exit.failCause(
      misused("batchEachPromise", "did not give one result for each value, as Promise.allSettled does")
    )

/** Runs `handler` as a promise inside `f`; a failure that `f` lets through keeps its cause. */
export const wrapPromise = <A, E, R, B>(
  handler: Effect.Effect<A, E, R>,
  f: (next: () => Promise<A>) => PromiseLike<B>
): Effect.Effect<B, E | Cause.UnknownError, R> =>
  Effect.contextWith((context: Context.Context<R>) => {
    const causes = new Map<unknown, Cause.Cause<E>>()
    const controller = new AbortController()
    const next = async (): Promise<A> => {
      const exit = await Effect.runPromiseExitWith(context)(handler, { signal: controller.signal })
      if (Exit.isSuccess(exit)) return exit.value
      const error = Cause.squash(exit.cause)
      causes.set(error, exit.cause)
      throw error
    }
    const causeOf = (error: unknown) =>
      causes.get(error) ?? rejection(unknownRejection, error) as Cause.Cause<Cause.UnknownError>
    return Effect.onInterrupt(awaited<B, E | Cause.UnknownError>(() => f(next), causeOf), () =>
      Effect.sync(() => controller.abort()))
  })
