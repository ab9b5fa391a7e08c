import * as Effect from "effect/Effect"
import process from "node:process"

const made = new Set<string>()
let hasBegun = false

const report = () => {
  if (hasBegun || made.size === 0) return
  process.emitWarning(
    `${[...made].join(", ")} was never started: nothing runs what Pipeline.run and Pipeline.start return. ` +
      "Pass it to NodeRuntime.runMain, or use Millrace.run with promises",
    "MillraceWarning"
  )
}

/**
 * Remembers that a program of a pipeline was made. A process that ends by itself before any program of a pipeline has
 * begun says so: forgetting to run an Effect is silent otherwise.
 */
export const untilRun = <A, E, R>(pipeline: string, program: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> => {
  if (!hasBegun) {
    if (made.size === 0) process.once("beforeExit", report)
    made.add(pipeline)
  }
  return Effect.suspend(() => {
    hasBegun = true
    made.clear()
    return program
  })
}
