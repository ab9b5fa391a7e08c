import { pipeArguments } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import { invalidOption } from "../TransportError.ts"
import { describe } from "./describe.ts"
import { inspectedAs } from "./inspection.ts"
import type { Program } from "./program.ts"
import { sdk } from "./version.ts"

export const TypeId = "~@millrace/core/Pipeline"

/** Not `Symbol.for`: a program of another copy of this package may have another shape. */
const ProgramId = Symbol("@millrace/core/Program")

const variance = { _M: (_: never) => _, _A: (_: never) => _, _E: (_: never) => _, _R: (_: never) => _ }

const Prototype = Object.assign(inspectedAs("Pipeline"), {
  [TypeId]: variance,
  pipe() {
    return pipeArguments(this, arguments)
  },
  toJSON(this: unknown) {
    return describe(programOf(this))
  }
})

export const make = (program: Program): any =>
  Object.defineProperties(Object.create(Prototype), {
    name: { value: program.name, enumerable: true },
    [ProgramId]: { value: program }
  })

/** Never throws, whatever it is given. */
export const isPipeline = (u: unknown): u is { readonly name: string } => {
  try {
    return Predicate.hasProperty(u, TypeId)
  } catch {
    return false
  }
}

/** @throws TransportError for what is no pipeline of this copy of the package. */
export const programOf = (self: unknown): Program => {
  const program = isPipeline(self) ? (self as { readonly [ProgramId]?: Program })[ProgramId] : undefined
  if (program !== undefined) return program
  throw isPipeline(self)
    ? invalidOption(
      "core",
      "pipeline",
      self.name,
      `another copy of @millrace/core made this pipeline, this copy is ${sdk}: install one copy, ` +
        "`npm ls @millrace/core` shows who brings the second"
    )
    : invalidOption(
      "core",
      "pipeline",
      // A text may be a URL with a password.
      typeof self === "string" ? { toString: () => "a text" } : self,
      "start with Pipeline.from(topic, { group })"
    )
}
