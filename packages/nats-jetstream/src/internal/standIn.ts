import * as Settlement from "@millrace/core/Settlement"
import type { Delivery, SubscribeOptions, Subscription, Transport } from "@millrace/core/Transport"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { covers } from "./names.ts"
import * as settings from "./settings.ts"

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
  subscribe: (options) => Effect.map(transport.subscribe(options), (subscription) => onSubjects(subscription, options))
})

/** What the server would give a consumer: a stream that is read by its name is read whole. */
const filtersOf = ({ settings: given, topic }: SubscribeOptions): ReadonlyArray<string> =>
  Context.get(given, settings.Subjects) ?? (Context.get(given, settings.StreamName) === undefined ? [topic] : [">"])

const onSubjects = (subscription: Subscription, options: SubscribeOptions): Subscription => {
  const filters = filtersOf(options)
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
  const isMatching = ({ headers }: Delivery) => {
    const subject = headers[subjectHeader]
    return subject === undefined || filters.some((filter) => covers(filter, subject))
  }
  // The group on the other broker has them, so they are acknowledged. One that is not comes again.
  const leaveOut = (others: Arr.NonEmptyReadonlyArray<Delivery>) =>
    Effect.ignore(subscription.settle(Arr.map(others, (delivery) => ({ delivery, settlement: Settlement.ack }))))
  const back = (delivery: Delivery) => theirs.get(delivery) ?? delivery
  const again = (deliveries: ReadonlyArray<Delivery>) => deliveries.map((delivery) => ours.get(delivery) ?? delivery)
  return {
    ...subscription,
    pull: (demand) =>
      Effect.uninterruptibleMask((restore) => {
        const next: ReturnType<Subscription["pull"]> = Effect.flatMap(restore(subscription.pull(demand)), (all) => {
          const matching = all.filter(isMatching)
          const others = all.filter((delivery) => !isMatching(delivery))
          const pulled = Arr.isArrayNonEmpty(matching) ? Effect.succeed(Arr.map(matching, arrived)) : next
          return Arr.isArrayNonEmpty(others) ? Effect.andThen(leaveOut(others), pulled) : pulled
        })
        return next
      }),
    settle: (batch) =>
      Effect.map(
        subscription.settle(Arr.map(batch, ({ delivery, settlement }) => ({ delivery: back(delivery), settlement }))),
        again
      ),
    extend: (deliveries) => Effect.map(subscription.extend(Arr.map(deliveries, back)), again),
    begin: (delivery) => subscription.begin(back(delivery))
  }
}
