import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Settlement from "../Settlement.ts"
import type { Attempt } from "./attempt.ts"
import { exitOf } from "./exit.ts"
import type { Step } from "./program.ts"
import { isThenable, mapReturnedPromise, rejection } from "./promise.ts"

/** A filter below a middleware or in a branch said no: not a failure, but nothing goes on either. */
export class Filtered {
  readonly _tag = "@millrace/Filtered"
}

export const isFiltered = (cause: Cause.Cause<unknown>): boolean =>
  Option.exists(Cause.findErrorOption(cause), (error) => error instanceof Filtered)

const filtered = Exit.fail(new Filtered())

/**
 * Steps as one Effect, for what wraps or nests them. As long as steps are plain functions it stays an `Exit`, and no
 * fiber is started. `path` tells the steps of one pipeline apart: ids of published messages derive from it.
 */
export const composed = (
  steps: ReadonlyArray<Step>,
  value: unknown,
  attempt: Attempt,
  path: string
): Effect.Effect<unknown, unknown> => {
  let effect: Effect.Effect<unknown, unknown> = Exit.succeed(value)
  steps.forEach((step, index) => {
    effect = wrap(step, effect, attempt, `${path}.${index}`)
  })
  return effect
}

const wrap = (
  step: Step,
  above: Effect.Effect<unknown, unknown>,
  attempt: Attempt,
  path: string
): Effect.Effect<unknown, unknown> => {
  switch (step._tag) {
    case "Timeout":
      return exitOf(above) ?? Effect.timeout(above, step.duration).pipe(
        Effect.tapError((error) => Effect.sync(() => Cause.isTimeoutError(error) && attempt.abort(error)))
      )
    case "Catch":
      return Effect.catchIf(above, step.matches, (error) => step.f(error as never, attempt.message!))
    default: {
      const exit = exitOf(above)
      if (exit === undefined) return Effect.flatMap(above, (value) => apply(step, value, attempt, path))
      return Exit.isSuccess(exit) ? apply(step, exit.value, attempt, path) : exit
    }
  }
}

/** One step for one value. What a plain function throws is a defect, unless it is a settlement. */
export const apply = (step: Step, value: unknown, attempt: Attempt, path: string): Effect.Effect<unknown, unknown> => {
  const message = attempt.message!
  try {
    switch (step._tag) {
      case "Map": {
        const result = step.f(value, message)
        return isThenable(result) ? Exit.die(mapReturnedPromise()) : Exit.succeed(result)
      }
      case "Filter":
        return step.f(value, message) ? Exit.succeed(value) : filtered
      case "FilterMap": {
        const result = step.f(value, message)
        return Result.isSuccess(result) ? Exit.succeed(result.success) : filtered
      }
      case "Promise": {
        const promise = Promise.resolve(step.f(value, message))
        return Effect.callback<unknown, unknown>((resume) => {
          promise.then(
            (result) => resume(Exit.succeed(result)),
            (error) => resume(Exit.failCause(rejection(step.catch, error)))
          )
        })
      }
      case "Effect": {
        const effect = step.f(value, message)
        return step.keep ? Effect.as(effect, value) : effect
      }
      case "To":
        return Effect.as(attempt.engine.publish(step, path, value, attempt), value)
      case "Branch": {
        const name = step.by(value, message)
        const steps = step.cases.get(name)
        return steps === undefined
          ? Exit.die(new TypeError(`a branch of the pipeline has no case ${JSON.stringify(name)}`))
          : composed(steps, value, attempt, `${path}.${name}`)
      }
      case "Middleware":
        // Suspended: a middleware may run it again.
        return step.f(Effect.suspend(() => composed(step.steps, value, attempt, path)), message)
      case "Batch":
      case "Timeout":
      case "Catch":
        return Exit.succeed(value)
    }
  } catch (error) {
    if (Settlement.isRequested(error)) return Exit.fail(error)
    return step._tag === "Promise" ? Exit.failCause(rejection(step.catch, error)) : Exit.die(error)
  }
}
