/**
 * One round of one arm, in a process of its own: a pass that warms up, then the one that counts.
 *
 * The clock runs from the beginning of consuming until the broker says that nothing is pending. The round is void
 * unless every message came once.
 */
import { Transport } from "@millrace/core"
import { MemoryTransport } from "@millrace/testing"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as fs from "node:fs"
import { Session } from "node:inspector/promises"
import { setImmediate as turn, setTimeout as wait } from "node:timers/promises"
import type { Arm } from "./arm.ts"
import * as bullmq from "./arms/bullmq.ts"
import * as jetstream from "./arms/jetstream.ts"
import * as memory from "./arms/memory.ts"
import * as millrace from "./arms/millrace.ts"
import * as redis from "./arms/redis.ts"
import { layerOf } from "./layers.ts"
import { bodyOf, contentType, monotonic, type Order, padding } from "./order.ts"
import { connectServer, type Server } from "./server.ts"
import { type FromRound, group, type Latency, type Measured, type Spec, type ToRound } from "./spec.ts"
import { percentile } from "./statistics.ts"
import { countSocketWrites, socketWrites } from "./writes.ts"

const spec: Spec = JSON.parse(process.argv[2]!)
const url = process.argv[3] ?? ""
/** Where to leave a CPU profile of the pass that counts. */
const profileTo = process.argv[4]
const deadline = 60_000

/** Counts what is handled, and finds what came twice. */
class Tally {
  readonly done: Promise<void>
  readonly latencies: Float64Array
  received = 0
  twice = 0
  private readonly seen: Uint8Array
  private readonly isOpen: boolean
  private resolve!: () => void

  constructor(expected: number, isOpen: boolean) {
    this.seen = new Uint8Array(expected)
    this.isOpen = isOpen
    this.latencies = new Float64Array(isOpen ? expected : 0)
    this.done = new Promise((resolve) => this.resolve = resolve)
  }

  readonly handle = (order: Order): void => {
    if (this.seen[order.amount]! > 0) {
      this.twice++
      return
    }
    this.seen[order.amount] = 1
    if (this.isOpen) this.latencies[order.amount] = monotonic() - order.at
    if (++this.received === this.seen.length) this.resolve()
  }
}

interface Side {
  readonly arm: Arm
  readonly isSettled: (topic: string) => Promise<boolean>
  readonly prepare?: (topic: string, count: number) => Promise<void>
  readonly server?: Server
}

const rawArms: Record<string, typeof redis.tuned> = {
  "redis/tuned": redis.tuned,
  "redis/naive": redis.naive,
  "redis/bullmq": bullmq.make,
  "jetstream/tuned": jetstream.pull,
  "jetstream/callback": jetstream.callback,
  "jetstream/naive": jetstream.naive,
  "memory/tuned": memory.bare
}

/** In few allocations, as what is read from a socket. */
const bodies = (count: number): ReadonlyArray<Uint8Array> => {
  const note = padding(spec.size)
  return Array.from({ length: count }, (_, index) => Buffer.from(bodyOf(index, 0, note)))
}

const onMemory = async (): Promise<Side> => {
  const raw = rawArms[`memory/${spec.arm}`]
  if (raw !== undefined) {
    return {
      arm: await raw(url, spec),
      prepare: async (topic, count) => void memory.logs.set(topic, bodies(count)),
      isSettled: async (topic) => memory.pending.get(topic)!.size === 0
    }
  }
  const runtime = ManagedRuntime.make(MemoryTransport.layer())
  const arm = await millrace.make(runtime, spec)
  return {
    arm,
    async prepare(topic, count) {
      const headers = { "content-type": contentType }
      const outgoing = bodies(count).map((body) => ({
        topic,
        body,
        headers,
        key: undefined,
        id: undefined,
        delay: undefined
      }))
      for (let start = 0; start < count; start += 10_000) {
        const [first, ...rest] = outgoing.slice(start, start + 10_000)
        await runtime.runPromise(Transport.Transport.use((transport) => transport.publish([first!, ...rest])))
      }
    },
    async isSettled(topic) {
      const groups = await runtime.runPromise(MemoryTransport.MemoryTransport.use((memory) => memory.groups))
      const found = groups.find((state) => state.topic === topic && state.group === group)
      return found !== undefined && found.lag + found.pending.length + found.delayed.length === 0
    }
  }
}

