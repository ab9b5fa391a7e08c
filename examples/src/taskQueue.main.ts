import { Publisher, Transport } from "@millrace/core"
import { MemoryTransport } from "@millrace/testing"
import { Console, Effect, Option, Schedule, Stream } from "effect"
import { Command, Flag } from "effect/cli"
import process from "node:process"
import * as broker from "./broker.ts"
import { bar, makeDraw, percent } from "./progress.ts"
import { Tasks } from "./taskQueue.ts"
import * as workers from "./taskQueue.workers.ts"

const isWorker = Flag.Boolean("worker").pipe(Flag.withHidden, Flag.withDefault(false))
const tasks = Flag.Int("tasks").pipe(Flag.withDescription("How many tasks there are"), Flag.withDefault(120))
const team = Flag.Int("workers").pipe(Flag.withDescription("How many workers share them"), Flag.withDefault(3))

const options: broker.Options = { retention: "until-acked", claimAfter: "2 seconds" }

/** How many tasks the broker still holds. */
const held = Transport.Transport.use(({ browse }) => Stream.runCount(browse(Tasks.name)))

const run = Effect.fnUntraced(function*<E, R>(
  tasks: number,
  team: number,
  start: (worker: number, onDone: workers.OnDone) => Effect.Effect<workers.Worker, E, R>
) {
  const draw = yield* makeDraw
  const timesDone = new Map<number, number>()
  const doneBy = Array.from({ length: team }, () => 0)
  const onDone: workers.OnDone = (worker, task) =>
    Effect.sync(() => {
      timesDone.set(task, (timesDone.get(task) ?? 0) + 1)
      doneBy[worker]!++
    })
  const show = Effect.suspend(() => {
    const fraction = timesDone.size / tasks
    const plain = `${timesDone.size} of ${tasks} tasks done, by worker: ${doneBy.join(", ")}`
    return draw(fraction, { lines: [`${bar(fraction)} ${percent(fraction)}  ${plain}`], plain })
  })
  const until = <E, R>(condition: Effect.Effect<boolean, E, R>) =>
    Effect.andThen(show, condition).pipe(
      Effect.repeat({ until: (holds) => holds, schedule: Schedule.spaced("50 millis") })
    )

  yield* Publisher.publishAll(
    Tasks,
    Array.from({ length: tasks }, (_, id) => ({ id, millis: 50 + id % 5 * 10 }))
  )
  const [first] = yield* Effect.forEach(doneBy, (_, worker) => start(worker, onDone))
  yield* until(Effect.sync(() => doneBy[0]! > 0 && timesDone.size >= tasks / 2))
  yield* first!.crash
  yield* Console.log("worker 0 has crashed; the others get its tasks when it has not been heard of for a while")
  yield* until(Effect.sync(() => timesDone.size >= tasks))
  yield* until(Effect.map(held, (held) => held === 0))

  const again = [...timesDone.values()].filter((times) => times > 1).length
  yield* Console.log(`${timesDone.size} of ${tasks} tasks done, ${again} of them twice; none is left on the broker`)
})

Command.make(
  "task-queue",
  { ...broker.flags, tasks, isWorker, workers: team },
  ({ isWorker, tasks, workers: team, ...flags }) => {
    if (isWorker) return Effect.provide(workers.work, broker.layer(flags, options))
    const inMemory = Option.isNone(flags.redis) && Option.isNone(flags.nats)
    return inMemory
      ? run(tasks, team, workers.asFiber).pipe(
        Effect.scoped,
        Effect.provide(MemoryTransport.layer({ retention: "until-acked", minIdle: "2 seconds" })),
        // The worker that was cut off goes on in vain, and would keep this process from ending.
        Effect.tap(Effect.sync(() => process.exit()))
      )
      : run(tasks, team, (name, onDone) => workers.asProcess(name, flags, onDone)).pipe(
        Effect.scoped,
        Effect.provide(broker.layer(flags, options))
      )
  }
).pipe(
  Command.withDescription("Several workers share a queue, one of them crashes, and no task is lost"),
  broker.runMain
)
