import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import { isLimit } from "../Concurrency.ts"
import type * as Transport from "../Transport.ts"
import { invalidOption, type TransportError } from "../TransportError.ts"
import { allSteps, type Program } from "./program.ts"

/** The programs that run in this process, by broker and by topic and group. */
const running = new WeakMap<object, Map<string, Array<Program>>>()

/**
 * Refuses a second pipeline of one topic and group that does something else: each would get a part of the messages.
 * Several of the same code are one pipeline with more readers.
 */
export const claimGroup = (
  program: Program,
  transport: Transport.Transport["Service"]
): Effect.Effect<void, TransportError, Scope.Scope> =>
  Effect.suspend(() => {
    const { group, topic } = program.source
    const name = `${topic.name}/${group}`
    const groups = running.get(transport) ?? new Map<string, Array<Program>>()
    const programs = groups.get(name) ?? []
    const other = programs.find((other) => codeOf(other) !== codeOf(program))
    if (other !== undefined) {
      return Effect.fail(invalidOption(
        transport.name,
        "group",
        group,
        `the pipeline ${other.name} of this process has the same topic and group and other steps, so that each would ` +
          "get only a part of the messages: give this pipeline another group"
      ))
    }
    running.set(transport, groups.set(name, [...programs, program]))
    return Effect.addFinalizer(() =>
      Effect.sync(() => {
        const left = groups.get(name)?.filter((other) => other !== program) ?? []
        if (left.length === 0) groups.delete(name)
        else groups.set(name, left)
      })
    )
  })

/** The same for two programs of the same code, whatever the functions closed over. */
const codeOf = (program: Program): string =>
  Array.from(allSteps(program.steps), (step) => `${step._tag}:${"f" in step ? String(step.f) : ""}`).join("\n")

const advised = new Set<string>()

/** Logs, once in a process, what the pipeline's author has probably overlooked. */
export const advise = (program: Program): Effect.Effect<void> =>
  Effect.suspend(() => {
    const { concurrency, key } = program.policies
    const { topic } = program.source
    const max = isLimit(concurrency) ? concurrency.ceiling : concurrency
    if (topic.key === undefined || key !== undefined || max === 1 || advised.has(program.name)) return Effect.void
    advised.add(program.name)
    return Effect.logWarning(
      `${program.name}: topic ${topic.name} has a key, but messages of one key are handled at the same time and in any ` +
        "order. For order write Pipeline.concurrency({ max, key: (message) => message.key }); without order is " +
        "{ max, key: () => undefined }"
    )
  })

/** In milliseconds: a pipeline that was meant to run is not stopped this soon. */
const atOnce = 100

/** Warns about `Effect.scoped(Pipeline.start(…))`: it stops the pipeline as soon as it has started. */
export const warnIfStoppedAtOnce = (
  program: Program,
  exit: Exit.Exit<unknown, unknown>,
  seen: { readonly messages: number; readonly lasted: number }
): Effect.Effect<void> =>
  Exit.isSuccess(exit) && seen.messages === 0 && seen.lasted < atOnce
    ? Effect.logWarning(
      `${program.name} stopped as soon as it had started and handled nothing: Effect.scoped ends with the Effect inside ` +
        "it. Use Pipeline.run for a program, Pipeline.toLayer beside a server, or Millrace.run with promises"
    )
    : Effect.void
