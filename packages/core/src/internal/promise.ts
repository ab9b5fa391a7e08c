import * as Cause from "effect/Cause"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Result from "effect/Result"
import * as Settlement from "../Settlement.ts"

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

/** What the types refuse can still be passed by a cast. The promise that nothing awaits must not end the process. */
export const returnedPromise = (step: string, promise: PromiseLike<unknown>): Cause.Cause<never> => {
  settledAs(promise, () => {}, () => {})
  return Cause.die(new TypeError(`a function given to Pipeline.${step} returned a Promise: use Pipeline.mapPromise`))
}

/** What a rejection means: a settlement that was asked for, or what the user's `catch` makes of it. */
export const rejection = (onRejected: (cause: unknown) => unknown, error: unknown): Cause.Cause<unknown> => {
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

interface PromiseForm {
  readonly try: (value: unknown, message: unknown) => PromiseLike<any>
  readonly catch: (cause: unknown) => unknown
}

/** A function, or `{ try, catch }`. */
export const promiseForm = (f: PromiseForm["try"] | PromiseForm): PromiseForm =>
  typeof f === "function" ? { try: f, catch: unknownRejection } : f

/** The Effect of a promise that `catch` explains. A throw is a rejection. */
export const fromPromise = (
  evaluate: () => PromiseLike<any>,
  onRejected: (cause: unknown) => unknown
): Effect.Effect<any, unknown> =>
  Effect.callback((resume) => {
    const fail = (error: unknown) => resume(Effect.failCause(rejection(onRejected, error)))
    try {
      evaluate().then((value) => resume(Effect.succeed(value)), fail)
    } catch (error) {
      fail(error)
    }
  })

/** Each item of `Promise.allSettled` as a `Result`. */
export const settledResults =
  (onRejected: (cause: unknown) => unknown) =>
  (items: ReadonlyArray<PromiseSettledResult<unknown>>): ReadonlyArray<Result.Result<unknown, unknown>> =>
    items.map((item) =>
      item.status === "fulfilled"
        ? Result.succeed(item.value)
        : Result.fail(Settlement.isRequested(item.reason) ? item.reason : onRejected(item.reason))
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
    return Effect.onInterrupt(
      Effect.callback<B, E | Cause.UnknownError>((resume) => {
        const fail = (error: unknown) =>
          resume(Effect.failCause(causes.get(error) ?? rejection(unknownRejection, error) as Cause.Cause<never>))
        try {
          f(next).then((value) => resume(Effect.succeed(value)), fail)
        } catch (error) {
          fail(error)
        }
      }),
      () => Effect.sync(() => controller.abort())
    )
  })
