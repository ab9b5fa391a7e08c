import type { Order } from "./order.ts"
import type { Spec } from "./spec.ts"

/** A way to do the work of a pass, under measurement. */
export interface Arm {
  /** Begins to consume a topic from its beginning; gives a function that ends it. */
  readonly consume?: (topic: string, group: string, handle: (order: Order) => void) => Promise<() => Promise<void>>
  /** Publishes all of them and waits for the confirmations. */
  readonly publish?: (topic: string, orders: ReadonlyArray<Order>) => Promise<void>
  readonly close: () => Promise<void>
}

export type MakeArm = (url: string, spec: Spec) => Promise<Arm>

export const sleep = (millis: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, millis))
