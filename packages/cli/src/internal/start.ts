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

const written = (stream: NodeJS.WriteStream): Promise<void> =>
  new Promise((resolve) => stream.write("", () => resolve()))

/**
 * Ends the process once the output is written. A client library may leave a socket open after a connection that was
 * never answered, and the process would wait for that socket.
 */
const end = async (code: number): Promise<never> => {
  await Promise.all([written(process.stdout), written(process.stderr)])
  return process.exit(code)
}

/** Runs the command as this process. */
export const start = (args: ReadonlyArray<string>): void => {
  exitAtSecondSignal()
  let code = interrupted
  Effect.raceFirst(run(args), closed).pipe(
    Effect.tap((answer) => Effect.sync(() => void (code = answer))),
    Effect.provide(NodeServices.layer),
    NodeRuntime.runMain({ disableErrorReporting: true, teardown: () => void end(code) })
  )
}
