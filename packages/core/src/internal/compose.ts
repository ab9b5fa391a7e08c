import type { Invalid } from "./invalid.ts"
import { make, programOf } from "./pipeline.ts"
import type { Policies, Step } from "./program.ts"

/** A pipeline with one step more. */
export const addStep = (self: unknown, step: Step, invalid?: Invalid): any => {
  const program = programOf(self)
  return make({ ...program, steps: [...program.steps, step], invalid: program.invalid ?? invalid })
}

/** A pipeline with these policies instead of its own. */
export const addPolicy = (self: unknown, policies: Partial<Policies>, invalid?: Invalid): any => {
  const program = programOf(self)
  return make({ ...program, policies: { ...program.policies, ...policies }, invalid: program.invalid ?? invalid })
}
