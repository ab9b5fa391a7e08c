/**
 * The bare loop that the broker in memory is compared with: a log, a map of what is pending, a turn of the event loop
 * between batches.
 */
import { type Arm, type MakeArm, sleep } from "../arm.ts"
import { decodeBytes } from "../order.ts"
import { makePool } from "../pool.ts"

/** What was published, by topic. */
export const logs = new Map<string, ReadonlyArray<Uint8Array>>()

/** What is pending, by topic. */
export const pending = new Map<string, Map<string, Uint8Array>>()

const batch = 256
const prefetch = 512

export const bare: MakeArm = async (_url, spec): Promise<Arm> => ({
  async consume(topic, _group, handle) {
    const log = logs.get(topic)!
    const owned = new Map<string, Uint8Array>()
    pending.set(topic, owned)
    let next = 0
    const take = (count: number): ReadonlyArray<readonly [string, Uint8Array]> => {
      const taken: Array<readonly [string, Uint8Array]> = []
      while (taken.length < count && next < log.length) {
        const id = String(next)
        const body = log[next++]!
        owned.set(id, body)
        taken.push([id, body])
      }
      return taken
    }
    const loop = () => {
      for (const [id, body] of take(batch)) {
        handle(decodeBytes(body))
        owned.delete(id)
      }
      if (next < log.length) setImmediate(loop)
    }
    const pool = makePool<readonly [string, Uint8Array]>({
      concurrency: spec.concurrency,
      prefetch,
      work: ([, body]) => {
        const order = decodeBytes(body)
        return sleep(spec.delay).then(() => handle(order))
      },
      settle: (items) => {
        for (const [id] of items) owned.delete(id)
      },
      refill: () => setImmediate(refill)
    })
    const refill = () => pool.push(take(spec.concurrency + prefetch - pool.owned()))
    setImmediate(spec.delay === 0 ? loop : refill)
    return async () => {}
  },
  close: async () => {}
})
