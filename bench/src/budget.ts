/**
 * The budgets, and whether this run meets them.
 */
import * as fs from "node:fs"
import * as path from "node:path"
import type { Shared } from "./processes.ts"
import { baseOf, cpuRatio, paired, rateRatio, type Results, valuesOf } from "./results.ts"
import { atLeast, atMost, type Row } from "./row.ts"
import * as rss from "./rss.ts"
import type { BrokerName } from "./spec.ts"
import { estimate, exactly } from "./statistics.ts"
import type { Subscriptions } from "./subscriptions.ts"

const brokers = { redis: "Redis", jetstream: "JetStream", memory: "memory" } satisfies Record<BrokerName, string>

const brokerOf = (results: Results) => brokers[results[0]!.spec.broker]

/** FastStream 0.7, `max_workers=64`, messages a second: it is not on npm, and was measured apart. */
const fastStream = { redis: 5100, jetstream: 7700 }

/** A handler that does nothing, concurrency 64. */
export const consume = (results: Results): ReadonlyArray<Row> => {
  const { broker } = results[0]!.spec
  const name = brokers[broker]
  const base = baseOf(results)
  const ratio = (arm: string, to = base) => rateRatio(results, arm, to)
  if (broker === "memory") {
    return [
      atLeast("consume, function, memory, of its bare loop", 1, "×", ratio("plain")),
      atLeast("consume, Effect, memory, of its bare loop", 0.8, "×", ratio("effect")),
      atMost("retry and dead letters over none, memory, time a message", 1.1, "×", ratio("bare", "armed"))
    ]
  }
  const times = fastStream[broker]
  const isRedis = broker === "redis"
  const cost = valuesOf(results, "plain", ({ commands, writes }) => isRedis ? commands! : writes)
  return [
    atLeast(`consume, function, ${name}, of raw`, 0.95, "×", ratio("plain")),
    atMost(`consume, function, ${name}, CPU of raw`, 1.15, "×", cpuRatio(results, "plain", base)),
    atLeast(`consume, Effect, ${name}, of raw`, 0.88, "×", ratio("effect")),
    atMost(`consume, Effect, ${name}, CPU of raw`, 1.3, "×", cpuRatio(results, "effect", base)),
    atLeast(`metrics on, ${name}, of the rate without`, 0.88, "×", ratio("metered", "plain")),
    atLeast(`unsampled spans, ${name}, of the rate without`, 0.95, "×", ratio("unsampled", "plain")),
    atLeast(`1 % failures, ${name}, of the rate without`, 0.9, "×", ratio("failing", "plain")),
    atLeast(
      `against FastStream's ${times}/s, ${name}`,
      isRedis ? 40 : 25,
      "×",
      estimate(valuesOf(results, "plain", ({ rate }) => rate / times))
    ),
    atMost(`${isRedis ? "commands" : "socket writes"} a message, ${name}`, 0.05, "", estimate(cost))
  ]
}

export const wait = (results: Results): ReadonlyArray<Row> =>
  (["plain", "effect"] as const).map((arm) =>
    atLeast(
      `consume, ${arm === "effect" ? "Effect" : "promise"} that waits 1 ms, 256, ${brokerOf(results)}, of raw`,
      0.85,
      "×",
      rateRatio(results, arm, "tuned")
    )
  )

export const publish = (results: Results): ReadonlyArray<Row> => {
  const isRedis = results[0]!.spec.broker === "redis"
  const of = isRedis ? "of windowed XADD" : "of the client's js.publish"
  return (["publishAll", "publishEach"] as const).map((arm) =>
    atLeast(
      `publish, ${arm === "publishAll" ? "publishAll of 1,000" : "500 fibers"}, ${brokerOf(results)}, ${of}`,
      isRedis ? 0.8 : 2,
      "×",
      rateRatio(results, arm, "publish")
    )
  )
}

export const to = (results: Results): ReadonlyArray<Row> => [
  atLeast(
    `map then to, ${results[0]!.spec.concurrency}, ${brokerOf(results)}, of raw`,
    0.8,
    "×",
    rateRatio(results, "to", "rawTo")
  )
]

