/** The payments pipeline with something to do: publishes orders, prints the receipts, and ends when all are settled. */
import { Pipeline, Publisher } from "@millrace/core"
import { Console, Effect } from "effect"
import { Command, Flag } from "effect/cli"
import * as broker from "./broker.ts"
import { Orders, payments, Receipts } from "./payments.ts"
import { untilSettled } from "./progress.ts"

const orders = Flag.Int("orders").pipe(Flag.withDescription("How many orders to publish"), Flag.withDefault(20))

const printReceipts = Pipeline.from(Receipts, { group: "printer" }).pipe(
  Pipeline.tap((receipt) => Console.log(`receipt ${receipt.reference}: ${receipt.paid}`))
)

Command.make("payments", { ...broker.flags, orders }, ({ orders, ...flags }) =>
  Effect.gen(function*() {
    const paying = yield* Pipeline.start(payments)
    const printing = yield* Pipeline.start(printReceipts)
    yield* Console.log(`paying ${orders} orders, ${broker.describe(flags)}`)
    yield* Publisher.publishAll(
      Orders,
      Array.from({ length: orders }, (_, n) => ({ id: `${n}`, customer: `customer-${n % 7}`, total: n % 5 }))
    )
    const paid = yield* untilSettled(paying, orders)
    yield* untilSettled(printing, paid.handled)
    yield* Console.log(`${paid.handled} paid, ${paid.filtered} with nothing to pay`)
  }).pipe(Effect.scoped, Effect.provide(broker.layer(flags)))).pipe(
    Command.withDescription("The program of the README, on the broker of your choice"),
    broker.runMain
  )
