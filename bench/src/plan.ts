import type { Cell } from "./fleet.ts"
import { type BrokerName, type Ramp, stepsOf } from "./spec.ts"

/** How long each pass takes, about, and how many there are. */
export interface Effort {
  /** Of a pass, by the raw loop. */
  readonly seconds: number
  readonly passes: number
  /** Passes of a latency, which are longer. */
  readonly latencies: number
  /** Messages of a pass of lone messages. */
  readonly lone: number
  /** Processes of a subscription measurement. */
  readonly starts: number
  readonly idleSeconds: number
}

export const quick: Effort = { seconds: 0.2, passes: 4, latencies: 3, lone: 80, starts: 3, idleSeconds: 3 }
export const thorough: Effort = { seconds: 1, passes: 10, latencies: 10, lone: 1000, starts: 5, idleSeconds: 10 }

type Server = "redis" | "jetstream"

/** Roughly what raw loops do here, messages a second: so that a pass takes about as long as wanted. */
const consumes = { redis: 260_000, jetstream: 190_000, memory: 700_000 } satisfies Record<BrokerName, number>
const publishes = { redis: 100_000, jetstream: 50_000 } satisfies Record<Server, number>
const publishesTo = { redis: 60_000, jetstream: 35_000 } satisfies Record<Server, number>
const bytes = 300e6

const cell = (
  broker: BrokerName,
  arms: ReadonlyArray<string>,
  { passes, seconds }: Effort,
  rate: number,
  options: { readonly concurrency?: number; readonly size?: number; readonly delay?: number } = {}
): Cell => {
  const { concurrency = 64, delay = 0, size = 100 } = options
  const possible = delay === 0 ? rate : Math.min(rate / 2, concurrency * 1000 / (delay + 0.2))
  const count = Math.max(100, Math.round(Math.min(possible, bytes / size) * seconds / 100) * 100)
  return { broker, arms, passes, concurrency, size, delay, count }
}

/** A handler that does nothing. */
export const consume = (broker: BrokerName, effort: Effort): Cell =>
  cell(
    broker,
    broker === "memory"
      ? ["tuned", "plain", "effect", "bare", "armed"]
      : [
        "tuned",
        ...(broker === "jetstream" ? ["callback"] : []),
        "plain",
        "effect",
        "metered",
        "unsampled",
        "failing"
      ],
    effort,
    consumes[broker]
  )

/** Whatever else a pipeline may be armed with. */
export const features = (broker: BrokerName, effort: Effort): Cell =>
  cell(
    broker,
    ["tuned", ...(broker === "memory" ? [] : ["naive"]), "bare", "promise", "armed", "traced", "timed", "keyed"],
    effort,
    consumes[broker]
  )

/** A handler that waits 1 ms. */
export const wait = (broker: Server, effort: Effort): Cell =>
  cell(broker, ["tuned", "plain", "effect"], effort, consumes[broker], { concurrency: 256, delay: 1 })

export const publish = (broker: Server, effort: Effort): Cell =>
  cell(broker, ["publish", "publishAll", "publishEach"], effort, publishes[broker])

export const to = (broker: Server, concurrency: number, effort: Effort): Cell =>
  cell(broker, ["rawTo", "to"], effort, publishesTo[broker], { concurrency })

export const size = (broker: Server, size: number, effort: Effort): Cell =>
  cell(broker, ["tuned", "plain"], effort, consumes[broker], { size })

export const bullmq = (effort: Effort): Cell => cell("redis", ["plain", "bullmq"], effort, consumes.redis)

export const roundTrip = (effort: Effort): Cell =>
  cell("redis", ["roundTrip", "bullmqRoundTrip"], effort, publishes.redis)

export const limits = (broker: BrokerName, concurrency: number, delay: number, effort: Effort): Cell =>
  cell(broker, ["tuned", "plain", "effect"], effort, consumes[broker], { concurrency, delay })

export const processes = (broker: Server, { seconds }: Effort): number => Math.round(consumes[broker] * seconds)

/** The rate rises until producer, broker and raw loop together do not keep up. */
export const ramp = (broker: Server, { seconds }: Effort): Cell => {
  const ramp: Ramp = { factor: 1.15, steps: 20, millis: Math.max(100, Math.min(400, seconds * 400)) }
  const rate = 12_000
  const count = stepsOf(rate, ramp).reduce((sum, count) => sum + count, 0)
  return { broker, arms: ["tuned"], passes: 1, concurrency: 64, size: 100, delay: 0, rate, ramp, count }
}

/** Messages that come at this rate. */
export const openLoop = (broker: Server, rate: number, { latencies, seconds }: Effort): Cell => ({
  broker,
  arms: ["tuned", "plain"],
  passes: latencies,
  concurrency: 64,
  size: 100,
  delay: 0,
  rate,
  count: Math.round(rate * Math.max(0.3, seconds * 2))
})

/** Messages that come one by one. */
export const lone = (broker: Server, effort: Effort): Cell => ({
  ...openLoop(broker, 250, effort),
  count: effort.lone
})
