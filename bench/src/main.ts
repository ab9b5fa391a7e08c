/**
 * `pnpm bench`: what Millrace costs beside the clients it is built on, on this machine.
 */
import { NodeRuntime, NodeServices } from "@effect/platform-node"
import { Brokers } from "@millrace/testing"
import { Command, Flag } from "effect/cli"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as fs from "node:fs"
import * as path from "node:path"
import { chapters, type Context, type Section, tables } from "./chapters.ts"
import * as compare from "./compare.ts"
import * as docs from "./docs.ts"
import { Fleet } from "./fleet.ts"
import * as history from "./history.ts"
import * as machine from "./machine.ts"
import * as plan from "./plan.ts"
import * as profile from "./profile.ts"
import type { Result } from "./results.ts"
import { checkOut } from "./revision.ts"
import type { Row } from "./row.ts"
import { type BrokerName, workOf } from "./spec.ts"
import * as table from "./table.ts"
import * as tried from "./tried.ts"

const results = path.join(import.meta.dirname, "../results")

/** A file of JSON lines, the first of which says where it was made. */
const open = (name: string, versions: { readonly redis: string; readonly nats: string }) => {
  const about = machine.describe(versions)
  fs.mkdirSync(results, { recursive: true })
  const file = path.join(results, `${name}-${about.date.replace(/\D/g, "")}.jsonl`)
  const write = (value: unknown) => fs.appendFileSync(file, `${JSON.stringify(value)}\n`)
  write({ machine: about })
  return { about, write }
}

const bothBrokers = Effect.gen(function*() {
  const redis = yield* Brokers.redis()
  const nats = yield* Brokers.nats()
  return { urls: { redis: redis.url, jetstream: nats.url }, versions: { redis: redis.version, nats: nats.version } }
})

const isPass = (value: unknown): value is Result => typeof value === "object" && value !== null && "measured" in value

/** One line a pass, for those who watch. */
const report = (value: unknown): void => {
  if (!isPass(value)) return
  const { measured: { cpu, rate }, spec } = value
  process.stderr.write(
    `${
      (performance.now() / 1000).toFixed(1)
    } s ${spec.broker} ${spec.arm} limit ${spec.concurrency} ${spec.size} B ${spec.delay} ms: ` +
      `${table.thousands(rate)}, ${cpu.toFixed(2)} µs\n`
  )
}

const all = { ...chapters, ...tables }

const budgetsOf = Effect.fnUntraced(function*(options: {
  readonly isQuick: boolean
  readonly effort: plan.Effort
  readonly only: ReadonlyArray<string>
  readonly intoDocs: boolean
  readonly messages: number
  readonly intoHistory: boolean
}) {
  const { intoDocs, isQuick, messages, only } = options
  const { urls, versions } = yield* bothBrokers
  const { about, write } = open(isQuick ? "quick" : "bench", versions)
  yield* Console.log(machine.text(about))
  const context: Context = {
    urls,
    effort: options.effort,
    fleet: yield* Fleet.make(urls, { keepsTopics: isQuick }),
    isQuick,
    messages,
    onResult(value) {
      write(value)
      report(value)
    }
  }
  const rows: Array<Row> = []
  for (const name of only) {
    const since = performance.now()
    const section: Section = yield* Effect.scoped(all[name]!(context))
    rows.push(...section.rows)
    const text = [
      ...(section.rows.length === 0 ? [] : [table.budgets(section.rows)]),
      ...(section.text === "" ? [] : [section.text])
    ].join("\n\n")
    if (intoDocs && text !== "" && section.rows.every(({ estimate }) => estimate !== undefined)) {
      docs.write(name, `${machine.text(about)}\n\n${text}`)
    }
    yield* Console.log(`\n${name}, ${((performance.now() - since) / 1000).toFixed(0)} s\n\n${section.text}`)
  }
  for (const row of rows) write({ row })
  yield* Console.log(`\n${table.budgets(rows)}`)
  const limits = tried.text(rows)
  if (limits !== "") yield* Console.log(`\nNot met, or not known by this run:\n${limits}`)
  if (intoDocs) docs.write("tried", tried.table())
  if (options.intoHistory) yield* Console.log(`\n${history.write(rows, about.commit)}`)
})

const brokerNames = ["redis", "jetstream", "memory"] as const

const compareWith = Effect.fnUntraced(function*(options: {
  readonly revision: string
  readonly effort: plan.Effort
  readonly only: ReadonlyArray<string>
  readonly brokers: ReadonlyArray<string>
  readonly arms: ReadonlyArray<string> | undefined
  readonly intoDocs: boolean
}) {
  const revision = checkOut(options.revision)
  const { urls, versions } = yield* bothBrokers
  const { about, write } = open("compare", versions)
  yield* Console.log(`${machine.text(about)}; beside ${revision.commit}`)
  const compared = yield* compare.run(
    urls,
    revision,
    options.effort,
    { arms: options.arms, brokers: options.brokers, chapters: options.only },
    (result) => {
      write(result)
      report(result)
    }
  )
  const text = compare.text(compared, revision)
  yield* Console.log(`\n${text}`)
  if (options.intoDocs) docs.write("compare", `${machine.text(about)}; beside ${revision.commit}\n\n${text}`)
})

