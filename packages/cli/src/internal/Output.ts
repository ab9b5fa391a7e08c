import * as Console from "effect/Console"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import process from "node:process"

/** Where a command writes. */
export interface Output {
  readonly out: (text: string) => Effect.Effect<void>
  readonly error: (text: string) => Effect.Effect<void>
  /** Text that replaces itself, such as a progress bar. Nothing off a terminal. */
  readonly transient: (text: string) => Effect.Effect<void>
  readonly isTerminal: boolean
  readonly hasColor: boolean
}

const hasColor = (): boolean => {
  const { env, stdout } = process
  if (env["NO_COLOR"]) return false
  if (env["FORCE_COLOR"] && env["FORCE_COLOR"] !== "0") return true
  return stdout.isTTY === true && env["TERM"] !== "dumb"
}

export const Output: Context.Reference<Output> = Context.Reference<Output>("@millrace/cli/internal/Output", {
  defaultValue: () => ({
    out: Console.log,
    error: Console.error,
    transient: (text) =>
      process.stderr.isTTY === true ? Effect.sync(() => void process.stderr.write(`\r\u001b[K${text}`)) : Effect.void,
    isTerminal: process.stdout.isTTY === true,
    hasColor: hasColor()
  })
})

/** Lines of a command's result. */
export const lines = (all: ReadonlyArray<string>): Effect.Effect<void> =>
  Effect.flatMap(Output, (output) => output.out(all.join("\n")))

export const json = (value: unknown): Effect.Effect<void> =>
  Effect.flatMap(Output, (output) => output.out(JSON.stringify(value, undefined, output.isTerminal ? 2 : undefined)))

/** A command that ends with a message and an exit code; `message` is one line. */
export class Failure extends Error {
  readonly _tag = "Failure"
  readonly exitCode: number
  constructor(message: string, exitCode: 1 | 2 = 2) {
    super(message)
    this.exitCode = exitCode
  }
}
