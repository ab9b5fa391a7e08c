import { Pipeline, Topic } from "@millrace/core"
import { Schedule, Schema } from "effect"
import * as bank from "./bank.ts"

const Order = Schema.Struct({ id: Schema.String, customer: Schema.String, total: Schema.Number })
type Order = typeof Order.Type
const Receipt = Schema.Struct({ order: Schema.String, reference: Schema.String, paid: Schema.Number })

export const Orders = Topic.make("orders", { schema: Order, key: (order) => order.customer })
export const Receipts = Topic.make("receipts", { schema: Receipt })

// plain functions, testable without any of this
const isPayable = (order: Order) => order.total > 0
const toReceipt = ({ amount, order, reference }: bank.Payment) => ({ order, reference, paid: amount })
const charge = async (order: Order, { signal }: { signal: AbortSignal }) => toReceipt(await bank.charge(order, signal))

export const payments = Pipeline.from(Orders, { group: "payments" }).pipe(
  Pipeline.filter(isPayable),
  Pipeline.mapPromise(charge),
  Pipeline.to(Receipts),
  // 1, 3, 9 and 27 seconds; jittered: each a little earlier or later, so that many do not come at once
  Pipeline.retry({ times: 4, schedule: Schedule.exponential("1 second", 3).pipe(Schedule.jittered) }),
  Pipeline.deadLetter("orders.dead"),
  // the orders of one customer one after the other, also when one is retried
  Pipeline.concurrency({ max: 64, key: (message) => message.key })
)