export const size = (results: Results): ReadonlyArray<Row> => [
  atLeast(
    `bodies of ${results[0]!.spec.size / 1024} KB, ${brokerOf(results)}, of raw`,
    0.95,
    "×",
    rateRatio(results, "plain", "tuned")
  )
]

export const bullmq = (consumed: Results, roundTrips: Results): ReadonlyArray<Row> => [
  atLeast("consume, against BullMQ", 8, "×", rateRatio(consumed, "plain", "bullmq")),
  atLeast("add and process, against BullMQ", 4, "×", rateRatio(roundTrips, "roundTrip", "bullmqRoundTrip"))
]

/** Open loops at half of what producer, broker and raw loop together sustain, and messages that come one by one. */
export const latency = (half: Results, lone: Results): ReadonlyArray<Row> => [
  atMost(
    `p99 at 50 % of what is sustained, ${brokerOf(half)}, of raw`,
    1.25,
    "×",
    paired(half, "plain", "tuned", ({ latency }) => latency!.p99)
  ),
  ...(["p50", "p99"] as const).map((quantile) =>
    atMost(
      `lone message, ${quantile}, ${brokerOf(lone)}, of raw`,
      1.2,
      "×",
      paired(lone, "plain", "tuned", ({ latency }) => latency![quantile])
    )
  )
]

/** How the total rate grows with the processes, of how that of the raw loop grows. */
export const processes = (results: ReadonlyArray<Shared>): ReadonlyArray<Row> => {
  const rateOf = (arm: string, processes: number, round: number) =>
    results.find((result) => result.arm === arm && result.processes === processes && result.round === round)!.rate
  const rounds = [...new Set(results.map(({ round }) => round))]
  const growth = (arm: string, processes: number, round: number) =>
    rateOf(arm, processes, round) / rateOf(arm, 1, round)
  return [2, 4].map((processes) =>
    atLeast(
      `growth from 1 to ${processes} processes, ${brokers[results[0]!.broker]}, of raw's`,
      1,
      "×",
      estimate(rounds.map((round) => growth("plain", processes, round) / growth("tuned", processes, round)))
    )
  )
}

/** An idle process; one connection reads for all of its subscriptions. */
export const idle = (measured: Subscriptions): ReadonlyArray<Row> => {
  const { broker, commands, connections, connectionsOfTen, count, idleCpu, started } = measured
  const who = `${count} subscriptions, ${brokers[broker]}`
  const perSecond = (name: string) => exactly(commands?.[name] ?? 0)
  return [
    atMost(`${who}: start`, 2, "s", estimate(started.map((millis) => millis / 1000))),
    atMost(`${who}: idle CPU of a core`, 2, "%", estimate(idleCpu.map((share) => share * 100))),
    atMost(`${who}: connections, of those of ten`, 1, "×", exactly(connections / connectionsOfTen)),
    ...(commands === undefined ? [] : [
      atMost(`${who}: reads a second`, 1, "", perSecond("xreadgroup")),
      atMost(`${who}: claim scans a second`, 1, "", perSecond("evalsha"))
    ])
  ]
}

/** Resident memory is flat: a leak shows in the last third over the second one. Without a curve, not measured. */
export const memory = (broker: BrokerName, total: number, curve?: rss.Curve): Row =>
  atMost(
    `resident memory over ${total / 1e6} M messages, ${brokers[broker]}, last third of second`,
    1.02,
    "×",
    curve === undefined ? undefined : rss.growth(curve)
  )

const packages = path.join(import.meta.dirname, "../../packages")

/** Without what is said to the reader. */
const isCode = (line: string): boolean => !/^\s*(?:$|\/\/|\/\*|\*)/.test(line)

const linesOf = (name: string): ReadonlyArray<string> =>
  fs.globSync("src/**/*.ts", { cwd: path.join(packages, name) })
    .flatMap((file) => fs.readFileSync(path.join(packages, name, file), "utf8").trimEnd().split("\n"))

export const source = (): ReadonlyArray<Row> =>
  ["redis-streams", "nats-jetstream"].map((name) =>
    atMost(
      `lines of code, core and ${name}`,
      6000,
      "",
      exactly([...linesOf("core"), ...linesOf(name)].filter(isCode).length)
    )
  )
