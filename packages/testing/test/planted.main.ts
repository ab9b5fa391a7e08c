/** Plants one fault into the engine as it is loaded, simulates, and prints the laws that are violated: `planted.main.ts 3`; `none` plants none. */
import { Effect, Schedule, Schema } from "effect"
import { registerHooks } from "node:module"
import process from "node:process"
import { planted } from "./planted.ts"

const fault = planted[Number(process.argv[2])]
let isPlanted = fault === undefined
registerHooks({
  load(url, context, next) {
    const loaded = next(url, context)
    if (fault === undefined || !url.endsWith(`/core/src/internal/${fault.file}`)) return loaded
    const source = String(loaded.source)
    isPlanted = source.split(fault.from).length === 2
    return { ...loaded, source: source.replace(fault.from, () => fault.to) }
  }
})

const { Pipeline, Topic } = await import("@millrace/core")
const { Simulation } = await import("@millrace/testing")

const Events = Topic.make("events", {
  schema: Schema.Struct({ key: Schema.String, n: Schema.Number }),
  key: ({ key }) => key
})
const Done = Topic.make("done", { schema: Schema.Number })
const pipeline = Pipeline.from(Events, { group: "test", drainTimeout: "1 second" }).pipe(
  Pipeline.tap((_, message) => Simulation.trouble(message)),
  Pipeline.map(({ n }) => n),
  Pipeline.to(Done),
  Pipeline.tap((_, message) => Simulation.trouble(message)),
  Pipeline.retry({ times: 3, schedule: Schedule.exponential("1 second", 3).pipe(Schedule.jittered) }),
  Pipeline.concurrency({ max: 4, key: ({ value }) => value.key })
)
const options = {
  values: Array.from({ length: 24 }, (_, n) => ({ key: `k${n % 4}`, n })),
  keepsKeys: true,
  attempts: 4,
  outputOf: ({ body }: { readonly body: Uint8Array }) => new TextDecoder().decode(body)
}
const laws = new Set<string>()
for (let seed = 1; seed <= (fault === undefined ? 50 : 300) && !laws.has(fault?.law ?? ""); seed++) {
  const { violations } = await Effect.runPromise(Simulation.run(Events, pipeline, { ...options, seed }))
  for (const { law } of violations) laws.add(law)
}
if (!isPlanted) throw new Error(`not planted: ${fault?.file} has changed`)
console.log([...laws].join())
