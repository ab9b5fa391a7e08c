import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Result from "effect/Result"
import * as Settlement from "../Settlement.ts"
import type { Attempt } from "./attempt.ts"
import { exitOf } from "./exit.ts"
import type { Outputs } from "./outputs.ts"
import {
  Await,
  Failed,
  filtered,
  isPending,
  Join,
  type JoinBatch,
  keeps,
  Output,
  type Pending,
  Run
} from "./pending.ts"
import type { Step } from "./program.ts"
import {
  answered,
  exitOfResolved,
  ignore,
  isThenable,
  misresolved,
  misreturned,
  misused,
  rejection,
  settledAs
} from "./promise.ts"
import { skippingOf } from "./skipping.ts"

/** A step, compiled. */
export interface Operation {
  readonly run: (value: unknown, attempt: Attempt) => unknown | Pending
  /** Recovers from a failure of a step above it; `undefined` passes the failure on. */
  readonly recover?: (cause: Cause.Cause<unknown>, attempt: Attempt) => Pending | undefined
  /** A timeout of all that stands above it. */
  readonly timeout?: Extract<Step, { _tag: "Timeout" }>
}

/** The rooms that a step reaches: given, so that steps know none of them. */
export interface Environment {
  /** `path` is the step's place in the pipeline: ids of published messages derive from it. */
  readonly publish: (
    step: Extract<Step, { _tag: "To" }>,
    path: string
  ) => Outputs
  readonly batch: (step: Extract<Step, { _tag: "Batch" }>) => JoinBatch
}

export const compile = (
  steps: ReadonlyArray<Step>,
  environment: Environment,
  prefix = ""
): ReadonlyArray<Operation> => steps.map((step, index) => operation(step, environment, `${prefix}${index}`))

const pass = (value: unknown) => value

const operation = (step: Step, environment: Environment, path: string): Operation => {
  switch (step._tag) {
    case "Map": {
      const { f } = step
      return {
        run: (value, attempt) => {
          const result = f(value, attempt.message!)
          const wrong = misreturned("map", result)
          return wrong === undefined ? result : new Failed(wrong)
        }
      }
    }
    case "Filter": {
      const { f } = step
      return {
        run: (value, attempt) => {
          const result: unknown = f(value, attempt.message!)
          const wrong = misreturned("filter", result)
          return wrong === undefined ? result ? value : filtered : new Failed(wrong)
        }
      }
    }
    case "FilterMap": {
      const { f } = step
      return {
        run: (value, attempt) => {
          const result = f(value, attempt.message!)
          if (Result.isResult(result)) return Result.isSuccess(result) ? result.success : filtered
          return new Failed(
            misreturned("filterMap", result) ?? misused("filterMap", "returned something that is no Result")
          )
        }
      }
    }
    case "Promise": {
      const { f } = step
      const onRejected = (error: unknown) => rejection(step.catch, error)
      return {
        run: (value, attempt) => {
          let returned: unknown
          try {
            returned = f(value, attempt.message!)
          } catch (error) {
            return new Failed(onRejected(error))
          }
          if (isThenable(returned)) {
            return new Await(returned instanceof Promise ? returned : Promise.resolve(returned), onRejected)
          }
          const wrong = misresolved(returned)
          return wrong === undefined ? returned : new Failed(wrong)
        }
      }
    }
    case "Effect": {
      const { f, keep } = step
      const name = keep ? "tap" : "mapEffect"
      return { run: (value, attempt) => ofEffect(f(value, attempt.message!), keep, value, name) }
    }
    case "To": {
      const outputs = environment.publish(step, path)
      const { f } = step
      return {
        run: (value, attempt) =>
          new Output(outputs, f === undefined ? value : answered("to", f(value, attempt.message!)))
      }
    }
    case "Batch": {
      const join = new Join(environment.batch(step))
      return { run: () => join }
    }
    case "Branch": {
      const cases = new Map(
        Array.from(step.cases, ([name, steps]) => [name, compile(steps, environment, `${path}.${name}.`)] as const)
      )
      const { by } = step
      return {
        run: (value, attempt) => {
          const name = by(value, attempt.message!)
          const operations = cases.get(name)
          return operations === undefined
            ? new Failed(
              Cause.die(
                new TypeError(`a branch of the pipeline has no case ${JSON.stringify(answered("branch", name))}`)
              )
            )
            : ofEffect(asEffect(operations, value, attempt), false, value, "branch")
        }
      }
    }
    case "Middleware": {
      const operations = compile(step.steps, environment, `${path}.`)
      const { f } = step
      const hasTimeout = operations.some(({ timeout }) => timeout !== undefined)
      const skipping = skippingOf(f)
      const wrap = skipping?.wrap ?? f
      return {
        run: (value, attempt) => {
          if (skipping === undefined || !skipping.skips(attempt)) {
            // Suspended: a middleware may run it again. One that leaves it as it is costs no fiber.
            const handler = Effect.suspend(() => asEffect(operations, value, attempt))
            const wrapped = wrap(handler, attempt.message!)
            if (wrapped !== handler) return ofEffect(wrapped, false, value, "middleware")
          }
          if (hasTimeout) return ofEffect(asEffect(operations, value, attempt), false, value, "middleware")
          // Whoever runs the middleware runs its one step.
          if (operations.length === 1) return operations[0]!.run(value, attempt)
          for (let index = 0; index < operations.length; index++) {
            const result = apply(operations[index]!, value, attempt)
            // The last step is run by whoever runs the others; one that keeps its value must be the first, too.
            if (isPending(result) && index === operations.length - 1 && (index === 0 || !keeps(result))) return result
            if (isPending(result)) {
              return ofEffect(onward(operations, index, value, attempt, result), false, value, "middleware")
            }
            value = result
          }
          return value
        }
      }
    }
    case "Timeout":
      return { run: pass, timeout: step }
    case "Catch": {
      const { f, matches } = step
      return {
        run: pass,
        recover: (cause, attempt) => {
          const error = Cause.findErrorOption(cause)
          if (error._tag === "None" || attempt.message === undefined) return undefined
          if (!isSafely(() => matches(error.value))) return undefined
          attempt.renewSignal()
          return ofEffect(f(error.value as never, attempt.message), false, undefined, "catchTag") as Pending
        }
      }
    }
  }
}

