/** Transports that are broken in one way each: the conformance suite must notice every one of them. */
import { NotSent, PublishError } from "@millrace/core/Publisher"
import * as Settlement from "@millrace/core/Settlement"
import type {
  Delivery,
  Demand,
  Outgoing,
  Settling,
  SubscribeOptions,
  Subscription,
  Transport
} from "@millrace/core/Transport"
import { TransportError, Unreachable } from "@millrace/core/TransportError"
import * as Arr from "effect/Array"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"

type TransportService = Transport["Service"]
type Deliveries = Arr.NonEmptyReadonlyArray<Delivery>
type Batch = Arr.NonEmptyReadonlyArray<Settling>

export interface Mutant {
  /** What it does wrong. */
  readonly name: string
  readonly law: string
  /** The tests that must fail on it; others may too. */
  readonly caughtBy: ReadonlyArray<string>
  readonly mutate: (transport: TransportService, broker: Broker) => TransportService
  /** What connecting to nobody gives, where it is that which is wrong. */
  readonly unreachable?: Effect.Effect<never, unknown>
}

/** What all connections to one broker know. */
export interface Broker {
  /** Who was given a message last. */
  readonly owners: Map<string, Owned>
  /** How often it was restarted, or its connections cut. */
  strikes: number
}

interface Owned {
  readonly subscription: Subscription
  readonly delivery: Delivery
}

// --- how they are made

const subscribing = (
  change: (subscription: Subscription, options: SubscribeOptions, transport: TransportService) => Partial<Subscription>
) =>
(transport: TransportService): TransportService => ({
  ...transport,
  subscribe: (options) =>
    Effect.map(transport.subscribe(options), (subscription) => ({
      ...subscription,
      ...change(subscription, options, transport)
    }))
})

const wishing =
  (change: (options: SubscribeOptions) => SubscribeOptions) => (transport: TransportService): TransportService => ({
    ...transport,
    subscribe: (options) => transport.subscribe(change(options))
  })

const publishing = (change: (message: Outgoing) => Outgoing) => (transport: TransportService): TransportService => ({
  ...transport,
  publish: (messages) => transport.publish(Arr.map(messages, change))
})

const settling = (change: (settling: Settling) => Settling | undefined) =>
  subscribing((subscription) => ({
    settle: (batch) => settle(subscription, batch.flatMap((settling) => change(settling) ?? []))
  }))

const settle = (subscription: Subscription, batch: ReadonlyArray<Settling>) =>
  Effect.suspend(() => Arr.isReadonlyArrayNonEmpty(batch) ? subscription.settle(batch) : Effect.succeed([]))

/** Shows each delivery with something changed. */
const disguising = (
  change: (delivery: Delivery, count: (id: string) => number, now: number) => Partial<Delivery>
) =>
  subscribing((subscription) => {
    const worn = new Map<Delivery, Delivery>()
    const bare = new Map<Delivery, Delivery>()
    const counts = new Map<string, number>()
    const count = (id: string) => {
      const n = (counts.get(id) ?? 0) + 1
      counts.set(id, n)
      return n
    }
    const wear = (now: number) => (delivery: Delivery): Delivery => {
      const properties = Object.entries(change(delivery, count, now)).map((
        [name, value]
      ) => [name, { value, enumerable: true }])
      const disguised: Delivery = Object.create(delivery, Object.fromEntries(properties))
      worn.set(delivery, disguised)
      bare.set(disguised, delivery)
      return disguised
    }
    const undress = (delivery: Delivery) => bare.get(delivery) ?? delivery
    const dress = (deliveries: ReadonlyArray<Delivery>) => deliveries.map((delivery) => worn.get(delivery) ?? delivery)
    return {
      pull: (demand) =>
        Effect.flatMap(
          subscription.pull(demand),
          (deliveries) => Effect.map(Clock.currentTimeMillis, (now) => Arr.map(deliveries, wear(now)))
        ),
      settle: (batch) =>
        Effect.suspend(() =>
          Effect.map(
            subscription.settle(
              Arr.map(batch, ({ delivery, settlement }) => ({ delivery: undress(delivery), settlement }))
            ),
            dress
          )
        ),
      extend: (deliveries) => Effect.map(subscription.extend(Arr.map(deliveries, undress)), dress),
      begin: (delivery) => subscription.begin(undress(delivery))
    }
  })

