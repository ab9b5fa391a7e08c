import type { Cell } from "./rounds.ts"
import type { BrokerName } from "./spec.ts"

const brokers: ReadonlyArray<BrokerName> = ["redis", "jetstream", "memory"]

/** What raw loops do here, roughly: so that a pass takes about `seconds`. */
const expectedRate = (broker: BrokerName, size: number): number =>
  Math.min(broker === "redis" ? 350_000 : broker === "jetstream" ? 250_000 : 1_000_000, 2e8 / size * 2)

const countFor = (broker: BrokerName, concurrency: number, size: number, delay: number, seconds: number): number => {
  const possible = expectedRate(broker, size)
  const rate = delay === 0 ? possible : Math.min(possible / 2, concurrency * 1000 / (delay + 0.1))
  return Math.max(50, Math.round(rate * seconds / 50) * 50)
}

const cell = (
  broker: BrokerName,
  arms: ReadonlyArray<string>,
  rounds: number,
  seconds: number,
  options: { readonly concurrency?: number; readonly size?: number; readonly delay?: number } = {}
): Cell => {
  const { concurrency = 64, delay = 0, size = 100 } = options
  return { broker, arms, rounds, concurrency, size, delay, count: countFor(broker, concurrency, size, delay, seconds) }
}

export const chapterNames = ["arms", "size", "concurrency", "handlers", "latency"] as const

/** Cells that make one table. */
export interface Chapter {
  readonly name: (typeof chapterNames)[number]
  readonly cells: ReadonlyArray<Cell>
}

export const quick: ReadonlyArray<Cell> = [
  cell("redis", ["tuned", "plain", "effect", "bullmq"], 2, 0.6),
  cell("jetstream", ["tuned", "plain", "effect"], 2, 0.6),
  cell("memory", ["tuned", "plain", "effect", "bare", "armed"], 2, 0.2)
]

const chapter = (name: Chapter["name"], cellsOf: (broker: BrokerName) => ReadonlyArray<Cell>): Chapter => ({
  name,
  cells: brokers.flatMap(cellsOf)
})

const features = ["bare", "plain", "promise", "effect", "armed", "metered", "traced", "timed", "keyed", "failing"]

const compared = ["tuned", "plain", "effect"]

/** The long run; `rounds` of the first chapter, half of them elsewhere. */
export const long = (rounds: number): ReadonlyArray<Chapter> => {
  const fewer = Math.max(Math.min(3, rounds), Math.round(rounds / 2))
  return [
    chapter("arms", (broker) => [
      cell(
        broker,
        [
          "tuned",
          ...(broker === "jetstream" ? ["callback"] : []),
          ...(broker === "memory" ? [] : ["naive"]),
          ...features,
          ...(broker === "redis" ? ["bullmq"] : [])
        ],
        rounds,
        1.2
      )
    ]),
    chapter("size", (broker) => [1024, 16_384].map((size) => cell(broker, compared, fewer, 0.6, { size }))),
    chapter(
      "concurrency",
      (broker) => [1, 8, 256].map((concurrency) => cell(broker, compared, fewer, 0.6, { concurrency }))
    ),
    chapter(
      "handlers",
      (broker) =>
        [1, 10].flatMap((delay) =>
          [1, 8, 64, 256].map((concurrency) =>
            cell(broker, broker === "redis" ? [...compared, "bullmq"] : compared, Math.min(2, rounds), 0.6, {
              concurrency,
              delay
            })
          )
        )
    )
  ]
}

/** What the raw loop takes while a producer beside it sends all it can. */
export const flood = (broker: BrokerName): Cell => ({
  broker,
  arms: ["tuned"],
  rounds: 1,
  concurrency: 64,
  size: 100,
  delay: 0,
  rate: 10_000_000,
  count: 200_000
})

/** Messages that come at `share` of that. */
export const openLoop = (
  broker: BrokerName,
  rawRate: number,
  share: number,
  rounds: number,
  seconds: number
): Cell => {
  const rate = Math.round(rawRate * share / 1000) * 1000
  return {
    broker,
    arms: ["tuned", "plain", "effect"],
    rounds,
    concurrency: 64,
    size: 100,
    delay: 0,
    rate,
    count: Math.round(rate * seconds)
  }
}
