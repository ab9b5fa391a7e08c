/**
 * A shop whose orders are not all well: the pipeline of the demo, and the orders it is given.
 */
import { Codec, type Message, Pipeline, Topic } from "@millrace/core"
import { Data, Effect, Random, Schedule, Schema } from "effect"

const Order = Schema.Struct({ id: Schema.String, customer: Schema.String, total: Schema.Finite })
export type Order = typeof Order.Type

export class BankBusy extends Data.TaggedError("BankBusy")<{ readonly attempt: number }> {
  override get message(): string {
    return `the bank was busy at attempt ${this.attempt}`
  }
}

export class AccountClosed extends Data.TaggedError("AccountClosed")<{ readonly customer: string }> {
  override get message(): string {
    return `the account of ${this.customer} is closed`
  }
}

/** What will become of order n. */
export const fateOf = (n: number): "fine" | "malformed" | "fails twice" | "always fails" =>
  n % 50 === 7 ? "malformed" : n % 25 === 3 ? "fails twice" : n % 100 === 42 ? "always fails" : "fine"

const numberOf = (order: Order) => Number(order.id.slice("order-".length))

/** The bank takes 20 to 60 ms. */
const charge = Effect.fnUntraced(function*(order: Order, { attempt }: { readonly attempt: number }) {
  yield* Effect.sleep(yield* Random.nextIntBetween(20, 60))
  const fate = fateOf(numberOf(order))
  if (fate === "always fails") return yield* new AccountClosed({ customer: order.customer })
  if (fate === "fails twice" && attempt <= 2) return yield* new BankBusy({ attempt })
  return order
})

/** After the first attempt. */
export const retries = 3

/** Each run has a topic of its own, so that two on one broker do not take each other's orders. */
export const make = (name: string) => {
  const Orders = Topic.make(name, { schema: Order, key: (order) => order.customer })
  return {
    Orders,
    /** The same topic for a producer who does not keep to the schema. */
    Unchecked: Topic.make(name, { codec: Codec.text }),
    deadLetters: `${name}.dead`,
    payments: (onPaid: (order: Order, message: Message.Message<Order>) => void) =>
      Pipeline.from(Orders, { group: "payments" }).pipe(
        Pipeline.mapEffect(charge),
        Pipeline.map((order, message) => {
          onPaid(order, message)
          return order
        }),
        Pipeline.retry({ times: retries, schedule: Schedule.exponential("100 millis") }),
        Pipeline.deadLetter(`${name}.dead`),
        Pipeline.concurrency(64)
      )
  }
}

/** What the producers send as order n: text, where it is malformed. */
export const order = (n: number): Order | string => {
  const order = { id: `order-${n}`, customer: `customer-${n % 97}`, total: 5 + n % 95 }
  if (fateOf(n) !== "malformed") return order
  return n % 100 === 7 ? `order ${n}, please` : JSON.stringify({ ...order, total: "a lot" })
}
