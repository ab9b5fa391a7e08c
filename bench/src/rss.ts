import { Brokers } from "@millrace/testing"
import { jetstreamManager, StorageType } from "@nats-io/jetstream"
import { connect as connectNats } from "@nats-io/transport-node"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as redis from "./arms/redis.ts"
import * as chart from "./chart.ts"
import * as Child from "./child.ts"
import * as docs from "./docs.ts"
import { bodyOf } from "./order.ts"
import { fillScript } from "./server.ts"
import type { BrokerName } from "./spec.ts"
import { type Estimate, estimate, median } from "./statistics.ts"

export interface Sample {
  readonly handled: number
  readonly twice: number
  readonly rss: number
  readonly heap: number
}

export interface Curve {
  readonly broker: BrokerName
  readonly samples: ReadonlyArray<Sample>
}

const backlog = 100_000
const topic = "rss"

interface Feeder {
  readonly held: () => Promise<number>
  /** Publishes `first` to `last`. */
  readonly feed: (first: number, last: number) => Promise<void>
}

const feedRedis = Effect.fnUntraced(function*(url: string): Effect.fn.Return<Feeder, never, Scope.Scope> {
  const client = yield* Effect.acquireRelease(
    Effect.promise(() => redis.connect(url)),
    (client) => Effect.sync(() => client.destroy())
  )
  return {
    held: () => client.xLen(topic),
    feed: async (first, last) => {
      await client.eval(fillScript, { keys: [topic], arguments: [String(first), String(last), "", "application/json"] })
    }
  }
})

const feedNats = Effect.fnUntraced(function*(url: string): Effect.fn.Return<Feeder, never, Scope.Scope> {
  const nc = yield* Effect.acquireRelease(
    Effect.promise(() => connectNats({ servers: url })),
    (nc) => Effect.promise(() => nc.close())
  )
  const jsm = yield* Effect.promise(() => jetstreamManager(nc))
  yield* Effect.promise(() =>
    jsm.streams.add({ name: topic, subjects: [topic], retention: "workqueue", storage: StorageType.Memory })
  )
  return {
    held: async () => (await jsm.streams.info(topic)).state.messages,
    async feed(first, last) {
      for (let index = first; index <= last; index++) nc.publish(topic, bodyOf(index, 0, ""))
      await nc.flush()
    }
  }
})

const chunk = 5000

/** Keeps the backlog full until all are sent. */
const produce = (feeder: Feeder, total: number) =>
  Effect.gen(function*() {
    for (let sent = 0; sent < total;) {
      if ((yield* Effect.promise(feeder.held)) > backlog) {
        yield* Effect.sleep(20)
        continue
      }
      const last = Math.min(sent + chunk, total) - 1
      yield* Effect.promise(() => feeder.feed(sent, last))
      sent = last + 1
    }
  })

/**
 * Bounds of V8's heap, in megabytes. Without them its peaks rise as long as the machine has memory, and freed pages
 * stay resident: a program that holds nothing seems to grow. A program that leaks reaches the bound.
 */
const heapOf = (broker: BrokerName): ReadonlyArray<string> => [
  // The backlog of the memory broker is in the process.
  `--max-old-space-size=${broker === "memory" ? 512 : 128}`,
  "--max-semi-space-size=16"
]

/** Runs `total` messages through a pipeline whose handler takes a millisecond. */
export const measure = (broker: BrokerName, total: number, onSample: (sample: Sample) => void) =>
  Effect.scoped(Effect.gen(function*(): Effect.fn.Return<Curve, Child.ChildFailed | Brokers.BrokersError, Scope.Scope> {
    const url = broker === "memory" ? "" : (yield* broker === "redis" ? Brokers.redis() : Brokers.nats()).url
    const feeder = broker === "memory" ? undefined : yield* broker === "redis" ? feedRedis(url) : feedNats(url)
    const args = [broker, url, String(total), String(backlog)]
    const child = yield* Child.start<never, Sample>("rss.main.ts", args, import.meta.dirname, heapOf(broker))
    if (feeder !== undefined) yield* Effect.forkScoped(produce(feeder, total))
    const samples: Array<Sample> = []
    while ((samples.at(-1)?.handled ?? 0) < total) {
      const sample = yield* child.next
      samples.push(sample)
      onSample(sample)
    }
    return { broker, samples }
  }))

const blocks = 5

/** The resident memory of the last third over that of the second one, block by block. */
export const growth = ({ samples }: Curve): Estimate => {
  const resident = (share: number) => {
    const part = samples.slice(Math.floor(samples.length * share), Math.ceil(samples.length * (share + 1 / 3 / blocks)))
    return median(part.map(({ rss }) => rss))
  }
  return estimate(
    Array.from({ length: blocks }, (_, block) => {
      const at = block / blocks / 3
      return resident(2 / 3 + at) / resident(1 / 3 + at)
    })
  )
}

export const draw = (curves: ReadonlyArray<Curve>): void =>
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
