/** A bank for the examples: it takes 20 ms, and gives up when its signal aborts. */
import { setTimeout } from "node:timers/promises"

export interface Payment {
  readonly order: string
  readonly reference: string
  readonly amount: number
}

export const charge = async (
  order: { readonly id: string; readonly customer: string; readonly total: number },
  signal: AbortSignal
): Promise<Payment> => {
  await setTimeout(20, undefined, { signal })
  if (order.customer === "nobody") throw new Error("nobody has no account here")
  return { order: order.id, reference: `bank-${order.id}`, amount: order.total }
}
