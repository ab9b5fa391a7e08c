/**
 * Many subscriptions in one process, with nothing to do.
 */
import { Pipeline } from "@millrace/core"
import * as Effect from "effect/Effect"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Scope from "effect/Scope"
import { flushCompileCache } from "node:module"
import { setTimeout as wait } from "node:timers/promises"
import { quietly, topicOf } from "./arms/millrace.ts"
import { layerOf } from "./layers.ts"
import { group } from "./spec.ts"

const [broker, url, count, seconds] = process.argv.slice(2) as ["redis" | "jetstream", string, string, string]

const runtime = ManagedRuntime.make(layerOf(broker, url))
await runtime.context()
const pipelines = Array.from(
  { length: Number(count) },
  (_, index) => Pipeline.map(Pipeline.from(topicOf(`idle${index}`), { group }), () => {})
)
const start = async () => {
  const scope = Scope.makeUnsafe()
  const since = performance.now()
  await runtime.runPromise(
    Effect.forEach(pipelines, (pipeline) => Pipeline.start(pipeline), { concurrency: "unbounded", discard: true }).pipe(
      Scope.provide(scope),
      quietly
    )
  )
  return { took: performance.now() - since, scope }
}
flushCompileCache()
const { took } = await start()
// Starting has an aftermath, which is not idleness.
if (Number(seconds) > 0) await wait(1500)
process.send!({ _tag: "Idle", started: took })
const cpu: Array<number> = []
for (let second = 0; second < Number(seconds); second++) {
  const before = process.cpuUsage()
  await wait(1000)
  const { system, user } = process.cpuUsage(before)
  cpu.push((user + system) / 1e6)
}
process.send!({ _tag: "Counted", cpu, rss: process.memoryUsage().rss })
process.once("message", () => process.exit())