/** Knows who was given a message last, whichever connection that was. */
const owning = (
  change: (subscription: Subscription, current: (delivery: Delivery) => Owned | undefined) => Partial<Subscription>
) =>
(transport: TransportService, { owners }: Broker): TransportService =>
  subscribing((subscription, { group, topic }) => {
    const key = (delivery: Delivery) => `${topic}\n${group}\n${delivery.id}`
    return {
      pull: (demand) =>
        Effect.tap(
          subscription.pull(demand),
          (deliveries) =>
            Effect.sync(() => deliveries.forEach((delivery) => owners.set(key(delivery), { subscription, delivery })))
        ),
      ...change(subscription, (delivery) => owners.get(key(delivery)))
    }
  })(transport)

const is = (tag: Settlement.Settlement["_tag"]) => ({ settlement }: Settling) => settlement._tag === tag

const delaying = (change: (millis: number) => number) =>
  settling(({ delivery, settlement }) => ({
    delivery,
    settlement: settlement._tag === "Retry"
      ? Settlement.retry(change(Duration.toMillis(settlement.after ?? 0))).settlement
      : settlement
  }))

const more = (demand: Demand, change: (n: number) => number): Demand => ({
  ...demand,
  total: change(demand.total),
  fresh: change(demand.fresh)
})

const isDead = ({ topic }: Outgoing) => topic.endsWith(".dead") || topic.endsWith(".buried")

// --- the mutants

