/**
 * The command `millrace`: operates pipelines on any broker, without their code.
 *
 * @since 0.1.0
 */
import * as CliConfig from "effect/cli/CliConfig"
import * as CliError from "effect/cli/CliError"
import * as CliOutput from "effect/cli/CliOutput"
import * as Command from "effect/cli/Command"
import * as GlobalFlag from "effect/cli/GlobalFlag"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as asyncapi from "./internal/commands/asyncapi.ts"
import * as dead from "./internal/commands/dead.ts"
import * as doctor from "./internal/commands/doctor.ts"
import * as inspect from "./internal/commands/inspect.ts"
import * as publish from "./internal/commands/publish.ts"
import * as show from "./internal/commands/show.ts"
import * as tail from "./internal/commands/tail.ts"
import * as view from "./internal/commands/view.ts"
import { Failure, Output } from "./internal/Output.ts"
import { connectedBy, millrace } from "./internal/target.ts"
import { clean, width, wrap } from "./internal/text.ts"
import { version } from "./internal/version.ts"

const command = millrace.pipe(
  Command.withHandler((flags) => connectedBy(flags)(inspect.inspect([], false))),
  Command.withDescription(
    "Operate Millrace pipelines on Redis Streams, Valkey and NATS JetStream. " +
      "Exit codes: 0 fine, 1 the answer is no, 2 the question could not be asked"
  ),
  Command.withExamples([
    { command: "millrace --redis redis://localhost:6379", description: "Topics and groups" },
    { command: "millrace doctor --nats nats://localhost:4222", description: "What is dangerous there" }
  ]),
  Command.withSubcommands([
    inspect.command,
    inspect.lagCommand,
    show.command,
    tail.command,
    publish.command,
    dead.command,
    doctor.command,
    asyncapi.command,
    view.command
  ])
)

/** Help goes to the output, a mistake is one line. */
const presenter: CliOutput.Presenter = {
  present: (event) =>
    Effect.gen(function*() {
      const { error, out } = yield* Output
      const formatter = CliOutput.defaultFormatter({ colors: false })
      if (event._tag === "Version") yield* out(version)
      else if (event._tag === "Help") yield* out(fit(formatter.formatHelpDoc(event.helpDoc)))
      else {
        const [first] = event.errors
        yield* error(
          `millrace: ${oneLine(withoutAddress(first?.message ?? "this is no command"))}; see ${
            event.commandPath.join(" ")
          } --help`
        )
      }
    })
}

/** An address that stands where none belongs may hold a password. */
const withoutAddress = (text: string): string => text.replace(/\b([a-z][a-z0-9+.-]*:\/\/)[^\s"']+/gi, "$1<redacted>")

const oneLine = (text: string): string => clean(text.replace(/\s+/g, " ").trim())

/** Breaks long lines of help below the place where their last column begins. */
const fit = (help: string): string =>
  help.split("\n").flatMap((line) => {
    if (line.length <= width) return [line]
    const [, left = "", right = line] = /^(\s*(?:\S+ )*\S*\s{2,})(.*)$/.exec(line) ?? []
    return wrap(right, left.length).map((part, i) => i === 0 ? left + part.trimStart() : part)
  }).join("\n")

const messageOf = (error: unknown): string => error instanceof Error ? error.message : String(error)

/**
 * Runs the command with its arguments, without the program's own name. Gives the exit code: 0 fine, 1 the answer is no
 * (a check failed, nothing is there), 2 the question could not be asked (a mistake in the arguments, no broker). An
 * interruption closes connections and ends the Effect as interrupted.
 *
 * @category running
 * @since 0.1.0
 */
export const run = (args: ReadonlyArray<string>): Effect.Effect<number, never, Command.Environment> =>
  Effect.gen(function*() {
    const exit = yield* Effect.exit(Command.runWith(command, { version })(args))
    if (Exit.isSuccess(exit)) return 0
    const { error } = yield* Output
    for (const reason of exit.cause.reasons) {
      if (reason._tag === "Interrupt") return yield* Effect.interrupt
      const failure = reason._tag === "Fail" ? reason.error : reason.defect
      if (CliError.isCliError(failure) && failure._tag === "ShowHelp") return failure.errors.length === 0 ? 0 : 2
      const message = messageOf(failure)
      if (message !== "") yield* error(`millrace: ${oneLine(message)}`)
      return failure instanceof Failure ? failure.exitCode : 2
    }
    return 2
  }).pipe(Effect.provide(Layer.mergeAll(
    CliOutput.layerPresenter(presenter),
    Logger.layer([]),
    Layer.succeed(CliConfig.CliConfig, { builtIns: [GlobalFlag.Help, GlobalFlag.Version, GlobalFlag.Completions] })
  )))
