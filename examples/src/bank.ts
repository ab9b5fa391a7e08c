/** A bank for the examples: a charge takes 20 ms, and ends when its signal aborts. */
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
  if (order.customer === "nobody") throw new Error("nobody has no account here")
  await setTimeout(20, undefined, { signal })
  return { order: order.id, reference: `bank-${order.id}`, amount: order.total }
}