export const mutants: ReadonlyArray<Mutant> = [
  {
    name: "acknowledges before the work is done",
    law: "law 1",
    caughtBy: ["S1", "S8", "R2", "P5"],
    mutate: subscribing((subscription) => ({
      pull: (demand) =>
        Effect.tap(
          subscription.pull(demand),
          (deliveries) =>
            subscription.settle(Arr.map(deliveries, (delivery) => ({ delivery, settlement: Settlement.ack })))
        )
    }))
  },
  {
    name: "delivers every tenth message twice",
    law: "law 1",
    caughtBy: ["D4", "D8"],
    mutate: subscribing((subscription) => {
      let n = 0
      return {
        pull: (demand) =>
          Effect.map(
            subscription.pull(more(demand, (n) => Math.max(1, n - 1))),
            Arr.flatMap((delivery): Deliveries => n++ % 10 === 0 ? [delivery, Object.create(delivery)] : [delivery])
          )
      }
    })
  },
  {
    name: "acknowledges all up to the one it was told of",
    law: "law 1",
    caughtBy: ["S8"],
    mutate: subscribing((subscription) => {
      const taken: Array<Delivery> = []
      return {
        pull: (demand) =>
          Effect.tap(subscription.pull(demand), (deliveries) => Effect.sync(() => taken.push(...deliveries))),
        settle: (batch) =>
          settle(
            subscription,
            batch.flatMap((settling) => {
              if (!is("Ack")(settling)) return [settling]
              const earlier = taken.splice(0, taken.indexOf(settling.delivery) + 1)
              return [...earlier, settling.delivery].map((delivery) => ({ delivery, settlement: Settlement.ack }))
            })
          )
      }
    })
  },
  {
    name: "brings back what was terminated",
    law: "law 1",
    caughtBy: ["S4", "S9", "R1"],
    mutate: settling((settling) =>
      is("Terminate")(settling) ? { ...settling, settlement: Settlement.retry(100).settlement } : settling
    )
  },
  {
    name: "counts attempts in each process anew",
    law: "law 2",
    caughtBy: ["S1", "S12", "R2"],
    mutate: disguising(({ id }, count) => ({ attempt: count(id) }))
  },
  {
    name: "counts no attempts",
    law: "law 2",
    caughtBy: ["S2", "R1", "P4", "S15", "S24", "S25"],
    mutate: disguising(() => ({ attempt: 1 }))
  },
  {
    name: "retries in the process and tells the broker nothing",
    law: "law 2",
    caughtBy: ["R2"],
    mutate: subscribing((subscription) => {
      const waiting: Array<{ readonly delivery: Delivery; readonly due: number }> = []
      const due: Effect.Effect<Deliveries> = Effect.suspend(() => {
        const [first] = waiting
        if (first === undefined) return Effect.andThen(Effect.sleep(10), due)
        return Clock.clockWith((clock): Effect.Effect<Deliveries> => {
          if (clock.currentTimeMillisUnsafe() < first.due) return Effect.andThen(Effect.sleep(10), due)
          waiting.shift()
          const { delivery } = first
          const attempt = { value: delivery.attempt + 1 }
          return Effect.succeed([Object.create(delivery, { attempt, redelivered: { value: true } })])
        })
      })
      return {
        pull: (demand) => Effect.raceFirst(subscription.pull(demand), due),
        settle: (batch) =>
          Clock.clockWith((clock) => {
            for (const { delivery, settlement } of batch) {
              if (settlement._tag !== "Retry") continue
              const after = Duration.toMillis(settlement.after ?? Duration.zero)
              waiting.push({ delivery, due: clock.currentTimeMillisUnsafe() + after })
            }
            return settle(
              subscription,
              batch.filter(({ settlement }) => settlement._tag !== "Retry").map((
                { delivery, settlement }
              ) => ({
                delivery: delivery.redelivered ? Object.getPrototypeOf(delivery) : delivery,
                settlement
              }))
            )
          })
      }
    })
  },
  {
    name: "suspects no one",
    law: "law 2",
    caughtBy: ["S12", "P5"],
    mutate: disguising(() => ({ suspect: false }))
  },
  {
    name: "forgets by the third delivery that a message is a suspect",
    law: "law 2",
    caughtBy: ["S23"],
    mutate: disguising(({ id, suspect }, count) => ({ suspect: count(id) < 3 && suspect }))
  },
  {
    name: "retries at once, whatever the delay",
    law: "law 2",
    caughtBy: ["S3", "R3", "L9"],
    mutate: settling(({ delivery, settlement }) => ({
      delivery,
      settlement: settlement._tag === "Retry" ? Settlement.retry(0).settlement : settlement
    }))
  },
  {
    name: "counts a release as an attempt",
    law: "law 3",
    caughtBy: ["S9", "S14", "L2", "L3", "L10", "X9"],
    mutate: settling((settling) =>
      is("Release")(settling) ? { ...settling, settlement: Settlement.retry(0).settlement } : settling
    )
  },
  {
    name: "loses what is handed back",
    law: "law 3",
    caughtBy: ["S14", "D7", "L2", "L3"],
    mutate: settling((settling) => is("Release")(settling) ? { ...settling, settlement: Settlement.ack } : settling)
  },
  {
    name: "keeps what is handed back until its claim time has passed",
    law: "law 3",
    caughtBy: ["S14", "L2", "L3"],
    mutate: settling((settling) => is("Release")(settling) ? undefined : settling)
  },
  {
    name: "loses on close what it had fetched and nobody had pulled",
    law: "law 3",
    caughtBy: ["F3", "L11"],
    mutate: (transport) => ({
      ...transport,
      subscribe: (options) =>
        Effect.map(transport.subscribe(options), (subscription) => {
          const fetched: Array<Delivery> = []
          const give = (max: number): Effect.Effect<Deliveries> | undefined => {
            const given = fetched.splice(0, max)
            return Arr.isArrayNonEmpty(given) ? Effect.succeed(given) : undefined
          }
          return {
            ...subscription,
            pull: (demand) =>
              Effect.suspend(() =>
                give(Math.min(demand.total, 5)) ??
                  Effect.flatMap(subscription.pull({ ...demand, total: 100, fresh: 100 }), (deliveries) => {
                    fetched.push(...deliveries)
                    return give(Math.min(demand.total, 5))!
                  })
              )
          }
        })
    })
  },
  {
    name: "forgets when a message failed first",
    law: "law 4",
    caughtBy: ["S16"],
    mutate: disguising(() => ({ firstFailedAt: undefined }))
  },
  {
    name: "stores dead letters some time after it has said so",
    law: "law 4",
    caughtBy: ["R6"],
    mutate: (transport) => ({
      ...transport,
      publish: (messages) =>
        messages.some(isDead)
          ? Effect.as(
            Effect.forkDetach(Effect.delay(transport.publish(messages), 300)),
            messages.map(() => Result.succeed({ id: "later", duplicate: false }))
          )
          : transport.publish(messages)
    })
  },
  {
    name: "says that dead letters are stored, and stores none",
    law: "law 4",
    caughtBy: ["R1", "R5", "P1", "P5", "R13"],
    mutate: (transport) => ({
      ...transport,
      publish: (messages) =>
        messages.some(isDead)
          ? Effect.succeed(messages.map(() => Result.succeed({ id: "never", duplicate: false })))
          : transport.publish(messages)
    })
  },
  {
    name: "declares deduplication and takes an id twice",
    law: "law 4",
    caughtBy: ["D10", "R7", "R9", "R12"],
    mutate: publishing((message) => ({ ...message, id: undefined }))
  },
  {
    name: "says that settlements have arrived, and loses some",
    law: "law 5",
    caughtBy: ["S1", "S9"],
    mutate: subscribing((subscription) => {
      let n = 0
      return { settle: (batch) => n++ % 4 === 0 ? Effect.succeed([]) : subscription.settle(batch) }
    })
  },
  {
    name: "takes a settlement that is sent again for a new one",
    law: "law 5",
    caughtBy: ["S7", "S11"],
    mutate: subscribing((subscription, { topic }, transport) => {
      const said = new Set<Delivery>()
      return {
        settle: (batch) =>
          Effect.gen(function*() {
            for (const { delivery, settlement } of batch) {
              if (settlement._tag !== "Retry") continue
              if (said.has(delivery)) {
                const { body, headers, key } = delivery
                yield* transport.publish([{ topic, body, headers, key, id: undefined, delay: settlement.after }])
              }
              said.add(delivery)
            }
            return yield* subscription.settle(batch)
          })
      }
    })
  },
  {
    name: "reads bodies as text",
    law: "law 6",
    caughtBy: ["D1", "P1"],
    mutate: disguising(({ body }) => ({ body: new TextEncoder().encode(new TextDecoder().decode(body)) }))
  },
  {
    name: "gives a batch in reverse",
    law: "law 7",
    caughtBy: ["D6", "D9", "F8", "F13"],
    mutate: subscribing((subscription) => ({ pull: (demand) => Effect.map(subscription.pull(demand), Arr.reverse) }))
  },
  {
    name: "lets a retry be overtaken within its key: comes back under another id",
    law: "law 7",
    caughtBy: ["S2", "F8"],
    mutate: disguising(({ attempt, id }) => attempt === 1 ? {} : { id: `${id}-${attempt}` })
  },
  {
    name: "lets a zombie settle and keep what a peer has taken over",
    law: "law 8",
    caughtBy: ["S12"],
    mutate: owning((subscription, current) => ({
      settle: (batch: Batch) =>
        Effect.map(
          Effect.forEach(batch, ({ delivery, settlement }) => {
            const owned = current(delivery) ?? { subscription, delivery }
            return owned.subscription.settle([{ delivery: owned.delivery, settlement }])
          }),
          () => []
        ),
      extend: () => Effect.succeed([])
    }))
  },
  {
    name: "never says that a delivery was lost",
    law: "law 8",
    caughtBy: ["S12", "X7"],
    mutate: subscribing((subscription) => ({
      settle: (batch) => Effect.suspend(() => Effect.as(subscription.settle(batch), [])),
      extend: (deliveries) => Effect.as(subscription.extend(deliveries), [])
    }))
  },
  {
    name: "drops an acknowledgement by a former owner",
    law: "law 8",
    caughtBy: ["S13"],
    mutate: owning((subscription, current) => ({
      settle: (batch: Batch) =>
        settle(
          subscription,
          batch.filter(({ delivery, settlement }) =>
            settlement._tag !== "Ack" || current(delivery)?.delivery === delivery
          )
        )
    }))
  },
  {
    name: "forgets to extend",
    law: "law 8",
    caughtBy: ["S10"],
    mutate: subscribing(() => ({ extend: () => Effect.succeed([]) }))
  },
  {
    name: "drops headers",
    law: "contract",
    caughtBy: ["D1", "S2", "R5"],
    mutate: disguising(() => ({ headers: {} }))
  },
  {
    name: "has one position for all groups",
    law: "contract",
    caughtBy: ["D3", "D5", "D6"],
    mutate: wishing((options) => ({ ...options, group: "all" }))
  },
  {
    name: "begins every group at the beginning",
    law: "contract",
    caughtBy: ["D5"],
    mutate: wishing((options) => ({ ...options, startFrom: "beginning" }))
  },
  {
    name: "is not ready when it says so: a new group begins with the first pull",
    law: "contract",
    caughtBy: ["D5"],
    mutate: (transport) => ({
      ...transport,
      subscribe: (options) =>
        Effect.gen(function*() {
          const scope = yield* Effect.scope
          const ready = yield* Effect.cached(Effect.provideService(transport.subscribe(options), Scope.Scope, scope))
          return {
            pull: (demand) => Effect.flatMap(ready, (subscription) => subscription.pull(demand)),
            settle: (batch) => Effect.flatMap(ready, (subscription) => subscription.settle(batch)),
            extend: (deliveries) => Effect.flatMap(ready, (subscription) => subscription.extend(deliveries)),
            begin: (delivery) => Effect.flatMap(ready, (subscription) => subscription.begin(delivery)),
            withdraw: Effect.ignore(Effect.flatMap(ready, (subscription) => subscription.withdraw)),
            lease: Duration.seconds(1),
            health: Effect.succeed({ state: "consuming" as const, since: 0 })
          }
        })
    })
  },
  {
    name: "takes names for one that begin alike",
    law: "contract",
    caughtBy: ["D2"],
    mutate: (transport) => {
      const cut = (topic: string) => topic.endsWith(".more") ? topic.slice(0, -5) : topic
      return publishing((message) => ({ ...message, topic: cut(message.topic) }))(
        wishing((options) => ({ ...options, topic: cut(options.topic) }))(transport)
      )
    }
  },
  {
    name: "gives more than a pull's max",
    law: "contract",
    caughtBy: ["F1"],
    mutate: subscribing((subscription) => ({ pull: (demand) => subscription.pull(more(demand, (n) => 2 * n)) }))
  },
  {
    name: "swallows what arrives after a pull was interrupted",
    law: "contract",
    caughtBy: ["F9"],
    mutate: subscribing((subscription) => ({
      pull: (demand) =>
        Effect.gen(function*() {
          const pulling = yield* Effect.forkDetach(subscription.pull(demand), { startImmediately: true })
          return yield* Fiber.join(pulling)
        })
    }))
  },
  {
    name: "gives unread messages where only due retries are wanted",
    law: "contract",
    caughtBy: ["F11"],
    mutate: subscribing((subscription) => ({ pull: (demand) => subscription.pull({ ...demand, fresh: demand.total }) }))
  },
  {
    name: "delivers a delayed message at once",
    law: "contract",
    caughtBy: ["D11"],
    mutate: publishing((message) => ({ ...message, delay: undefined }))
  },
  {
    name: "removes nothing, and says how much it was",
    law: "contract",
    caughtBy: ["S5", "R8"],
    mutate: (transport) => ({ ...transport, remove: (_, ids) => Effect.succeed(ids.length) })
  },
  {
    name: "browses newest first",
    law: "contract",
    caughtBy: ["D13"],
    mutate: (transport) => ({
      ...transport,
      browse: (topic) =>
        Stream.unwrap(
          Effect.map(Stream.runCollect(transport.browse(topic)), (all) => Stream.fromIterable(all.toReversed()))
        )
    })
  },
  {
    name: "answers a publish of many out of order",
    law: "contract",
    caughtBy: ["D1", "D13"],
    mutate: (transport) => ({
      ...transport,
      publish: (messages) => Effect.map(transport.publish(messages), (results) => results.toReversed())
    })
  },
  {
    name: "looks for messages when a pull begins, and then no more",
    law: "contract",
    caughtBy: ["D14"],
    mutate: subscribing((subscription) => ({
      pull: (demand) => Effect.timeoutOrElse(subscription.pull(demand), { duration: 50, orElse: () => Effect.never })
    }))
  },
  {
    name: "confirms what is published and loses it, once after each fault",
    law: "law 5",
    caughtBy: ["X1", "X3", "X2", "X5", "X6", "X10"],
    mutate: (transport, broker) => {
      let seen = 0
      return {
        ...transport,
        publish: (messages) => {
          if (seen === broker.strikes) return transport.publish(messages)
          seen = broker.strikes
          return Effect.succeed(messages.map(() => Result.succeed({ id: "lost", duplicate: false })))
        }
      }
    }
  },
  {
    name: "answers a settlement after a fault and does not send it",
    law: "law 5",
    caughtBy: ["X4"],
    mutate: (transport, broker) =>
      subscribing((subscription) => ({
        settle: (batch) => Effect.suspend(() => broker.strikes > 0 ? Effect.succeed([]) : subscription.settle(batch))
      }))(transport)
  },
  {
    name: "delivers a message twice after each fault, and does not say so",
    law: "law 5",
    caughtBy: ["X3"],
    mutate: (transport, broker) => {
      let seen = 0
      return subscribing((subscription) => ({
        pull: (demand) =>
          Effect.map(
            subscription.pull(more(demand, (n) => Math.max(1, n - 1))),
            Arr.flatMap((delivery): Deliveries => {
              if (seen === broker.strikes) return [delivery]
              seen = broker.strikes
              return [delivery, Object.create(delivery)]
            })
          )
      }))(transport)
    }
  },
  {
    name: "counts a release as an attempt from the second attempt on",
    law: "law 3",
    caughtBy: ["S17"],
    mutate: settling((settling) =>
      is("Release")(settling) && settling.delivery.attempt >= 2
        ? { ...settling, settlement: Settlement.retry(0).settlement }
        : settling
    )
  },
  {
    name: "keeps only the first of many deliveries that are extended",
    law: "law 8",
    caughtBy: ["S18"],
    mutate: subscribing((subscription) => ({ extend: ([first]) => subscription.extend([first]) }))
  },
  {
    name: "does not say what was lost when it settles many",
    law: "law 8",
    caughtBy: ["S19"],
    mutate: subscribing((subscription) => ({
      settle: (batch) => Effect.map(subscription.settle(batch), (lost) => batch.length > 1 ? [] : lost)
    }))
  },
  {
    name: "lets an earlier delivery settle and keep the one that its consumer has now",
    law: "law 5",
    caughtBy: ["S20"],
    mutate: owning((subscription, current) => {
      const present = (delivery: Delivery) => {
        const owned = current(delivery)
        return owned?.subscription === subscription ? owned.delivery : delivery
      }
      return {
        settle: (batch) =>
          Effect.suspend(() =>
            subscription.settle(
              Arr.map(batch, ({ delivery, settlement }) => ({ delivery: present(delivery), settlement }))
            )
          ),
        extend: (deliveries) => Effect.suspend(() => subscription.extend(Arr.map(deliveries, present)))
      }
    })
  },
  {
    name: "cuts delays to multiples of 50 milliseconds",
    law: "law 2",
    caughtBy: ["S21"],
    mutate: delaying((millis) => 50 * Math.floor(millis / 50))
  },
  {
    name: "cuts delays to five minutes",
    law: "law 2",
    caughtBy: ["S22"],
    mutate: delaying((millis) => Math.min(millis, 300_000))
  },
  {
    name: "gives a neglected delivery to no one as long as its consumer lives",
    law: "law 1",
    caughtBy: ["S23"],
    mutate: subscribing((subscription) => {
      const held = new Set<string>()
      const pull = (demand: Demand): Effect.Effect<Deliveries, TransportError> =>
        Effect.flatMap(subscription.pull(demand), (deliveries) => {
          const others = deliveries.filter(({ id, suspect }) => !suspect || !held.has(id))
          for (const { id } of deliveries) held.add(id)
          return Arr.isArrayNonEmpty(others) ? Effect.succeed(others) : pull(demand)
        })
      return { pull }
    })
  },
  {
    name: "counts the attempt of an isolated suspect before it begins",
    law: "law 2",
    caughtBy: ["P7"],
    mutate: wishing((options) => ({ ...options, isolateFrom: Infinity }))
  },
  {
    name: "does not record that the attempt of an isolated suspect begins",
    law: "law 2",
    caughtBy: ["P7", "P5"],
    mutate: subscribing(() => ({ begin: () => Effect.succeed(true) }))
  },
  {
    name: "gives more suspects than are wanted",
    law: "law 2",
    caughtBy: ["P8"],
    mutate: subscribing((subscription) => ({
      pull: (demand) => subscription.pull({ ...demand, suspects: demand.total })
    }))
  },
  {
    name: "leaves the request of an interrupted pull open",
    law: "contract",
    caughtBy: ["F12"],
    mutate: subscribing((subscription) => {
      let open: Fiber.Fiber<Deliveries, TransportError> | undefined
      return {
        pull: (demand) =>
          Effect.gen(function*() {
            open ??= yield* Effect.forkDetach(subscription.pull(demand), { startImmediately: true })
            const deliveries = yield* Fiber.join(open)
            open = undefined
            return deliveries
          }),
        withdraw: Effect.void
      }
    })
  },
  {
    name: "gives unread messages before released ones",
    law: "law 7",
    caughtBy: ["F13"],
    mutate: subscribing((subscription) => {
      const fetched: Array<Delivery> = []
      const give = (demand: Demand) => {
        const given = fetched.splice(0, demand.total)
        return Arr.isArrayNonEmpty(given) ? Effect.succeed(given) : undefined
      }
      return {
        pull: (demand) =>
          Effect.suspend(() =>
            give(demand) ?? Effect.flatMap(subscription.pull(more(demand, () => 100)), (deliveries) => {
              fetched.push(...deliveries.toSorted((a, b) => Number(a.redelivered) - Number(b.redelivered)))
              return give(demand)!
            })
          )
      }
    })
  },
  {
    name: "never gives more than its first pull wanted",
    law: "contract",
    caughtBy: ["F5"],
    mutate: subscribing((subscription) => {
      let most = 0
      let owned = 0
      const pull = (demand: Demand): Effect.Effect<Deliveries, TransportError> =>
        Effect.suspend(() => {
          if (most === 0) most = demand.total
          if (owned >= most) return Effect.andThen(Effect.sleep(10), pull(demand))
          return Effect.tap(
            subscription.pull(more(demand, (n) => Math.min(n, most - owned))),
            ({ length }) => Effect.sync(() => owned += length)
          )
        })
      return {
        pull,
        settle: (batch) =>
          Effect.suspend(() => {
            owned -= batch.length
            return subscription.settle(batch)
          })
      }
    })
  },
  {
    name: "says that a message was published when it is delivered",
    law: "contract",
    caughtBy: ["D15"],
    mutate: disguising((_, __, now) => ({ publishedAt: now }))
  },
  {
    name: "knows an id across topics",
    law: "contract",
    caughtBy: ["D16"],
    mutate: (transport) => {
      const known = new Set<string>()
      return {
        ...transport,
        publish: (messages) =>
          Effect.suspend(() => {
            const [{ id }] = messages
            if (id !== undefined && known.has(id)) return Effect.succeed([Result.succeed({ id, duplicate: true })])
            if (id !== undefined) known.add(id)
            return transport.publish(messages)
          })
      }
    }
  },
  {
    name: "gives all topics, and all lives of a topic, one origin",
    law: "contract",
    caughtBy: ["D17", "X12"],
    mutate: (transport) => {
      const change = { origin: "broker" }
      return {
        ...disguising(() => change)(transport),
        browse: (topic, options) =>
          Stream.map(transport.browse(topic, options), (delivery) => ({ ...delivery, ...change }))
      }
    }
  },
  {
    name: "browses everything, whatever the bounds",
    law: "contract",
    caughtBy: ["D18"],
    mutate: (transport) => ({ ...transport, browse: (topic) => transport.browse(topic) })
  },
  {
    name: "reads another message than the one of the id",
    law: "contract",
    caughtBy: ["D19"],
    mutate: (transport) => ({ ...transport, get: (topic) => Stream.runHead(transport.browse(topic)) })
  },
  {
    name: "says that a group has no lag where it does not know",
    law: "contract",
    caughtBy: ["D20"],
    mutate: (transport) => ({
      ...transport,
      groups: (topic) => Effect.map(transport.groups(topic), (groups) => groups.map((group) => ({ ...group, lag: 0 })))
    })
  },
  {
    name: "gives its deliveries twice when the wall clock jumps",
    law: "law 2",
    caughtBy: ["X8"],
    mutate: subscribing((subscription) => {
      let last: number | undefined
      return {
        pull: (demand) =>
          Effect.flatMap(
            subscription.pull(more(demand, (n) => Math.max(1, n - 1))),
            (deliveries) =>
              Effect.map(Clock.currentTimeMillis, (now): Deliveries => {
                const jumps = Math.abs(now - (last ?? now)) > 600_000
                last = now
                return jumps ? [...deliveries, Object.create(deliveries[0])] as unknown as Deliveries : deliveries
              })
          )
      }
    })
  },
  {
    name: "does not make a deleted group again",
    law: "contract",
    caughtBy: ["X11"],
    mutate: (transport, broker) =>
      subscribing((subscription) => {
        const before = broker.strikes
        return {
          pull: (demand) =>
            Effect.flatMap(
              subscription.pull(demand),
              (deliveries) => broker.strikes > before ? Effect.never : Effect.succeed(deliveries)
            )
        }
      })(transport)
  },
  {
    name: "gives up what a deleted consumer owned",
    law: "law 1",
    caughtBy: ["X13"],
    mutate: (transport, broker) =>
      subscribing((subscription) => ({
        extend: (deliveries) =>
          Effect.suspend(() => broker.strikes > 0 ? Effect.succeed(deliveries) : subscription.extend(deliveries))
      }))(transport)
  },
  {
    name: "says that settled deliveries were lost",
    law: "law 8",
    caughtBy: ["S2", "S6"],
    mutate: subscribing((subscription) => ({
      settle: (batch) =>
        Effect.suspend(() => Effect.as(subscription.settle(batch), batch.map(({ delivery }) => delivery)))
    }))
  },
  {
    name: "takes a message that is too large for one that was not sent",
    law: "contract",
    caughtBy: ["D12"],
    mutate: (transport) => ({
      ...transport,
      publish: (messages) =>
        Effect.map(
          transport.publish(messages),
          (results) =>
            results.map((result) =>
              Result.mapError(result, ({ topic }) =>
                new PublishError({ topic, reason: new NotSent({ detail: "too large" }) }))
            )
        )
    })
  },
  {
    name: "delivers nothing",
    law: "law 1",
    caughtBy: [
      "R4",
      "R10",
      "R11",
      "P2",
      "P3",
      "P6",
      "F2",
      "F4",
      "F6",
      "F7",
      "F10",
      "F14",
      "F15",
      "L1",
      "L5",
      "L7",
      "L8"
    ],
    mutate: subscribing(() => ({ pull: () => Effect.never }))
  },
  {
    name: "waits without end for a broker that does not answer",
    law: "contract",
    caughtBy: ["L4"],
    mutate: (transport) => transport,
    unreachable: Effect.never
  },
  {
    name: "shows the password of an address in its error",
    law: "contract",
    caughtBy: ["L4"],
    mutate: (transport) => transport,
    unreachable: Effect.fail(
      new TransportError({ transport: "memory", reason: new Unreachable({ address: "memory://user:secret@nowhere" }) })
    )
  },
  {
    name: "leaves a timer behind",
    law: "contract",
    caughtBy: ["L6"],
    mutate: (transport) => ({
      ...transport,
      subscribe: (options) => {
        leaked.push(setInterval(() => {}, 60_000))
        return transport.subscribe(options)
      }
    })
  }
]

/** Of the mutant that leaves timers behind. */
export const leaked: Array<NodeJS.Timeout> = []
