/** A consumer as users write them, that notes in the journal what happens to it. */
import { NodeRuntime } from "@effect/platform-node"
import * as Pipeline from "@millrace/core/Pipeline"
import * as Telemetry from "@millrace/core/Telemetry"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import process from "node:process"
import { done, exitCodeOfKiller, group, jobs, type WorkerOptions } from "./jobs.ts"
import * as Journal from "./journal.ts"
import { layer } from "./target.ts"

class Failed extends Data.TaggedError("Failed") {}

const options: WorkerOptions = JSON.parse(process.argv[2]!)
const journal = Journal.open(options.journal)

// It does not outlive the process that started it.
process.stdin.resume().on("end", () => process.exit(1))

const handled = Pipeline.from(jobs(options.topic), {
  group,
  startFrom: "beginning",
  drainTimeout: options.drainTimeout
}).pipe(
  Pipeline.mapEffect((job, message) =>
    Effect.gen(function*() {
      const { attempt, id, redelivered } = message
      journal.write({ _tag: "Begun", id, key: options.keyed ? job.key : "", attempt, redelivered })
      if (job.kills) process.exit(exitCodeOfKiller)
      yield* Effect.sleep(Math.min(job.work, 5_000))
      if (attempt <= job.failures) return yield* new Failed()
      return job.n
    })
  ),
  Pipeline.to(done(options.topic))
)

const pipeline = (options.earlyAck ? Pipeline.ackPolicy(handled, "on-receive") : handled).pipe(
  options.earlyAck
    ? (self) => self
    : Pipeline.retry({ times: options.retries, schedule: Schedule.spaced("100 millis") }),
  Pipeline.concurrency(
    options.keyed ? { max: options.concurrency, key: (message) => message.key } : options.concurrency
  )
)

const observe = ({ _tag, delivery: { attempt, id } }: Telemetry.Outcome) =>
  journal.write({ _tag: "Ended", id, attempt, outcome: _tag })

Effect.gen(function*() {
  const running = yield* Pipeline.start(pipeline)
  journal.write({ _tag: "Up" })
  return yield* running.await
}).pipe(
  Effect.scoped,
  Effect.provideService(Telemetry.Observer, observe),
  Effect.provide(layer(options.kind, options.url)),
  NodeRuntime.runMain
)
