/**
 * The budgets of the design, and whether this run meets them.
 */
import * as fs from "node:fs"
import * as path from "node:path"
import * as compare from "./compare.ts"
import type { Result } from "./rounds.ts"
import * as rss from "./rss.ts"
import type { BrokerName } from "./spec.ts"
import { median } from "./statistics.ts"
import type { Subscriptions } from "./subscriptions.ts"
import { interval } from "./table.ts"

export interface Line {
  readonly what: string
  readonly budget: string
  readonly measured: string
  /** `undefined`: not measured in this run. */
  readonly met: boolean | undefined
}

const line = (what: string, budget: string, measured: string, met: boolean | undefined): Line => ({
  what,
  budget,
  measured,
  met
})

const brokers = { redis: "Redis", jetstream: "JetStream", memory: "memory" } satisfies Record<BrokerName, string>

/** FastStream 0.7, `max_workers=64`, messages a second: it is not on npm, and was measured apart. */
const fastStream = { redis: 5100, jetstream: 7700 }

const rateOf = (results: ReadonlyArray<Result>, arm: string) => compare.medianOf(results, arm, ({ rate }) => rate)

/** No-op handlers at concurrency 64. */
export const rates = (of: (broker: BrokerName) => ReadonlyArray<Result>): ReadonlyArray<Line> => [
  ...(["redis", "jetstream"] as const).flatMap((broker) => {
    const results = of(broker)
    const base = compare.baseOf(results)
    return (["plain", "effect"] as const).map((arm) => {
      const ratio = compare.ratio(results, arm, base)
      const handler = arm === "plain" ? "function" : "Effect"
      const cpu = compare.cpuRatio(results, arm, base).median
      return line(
        `no-op ${handler}, ${brokers[broker]}, of raw`,
        "≥ 0.85",
        `${interval(ratio)}, CPU ${cpu.toFixed(2)} ×`,
        ratio.median >= 0.85
      )
    })
  }),
  ...(["redis", "jetstream"] as const).map((broker) => {
    const least = broker === "redis" ? 40 : 25
    const times = rateOf(of(broker), "plain") / fastStream[broker]
    return line(
      `against FastStream's ${fastStream[broker]}/s, ${brokers[broker]}`,
      `≥ ${least} ×`,
      `${times.toFixed(0)} ×`,
      times >= least
    )
  }),
  bullMq(of("redis")),
  ...(["redis", "jetstream"] as const).map((broker) => {
    const isRedis = broker === "redis"
    const cost = compare.medianOf(of(broker), "plain", ({ commands, writes }) => isRedis ? commands! : writes)
    const what = isRedis ? "commands" : "socket writes"
    return line(`${what} a message, ${brokers[broker]}`, "≤ 0.05", cost.toFixed(4), cost <= 0.05)
  }),
  armed(of("memory")),
  ...(["plain", "effect"] as const).map((arm) => {
    const least = arm === "plain" ? 1_000_000 : 600_000
    const rate = rateOf(of("memory"), arm)
    const handler = arm === "plain" ? "function" : "Effect"
    return line(
      `no-op ${handler}, in memory`,
      `≥ ${least / 1000} k/s`,
      `${(rate / 1000).toFixed(0)} k/s, the bare loop ${(rateOf(of("memory"), "tuned") / 1000).toFixed(0)}`,
      rate >= least
    )
  })
]

const bullMq = (results: ReadonlyArray<Result>): Line => {
  const times = compare.ratio(results, "plain", "bullmq")
  return line("against BullMQ, concurrency 64", "≥ 6 ×", `${interval(times)} ×`, times.median >= 6)
}

/** Time a message, armed over bare. */
const armed = (results: ReadonlyArray<Result>): Line => {
  const bare = compare.ratio(results, "bare", "armed")
  return line("retry and dead letters over none, time a message", "≤ 1.10 ×", `${interval(bare)} ×`, bare.median <= 1.1)
}

/** Open loops at half of what the raw loop takes beside its producer. */
export const latency = (results: ReadonlyArray<Result>): Line => {
  const ratio = compare.p99Ratio(results, "plain", "tuned")
  const what = `p99 at half of raw maximum, ${brokers[results[0]!.spec.broker]}, of raw`
  return line(what, "≤ 1.25 ×", `${interval(ratio)} ×`, ratio.median <= 1.25)
}

