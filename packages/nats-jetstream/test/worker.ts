/**
 * A process that works on jobs, for tests that kill it: `worker.ts <url> <file> <what>`. Each job that was handled is a
 * line of the file.
 */
import * as Pipeline from "@millrace/core/Pipeline"
import * as Topic from "@millrace/core/Topic"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { appendFileSync } from "node:fs"
import * as JetStream from "../src/JetStream.ts"

const [url = "", file = "", killer = "-1"] = process.argv.slice(2)

const Jobs = Topic.make("jobs", { schema: Schema.Struct({ n: Schema.Number }) })

Effect.runFork(
  Pipeline.run(
    JetStream.from(Jobs, { group: "workers", startFrom: "beginning", prefetch: 100, ackWait: "1 second" }).pipe(
      Pipeline.mapEffect((job, message) =>
        Effect.gen(function*() {
          if (job.n === Number(killer)) {
            appendFileSync(file, `killed at attempt ${message.attempt}\n`)
            process.kill(process.pid, "SIGKILL")
          }
          yield* Effect.sleep("2 millis")
          appendFileSync(file, `${job.n}\n`)
        })
      ),
      Pipeline.retry({ times: 4, schedule: Schedule.spaced("100 millis") }),
      Pipeline.concurrency(8)
    )
  ).pipe(Effect.provide(JetStream.layer({ url })))
)