/** An Effect that is an `Exit` needs no fiber. */
const ofEffect = (
  effect: Effect.Effect<unknown, unknown>,
  keep: boolean,
  value: unknown,
  step: string
): unknown | Pending => {
  const exit = exitOf(effect)
  if (exit === undefined) return Effect.isEffect(effect) ? new Run(effect, keep) : new Failed(notAnEffect(step, effect))
  if (Exit.isSuccess(exit)) return keep ? value : exit.value
  return isFiltered(exit.cause) ? filtered : new Failed(exit.cause)
}

/** The form for promises of a step that wants an Effect. */
const promiseForms: Record<string, string> = { mapEffect: "mapPromise" }

export const notAnEffect = (step: string, returned: unknown): Cause.Cause<never> => {
  const remedy = `return an Effect, or use Pipeline.${promiseForms[step] ?? `${step}Promise`}`
  if (!isThenable(returned)) return misused(step, `returned something that is no Effect: ${remedy}`)
  ignore(returned)
  return misused(step, `returned a Promise: ${remedy}`)
}

/** Runs one step. A function that throws has a defect, unless it throws a settlement. */
export const apply = (operation: Operation, value: unknown, attempt: Attempt): unknown | Pending => {
  try {
    return operation.run(value, attempt)
  } catch (error) {
    return new Failed(thrown(error))
  }
}

/** The step below a failure that recovers from it, and its answer. */
export const recover = (
  operations: ReadonlyArray<Operation>,
  from: number,
  cause: Cause.Cause<unknown>,
  attempt: Attempt
): { readonly index: number; readonly pending: unknown | Pending } | { readonly cause: Cause.Cause<unknown> } => {
  for (let index = from; index < operations.length; index++) {
    const operation = operations[index]!
    if (operation.recover === undefined) continue
    try {
      const pending = operation.recover(cause, attempt)
      if (pending !== undefined) return { index, pending }
    } catch (error) {
      cause = thrown(error)
    }
  }
  return { cause }
}

