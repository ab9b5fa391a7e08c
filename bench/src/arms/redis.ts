/**
 * Redis without a framework: `tuned`, `to` and `publish` are the fastest loops we know of, `naive` the first one that
 * comes to mind.
 */
import { createClient } from "redis"
import { type Arm, type MakeArm, sleep } from "../arm.ts"
import { Gate } from "../gate.ts"
import { contentType, decode, encode, type Order } from "../order.ts"
import { makePool } from "../pool.ts"
import { outputOf } from "../spec.ts"

export const connect = async (url: string) => {
  // The client's own timeout costs half the speed.
  const client = createClient({ url, commandOptions: { timeout: undefined as never } })
  client.on("error", () => {})
  await client.connect()
  return client
}

type Client = Awaited<ReturnType<typeof connect>>
interface Entry {
  readonly id: string
  readonly message: { readonly [name: string]: string }
}

/** Several processes may read for one group. */
const consumer = `bench-${process.pid}`
const blockFor = 5000
const prefetch = 512
const maxUnacked = 1024
const maxUnanswered = 1000

const read = async (
  client: Client,
  topic: string,
  group: string,
  count: number
): Promise<ReadonlyArray<Entry>> => {
  const reply = await client.xReadGroup(group, consumer, { key: topic, id: ">" }, { COUNT: count, BLOCK: blockFor })
  return (reply as unknown as ReadonlyArray<{ readonly messages: ReadonlyArray<Entry> }> | null)?.[0]?.messages ?? []
}

/** Another process may have created it. */
const createGroup = (client: Client, topic: string, group: string) =>
  client.xGroupCreate(topic, group, "0", { MKSTREAM: true }).catch((error: Error) => {
    if (!error.message.startsWith("BUSYGROUP")) throw error
  })

/** A read that was under way when its connection was closed. */
const untilClosed = (loop: Promise<void>): Promise<void> => loop.catch(() => {})

/** The connection may be closed before the last answer, when the server has the acknowledgement. */
const acknowledge = (writer: Client, topic: string, group: string, entries: ReadonlyArray<Entry>): Promise<unknown> =>
  writer.xAck(topic, group, entries.map(({ id }) => id)).catch(() => {})

/**
 * Two connections; the next read is on its way while a batch is handled. `each` gets the entries of one read and calls
 * its second argument when they may be acknowledged, by one command; at most 1024 acknowledgements are unanswered.
 */
const readAhead = async (
  url: string,
  writer: Client,
  topic: string,
  group: string,
  each: (entries: ReadonlyArray<Entry>, ack: (entries: ReadonlyArray<Entry>) => void) => Promise<void> | undefined
): Promise<() => Promise<void>> => {
  const [reader] = await Promise.all([connect(url), createGroup(writer, topic, group)])
  const unacked = new Gate(maxUnacked)
  let closed = false
  let full: Promise<void> | undefined
  const ack = (entries: ReadonlyArray<Entry>) => {
    full = unacked.enter(entries.length)
    void acknowledge(writer, topic, group, entries).then(() => unacked.leave(entries.length))
  }
  const loop = async () => {
    let next = read(reader, topic, group, 256)
    while (!closed) {
      const entries = await next
      next = read(reader, topic, group, 256)
      next.catch(() => {})
      if (entries.length === 0) continue
      const busy = each(entries, ack)
      if (busy !== undefined) await busy
      if (full !== undefined) await full
    }
  }
  void untilClosed(loop())
  return async () => {
    closed = true
    reader.destroy()
  }
}

/** Handlers that wait run in a pool as large as the pipeline's limit. */
const pooled = async (
  url: string,
  writer: Client,
  topic: string,
  group: string,
  concurrency: number,
  work: (entry: Entry) => Promise<void>
): Promise<() => Promise<void>> => {
  const [reader] = await Promise.all([connect(url), createGroup(writer, topic, group)])
  let closed = false
  let wake: (() => void) | undefined
  const pool = makePool<Entry>({
    concurrency,
    prefetch,
    work,
    settle: (entries) => void acknowledge(writer, topic, group, entries),
    refill: () => wake?.()
  })
  const loop = async () => {
    while (!closed) {
      const room = concurrency + prefetch - pool.owned()
      if (room < prefetch / 2) {
        await new Promise<void>((resolve) => wake = resolve)
        continue
      }
      pool.push(await read(reader, topic, group, room))
    }
  }
  void untilClosed(loop())
  return async () => {
    closed = true
    reader.destroy()
  }
}

