// Runs on Node.js, Bun and Deno: a pipeline with retries on each broker that it is given, then a clean stop.
import { Millrace, Pipeline, Settlement, Topic } from "@millrace/core"
import { JetStream } from "@millrace/nats-jetstream"
import { RedisStreams } from "@millrace/redis-streams"
import { MemoryTransport } from "@millrace/testing"
import { Schema } from "effect"
import process from "node:process"

const Numbers = Topic.make("smoke", { schema: Schema.Number })
const brokers = {
  memory: MemoryTransport.layer(),
  redis: process.env.REDIS_URL && RedisStreams.layer({ url: process.env.REDIS_URL }),
  nats: process.env.NATS_URL && JetStream.layer({ url: process.env.NATS_URL })
}
for (const [name, broker] of Object.entries(brokers)) {
  if (!broker) continue
  let sum = 0
  const adding = Pipeline.from(Numbers, { group: `smoke-${process.pid}` }).pipe(
    Pipeline.tapPromise(async (n, { attempt }) => {
      if (n % 10 === 0 && attempt === 1) throw Settlement.retry("10 millis")
      sum += n
    }),
    Pipeline.concurrency(16)
  )
  const millrace = await Millrace.run(adding, { broker, signals: false })
  await millrace.publishAll(Numbers, Array.from({ length: 200 }, (_, n) => n))
  while ((await millrace.counts()).handled < 200) await new Promise((resolve) => setTimeout(resolve, 5))
  await millrace.stop()
  console.log(`${name}: ${sum}`)
}
process.exit(0)
