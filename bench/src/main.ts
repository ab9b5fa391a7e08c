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
import * as budget from "./budget.ts"
import * as chart from "./chart.ts"
import * as compare from "./compare.ts"
import * as docs from "./docs.ts"
import * as machine from "./machine.ts"
import * as plan from "./plan.ts"
import { summarize } from "./profile.ts"
import * as rounds from "./rounds.ts"
import * as rss from "./rss.ts"
import type { BrokerName } from "./spec.ts"
import * as subscriptions from "./subscriptions.ts"
import * as table from "./table.ts"

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

const budgetTable = (lines: ReadonlyArray<budget.Line>) =>
  table.markdown(
    ["budget", "", "measured (95 %)", ""],
    lines.map((line) => [line.what, line.budget, line.measured, budget.verdict(line)])
  )

const progress = (total: number) => {
  let done = 0
  return ({ measured, spec }: rounds.Result) =>
    process.stderr.write(
      `${String(++done).padStart(4)} of ${total} ${spec.broker} ${spec.arm} limit ${spec.concurrency} ${spec.size} B ` +
        `${spec.delay} ms: ${(measured.rate / 1000).toFixed(1)} k/s\n`
    )
}

const roundsOf = (cells: ReadonlyArray<rounds.Cell>) =>
  cells.reduce((sum, { arms, rounds }) => sum + arms.length * rounds, 0)

/** The first round finds the broker cold. */
const discardOne = (urls: rounds.Urls, cell: rounds.Cell) =>
  rounds.runCell(urls, { ...cell, arms: ["tuned"], rounds: 1 }, () => {})

/** Producer, broker and consumer share this machine: what a raw loop takes of a full topic it does not take beside them. */
const openMaximum = (urls: rounds.Urls, broker: BrokerName) =>
  Effect.map(rounds.runCell(urls, plan.flood(broker), () => {}), budget.medianRaw)

const measureParallel = (urls: rounds.Urls) =>
  Effect.gen(function*() {
    const common = { broker: "memory", arms: ["plain"], rounds: 1, size: 100, delay: 300 } as const
    const one = yield* rounds.runCell(urls, { ...common, concurrency: 1, count: 5 }, () => {})
    const five = yield* rounds.runCell(urls, { ...common, concurrency: 5, count: 25 }, () => {})
    return budget.parallel(one, five)
  })

const quick = Effect.gen(function*() {
  const { urls, versions } = yield* bothBrokers
  const { about, write } = open("quick", versions)
  yield* Console.log(machine.text(about))
  const cells = plan.quick
  const report = progress(roundsOf(cells))
  const measured = new Map<BrokerName, ReadonlyArray<rounds.Result>>()
  for (const cell of cells) {
    yield* discardOne(urls, cell)
    measured.set(
      cell.broker,
      yield* rounds.runCell(urls, cell, (result) => {
        write(result)
        report(result)
      })
    )
  }
  yield* Console.log(`\n${table.rates([...measured.values()])}`)
  const latencies: Array<ReadonlyArray<rounds.Result>> = []
  for (const broker of ["redis", "jetstream"] as const) {
    const cell = plan.openLoop(broker, yield* openMaximum(urls, broker), 0.5, 2, 1.5)
    latencies.push(yield* rounds.runCell(urls, { ...cell, arms: ["tuned", "plain"] }, write))
  }
  yield* Console.log(`\n${table.latencies(latencies.map((results) => ({ share: 0.5, results })))}`)
  const idle = yield* Effect.forEach(
    ["redis", "jetstream"] as const,
    (broker) => subscriptions.measure(broker, 1000, 3)
  )
  const lines = [
    ...budget.rates((broker) => measured.get(broker)!),
    ...latencies.map(budget.latency),
    yield* measureParallel(urls),
    ...idle.flatMap(budget.idle),
    ...budget.source()
  ]
  for (const line of lines) write(line)
  yield* Console.log(`\n${budgetTable(lines)}\n`)
  yield* Console.log(
    "Resident memory over 10 million messages: pnpm bench rss. All arms, sizes and handlers: pnpm bench."
  )
})

