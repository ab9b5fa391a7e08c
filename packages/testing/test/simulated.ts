/** Pipelines that the simulation runs: in its tests, in other processes, and where seeds a minute are measured. */
import { Concurrency, Pipeline, Telemetry, Topic, type Transport } from "@millrace/core"
import { Simulation } from "@millrace/testing"
import { Effect, Schedule, Schema } from "effect"

export const Event = Schema.Struct({ key: Schema.String, n: Schema.Number })
export const Events = Topic.make("events", { schema: Event, key: ({ key }) => key })
const Done = Topic.make("done", { schema: Schema.Number })
export const values = Array.from({ length: 24 }, (_, n) => ({ key: `k${n % 4}`, n }))

export const troubled = Pipeline.from(Events, { group: "test" }).pipe(
  Pipeline.tap((_, message) => Simulation.trouble(message)),
  Pipeline.map(({ n }) => n),
  Pipeline.to(Done)
)
export const policy = { times: 4, schedule: Schedule.exponential("1 second", 3).pipe(Schedule.jittered) }
export const plain = troubled.pipe(Pipeline.retry(policy), Pipeline.concurrency(4))
export const keyed = troubled.pipe(
  Pipeline.retry(policy),
  Pipeline.concurrency({ max: 4, key: ({ value }) => value.key })
)
const batched = troubled.pipe(
  Pipeline.batch({ size: 5, within: "1 second" }, () => Effect.sleep("100 millis")),
  Pipeline.retry(policy),
  Pipeline.concurrency(2)
)
/** All that could read the machine's clocks and random numbers: promises, spans of a part of the traces, an adaptive limit. */
const telling = Pipeline.from(Events, { group: "test" }).pipe(
  Pipeline.mapPromise(async ({ n }) => Promise.resolve(n)),
  Pipeline.tap((_, message) => Simulation.trouble(message)),
  Pipeline.to(Done),
  Pipeline.middleware(Telemetry.spans({ sampleRatio: 0.5 })),
  Pipeline.retry(policy),
  Pipeline.concurrency(Concurrency.makeAdaptive({ max: 4 }))
)

export const outputOf = ({ body }: Transport.Outgoing) => new TextDecoder().decode(body)
export const ofAll = { values, attempts: 5, outputOf }
export const ofKeys = { ...ofAll, keepsKeys: true }

/** One run of a seed, by the kind of its pipeline. */
export const runs = {
  keyed: (seed: number) => Simulation.run(Events, keyed, { ...ofKeys, seed }),
  plain: (seed: number) => Simulation.run(Events, plain, { ...ofAll, seed }),
  batched: (seed: number) => Simulation.run(Events, batched, { ...ofAll, seed }),
  telling: (seed: number) => Simulation.run(Events, telling, { ...ofAll, outputOf: ({ id }) => id, seed })
}
