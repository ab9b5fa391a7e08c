/** Runs that are judged by their own result. */
import * as Brokers from "@millrace/testing/Brokers"
import * as Effect from "effect/Effect"
import * as References from "effect/References"
import { execFile } from "node:child_process"
import process from "node:process"
import { fileURLToPath } from "node:url"
import { outage } from "./outage.ts"

export interface Program {
  readonly name: string
  readonly broker: string
  readonly does: (times: number) => string
  readonly times: { readonly quick: number; readonly full: number }
  readonly run: (
    times: number
  ) => Effect.Effect<{ readonly found: string; readonly broken: ReadonlyArray<string> }, Brokers.BrokersError>
}

const idempotent = fileURLToPath(new URL("../../examples/src/idempotent.main.ts", import.meta.url))

export const programs: ReadonlyArray<Program> = [
  {
    name: "five minutes without a broker",
    broker: "memory",
    does: (times) => `by the clock of the tests, with ${times.toLocaleString("en")} jobs on their way: no dead letter`,
    times: { quick: 1_000, full: 3_000 },
    run: (times) =>
      Effect.map(
        Effect.provideService(outage(times), References.MinimumLogLevel, "None"),
        (broken) => ({ broken, found: `${times.toLocaleString("en")} jobs, one result each` })
      ).pipe(Effect.orDie)
  },
  {
    name: "idempotent effects",
    broker: "Redis",
    does: (times) => `the example of that name: payments into SQLite, killed ${times} times, and the total is right`,
    times: { quick: 5, full: 100 },
    run: (times) =>
      Effect.gen(function*() {
        const { url } = yield* Brokers.redis({ persistence: "always" })
        const found = yield* Effect.callback<string>((resume) => {
          const args = [idempotent, "--redis", url, "--kills", String(times), "--payments", String(times * 20)]
          execFile(process.execPath, args, (_, stdout, stderr) => resume(Effect.succeed((stdout + stderr).trim())))
        })
        const [, credited, right] = /: (\d+) cents of (\d+) are credited$/.exec(found) ?? []
        return { found, broken: credited !== undefined && credited === right ? [] : [found] }
      }).pipe(Effect.scoped)
  }
]