export const thrown = (error: unknown): Cause.Cause<unknown> => {
  ignore(error)
  return Settlement.isRequested(error) ? Cause.fail(error) : Cause.die(error)
}

// --- steps as one Effect, for what wraps or nests them

/**
 * Passes through as a defect when a filter under a middleware or in a branch says no: a middleware that retries failures
 * or recovers from them leaves it alone.
 */
class FilteredSignal {
  readonly _tag = "@millrace/Filtered"
}
const filteredExit = Exit.die(new FilteredSignal())

export const isFiltered = (cause: Cause.Cause<unknown>): boolean =>
  cause.reasons.some((reason) => Cause.isDieReason(reason) && isSafely(() => reason.defect instanceof FilteredSignal))

/** An error may be an object that cannot be looked at. */
export const isSafely = (test: () => boolean): boolean => {
  try {
    return test()
  } catch {
    return false
  }
}

/** Stays an `Exit`, and starts no fiber, for as long as steps are plain functions. */
const asEffect = (
  operations: ReadonlyArray<Operation>,
  value: unknown,
  attempt: Attempt
): Effect.Effect<unknown, unknown> => {
  const last = operations.findLastIndex(({ timeout }) => timeout !== undefined)
  if (last < 0) return onward(operations, 0, value, attempt)
  const above = asEffect(operations.slice(0, last), value, attempt)
  const timed = exitOf(above) ?? Effect.timeout(above, operations[last]!.timeout!.duration).pipe(
    Effect.tapError((error) => Effect.sync(() => Cause.isTimeoutError(error) && attempt.abort(error)))
  )
  return continued(operations, last + 1, timed, attempt, false, value)
}

/** Runs the operations from `from` on; `first` is what the first of them has answered already. */
const onward = (
  operations: ReadonlyArray<Operation>,
  from: number,
  value: unknown,
  attempt: Attempt,
  first?: Pending
): Effect.Effect<unknown, unknown> => {
  for (let index = from; index < operations.length; index++) {
    const result = index === from && first !== undefined ? first : apply(operations[index]!, value, attempt)
    if (!isPending(result)) {
      value = result
      continue
    }
    return continued(operations, index + 1, effectOf(result, value, attempt), attempt, keeps(result), value)
  }
  return Exit.succeed(value)
}

/** Goes on behind an Effect: with its value, or with what recovers from its failure. */
const continued = (
  operations: ReadonlyArray<Operation>,
  from: number,
  effect: Effect.Effect<unknown, unknown>,
  attempt: Attempt,
  keep: boolean,
  value: unknown
): Effect.Effect<unknown, unknown> => {
  const onFailure = (cause: Cause.Cause<unknown>): Effect.Effect<unknown, unknown> => {
    if (isFiltered(cause) || Cause.hasInterruptsOnly(cause)) return Exit.failCause(cause)
    const recovery = recover(operations, from, cause, attempt)
    if ("cause" in recovery) return Exit.failCause(recovery.cause)
    const { index, pending } = recovery
    return isPending(pending)
      ? continued(operations, index + 1, effectOf(pending, value, attempt), attempt, false, value)
      : onward(operations, index + 1, pending, attempt)
  }
  const onSuccess = (result: unknown) => onward(operations, from, keep ? value : result, attempt)
  return Effect.matchCauseEffectEager(effect, { onFailure, onSuccess })
}

const effectOf = (pending: Pending, value: unknown, attempt: Attempt): Effect.Effect<unknown, unknown> => {
  switch (pending._tag) {
    case "Run":
      return pending.effect
    case "Output":
      return pending.outputs.publish(pending.given, attempt)
    case "Failed":
      return Exit.failCause(pending.cause)
    case "Filtered":
      return filteredExit
    case "Await":
      return Effect.callback((resume) => {
        settledAs(
          pending.promise,
          (result) => resume(exitOfResolved(result)),
          (error) => resume(Exit.failCause(pending.onRejected(error)))
        )
      })
    case "Join":
      return Effect.callback((resume) => {
        const leave = pending.join(attempt, value, resume)
        return Effect.callback<void>((stopped) => leave(() => stopped(Effect.void)))
      })
  }
}
