/**
 * Many subscriptions in one process, with nothing to do.
 */
import { Pipeline } from "@millrace/core"
import * as Effect from "effect/Effect"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Scope from "effect/Scope"
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
const { took } = await start()
// What follows starting is not idleness yet.
await wait(2000)
process.send!({ _tag: "Idle", started: took })
const cpuBefore = process.cpuUsage()
await wait(Number(seconds) * 1000)
const cpu = process.cpuUsage(cpuBefore)
process.send!({ _tag: "Counted", cpu: (cpu.user + cpu.system) / 1e6 / Number(seconds), rss: process.memoryUsage().rss })
process.once("message", () => process.exit())