const long = Effect.fnUntraced(function*(count: number, only: ReadonlyArray<string>, intoDocs: boolean) {
  const { urls, versions } = yield* bothBrokers
  const { about, write } = open("bench", versions)
  yield* Console.log(machine.text(about))
  // Everything else is compared with the first.
  const chapters = plan.long(count).filter(({ name }) => name === "arms" || only.includes(name))
  const openRounds = Math.min(3, count)
  const report = progress(
    roundsOf(chapters.flatMap(({ cells }) => cells)) + (only.includes("latency") ? 2 * 2 * 3 * openRounds : 0)
  )
  const onResult = (result: rounds.Result) => {
    write(result)
    report(result)
  }
  const section = (name: string, text: string) => {
    if (intoDocs) docs.write(name, `${machine.text(about)}\n\n${text}`)
    return Console.log(`\n${text}`)
  }
  const done = new Map<string, ReadonlyArray<ReadonlyArray<rounds.Result>>>()
  for (const { cells, name } of chapters) {
    const measured: Array<ReadonlyArray<rounds.Result>> = []
    for (const cell of cells) {
      if (name === "arms") yield* discardOne(urls, cell)
      measured.push(yield* rounds.runCell(urls, cell, onResult))
    }
    done.set(name, measured)
    yield* section(name, table.rates(measured))
  }
  const arms = done.get("arms")!
  const base = (broker: BrokerName) => arms.find(([result]) => result!.spec.broker === broker)!
  const latencies: Array<{ readonly share: number; readonly results: ReadonlyArray<rounds.Result> }> = []
  if (only.includes("latency")) {
    for (const broker of ["redis", "jetstream"] as const) {
      const maximum = yield* openMaximum(urls, broker)
      for (const share of [0.5, 0.8]) {
        const cell = plan.openLoop(broker, maximum, share, openRounds, 4)
        latencies.push({ share, results: yield* rounds.runCell(urls, cell, onResult) })
      }
    }
    yield* section("latency", table.latencies(latencies))
  }
  const large = (done.get("size") ?? []).filter(([result]) => result!.spec.size === 16_384)
  const lines = [
    ...budget.rates(base),
    ...latencies.flatMap(({ results, share }) => share === 0.5 ? [budget.latency(results)] : []),
    ...large.map((results) => budget.size(base(results[0]!.spec.broker), results)),
    yield* measureParallel(urls),
    ...budget.source()
  ]
  for (const line of lines) write(line)
  yield* section("budgets", budgetTable(lines))
  if (!intoDocs) return
  docs.writeFile(
    "benchmarks.svg",
    chart.bars(arms.map((results) => ({
      title: `${results[0]!.spec.broker}: messages a second, of raw`,
      bars: compare.rows(results).map(({ arm, ratio }) => ({
        name: table.nameOf(arm),
        ratio,
        isRaw: ["tuned", "callback", "naive", "bullmq"].includes(arm)
      }))
    })))
  )
})

const measureRss = Effect.fnUntraced(function*(names: ReadonlyArray<BrokerName>, total: number, intoDocs: boolean) {
  const { versions } = yield* Effect.scoped(bothBrokers)
  const { about, write } = open("rss", versions)
  yield* Console.log(machine.text(about))
  // Nothing of it is a matter of speed.
  const curves = yield* Effect.forEach(names, (broker) => {
    let printed = 0
    return rss.measure(broker, total, (sample) => {
      write({ broker, ...sample })
      if (sample.handled < printed) return
      printed += total / 10
      process.stderr.write(
        `${broker} ${sample.handled}: ${(sample.rss / 1e6).toFixed(0)} MB, heap ${(sample.heap / 1e6).toFixed(0)} MB\n`
      )
    })
  }, { concurrency: 2 })
  const lines = curves.map((curve) => budget.memory(curve, total))
  const text = budgetTable(lines)
  yield* Console.log(`\n${text}`)
  const twice = curves.map(({ samples }) => samples.at(-1)!.twice)
  if (twice.some((n) => n > 0)) yield* Console.log(`delivered twice: ${twice.join(", ")}`)
  if (!intoDocs) return
  docs.write("rss", `${machine.text(about)}\n\n${text}`)
  docs.writeFile(
    "benchmarks-rss.svg",
    chart.curves(
      curves.map(({ broker, samples }) => ({
        title: `${broker}: resident memory, MB`,
        points: samples.map(({ handled, rss }) => [handled / 1e6, rss / 1e6] as const)
      })),
      "million messages",
      "MB"
    )
  )
})