/** Five handlers of 300 ms at a time, against one. */
export const parallel = (one: ReadonlyArray<Result>, five: ReadonlyArray<Result>): Line => {
  const times = rateOf(five, "plain") / rateOf(one, "plain")
  return line("concurrency 5 on a 300 ms handler, of sequential", "≥ 4.8 ×", `${times.toFixed(2)} ×`, times >= 4.8)
}

/** 16 KB against 100 B, each against raw. */
export const size = (small: ReadonlyArray<Result>, large: ReadonlyArray<Result>): Line => {
  const broker = brokers[small[0]!.spec.broker]
  const of = (results: ReadonlyArray<Result>) => compare.ratio(results, "plain", compare.baseOf(results)).median
  const [a, b] = [of(small), of(large)]
  return line(`16 KB, ${broker}, of raw`, "as at 100 B", `${b.toFixed(2)}, ${a.toFixed(2)} at 100 B`, b >= 0.95 * a)
}

const perSecond = (commands: Readonly<Record<string, number>>, name: string) => commands[name] ?? 0

/** An idle process. One reads for all subscriptions of a group. */
export const idle = (measured: Subscriptions): ReadonlyArray<Line> => {
  const { broker, commands, connections, count, idleCpu, started } = measured
  const who = `${count} subscriptions, ${brokers[broker]}`
  const lines = [
    line(`${who}: connections`, "not one each", String(connections), connections <= 10),
    line(`${who}: start-up`, "≤ 2 s", `${(started / 1000).toFixed(2)} s`, started <= 2000),
    line(`${who}: idle CPU`, "≤ 2 % of a core", `${(idleCpu * 100).toFixed(2)} %`, idleCpu <= 0.02)
  ]
  if (commands === undefined) return lines
  const reads = perSecond(commands, "xreadgroup")
  const scans = perSecond(commands, "evalsha")
  return [
    ...lines,
    line(
      `${who}: reads, scans a second`,
      "≤ 1, ≤ 1 in all",
      `${reads.toFixed(2)}, ${scans.toFixed(2)}`,
      reads <= 1 && scans <= 1.1
    )
  ]
}

const percent = (share: number) => `${share >= 0 ? "+" : ""}${(share * 100).toFixed(0)} %`

/** Resident memory is flat within what V8 takes and gives back by itself; a leak is seen in the heap as well. */
export const memory = (curve: rss.Curve, total: number): Line => {
  const growth = rss.growth(curve)
  const millions = `${(total / 1e6).toFixed(total < 1e6 ? 1 : 0)} M`
  return line(
    `resident memory over ${millions} messages, ${brokers[curve.broker]}`,
    "flat (± 10 %)",
    `${percent(growth.rss)}, heap ${percent(growth.heap)}`,
    growth.rss <= 0.1
  )
}

const packages = path.join(import.meta.dirname, "../../packages")

/** Without what is said to the reader. */
const isCode = (line: string): boolean => !/^\s*(?:$|\/\/|\/\*|\*)/.test(line)

const linesOf = (name: string): ReadonlyArray<string> =>
  fs.globSync("src/**/*.ts", { cwd: path.join(packages, name) })
    .flatMap((file) => fs.readFileSync(path.join(packages, name, file), "utf8").trimEnd().split("\n"))

export const source = (): ReadonlyArray<Line> =>
  ["redis-streams", "nats-jetstream"].map((name) => {
    const lines = [...linesOf("core"), ...linesOf(name)]
    const code = lines.filter(isCode).length
    return line(
      `lines of core and ${name}`,
      "about 6,000",
      `${code} of code, ${lines.length} with docs and comments`,
      code <= 6600
    )
  })

export const verdict = ({ met }: Line): string => met === undefined ? "–" : met ? "met" : "not met"

export const medianRaw = (results: ReadonlyArray<Result>): number =>
  median(results.flatMap(({ measured, spec }) => spec.arm === compare.baseOf(results) ? [measured.rate] : []))
