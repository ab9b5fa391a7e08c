import type * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Redacted from "effect/Redacted"
import { isLimit } from "../Concurrency.ts"
import type * as Description from "../Description.ts"
import type * as Topic from "../Topic.ts"
import { describeTopic } from "./describeTopic.ts"
import { allSteps, type Policies, type Program, type Step } from "./program.ts"
import { defaultRetry } from "./retryDecision.ts"
import { deadLetterTopic } from "./validate.ts"

/** A pipeline as plain data. */
export const describe = (program: Program): Description.Description => {
  const { source, steps } = program
  return {
    name: program.name,
    source: {
      ...describeTopic(source.topic),
      group: source.group,
      startFrom: source.startFrom,
      prefetch: source.prefetch ?? "automatic",
      waiting: bounded(source.waiting),
      drainTimeout: millis(source.drainTimeout),
      settings: settings(program.policies.settings)
    },
    steps: steps.map(step),
    policies: policies(program)
  }
}

/** The topics of a pipeline as values: those it writes to are in the order of its steps, each once. */
export const topics = (program: Program): {
  readonly source: Topic.Topic<unknown>
  readonly outputs: ReadonlyArray<Topic.Topic<unknown>>
} => {
  const outputs = new Map<string, Topic.Topic<unknown>>()
  for (const step of allSteps(program.steps)) {
    if (step._tag === "To" && !outputs.has(step.topic.name)) outputs.set(step.topic.name, step.topic)
  }
  return { source: program.source.topic, outputs: [...outputs.values()] }
}

const step = (self: Step): Description.Step => ({ ...kind(self), ...named("f" in self ? self.f : self) })

const kind = (self: Step): Description.StepKind => {
  switch (self._tag) {
    case "Map":
      return { step: "map" }
    case "Effect":
      return { step: self.keep ? "tap" : "mapEffect" }
    case "Promise":
      return { step: "mapPromise" }
    case "Filter":
      return { step: "filter" }
    case "FilterMap":
      return { step: "filterMap" }
    case "To":
      return { step: "to", value: self.f !== undefined, ...describeTopic(self.topic) }
    case "Timeout":
      return { step: "timeout", duration: millis(self.duration) }
    case "Catch":
      return { step: "catchTag", tags: self.tags }
    case "Batch":
      return { step: self.each ? "batchEach" : "batch", size: self.size, within: millis(self.within) }
    case "Branch":
      return {
        step: "branch",
        cases: Object.fromEntries([...self.cases].map(([name, steps]) => [name, steps.map(step)]))
      }
    case "Middleware":
      return { step: "middleware", steps: self.steps.map(step) }
  }
}

/** A function that is written in place has no name, or that of the option that holds it. */
const named = (f: unknown): { readonly function?: string } =>
  typeof f === "function" && f.name !== "" && !placeholders.has(f.name) ? { function: f.name } : {}

const placeholders = new Set(["f", "try"])

const policies = (program: Program): Description.Policies => {
  const { ackPolicy, concurrency, key, retry = defaultRetry, settleWithin }: Policies = program.policies
  return {
    ackPolicy,
    ...(ackPolicy === "manual" ? { settleWithin: millis(settleWithin) } : {}),
    retry: {
      times: bounded(retry.times),
      schedule: retry.schedule === defaultRetry.schedule ? "default" : "custom",
      while: retry.while !== undefined
    },
    deadLetter: deadLetterTopic(program) ?? false,
    concurrency: {
      max: bounded(isLimit(concurrency) ? concurrency.ceiling : concurrency),
      limit: isLimit(concurrency) ? "shared" : "own",
      key: key !== undefined
    }
  }
}

const bounded = (n: number): number | "unbounded" => n === Infinity ? "unbounded" : n

const millis = (duration: Duration.Duration): number | "unbounded" => bounded(Duration.toMillis(duration))

/** By the last part of a setting's key: `@millrace/redis-streams/RedisStreams/Block` is `Block`. */
const settings = (self: Context.Context<never>): { readonly [name: string]: unknown } => {
  const described: Record<string, unknown> = {}
  for (const [key, value] of self.mapUnsafe) {
    const shown = plain(value, 0)
    if (shown !== undefined) described[key.slice(key.lastIndexOf("/") + 1)] = shown
  }
  return described
}

/** Data, and nothing else: a function, a class of the user's or a secret is left out. */
const plain = (value: unknown, depth: number): unknown => {
  switch (typeof value) {
    case "string":
    case "boolean":
      return value
    case "number":
      return Number.isFinite(value) ? value : String(value)
    case "object":
      break
    default:
      return undefined
  }
  if (value === null || depth > 4 || Redacted.isRedacted(value)) return undefined
  if (Duration.isDuration(value)) return millis(value)
  if (DateTime.isDateTime(value)) return DateTime.formatIso(value)
  if (Array.isArray(value)) return value.map((item) => plain(item, depth + 1))
  const prototype = Object.getPrototypeOf(value)
  if (prototype !== Object.prototype && prototype !== null) return undefined
  const shown: Record<string, unknown> = {}
  for (const [name, item] of Object.entries(value)) {
    const data = plain(item, depth + 1)
    if (data !== undefined) shown[name] = data
  }
  return shown
}