const measureSubscriptions = Effect.fnUntraced(function*(count: number, intoDocs: boolean) {
  const { versions } = yield* Effect.scoped(bothBrokers)
  const { about, write } = open("subscriptions", versions)
  yield* Console.log(machine.text(about))
  const measured = yield* Effect.forEach(
    ["redis", "jetstream"] as const,
    (broker) => subscriptions.measure(broker, count, 10)
  )
  for (const one of measured) {
    write(one)
    yield* Console.log(JSON.stringify(one))
  }
  const text = budgetTable(measured.flatMap(budget.idle))
  yield* Console.log(`\n${text}`)
  if (intoDocs) docs.write("subscriptions", `${machine.text(about)}\n\n${text}`)
})

const profile = Effect.fnUntraced(function*(broker: BrokerName, arm: string, concurrency: number, count: number) {
  const { urls } = yield* bothBrokers
  fs.mkdirSync(results, { recursive: true })
  const file = path.join(results, `${broker}-${arm}.cpuprofile`)
  const measured = yield* Effect.scoped(
    rounds.run(urls, { broker, arm, concurrency, size: 100, delay: 0, count }, file)
  )
  yield* Console.log(
    `${(measured.rate / 1000).toFixed(0)} k/s, ${measured.cpu.toFixed(2)} µs a message\n${summarize(file, count)}`
  )
})

const intoDocs = Flag.Boolean("docs").pipe(
  Flag.withDescription("Write what was measured into docs/benchmarks.md"),
  Flag.withDefault(false)
)
const brokerNames = ["redis", "jetstream", "memory"] as const

const bench = Command.make("bench", {
  quick: Flag.Boolean("quick").pipe(
    Flag.withDescription("The budgets, in less than two minutes"),
    Flag.withDefault(false)
  ),
  rounds: Flag.Int("rounds").pipe(Flag.withDescription("Rounds of each arm"), Flag.withDefault(10)),
  only: Flag.Literals("only", plan.chapterNames).pipe(
    Flag.withDescription("Only this table, and the arms that it is compared with"),
    Flag.optional
  ),
  docs: intoDocs
}, (options) =>
  Effect.scoped(
    options.quick
      ? quick
      : long(options.rounds, options.only._tag === "Some" ? [options.only.value] : plan.chapterNames, options.docs)
  ))

const rssCommand = Command.make(
  "rss",
  {
    broker: Flag.Literals("broker", brokerNames).pipe(Flag.withDescription("Only this one"), Flag.optional),
    messages: Flag.Int("messages").pipe(Flag.withDescription("How many"), Flag.withDefault(10_000_000)),
    docs: intoDocs
  },
  (options) =>
    measureRss(options.broker._tag === "Some" ? [options.broker.value] : brokerNames, options.messages, options.docs)
)

const subscriptionsCommand = Command.make("subscriptions", {
  count: Flag.Int("count").pipe(Flag.withDescription("How many"), Flag.withDefault(1000)),
  docs: intoDocs
}, (options) => measureSubscriptions(options.count, options.docs)).pipe(
  Command.withDescription("Idle subscriptions in one process")
)

const profileCommand = Command.make("profile", {
  broker: Flag.Literals("broker", brokerNames).pipe(Flag.withDefault("redis" as const)),
  arm: Flag.String("arm").pipe(Flag.withDefault("plain")),
  concurrency: Flag.Int("concurrency").pipe(Flag.withDefault(64)),
  messages: Flag.Int("messages").pipe(Flag.withDefault(400_000))
}, (options) => Effect.scoped(profile(options.broker, options.arm, options.concurrency, options.messages))).pipe(
  Command.withDescription("Where one arm spends its time")
)

bench.pipe(
  Command.withDescription("What Millrace costs beside the clients it is built on"),
  Command.withSubcommands([rssCommand, subscriptionsCommand, profileCommand]),
  Command.run({ version: "0.1.0" }),
  Effect.provide(NodeServices.layer),
  NodeRuntime.runMain
)
