import type * as Concurrency from "@millrace/core/Concurrency"
import * as Publisher from "@millrace/core/Publisher"
import * as Transport from "@millrace/core/Transport"
import * as Arr from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { Broker, Consumer, Entry, Group } from "./broker.ts"

/** Whether the process is there: one that is gone says and gets nothing more. */
interface Connection {
  open: boolean
}

/** One process of the broker. When its scope closes it is gone, with all that it owned unsettled. */
export const connect = (
  broker: Broker,
  limit: Concurrency.Limit
): Effect.Effect<Transport.Transport["Service"], never, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(
      Effect.sync((): Connection => ({ open: true })),
      (connection) => Effect.sync(() => void (connection.open = false))
    ),
    (connection) => transport(broker, limit, connection)
  )

const transport = (
  broker: Broker,
  limit: Concurrency.Limit,
  connection: Connection
): Transport.Transport["Service"] => {
  const whileOpen = <A, E, R>(effect: () => Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.suspend(() => connection.open ? effect() : Effect.never)
  return Transport.Transport.of({
    name: "memory",
    address: "memory",
    capabilities: {
      deduplication: true,
      delayedPublish: true,
      uncountedRelease: true,
      orderedRelease: true,
      ownership: true,
      maxBody: broker.options.maxBody
    },
    limit,
    nameRemedy: (kind, name) => name === "" ? `give the ${kind} a name` : undefined,
    health: Effect.succeed(consuming(broker)),
    declare: (topic) => Effect.sync(() => void broker.topic(topic)),
    subscribe: (options) => whileOpen(() => subscribe(broker, connection, options)),
    publish: (messages) => whileOpen(() => Effect.forEach(messages, (message) => publish(broker, message))),
    browse: (topic, options) =>
      Stream.suspend(() => Stream.fromIterable((broker.topics.get(topic)?.entries(options) ?? []).map(browsed))),
    get: (topic, id) =>
      Effect.sync(() => Option.map(Option.fromUndefinedOr(broker.topics.get(topic)?.get(id)), browsed)),
    groups: (topic) => Effect.sync(() => [...broker.topics.get(topic)?.groups.values() ?? []].map(groupInfo)),
    remove: (topic, ids) => Effect.sync(() => ids.filter((id) => broker.topic(topic).remove(id)).length)
  })
}

const publish = (
  broker: Broker,
  message: Transport.Outgoing
): Effect.Effect<Result.Result<Transport.Published, Publisher.PublishError>> => {
  // As NATS counts: headers are part of it.
  let size = message.body.byteLength
  for (const [name, text] of Object.entries(message.headers)) size += name.length + text.length
  const limit = broker.options.maxBody
  if (size > limit) {
    const reason = new Publisher.TooLarge({ size, limit })
    return Effect.succeed(Result.fail(new Publisher.PublishError({ topic: message.topic, reason })))
  }
  return Effect.sync(() => Result.succeed(broker.publish(message)))
}

const browsed = (entry: Entry): Transport.Delivery => ({
  ...entry,
  attempt: 1,
  redelivered: false,
  suspect: false
})

const subscribe = (
  broker: Broker,
  connection: Connection,
  options: Transport.SubscribeOptions
): Effect.Effect<Transport.Subscription, never, Scope.Scope> => {
  const consumer: Consumer = {
    name: `consumer-${++broker.consumers}`,
    isolateFrom: options.isolateFrom,
    ordered: options.ordered ?? false,
    isClosed: false
  }
  // Looked up each time: a group that was deleted is made again, as the contract has it.
  const group = () => broker.topic(options.topic).group(options.group, options.startFrom)
  group()

  const take = (demand: Transport.Demand): Effect.Effect<Arr.NonEmptyReadonlyArray<Transport.Delivery>> =>
    Effect.suspend(() => {
      if (!connection.open) return Effect.never
      const from = group()
      const now = broker.clock.currentTimeMillisUnsafe()
      const taken = from.take(consumer, demand, now)
      return Arr.isArrayNonEmpty(taken)
        ? Effect.succeed(taken)
        : Effect.andThen(somethingHappens(broker, from, from.nextDue(consumer, now)), take(demand))
    })

  const close = Effect.sync(() => {
    consumer.isClosed = true
    group().wake()
  })
  return Effect.acquireRelease(
    Effect.succeed<Transport.Subscription>({
      // A broker answers in another turn of the loop: one that answered at once would starve every timer.
      pull: (demand) => Effect.andThen(Effect.yieldNow, take(demand)),
      // A pull that is interrupted leaves nothing requested.
      withdraw: Effect.void,
      settle(batch) {
        // Nobody hears it; a pipeline that drains after its broker has gone must come to its end.
        if (!connection.open) return noneLost
        const from = group()
        let lost: Array<Transport.Delivery> | undefined
        for (const { delivery, settlement } of batch) {
          if (!from.settle(consumer, delivery, settlement)) (lost ??= []).push(delivery)
        }
        return lost === undefined ? noneLost : Exit.succeed(lost)
      },
      extend: (deliveries) =>
        Effect.suspend(() =>
          connection.open
            ? Effect.succeed(deliveries.filter((delivery) => !group().extend(consumer, delivery)))
            : noneLost
        ),
      begin: (delivery) => Effect.sync(() => !connection.open || group().begin(consumer, delivery)),
      lease: Number.isFinite(broker.options.minIdle) ? Duration.millis(broker.options.minIdle) : undefined,
      health: Effect.succeed(consuming(broker))
    }),
    () => close
  )
}

const noneLost = Exit.succeed<ReadonlyArray<Transport.Delivery>>([])

const consuming = (broker: Broker): Transport.Health => ({ state: "consuming", since: broker.startedAt })

const groupInfo = (group: Group): Transport.GroupInfo => {
  const consumers = new Map<Consumer, { pending: number; touchedAt: number }>()
  const now = group.topic.broker.clock.currentTimeMillisUnsafe()
  let oldest = group.topic.at(group.next)?.publishedAt ?? Infinity
  for (const { entry, owner, touchedAt } of [...group.pending.values(), ...group.delayed, ...group.released]) {
    oldest = Math.min(oldest, entry.publishedAt)
    if (owner === undefined) continue
    const held = consumers.get(owner) ?? { pending: 0, touchedAt: 0 }
    consumers.set(owner, { pending: held.pending + 1, touchedAt: Math.max(held.touchedAt, touchedAt) })
  }
  return {
    group: group.name,
    lag: group.lag,
    pending: group.pending.size + group.delayed.length + group.released.length,
    ...(Number.isFinite(oldest) ? { oldest } : {}),
    consumers: [...consumers].map(([{ name }, held]) => ({ name, pending: held.pending, idle: now - held.touchedAt }))
  }
}

/** Ends when a message may have become available: at `due`, which may have passed since the last look, or by an event. */
const somethingHappens = (broker: Broker, group: Group, due: number | undefined): Effect.Effect<void> =>
  Effect.flatMap(Effect.context<never>(), (context) =>
    Effect.callback<void>((resume) => {
      let alarm: Fiber.Fiber<void> | undefined
      const stop = () => {
        group.waiters.delete(wake)
        alarm?.interruptUnsafe()
      }
      const wake = () => {
        resume(Effect.void)
        stop()
      }
      group.waiters.add(wake)
      if (due !== undefined) {
        const millis = Math.max(1, due - broker.clock.currentTimeMillisUnsafe())
        alarm = Effect.runForkWith(context)(broker.clock.sleep(Duration.millis(millis)))
        alarm.addObserver(wake)
      }
      return Effect.sync(stop)
    }))
