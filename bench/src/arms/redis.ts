/**
 * Redis without a framework: `tuned` is the fastest loop we know of, `naive` the first one that comes to mind.
 */
import { createClient } from "redis"
import { type Arm, type MakeArm, sleep } from "../arm.ts"
import { decode } from "../order.ts"
import { makePool } from "../pool.ts"
import { group } from "../spec.ts"

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

const consumer = "bench"
const blockFor = 5000
const prefetch = 512
const mostUnacked = 1024

const read = async (client: Client, topic: string, count: number): Promise<ReadonlyArray<Entry>> => {
  const reply = await client.xReadGroup(group, consumer, { key: topic, id: ">" }, { COUNT: count, BLOCK: blockFor })
  return (reply as unknown as ReadonlyArray<{ readonly messages: ReadonlyArray<Entry> }> | null)?.[0]?.messages ?? []
}

const createGroup = (client: Client, topic: string) => client.xGroupCreate(topic, group, "0", { MKSTREAM: true })

/** A read that was under way when its connection was closed. */
const untilClosed = (loop: Promise<void>): Promise<void> => loop.catch(() => {})

/**
 * Two connections; the next read is on its way while a batch is handled and acknowledged by one command; at most 1024
 * acknowledgements are unanswered.
 */
export const tuned: MakeArm = async (url, spec): Promise<Arm> => {
  const writer = await connect(url)
  return {
    async consume(topic, handle) {
      const [reader] = await Promise.all([connect(url), createGroup(writer, topic)])
      let closed = false
      const loop = async () => {
        let unacked = 0
        let next = read(reader, topic, 256)
        while (!closed) {
          const entries = await next
          next = read(reader, topic, 256)
          next.catch(() => {})
          const ids: Array<string> = []
          for (const entry of entries) {
            handle(decode(entry.message["body"]!))
            ids.push(entry.id)
          }
          if (ids.length === 0) continue
          unacked += ids.length
          const acked = writer.xAck(topic, group, ids).then(() => {
            unacked -= ids.length
          })
          if (unacked > mostUnacked) await acked
        }
      }
      const pooled = async () => {
        let wake: (() => void) | undefined
        const pool = makePool<Entry>({
          concurrency: spec.concurrency,
          prefetch,
          work: (entry) => {
            const order = decode(entry.message["body"]!)
            return sleep(spec.delay).then(() => handle(order))
          },
          settle: (entries) => void writer.xAck(topic, group, entries.map(({ id }) => id)),
          refill: () => wake?.()
        })
        while (!closed) {
          const room = spec.concurrency + prefetch - pool.owned()
          if (room < prefetch / 2) {
            await new Promise<void>((resolve) => wake = resolve)
            continue
          }
          pool.push(await read(reader, topic, room))
        }
      }
      void untilClosed(spec.delay === 0 ? loop() : pooled())
      return async () => {
        closed = true
        reader.destroy()
      }
    },
    close: async () => writer.destroy()
  }
}

/** One message after the other, each acknowledged before the next. */
export const naive: MakeArm = async (url): Promise<Arm> => ({
  async consume(topic, handle) {
    const client = await connect(url)
    await createGroup(client, topic)
    const loop = async () => {
      for (;;) {
        for (const entry of await read(client, topic, 10)) {
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
