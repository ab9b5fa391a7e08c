/** Runs the scenarios: `pnpm test:faults [--quick] [--only text] [--on text]`. `MILLRACE_DOCS=1` writes docs/faults.md. */
import { NodeRuntime, NodeServices } from "@effect/platform-node"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as References from "effect/References"
import * as fs from "node:fs"
import process from "node:process"
import { programs } from "./programs.ts"
import * as report from "./report.ts"
import { run, scenarios } from "./scenarios.ts"

const quick = Flag.Boolean("quick").pipe(
  Flag.withDescription("Each scenario once, with small counts"),
  Flag.withDefault(false)
)
const only = Flag.String("only").pipe(Flag.withDescription("Scenarios whose name has this in it"), Flag.withDefault(""))
const on = Flag.String("on").pipe(Flag.withDescription("Brokers whose name has this in it"), Flag.withDefault(""))

const runAll = Effect.fnUntraced(function*(quick: boolean, only: string, on: string) {
  const rows: Array<report.Row> = []
  const command = `pnpm test:faults${quick ? " --quick" : ""}`
  const ended = Effect.fnUntraced(function*(row: report.Row, since: number, folder?: string) {
    rows.push(row)
    yield* Console.log(report.line(row, (performance.now() - since) / 1000))
    if (row.broken.length > 0) yield* Console.log(report.complaint(row.broken, folder))
    else if (folder !== undefined) fs.rmSync(folder, { recursive: true })
    if (process.env["MILLRACE_DOCS"] === "1") report.writeDocs(rows, command, only + on !== "")
  })
  for (const scenario of scenarios.filter(({ name }) => name.includes(only))) {
    const times = quick ? scenario.times.quick : scenario.times.full
    // Some are in the full run only, unless they are asked for.
    if (times === 0 && only === "") continue
    yield* Effect.forEach(
      scenario.targets.filter(({ server }) => server.includes(on)),
      (target) =>
        Effect.gen(function*() {
          const since = performance.now()
          const { broken, broker, folder, verdict } = yield* run(scenario, target, Math.max(1, times))
          yield* ended({ name: scenario.name, does: scenario.does(times), broker, broken, verdict }, since, folder)
        }),
      { concurrency: scenario.isTimed === true ? 1 : 2, discard: true }
    )
  }
  for (
    const program of programs.filter(({ broker, name }) => name.includes(only) && broker.toLowerCase().includes(on))
  ) {
    const since = performance.now()
    const times = quick ? program.times.quick : program.times.full
    const { broken, found } = yield* program.run(times)
    const { broker, name } = program
    yield* ended({ name, does: program.does(times), broker, broken, found }, since)
  }
  const failed = rows.filter(({ broken }) => broken.length > 0).length
  yield* Console.log(`${rows.length} runs, ${failed} broken`)
  if (failed > 0) process.exitCode = 1
})

Command.make("faults", { quick, only, on }, ({ on, only, quick }) => runAll(quick, only, on)).pipe(
  Command.withDescription("Real consumers and real brokers, and what goes wrong with them"),
  Command.run({ version: "0.1.0" }),
  // What transports say about their troubles is no news here.
  Effect.provideService(References.MinimumLogLevel, "Error"),
  Effect.provide(NodeServices.layer),
  NodeRuntime.runMain
)
