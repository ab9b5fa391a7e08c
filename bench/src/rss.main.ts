/**
 * Consumes a great many messages with a handler that is slower than what publishes them, and tells how much memory that
 * takes.
 */
import { Pipeline, Transport } from "@millrace/core"
import { MemoryTransport } from "@millrace/testing"
import * as Effect from "effect/Effect"
import * as ManagedRuntime from "effect/ManagedRuntime"
import { sleep } from "./arm.ts"
import { quietly, topicOf } from "./arms/millrace.ts"
import { layerOf } from "./layers.ts"
import { bodyOf, contentType } from "./order.ts"
import { type BrokerName, group } from "./spec.ts"

const [broker, url, total, backlog] = process.argv.slice(2) as [BrokerName, string, string, string]
const expected = Number(total)

// Written once, so that its pages do not become resident while messages come.
const seen = new Uint8Array(expected).fill(0)
let handled = 0
let twice = 0

const pipeline = Pipeline.from(topicOf("rss"), { group, startFrom: "beginning" }).pipe(
  Pipeline.mapPromise((order) =>
    sleep(1).then(() => {
      if (seen[order.amount]! > 0) twice++
      else handled++
      seen[order.amount] = 1
    })
  ),
  Pipeline.concurrency(64)
)

/** A producer that is always ahead, where the broker lives in this process. */
const produce = Effect.gen(function*() {
  const encoder = new TextEncoder()
  const headers = { "content-type": contentType }
  for (let sent = 0; sent < expected;) {
    if (sent - handled > Number(backlog)) {
      yield* Effect.sleep(10)
      continue
    }
    const [first, ...rest] = Array.from({ length: Math.min(1000, expected - sent) }, (_, i) => ({
      topic: "rss",
      body: encoder.encode(bodyOf(sent + i, 0, "")),
      headers,
      key: undefined,
      id: undefined,
      delay: undefined
    }))
    yield* Transport.Transport.use((transport) => transport.publish([first!, ...rest]))
    sent += rest.length + 1
    yield* Effect.yieldNow
  }
})

const sample = () =>
  process.send!({ handled, twice, rss: process.memoryUsage().rss, heap: process.memoryUsage().heapUsed })

const runtime = ManagedRuntime.make(
  broker === "memory" ? MemoryTransport.layer({ retention: "until-acked" }) : layerOf(broker, url, "until-acked")
)
await runtime.runPromise(Effect.scoped(Effect.gen(function*() {
  yield* quietly(Pipeline.start(pipeline))
  if (broker === "memory") yield* Effect.forkScoped(produce)
  sample()
  while (handled < expected) {
    yield* Effect.sleep(1000)
    sample()
  }
})))
await runtime.dispose()
process.exit()