export const tuned: MakeArm = async (url, spec): Promise<Arm> => {
  const writer = await connect(url)
  return {
    consume: (topic, group, handle) =>
      spec.delay === 0
        ? readAhead(url, writer, topic, group, (entries, ack) => {
          for (const entry of entries) handle(decode(entry.message["body"]!))
          ack(entries)
          return undefined
        })
        : pooled(url, writer, topic, group, spec.concurrency, (entry) => {
          const order = decode(entry.message["body"]!)
          return sleep(spec.delay).then(() => handle(order))
        }),
    close: async () => writer.destroy()
  }
}

/** Adds entries, each once for an id. KEYS: stream, hash of ids. ARGV: milliseconds to keep the ids, then ids and bodies. */
const addOnce = `
for i = 2, #ARGV, 2 do
  if redis.call("HSETNX", KEYS[2], ARGV[i], 1) == 1 then
    redis.call("XADD", KEYS[1], "*", "body", ARGV[i + 1], "content-type", "${contentType}")
  end
end
redis.call("PEXPIRE", KEYS[2], ARGV[1])
return 1`

/** As long as Redis keeps the ids of publishes by a pipeline. */
const deduplication = "120000"

/**
 * Publishes under an id, and acknowledges after the confirmation: chunks of half the concurrency, two of them on their
 * way, each published by one script and acknowledged by one command.
 */
export const to: MakeArm = async (url, spec): Promise<Arm> => {
  const writer = await connect(url)
  const sha = await writer.scriptLoad(addOnce)
  const chunk = Math.max(1, spec.concurrency >> 1)
  return {
    consume(topic, group, handle) {
      const output = outputOf(topic, group)
      const keys = [output, `${output}:ids`]
      const inFlight = new Gate(spec.concurrency)
      const publish = (entries: ReadonlyArray<Entry>, ack: (entries: ReadonlyArray<Entry>) => void) => {
        const args = [deduplication]
        for (const entry of entries) {
          const order = decode(entry.message["body"]!)
          handle(order)
          args.push(entry.id, encode(order))
        }
        const busy = inFlight.enter(entries.length)
        void writer.evalSha(sha, { keys, arguments: args }).then(() => {
          ack(entries)
          inFlight.leave(entries.length)
        })
        return busy
      }
      return readAhead(url, writer, topic, group, async (entries, ack) => {
        for (let from = 0; from < entries.length; from += chunk) {
          const busy = publish(entries.slice(from, from + chunk), ack)
          if (busy !== undefined) await busy
        }
      })
    },
    close: async () => writer.destroy()
  }
}

/** `XADD`, at most 1000 of them unanswered. */
export const publish: MakeArm = async (url): Promise<Arm> => {
  const client = await connect(url)
  return {
    async publish(topic: string, orders: ReadonlyArray<Order>) {
      const gate = new Gate(maxUnanswered)
      const leave = () => gate.leave()
      for (const order of orders) {
        const full = gate.enter()
        void client.sendCommand(["XADD", topic, "*", "body", encode(order), "content-type", contentType]).then(leave)
        if (full !== undefined) await full
      }
      await gate.empty()
    },
    close: async () => client.destroy()
  }
}

/** One message after the other, each acknowledged before the next. */
export const naive: MakeArm = async (url): Promise<Arm> => ({
  async consume(topic, group, handle) {
    const client = await connect(url)
    await createGroup(client, topic, group)
    const loop = async () => {
      for (;;) {
        for (const entry of await read(client, topic, group, 10)) {
          handle(decode(entry.message["body"]!))
          await client.xAck(topic, group, entry.id)
        }
      }
    }
    void untilClosed(loop())
    return async () => client.destroy()
  },
  close: async () => {}
})
