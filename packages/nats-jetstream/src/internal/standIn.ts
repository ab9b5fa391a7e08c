import type { Delivery, Subscription, Transport } from "@millrace/core/Transport"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"

type Service = Transport["Service"]

const standIns = new WeakSet<object>()

/** Whether a JetStream service stands on another broker: it has no client. */
export const isStandIn = (service: object): boolean => standIns.has(service)

export const markStandIn = (service: object): void => void standIns.add(service)

/** Names the subject of a message that a test publishes; `TestHarness` writes it. */
const subjectHeader = "millrace-subject"

/** Another broker, for tests: a message that names a subject was published on that one. */
export const standIn = (transport: Service): Service => ({
  ...transport,
  subscribe: (options) => Effect.map(transport.subscribe(options), onSubjects)
})

const onSubjects = (subscription: Subscription): Subscription => {
  const ours = new WeakMap<Delivery, Delivery>()
  const theirs = new WeakMap<Delivery, Delivery>()
  const arrived = (delivery: Delivery): Delivery => {
    const subject = delivery.headers[subjectHeader]
    if (subject === undefined) return delivery
    const renamed: Delivery = Object.create(delivery, { topic: { value: subject } })
    ours.set(delivery, renamed)
    theirs.set(renamed, delivery)
    return renamed
  }
  const back = (delivery: Delivery) => theirs.get(delivery) ?? delivery
  const again = (deliveries: ReadonlyArray<Delivery>) => deliveries.map((delivery) => ours.get(delivery) ?? delivery)
  return {
    ...subscription,
    pull: (demand) => Effect.map(subscription.pull(demand), Arr.map(arrived)),
    settle: (batch) =>
      Effect.map(
        subscription.settle(Arr.map(batch, ({ delivery, settlement }) => ({ delivery: back(delivery), settlement }))),
        again
      ),
    extend: (deliveries) => Effect.map(subscription.extend(Arr.map(deliveries, back)), again),
    begin: (delivery) => subscription.begin(back(delivery))
  }
}
