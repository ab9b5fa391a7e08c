import { Pipeline, Publisher } from "@millrace/core"
import { Console, Effect, FileSystem, Option, Redacted, Schedule } from "effect"
import { Command, Flag } from "effect/cli"
import { ChildProcess } from "effect/process"
import * as broker from "./broker.ts"
import { crediting, layerLedger, Ledger, Payments } from "./idempotent.ts"

const isWorker = Flag.Boolean("worker").pipe(Flag.withHidden, Flag.withDefault(false))
const database = Flag.String("database").pipe(
  Flag.withDescription("The SQLite file; a temporary one by default"),
  Flag.optional
)
const payments = Flag.Int("payments").pipe(Flag.withDefault(500))
const kills = Flag.Int("kills").pipe(
  Flag.withDescription("How often the process that credits is killed on its way; none in memory"),
  Flag.withDefault(10)
)

const options: broker.Options = { claimAfter: "2 seconds" }

const untilCredited = (count: number) =>
  Ledger.use(({ totals }) => totals).pipe(
    Effect.repeat({ until: ({ payments }) => payments >= count, schedule: Schedule.spaced("5 millis") })
  )

const run = Effect.fnUntraced(function*<E, R>(count: number, kills: number, start: Effect.Effect<KillMe, E, R>) {
  const cents = Array.from({ length: count }, (_, n) => n + 1)
  yield* Publisher.publishAll(
    Payments,
    cents.map((cents) => ({ account: `account ${cents % 7}`, cents })),
    ({ cents }) => ({ id: `payment ${cents}` })
  )
  for (let i = 1; i <= kills; i++) {
    const worker = yield* start
    yield* untilCredited(Math.floor((count * i) / (kills + 1)))
    yield* worker.kill
  }
  yield* start
  const totals = yield* untilCredited(count)
  const right = cents.reduce((sum, cents) => sum + cents, 0)
  yield* Console.log(
    `${totals.payments} payments, ${kills} kills, ${totals.again} delivered again: ` +
      `${totals.cents} cents of ${right} are credited`
  )
})

interface KillMe {
  readonly kill: Effect.Effect<void>
}

const inThisProcess = Effect.as(Pipeline.start(crediting), { kill: Effect.void })

const inAnother = (flags: broker.Flags, file: string) => {
  const url = (flag: string, value: Option.Option<Redacted.Redacted>) =>
    Option.match(value, { onNone: () => [], onSome: (url) => [flag, Redacted.value(url)] })
  return ChildProcess.make(
    process.execPath,
    [
      new URL(import.meta.url).pathname,
      "--worker",
      "--database",
      file,
      ...url("--redis", flags.redis),
      ...url("--nats", flags.nats)
    ],
    { stderr: "inherit" }
  ).pipe(
    Effect.map((child): KillMe => ({ kill: Effect.orDie(child.kill({ killSignal: "SIGKILL" })) })),
    Effect.orDie
  )
}

const temporary = FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped()).pipe(
  Effect.map((folder) => `${folder}/ledger.db`),
  Effect.orDie
)

Command.make(
  "idempotent",
  { ...broker.flags, isWorker, database, payments, kills },
  ({ database, isWorker, kills, payments, ...flags }) =>
    Effect.gen(function*() {
      const file = yield* Option.match(database, { onNone: () => temporary, onSome: Effect.succeed })
      const inMemory = Option.isNone(flags.redis) && Option.isNone(flags.nats)
      const program = isWorker
        ? Pipeline.run(crediting)
        : inMemory
        ? run(payments, 0, inThisProcess)
        : run(payments, kills, inAnother(flags, file))
      yield* Effect.provide(Effect.scoped(program), [broker.layer(flags, options), layerLedger(file)])
    }).pipe(Effect.scoped)
).pipe(
  Command.withDescription("A process is killed again and again, and every payment is credited once"),
  broker.runMain
)
