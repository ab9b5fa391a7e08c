/**
 * BullMQ, as the outside arm for task queues: jobs that are removed when they are done, which is its fastest setting.
 */
import { Queue, Worker } from "bullmq"
import { type Arm, type MakeArm, sleep } from "../arm.ts"
import type { Order } from "../order.ts"

export const connectionOf = (url: string) => {
  const { hostname, password, port } = new URL(url)
  return { host: hostname, port: Number(port), ...(password === "" ? {} : { password }), maxRetriesPerRequest: null }
}

export const make: MakeArm = async (url, spec): Promise<Arm> => ({
  async consume(topic, _group, handle) {
    const worker = new Worker<Order, void>(
      topic,
      spec.delay === 0
        ? async (job) => handle(job.data)
        : (job) => sleep(spec.delay).then(() => handle(job.data)),
      { connection: connectionOf(url), concurrency: spec.concurrency }
    )
    worker.on("error", () => {})
    await worker.waitUntilReady()
    return () => worker.close(true)
  },
  publish: (topic, orders) => fill(url, topic, orders),
  close: async () => {}
})

const chunk = 1000

export const fill = async (url: string, topic: string, orders: ReadonlyArray<Order>): Promise<void> => {
  const queue = new Queue<Order>(topic, { connection: connectionOf(url) })
  for (let start = 0; start < orders.length; start += chunk) {
    const opts = { removeOnComplete: true, removeOnFail: true }
    await queue.addBulk(orders.slice(start, start + chunk).map((data) => ({ name: "order", data, opts })))
  }
  await queue.close()
}

export const isSettled = async (url: string, topic: string): Promise<() => Promise<boolean>> => {
  const queue = new Queue(topic, { connection: connectionOf(url) })
  return async () => {
    const counts = await queue.getJobCounts("waiting", "active", "delayed", "failed")
    return Object.values(counts).every((count) => count === 0)
  }
}
