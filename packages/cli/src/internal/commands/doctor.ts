import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Struct from "effect/Struct"
import { Broker } from "../Broker.ts"
import type { Finding, Given, Level } from "../findings.ts"
import { Failure, json as print, lines, Output } from "../Output.ts"
import { noTopic } from "../overview.ts"
import { connected, notFor } from "../target.ts"
import { clean, type Color, count, many, paint, wrap } from "../text.ts"
import * as shared from "./shared.ts"

const levels: ReadonlyArray<Level> = ["error", "warning", "unknown", "ok"]

const colors: Record<Level, Color> = { error: "red", warning: "yellow", unknown: "cyan", ok: "green" }

export const render = (
  findings: ReadonlyArray<Finding>,
  hasColor: boolean,
  verbose: boolean
): ReadonlyArray<string> => {
  const color = paint(hasColor)
  const shown = findings.filter(({ level }) => verbose || level !== "ok")
  return shown.flatMap(({ at, costs, id, level, remedy, seen }) => [
    `${color(colors[level], level.padEnd(7))}  ${color("bold", id)}${at === undefined ? "" : `  ${clean(at)}`}`,
    ...wrap(clean(seen), 9),
    ...(costs === undefined ? [] : wrap(clean(costs), 9)),
    ...(remedy === undefined ? [] : wrap(`→ ${clean(remedy)}`, 9)),
    ""
  ])
}

const counts = (findings: ReadonlyArray<Finding>): Record<Level, number> => {
  const of = { error: 0, warning: 0, unknown: 0, ok: 0 }
  for (const { level } of findings) of[level]++
  return of
}

interface Options extends Omit<Given, "minIdle"> {
  readonly minIdle: number | undefined
  readonly json: boolean
  readonly verbose: boolean
  readonly failOn: "error" | "warning"
}

/** Options that one broker only has. */
const ownFlags = {
  redis: { minIdle: "--min-idle" },
  nats: {
    monitor: "--monitor",
    owned: "--owned",
    retryHorizon: "--retry-horizon",
    largest: "--largest",
    longestDelay: "--longest-delay"
  }
} as const

/** Options of the other broker, which would be ignored in silence. */
const misplaced = (
  kind: "redis" | "nats",
  given: Omit<Options, "json" | "verbose" | "failOn">
): ReadonlyArray<string> =>
  kind === "redis"
    ? Struct.keys(ownFlags.nats).flatMap((name) => given[name] === undefined ? [] : [ownFlags.nats[name]])
    : given.minIdle === undefined
    ? []
    : [ownFlags.redis.minIdle]

const doctor = Effect.fnUntraced(function*({ failOn, json, verbose, ...options }: Options) {
  const { examine, name, server, stored, transport } = yield* Broker
  const others = name === "memory" ? [] : misplaced(name, options)
  if (name !== "memory" && others.length > 0) return yield* Effect.fail(notFor(name, others))
  const given: Given = { ...options, minIdle: options.minIdle ?? 30_000 }
  const { hasColor } = yield* Output
  // A key of another type is a finding.
  const { topic } = given
  if (topic !== undefined && (yield* Effect.orElseSucceed(stored(topic), () => "other")) === undefined) {
    return yield* Effect.fail(noTopic(topic))
  }
  const found = yield* examine(given)
  const findings = found.toSorted((a, b) => levels.indexOf(a.level) - levels.indexOf(b.level))
  const of = counts(findings)
  if (json) yield* print({ broker: transport.address, server, counts: of, findings })
  else {
    yield* lines([
      `${transport.address}  ${server}`,
      "",
      ...render(findings, hasColor, verbose),
      `${many(of.error, "error")}, ${many(of.warning, "warning")}, ${count(of.unknown)} unknown, ${count(of.ok)} fine`
    ])
  }
  const failed = failOn === "warning" ? of.error + of.warning : of.error
  if (failed > 0) return yield* Effect.fail(new Failure("", 1))
})

const optional = <A>(flag: Flag.Flag<A>, description: string) =>
  flag.pipe(Flag.withDescription(description), Flag.optional, Flag.map(Option.getOrUndefined))

export const command = Command.make(
  "doctor",
  {
    topic: optional(Flag.String("topic"), "Examine only this topic's stream and groups, beside the server"),
    monitor: optional(
      Flag.String("monitor").pipe(
        Flag.withMetavar("URL"),
        Flag.filter((url) => /^https?:$/.test(URL.parse(url)?.protocol ?? ""), () => "a URL such as http://host:8222")
      ),
      "NATS: the server's monitoring, http://host:8222, for what JetStream does not tell"
    ),
    handlerTimeout: optional(
      shared.duration("handler-timeout"),
      "Longest that a handler takes, to compare with claim times"
    ),
    drainTimeout: shared.duration("drain-timeout").pipe(
      Flag.withDescription("drainTimeout of the pipelines; default 30s"),
      Flag.withDefault(30_000)
    ),
    gracePeriod: optional(shared.duration("grace-period"), "What the platform allows between SIGTERM and SIGKILL"),
    minIdle: optional(shared.duration("min-idle"), "Redis: claim.minIdle of the layer; default 30s"),
    owned: optional(shared.whole("owned", 1), "NATS: processes times (concurrency + prefetch) of a group"),
    retryHorizon: optional(
      shared.duration("retry-horizon"),
      "NATS: how long publishers repeat a publish that was not answered"
    ),
    largest: optional(shared.whole("largest", 1), "NATS: bytes of the largest message"),
    longestDelay: optional(shared.duration("longest-delay"), "NATS: longest delay of retries and delayed messages"),
    failOn: Flag.Literals("fail-on", ["error", "warning"]).pipe(
      Flag.withDescription("Exit with 1 from this level on; default error"),
      Flag.withDefault("error" as const)
    ),
    verbose: Flag.Boolean("verbose").pipe(
      Flag.withDefault(false),
      Flag.withAlias("v"),
      Flag.withDescription("Show what is fine, too")
    ),
    json: shared.json
  },
  (options) => connected(doctor(options))
).pipe(
  Command.withDescription("Examine the server, its streams and groups for what loses, repeats or stops messages"),
  Command.withExamples([
    {
      command: "millrace doctor --redis redis://localhost:6379",
      description: "Errors, warnings, and what it may not see"
    },
    { command: "millrace doctor --fail-on warning --json", description: "As a check in CI" },
    { command: "millrace doctor --handler-timeout 2m --grace-period 30s", description: "Compare with the programs" }
  ])
)