const onServer = async (broker: "redis" | "jetstream"): Promise<Side> => {
  const raw = rawArms[`${broker}/${spec.arm}`]
  const server = await connectServer(broker, url, spec.arm)
  const arm = raw !== undefined
    ? await raw(url, spec)
    : await millrace.make(ManagedRuntime.make(layerOf(broker, url)), spec)
  return { arm, server, isSettled: server.isSettled }
}

/** The first fifth of an open loop finds everything cold. */
const latencyOf = (latencies: Float64Array): Latency => {
  const sorted = latencies.slice(Math.floor(latencies.length / 5)).sort()
  return {
    p50: percentile(sorted, 0.5),
    p99: percentile(sorted, 0.99),
    p999: percentile(sorted, 0.999),
    max: sorted[sorted.length - 1]!
  }
}

const say = (message: FromRound): Promise<void> =>
  new Promise((resolve) => process.send!(message, undefined, undefined, () => resolve()))

const pass = async (side: Side, topic: string, count: number, isOpen: boolean): Promise<Measured> => {
  const tally = new Tally(count, isOpen)
  globalThis.gc?.()
  await side.server?.resetCommands()
  const cpuBefore = process.cpuUsage()
  const writesBefore = socketWrites()
  const since = performance.now()
  const stop = await side.arm.consume(topic, tally.handle)
  if (isOpen) await say({ _tag: "Consuming" })
  const inTime = await Promise.race([tally.done.then(() => true), wait(deadline, false, { ref: false })])
  while (inTime && !await side.isSettled(topic) && performance.now() - since < deadline) await turn()
  const took = performance.now() - since
  const cpu = process.cpuUsage(cpuBefore)
  const writes = socketWrites() - writesBefore
  const commands = await side.server?.commands()
  const settled = await side.isSettled(topic)
  await stop()
  const reasons = [
    ...(inTime ? [] : [`${tally.received} of ${count} came within ${deadline / 1000} s`]),
    ...(tally.twice > 0 ? [`${tally.twice} came twice`] : []),
    ...(settled ? [] : ["some are pending"])
  ]
  return {
    rate: count / took * 1000,
    cpu: (cpu.user + cpu.system) / count,
    commands: commands === undefined ? undefined : commands / count,
    writes: writes / count,
    rss: process.memoryUsage().rss,
    latency: isOpen ? latencyOf(tally.latencies) : undefined,
    void: reasons.length === 0 ? undefined : reasons.join(", ")
  }
}

const profiled = async (run: () => Promise<Measured>): Promise<Measured> => {
  if (profileTo === undefined) return run()
  const session = new Session()
  session.connect()
  await session.post("Profiler.enable")
  await session.post("Profiler.setSamplingInterval", { interval: 200 })
  await session.post("Profiler.start")
  const measured = await run()
  const { profile } = await session.post("Profiler.stop")
  fs.writeFileSync(profileTo, JSON.stringify(profile))
  return measured
}

countSocketWrites()
const side = await (spec.broker === "memory" ? onMemory() : onServer(spec.broker))
process.once("message", async (go: ToRound) => {
  await side.prepare?.(go.warmUp, go.warmUpCount)
  await pass(side, go.warmUp, go.warmUpCount, false)
  await side.prepare?.(go.topic, spec.count)
  const measured = await profiled(() => pass(side, go.topic, spec.count, spec.rate !== undefined))
  await say({ _tag: "Measured", measured })
  await side.arm.close()
  process.exit()
})
await say({ _tag: "Ready" })
