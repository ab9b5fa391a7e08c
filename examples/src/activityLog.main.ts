import { Pipeline, Publisher } from "@millrace/core"
import { Console, Effect } from "effect"
import { Command, Flag } from "effect/cli"
import { Activities, ActivityStore, layerStore, writer } from "./activityLog.ts"
import * as broker from "./broker.ts"
import { bar, makeDraw, percent, settled, untilSettled } from "./progress.ts"

const part = Flag.Literals("part", ["all", "produce", "write"]).pipe(
  Flag.withDescription("What this process does; one that only writes does so until it is stopped"),
  Flag.withDefault("all")
)
const database = Flag.String("database").pipe(Flag.withDescription("The SQLite file"), Flag.withDefault(":memory:"))
const producers = Flag.Int("producers").pipe(Flag.withDefault(20))
const each = Flag.Int("each").pipe(Flag.withDescription("Activities of each producer"), Flag.withDefault(250))

const actions = ["login", "search", "view", "buy", "logout"]

/** Producers run side by side; each appends one activity after the other. */
const produce = (producers: number, each: number) =>
  Effect.forEach(
    Array.from({ length: producers }, (_, user) => user),
    (user) =>
      Effect.forEach(
        Array.from({ length: each }, (_, n) => n),
        (n) => Publisher.publish(Activities, { user_id: user, action: actions[n % actions.length]! }),
        { discard: true }
      ),
    { concurrency: "unbounded", discard: true }
  )

const all = Effect.fnUntraced(function*(producers: number, each: number) {
  const total = producers * each
  const draw = yield* makeDraw
  const writing = yield* Pipeline.start(writer)
  yield* Console.log(`${producers} producers append ${each} activities each`)
  yield* Effect.all([
    produce(producers, each),
    untilSettled(writing, total, (counts) => {
      const fraction = settled(counts) / total
      const plain = `${counts.handled} written`
      return draw(fraction, { lines: [`${bar(fraction)} ${percent(fraction)}  ${plain}`], plain })
    })
  ], { concurrency: 2 })
  yield* Console.log(`${yield* ActivityStore.use(({ count }) => count)} activities in the database`)
})

Command.make(
  "activity-log",
  { ...broker.flags, part, database, producers, each },
  ({ database, each, part, producers, ...flags }) =>
    (part === "produce"
      ? Effect.andThen(produce(producers, each), Console.log(`${producers * each} activities appended`))
      : part === "write"
      ? Effect.andThen(Console.log("writing"), Pipeline.run(writer))
      : all(producers, each)).pipe(
        Effect.scoped,
        Effect.provide([broker.layer(flags, { claimAfter: "2 seconds" }), layerStore(database)])
      )
).pipe(
  Command.withDescription("Many producers append, one group writes batches to SQLite"),
  broker.runMain
)
