import { Transport } from "@millrace/core"
import { MemoryTransport } from "@millrace/testing"
import * as ManagedRuntime from "effect/ManagedRuntime"
import type { Arm } from "./arm.ts"
import * as bullmq from "./arms/bullmq.ts"
import * as jetstream from "./arms/jetstream.ts"
import * as memory from "./arms/memory.ts"
import * as millrace from "./arms/millrace.ts"
import * as redis from "./arms/redis.ts"
import { layerOf } from "./layers.ts"
import { bodyOf, contentType, padding } from "./order.ts"
import { connectServer, type Server } from "./server.ts"
import type { Spec } from "./spec.ts"

/** An arm, with the broker that it works on. */
export interface Side {
  readonly arm: Arm
  readonly isSettled: (topic: string, group: string) => Promise<boolean>
  /** Fills a topic, where the broker is in this process. */
  readonly prepare?: (topic: string, count: number) => Promise<void>
  readonly server?: Server
  readonly close: () => Promise<void>
}

const rawArms: Record<string, typeof redis.tuned> = {
  "redis/tuned": redis.tuned,
  "redis/rawTo": redis.to,
  "redis/publish": redis.publish,
  "redis/naive": redis.naive,
  "redis/bullmq": bullmq.make,
  "redis/bullmqRoundTrip": bullmq.make,
  "jetstream/tuned": jetstream.pull,
  "jetstream/rawTo": jetstream.to,
  "jetstream/publish": jetstream.publish,
  "jetstream/callback": jetstream.callback,
  "jetstream/naive": jetstream.naive,
  "memory/tuned": memory.bare
}

/** Bodies that share few buffers, as messages that were read from a socket do. */
const bodies = (count: number, size: number): ReadonlyArray<Uint8Array> => {
  const note = padding(size)
  return Array.from({ length: count }, (_, index) => Buffer.from(bodyOf(index, 0, note)))
}

const onMemory = async (spec: Spec): Promise<Side> => {
  const raw = rawArms[`memory/${spec.arm}`]
  if (raw !== undefined) {
    const arm = await raw("", spec)
    return {
      arm,
      prepare: async (topic, count) => void memory.logs.set(topic, bodies(count, spec.size)),
      isSettled: async (topic) => memory.pending.get(topic)!.size === 0,
      close: arm.close
    }
  }
  const runtime = ManagedRuntime.make(MemoryTransport.layer())
  const arm = await millrace.make(runtime, spec)
  return {
    arm,
    async prepare(topic, count) {
      const headers = { "content-type": contentType }
      const outgoing = bodies(count, spec.size).map((body) => ({
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
    async isSettled(topic, group) {
      const groups = await runtime.runPromise(MemoryTransport.MemoryTransport.use((memory) => memory.groups))
      const found = groups.find((state) => state.topic === topic && state.group === group)
      return found !== undefined && found.lag + found.pending.length + found.delayed.length === 0
    },
    close: arm.close
  }
}

const onServer = async (broker: "redis" | "jetstream", url: string, spec: Spec): Promise<Side> => {
  const raw = rawArms[`${broker}/${spec.arm}`]
  const server = await connectServer(broker, url, spec.arm)
  const arm = raw !== undefined
    ? await raw(url, spec)
    : await millrace.make(ManagedRuntime.make(layerOf(broker, url)), spec)
  return { arm, server, isSettled: server.isSettled, close: () => arm.close().then(server.close) }
}

export const makeSide = (spec: Spec, url: string): Promise<Side> =>
  spec.broker === "memory" ? onMemory(spec) : onServer(spec.broker, url, spec)