const profileOf = Effect.fnUntraced(function*(
  arms: ReadonlyArray<profile.Profiled>,
  messages: number,
  intoDocs: boolean
) {
  const { urls, versions } = yield* bothBrokers
  fs.mkdirSync(results, { recursive: true })
  const texts: Array<string> = []
  for (const { arm, broker, concurrency, delay = 0 } of arms) {
    const profileTo = path.join(results, `${broker}-${arm}-${concurrency}-${delay}.cpuprofile`)
    const count = workOf(arm) === "consume" && arm !== "to" ? messages : Math.ceil(messages / 4)
    const spec = { broker, arm, concurrency, size: 100, delay, count }
    const { cpu, rate } = yield* Effect.scoped(
      Effect.flatMap(Fleet.make(urls, { profileTo }), (fleet) => fleet.pass(spec))
    )
    const handler = delay === 0 ? "" : `, ${delay} ms, ${concurrency} at a time`
    const title = `${broker}, ${table.nameOf(arm)}${handler}: ${table.thousands(rate)}, ${
      cpu.toFixed(2)
    } µs of CPU a message`
    const text = `${title}\n\n${profile.summarize(profileTo, count)}`
    yield* Console.log(`${text}\n`)
    texts.push(text)
  }
  if (intoDocs) docs.write("profiles", [machine.text(machine.describe(versions)), ...texts].join("\n\n"))
})

const intoDocs = Flag.Boolean("docs").pipe(
  Flag.withDescription("Write what was measured into docs/benchmarks.md"),
  Flag.withDefault(false)
)
const broker = Flag.Literals("broker", brokerNames).pipe(Flag.withDescription("Only this one"), Flag.optional)
const arms = Flag.String("arms").pipe(Flag.withDescription("Only these, with commas between"), Flag.optional)

const bench = Command.make("bench", {
  quick: Flag.Boolean("quick").pipe(
    Flag.withDescription("Shorter and fewer passes: all budgets in about three minutes"),
    Flag.withDefault(false)
  ),
  only: Flag.Literals("only", Object.keys(all)).pipe(Flag.withDescription("Only this chapter"), Flag.optional),
  compare: Flag.String("compare").pipe(
    Flag.withDescription("Compare with this commit: both run in turn, each with its own programs"),
    Flag.optional
  ),
  broker,
  arms,
  passes: Flag.Int("passes").pipe(Flag.withDescription("Passes of each arm"), Flag.optional),
  seconds: Flag.Int("seconds").pipe(Flag.withDescription("How long a pass takes, about"), Flag.optional),
  messages: Flag.Int("messages").pipe(
    Flag.withDescription("Over how many messages the resident memory is watched"),
    Flag.withDefault(10_000_000)
  ),
  history: Flag.Boolean("history").pipe(
    Flag.withDescription("Write the ratios of this release into bench/history"),
    Flag.withDefault(false)
  ),
  docs: intoDocs
}, (options) => {
  const only = options.only._tag === "Some" ? [options.only.value] : undefined
  const usual = options.quick ? plan.quick : plan.thorough
  const effort = {
    ...usual,
    ...(options.seconds._tag === "Some" ? { seconds: options.seconds.value } : {}),
    ...(options.passes._tag === "Some" ? { passes: options.passes.value, latencies: options.passes.value } : {})
  }
  if (options.compare._tag === "None" && (options.broker._tag === "Some" || options.arms._tag === "Some")) {
    return Effect.die(new Error("--broker and --arms choose what --compare compares: give it too, or --only"))
  }
  return Effect.scoped(
    options.compare._tag === "Some"
      ? compareWith({
        revision: options.compare.value,
        effort,
        only: only ?? compare.usualChapters,
        brokers: options.broker._tag === "Some" ? [options.broker.value] : brokerNames,
        arms: options.arms._tag === "Some" ? options.arms.value.split(",") : undefined,
        intoDocs: options.docs
      })
      : budgetsOf({
        isQuick: options.quick,
        effort,
        only: only ?? Object.keys(options.quick ? chapters : all),
        intoDocs: options.docs,
        messages: options.messages,
        intoHistory: options.history
      })
  )
})

const profileCommand = Command.make("profile", {
  broker,
  arm: Flag.String("arm").pipe(Flag.withDefault("plain")),
  concurrency: Flag.Int("concurrency").pipe(Flag.withDefault(64)),
  delay: Flag.Int("delay").pipe(
    Flag.withDescription("Milliseconds that the handler waits"),
    Flag.withDefault(0)
  ),
  messages: Flag.Int("messages").pipe(Flag.withDefault(400_000)),
  docs: intoDocs
}, ({ arm, broker, concurrency, delay, docs, messages }) =>
  Effect.scoped(
    profileOf(
      broker._tag === "Some" ? [{ broker: broker.value as BrokerName, arm, concurrency, delay }] : profile.usual,
      messages,
      docs
    )
  )).pipe(Command.withDescription("Where arms spend their time"))

bench.pipe(
  Command.withDescription("What Millrace costs beside the clients it is built on"),
  Command.withSubcommands([profileCommand]),
  Command.run({ version: "0.1.0" }),
  Effect.provide(NodeServices.layer),
  NodeRuntime.runMain
)
