import { Pipeline, Publisher } from "@millrace/core"
import { Clock, Console, Effect } from "effect"
import { Command, Flag } from "effect/cli"
import * as broker from "./broker.ts"
import { bar, makeDraw, percent, settled, untilSettled } from "./progress.ts"
import { make, Prompts } from "./slowCalls.ts"

const concurrency = Flag.Int("concurrency").pipe(
  Flag.withDescription("How many calls at once"),
  Flag.withDefault(5)
)
const calls = Flag.Int("calls").pipe(Flag.withDefault(50))

const run = Effect.fnUntraced(function*(calls: number, concurrency: number) {
  const draw = yield* makeDraw
  const running = yield* Pipeline.start(make(concurrency))
  let most = 0
  const since = yield* Clock.monotonicTimeNanos
  yield* Publisher.publishAll(Prompts, Array.from({ length: calls }, (_, id) => ({ id, prompt: `question ${id}` })))
  yield* untilSettled(running, calls, (counts) =>
    Effect.gen(function*() {
      const owned = yield* running.owned
      most = Math.max(most, owned.running)
      const fraction = settled(counts) / calls
      const plain = `${counts.handled} of ${calls} answered, ${owned.running} running`
      yield* draw(fraction, { lines: [`${bar(fraction)} ${percent(fraction)}  ${plain}`], plain })
    }))
  const seconds = Number((yield* Clock.monotonicTimeNanos) - since) / 1e9
  const sequential = calls * 0.3
  yield* Console.log(
    `${calls} calls of 300 ms, at most ${most} at once: ${seconds.toFixed(1)} s. One after another they take ` +
      `${sequential.toFixed(1)} s, ${(sequential / seconds).toFixed(1)} times as long.`
  )
})

Command.make(
  "slow-calls",
  { ...broker.flags, concurrency, calls },
  ({ calls, concurrency, ...flags }) =>
    run(calls, concurrency).pipe(
      Effect.scoped,
      Effect.provide(broker.layer(flags, { retention: "until-acked" }))
    )
).pipe(
  Command.withDescription("Makes slow calls, a few at a time"),
  broker.runMain
)
