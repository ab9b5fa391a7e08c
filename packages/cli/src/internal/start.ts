import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Effect from "effect/Effect"
import process from "node:process"
import { run } from "../Cli.ts"

/** As a shell reports a program that SIGPIPE has ended. */
const pipeClosed = 141

const interrupted = 130

/** Whoever reads the output is gone, as `head` is after ten lines: what runs is ended like by an interruption. */
const closed = Effect.callback<number>((resume) => {
  // The listeners stay: what is still being written must not end the process with a stack trace.
  for (const stream of [process.stdout, process.stderr]) {
    stream.on("error", () => resume(Effect.succeed(pipeClosed)))
  }
})

/** A second signal does not wait for the end of the step that the first one has interrupted. */
const exitAtSecondSignal = (): void => {
  let signals = 0
  const count = () => {
    if (++signals > 1) process.exit(interrupted)
  }
  process.on("SIGINT", count).on("SIGTERM", count)
}

/** Runs the command as this process. */
export const start = (args: ReadonlyArray<string>): void => {
  exitAtSecondSignal()
  Effect.raceFirst(run(args), closed).pipe(
    Effect.tap((code) => Effect.sync(() => void (process.exitCode = code))),
    Effect.provide(NodeServices.layer),
    NodeRuntime.runMain({ disableErrorReporting: true })
  )
}
