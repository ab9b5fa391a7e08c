/**
 * The broker's side of a round: filling topics, asking whether all is settled, counting.
 */
import { type JetStreamManager, jetstreamManager } from "@nats-io/jetstream"
import { connect } from "@nats-io/transport-node"
import * as bullmq from "./arms/bullmq.ts"
import * as redis from "./arms/redis.ts"
import { bodyOf, contentType, padding } from "./order.ts"
import type { BrokerName, Spec } from "./spec.ts"

export interface Server {
  /** Makes a topic with so many messages. */
  readonly fill: (topic: string, spec: Spec, count: number) => Promise<void>
  /** Everything was delivered to the group and acknowledged. */
  readonly isSettled: (topic: string, group: string) => Promise<boolean>
  /** Messages that a topic holds. */
  readonly length: (topic: string) => Promise<number>
  /** Commands since the last reset, without our own; `undefined` where the server does not count. */
  readonly commands: () => Promise<number | undefined>
  readonly resetCommands: () => Promise<void>
  /** Removes everything whose name holds this one. */
  readonly remove: (name: string) => Promise<void>
  readonly close: () => Promise<void>
}

/** The entries are made where they are stored: sending them would take longer than the round. */
export const fillScript = `
local topic, first, last, note = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
for i = first, last do
  redis.call("XADD", topic, "*", "body", string.format(
    '{"id":"o%07d","customer":"customer-%03d","amount":%d,"at":0,"note":"', i, i % 1000, i) .. note .. '"}',
    "content-type", ARGV[4])
end`

const ours = new Set([
  "info",
  "config|resetstat",
  "xpending",
  "xinfo|groups",
  "xlen",
  "client|setinfo",
  "hello",
  "keys",
  "unlink",
  "del"
])

const redisServer = async (url: string, isBullMq: boolean): Promise<Server> => {
  const client = await redis.connect(url)
  const settledOf = new Map<string, Promise<() => Promise<boolean>>>()
  return {
    async fill(topic, spec, count) {
      const note = padding(spec.size)
      if (isBullMq) {
        const orders = Array.from({ length: count }, (_, index) => JSON.parse(bodyOf(index, 0, note)))
        return bullmq.fill(url, topic, orders)
      }
      for (let first = 0; first < count; first += 10_000) {
        const last = Math.min(first + 10_000, count) - 1
        await client.eval(fillScript, { keys: [topic], arguments: [String(first), String(last), note, contentType] })
      }
    },
    async isSettled(topic, group) {
      if (isBullMq) {
        const known = settledOf.get(topic) ?? bullmq.isSettled(url, topic)
        settledOf.set(topic, known)
        return (await known)()
      }
      const groups = await client.xInfoGroups(topic)
      return groups.some((state) => state.name === group && state.pending === 0 && state.lag === 0)
    },
    async commands() {
      const info = await client.info("commandstats")
      return [...info.matchAll(/^cmdstat_(\S+?):calls=(\d+)/gm)]
        .reduce((sum, [, name, calls]) => ours.has(name!) ? sum : sum + Number(calls), 0)
    },
    length: (topic) => client.xLen(topic),
    resetCommands: async () => void await client.sendCommand(["CONFIG", "RESETSTAT"]),
    async remove(name) {
      const keys = await client.keys(`*${name}*`)
      if (keys.length > 0) await client.unlink(keys)
    },
    close: async () => client.destroy()
  }
}

const jetStreamServer = async (url: string): Promise<Server> => {
  const nc = await connect({ servers: url })
  const jsm: JetStreamManager = await jetstreamManager(nc)
  return {
    async fill(topic, spec, count) {
      await jsm.streams.add({ name: topic, subjects: [topic], storage: "memory", allow_direct: true })
      const note = padding(spec.size)
      // Core publishing is not confirmed: the stream is asked how many have come, before too many are on their way.
      const chunk = Math.max(1, Math.min(5000, Math.floor(4e6 / spec.size)))
      for (let sent = 0; sent < count;) {
        const until = Math.min(sent + chunk, count)
        while (sent < until) {
          nc.publish(topic, bodyOf(sent, 0, note))
          sent++
        }
        await nc.flush()
      }
      while ((await jsm.streams.info(topic)).state.messages < count) await nc.flush()
    },
    length: async (topic) => (await jsm.streams.info(topic)).state.messages,
    async isSettled(topic, group) {
      const info = await jsm.consumers.info(topic, group)
      return info.num_pending === 0 && info.num_ack_pending === 0
    },
    commands: async () => undefined,
    resetCommands: async () => {},
    async remove(name) {
      const streams: Array<string> = []
      for await (const stream of jsm.streams.names()) if (stream.includes(name)) streams.push(stream)
      for (const stream of streams) await jsm.streams.delete(stream)
    },
    close: () => nc.close()
  }
}

export const connectServer = (broker: Exclude<BrokerName, "memory">, url: string, arm?: string): Promise<Server> =>
  broker === "redis" ? redisServer(url, arm?.startsWith("bullmq") === true) : jetStreamServer(url)
