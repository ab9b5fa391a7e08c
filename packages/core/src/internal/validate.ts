import * as Duration from "effect/Duration"
import { invalidIn, isLimit } from "../Concurrency.ts"
import type * as Transport from "../Transport.ts"
import { invalidOption, type TransportError } from "../TransportError.ts"
import { type Invalid, invalidFunction, invalidMax, invalidOf, invalidStep, toError } from "./invalid.ts"
import { allSteps, type Program, type Step } from "./program.ts"
import { isTopic } from "./topic.ts"

/** What cannot work is said before anything is read: option, value and remedy. */
export const validate = (
  program: Program,
  transport: Pick<Transport.Transport["Service"], "name" | "nameRemedy" | "limit">
): TransportError | undefined => {
  const { policies, source } = program
  const { ackPolicy, concurrency, retry } = policies
  const { group, prefetch, topic } = source
  if (program.invalid !== undefined) return toError(transport.name, program.invalid)
  const whole = (n: unknown, least: number) => Number.isInteger(n) && n as number >= least
  const invalid = (option: string, value: unknown, remedy: string) =>
    invalidOption(transport.name, option, value, remedy)
  for (const step of allSteps(program.steps)) {
    const problem = problemOf(step)
    if (problem !== undefined) return toError(transport.name, problem)
  }
  if (policies.deadLetter !== undefined && policies.deadLetter !== false && typeof policies.deadLetter !== "string") {
    return invalid("deadLetter", policies.deadLetter, "give the name of a topic")
  }
  const dead = deadLetterTopic(program)
  for (const name of [topic.name, ...outputs(program)]) {
    const remedy = transport.nameRemedy("topic", name)
    if (remedy !== undefined) return invalid(name === policies.deadLetter ? "deadLetter" : "topic", name, remedy)
  }
  const remedy = transport.nameRemedy("group", group)
  if (remedy !== undefined) return invalid("group", group, remedy)
  const wrong = isLimit(concurrency) ? invalidIn(concurrency) : invalidMax("concurrency", concurrency)
  if (wrong !== undefined) return toError(transport.name, wrong)
  const wrongLayer = invalidIn(transport.limit)
  if (wrongLayer !== undefined) return toError(transport.name, wrongLayer)
  if (prefetch !== undefined && !whole(prefetch, 0)) {
    return invalid("prefetch", prefetch, "give a whole number, or nothing for 200 ms of work")
  }
  for (const [option, least] of [["waiting", 1], ["maxBlocked", 1], ["prefetchBytes", 0]] as const) {
    if (!whole(source[option], least)) {
      return invalid(option, source[option], `give a whole number of at least ${least}`)
    }
  }
  if (retry !== undefined && !(whole(retry.times, 0) || retry.times === Infinity)) {
    return invalid("retry.times", retry.times, "give a whole number of retries, 0 for none")
  }
  if (retry !== undefined && !(whole(retry.uncounted, 0) || retry.uncounted === Infinity)) {
    return invalid("retry.uncounted", retry.uncounted, "give a whole number of retries that do not count")
  }
  if (ackPolicy !== "on-success" && ackPolicy !== "on-receive" && ackPolicy !== "manual") {
    return invalid("ackPolicy", ackPolicy, "write \"on-success\", \"on-receive\" or \"manual\"")
  }
  if (retry !== undefined && ackPolicy === "on-receive") {
    return invalid(
      "ackPolicy",
      ackPolicy,
      "what is acknowledged before it is handled cannot be retried: drop the retry"
    )
  }
  if (dead === topic.name) {
    return invalid("deadLetter", dead, "a pipeline would consume its own dead letters, give another topic")
  }
  return undefined
}

const problemOf = (step: Step): Invalid | undefined => {
  switch (step._tag) {
    case "To":
      return isTopic(step.topic)
        ? invalidOf(step.topic) ?? invalidFunction("to", step.f)
        : { option: "to", value: step.topic, remedy: "give a topic: Topic.make(name, { schema })" }
    case "Timeout":
      return undefined
    case "Branch":
      return invalidStep("branch", step.by)
    case "Batch":
      return Number.isInteger(step.size) && step.size >= 1
        ? invalidStep("batch", step.f)
        : { option: "batch.size", value: step.size, remedy: "give a whole number of at least 1" }
    case "Effect":
      return invalidStep(step.keep ? "tap" : "mapEffect", step.f)
    case "Promise":
      return invalidStep("mapPromise", step.f)
    case "Catch":
      return invalidStep("catchTag", step.f)
    case "Middleware":
      return invalidStep("middleware", step.f) ?? invalidOf(step.f)
    case "Map":
    case "Filter":
    case "FilterMap":
      return invalidStep(step._tag.charAt(0).toLowerCase() + step._tag.slice(1), step.f)
  }
}

/** The topics a pipeline writes to. */
export const outputs = (program: Program): ReadonlySet<string> => {
  const names = new Set<string>()
  for (const step of allSteps(program.steps)) {
    if (step._tag === "To" && step.transport === undefined) names.add(step.topic.name)
  }
  const dead = deadLetterTopic(program)
  return dead === undefined ? names : names.add(dead)
}

export const deadLetterTopic = (program: Program): string | undefined => {
  const { deadLetter } = program.policies
  return deadLetter === false ? undefined : deadLetter ?? `${program.source.topic.name}.dead`
}

export const timeoutOf = (program: Program): Duration.Duration | undefined => {
  let timeout: Duration.Duration | undefined
  for (const step of allSteps(program.steps)) {
    if (step._tag === "Timeout") timeout = timeout === undefined ? step.duration : Duration.max(timeout, step.duration)
  }
  return timeout
}

/** The largest product of batches that one permit may stand for. */
export const batchSize = (program: Program): number =>
  Math.max(1, ...[...allSteps(program.steps)].flatMap((step) => step._tag === "Batch" ? [step.size] : []))
