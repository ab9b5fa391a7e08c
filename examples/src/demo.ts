/**
 * A few thousand orders through one pipeline, some of them broken: what becomes of each, live and as a table.
 */
import { DeadLetter, Pipeline, Publisher } from "@millrace/core"
import { Clock, Console, Effect, Option, Stream } from "effect"
import { Command, Flag } from "effect/cli"
import { styleText } from "node:util"
import * as broker from "./broker.ts"
import * as shop from "./demo/shop.ts"
import * as summary from "./demo/summary.ts"
import * as view from "./demo/view.ts"
import { makeDraw, settled, untilSettled } from "./progress.ts"

const orders = Flag.Int("orders").pipe(
  Flag.withDescription("How many orders to publish"),
  Flag.filter((n) => n >= 100 && n <= 1_000_000, () => "give 100 to 1,000,000 orders"),
  Flag.withDefault(3_000)
)
const rate = Flag.Int("rate").pipe(
  Flag.withDescription("Orders published a second"),
  Flag.filter((n) => n >= 1 && n <= 1_000_000, () => "give 1 to 1,000,000 a second"),
  Flag.withDefault(750)
)

const now = Effect.map(Clock.monotonicTimeNanos, (nanos) => Number(nanos) / 1e6)

const run = Effect.fnUntraced(function*(
  { flags, orders, rate }: { readonly flags: broker.Flags; readonly orders: number; readonly rate: number }
) {
  const clock = yield* Clock.clockWith(Effect.succeed)
  const topic = `demo-${clock.currentTimeMillisUnsafe().toString(36)}`
  const { Orders, Unchecked, deadLetters, payments } = shop.make(topic)

  const publishedAt = new Map<string, number>()
  const latencies: Array<number> = []
  let paidByRetry = 0
  const running = yield* Pipeline.start(payments((order, { attempt }) => {
    latencies.push(Number(clock.monotonicTimeNanosUnsafe()) / 1e6 - publishedAt.get(order.id)!)
    if (attempt > 1) paidByRetry++
  }))

  yield* Console.log(
    `${styleText("bold", `Millrace, ${broker.describe(flags)}`)}: ${view.count(orders)} orders, ${
      view.count(rate)
    } a second. ` +
      "Paying one takes 20 to 60 ms, 64 run at a time.\n" +
      `Some are malformed, some fail twice, some always. A failure is retried ${shop.retries} times, then dead-lettered.\n`
  )
  const since = yield* now
  const publish = Effect.gen(function*() {
    for (let sent = 0; sent < orders;) {
      const due = Math.min(orders, Math.ceil(((yield* now) - since + tick) * rate / 1000))
      const batch = Array.from({ length: due - sent }, (_, i) => shop.order(sent + i))
      const at = yield* now
      const wellFormed = batch.filter((order) => typeof order !== "string")
      for (const { id } of wellFormed) publishedAt.set(id, at)
      yield* Publisher.publishAll(Orders, wellFormed)
      yield* Publisher.publishAll(Unchecked, batch.filter((order) => typeof order === "string"))
      sent = due
      yield* Effect.sleep(tick)
    }
  })
  const draw = yield* makeDraw
  const look = view.make(orders)
  const watch = untilSettled(running, orders, (counts) =>
    Effect.gen(function*() {
      const owned = yield* running.owned
      yield* draw(settled(counts) / orders, look(counts, owned.running, (yield* now) - since))
    }))
  const [counts] = yield* Effect.all([watch, publish], { concurrency: 2 })
  const elapsed = (yield* now) - since

  const letters = yield* Stream.runCollect(DeadLetter.list(deadLetters))
  yield* Console.log(`\n${summary.table({ published: orders, counts, paidByRetry, latencies, elapsed }, letters)}`)
  const failed = letters.find(({ record }) => record.reason === "exhausted")
  if (failed !== undefined) {
    yield* Console.log(`\nOne of the ${letters.length} dead letters in ${deadLetters}:\n\n${summary.letter(failed)}`)
  }
  if (Option.isNone(flags.redis) && Option.isNone(flags.nats)) {
    yield* Console.log(
      "\nThe same on a real broker:\n\n" +
        "  npx -y pnpm@12 demo --redis redis://localhost:6379\n" +
        "  npx -y pnpm@12 demo --nats nats://localhost:4222"
    )
  } else {
    yield* Console.log(`\nLeft on the broker: ${topic}, now empty, and ${deadLetters}.`)
  }
})

/** Between two batches of a producer, in milliseconds. */
const tick = 20

Command.make(
  "demo",
  { ...broker.flags, orders, rate },
  ({ orders, rate, ...flags }) =>
    run({ flags, orders, rate }).pipe(
      Effect.scoped,
      Effect.provide(broker.layer(flags, { retention: "until-acked" }))
    )
).pipe(
  Command.withDescription("Runs orders through a pipeline and shows what became of them"),
  broker.runMain
)
