import type { Delivery, Settling } from "@millrace/core/Transport"
import type { TransportError } from "@millrace/core/TransportError"
import type * as Arr from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { ErrorReply } from "redis"
import type { Command } from "./command.ts"
import { RedisDelivery } from "./entry.ts"
import * as keys from "./keys.ts"
import type { Operation } from "./leases.ts"
import { codeOf, isPassing, isRefusal, isUnknown, list, transportError } from "./reply.ts"
import { remove } from "./scripts/remove.ts"
import { evalsha } from "./scripts/script.ts"
import { chunk, matters } from "./scripts/settle.ts"
import type { Server } from "./server.ts"
import type { RedisSubscription } from "./subscription.ts"

/** Longer than anybody waits, and short enough that the due time is a whole number everywhere: a hundred years. */
const longestDelay = 100 * 365 * 86_400_000

const delayOf = (after: Duration.Duration | undefined): number => {
  const millis = after === undefined ? 0 : Math.ceil(Duration.toMillis(after))
  return millis > 0 ? Math.min(millis, longestDelay) : 0
}

const countOf = (delivery: Delivery): string =>
  delivery instanceof RedisDelivery ? String(RedisDelivery.state(delivery).count) : String(delivery.attempt)

/** The operation that settles a delivery; `undefined` for an acknowledgement, which a former owner may give too. */
const operationOf = (
  subscription: RedisSubscription,
  { delivery, settlement }: Settling,
  isResent: boolean
): Operation | undefined => {
  const lease = delivery instanceof RedisDelivery ? subscription.leases.of(delivery) : ""
  switch (settlement._tag) {
    case "Ack":
      return undefined
    case "Release":
      return delivery instanceof RedisDelivery
        ? subscription.leases.release(delivery, isResent ? "" : lease)
        : ["release", delivery.id, countOf(delivery), "", String(delivery.attempt - 1)]
    case "Terminate":
      return ["end", delivery.id, countOf(delivery), lease, ""]
    case "Retry":
      return [
        "retry",
        delivery.id,
        countOf(delivery),
        // The first one may have arrived, and a later delivery may have been settled since.
        isResent ? "" : lease,
        `${delayOf(settlement.after)} ${delivery.firstFailedAt ?? ""}`
      ]
    default:
      return settlement satisfies never
  }
}

/** Tells the server about a batch; `removes` deletes acknowledged entries as well. */
export const settling = (server: Server, subscription: RedisSubscription, removes: boolean) => {
  const { consumer, group, key } = subscription.options
  /** What the server refuses to settle: while it does, health says so, whatever else it takes. */
  const refused = new Set<Delivery>()
  const settle = (batch: Arr.NonEmptyReadonlyArray<Settling>): Effect.Effect<ReadonlyArray<Delivery>, TransportError> =>
    Effect.suspend(() => {
      const acks: Array<string> = []
      const operations: Array<Operation> = []
      const operated: Array<Delivery> = []
      const ends: Array<Delivery> = []
      const lost = new Set<Delivery>()
      for (const settling of batch) {
        const { delivery } = settling
        let isResent = false
        if (subscription.isMine(delivery)) {
          const state = RedisDelivery.state(delivery)
          isResent = state.isSettling
          // Given again: an acknowledgement stands, everything else is too late.
          if (state.isSuperseded && settling.settlement._tag !== "Ack") {
            lost.add(delivery)
            continue
          }
          state.isSettling = true
          if (settling.settlement._tag === "Ack") state.isAcknowledged = true
        }
        const operation = operationOf(subscription, settling, isResent)
        if (operation === undefined) acks.push(delivery.id)
        else if (removes && operation[0] === "end") ends.push(delivery)
        else {
          operations.push(operation)
          operated.push(delivery)
        }
      }
      const commands: Array<Command> = []
      if (acks.length > 0) {
        commands.push(
          !removes
            ? ["XACK", key, group, ...acks]
            : server.hasRemoval
            ? ["XACKDEL", key, group, "ACKED", "IDS", String(acks.length), ...acks]
            : evalsha(remove, [key], [group, "", "0", ...acks])
        )
      }
      const early = batch.filter(({ delivery, settlement }) => settlement._tag === "Ack" && delivery.due !== undefined)
      if (early.length > 0) commands.push(["HDEL", subscription.dues, ...early.map(({ delivery }) => delivery.id)])
      const operationsAt = commands.length
      commands.push(...subscription.leases.commands(operations))
      const endsAt = commands.length
      if (ends.length > 0) {
        commands.push(evalsha(remove, [key], [group, consumer, "0", ...ends.map(({ id }) => id)]))
      }
      if (commands.length === 0) return Effect.succeed([...lost])
      return Effect.flatMap(server.write.send(key, commands), (replies) => {
        if (removes && server.hasRemoval && (isUnknown(replies[0]) || codeOf(replies[0]) === "NOPERM")) {
          server.hasRemoval = false
          return settle(batch)
        }
        for (const reply of replies) {
          // With the group everything that was owned is gone.
          if (!(reply instanceof Error) || reply.message.startsWith("NOGROUP")) continue
          const error = transportError(
            `settling in ${key}`,
            server.settings.label,
            reply,
            keys.besideDues(subscription.dues)
          )
          const isNews = reply instanceof ErrorReply && !isPassing(reply) &&
            subscription.refusals.add("settling", error.message)
          if (reply instanceof ErrorReply && !isPassing(reply)) {
            for (const { delivery } of batch) refused.add(delivery)
          }
          return isRefusal(reply) && !isNews
            ? Effect.andThen(Effect.interruptible(Effect.sleep("2 seconds")), settle(batch))
            : Effect.fail(error)
        }
        for (const { delivery } of batch) refused.delete(delivery)
        for (const delivery of refused) {
          if (!subscription.isMine(delivery) || !RedisDelivery.state(delivery).isOut) refused.delete(delivery)
        }
        if (refused.size === 0) subscription.refusals.clear("settling")
        const answers = replies.slice(operationsAt, endsAt)
        const found = matters(answers, operated)
        for (const delivery of found.lost) lost.add(delivery)
        const groupless = operated.filter((_, i) => answers[Math.floor(i / chunk)] instanceof Error)
        if (ends.length > 0) list(replies[endsAt]).forEach((reply, i) => reply === 3 && lost.add(ends[i]!))
        return Effect.flatMap(subscription.leases.missing(groupless), (missing) => {
          for (const delivery of groupless) lost.add(delivery)
          return accounted(batch, lost, [...found.gone, ...missing])
        })
      })
    })

  /** Notes what has become of each: `lost` to others, or `deleted`, which ends what was to be tried again. */
  const accounted = (
    batch: ReadonlyArray<Settling>,
    lost: Set<Delivery>,
    deleted: ReadonlyArray<Delivery>
  ): Effect.Effect<ReadonlyArray<Delivery>> =>
    Effect.suspend(() => {
      const isGone = new Set(deleted)
      const vanished: Array<string> = []
      for (const { delivery, settlement } of batch) {
        // Terminated, its dead letter is written: nothing is missing.
        if (!isGone.has(delivery) || settlement._tag === "Terminate") continue
        if (subscription.isMine(delivery)) RedisDelivery.state(delivery).isGone = true
        lost.add(delivery)
        vanished.push(delivery.id)
      }
      for (const { delivery, settlement } of batch) {
        if (!subscription.isMine(delivery)) continue
        if (settlement._tag === "Retry" && !lost.has(delivery)) {
          subscription.wait(delivery, delayOf(settlement.after))
        }
        if (settlement._tag === "Release" && !lost.has(delivery)) {
          // The count of its next delivery is the same: nothing else tells a late word about this one.
          RedisDelivery.state(delivery).isSuperseded = true
          subscription.released()
        }
        subscription.ended(delivery)
      }
      return Effect.as(subscription.reportGone(vanished), [...lost])
    })
  // What was sent has to be accounted for, whether the caller is still there or not.
  return (batch: Arr.NonEmptyReadonlyArray<Settling>) => Effect.uninterruptible(settle(batch))
}

/** Renews the lease of what the engine works on. */
export const extending = (server: Server, subscription: RedisSubscription) => {
  const { key } = subscription.options
  const extend = (
    all: ReadonlyArray<Delivery>
  ): Effect.Effect<ReadonlyArray<Delivery>, TransportError> =>
    Effect.suspend(() => {
      const asked = performance.now()
      const isStale = (delivery: Delivery) =>
        subscription.isMine(delivery) && RedisDelivery.state(delivery).isSuperseded
      // The entry was deleted: nobody else can have it, and its handler finishes. Or it is being counted.
      const isExempt = (delivery: Delivery) =>
        subscription.isMine(delivery) &&
        (RedisDelivery.state(delivery).isGone || RedisDelivery.state(delivery).isBeginning)
      const stale = all.filter(isStale)
      const deliveries = all.filter((delivery) => !isStale(delivery) && !isExempt(delivery))
      if (deliveries.length === 0) return Effect.succeed(stale)
      const operations = deliveries.map((delivery): Operation => [
        "extend",
        delivery.id,
        countOf(delivery),
        delivery instanceof RedisDelivery ? subscription.leases.of(delivery) : "",
        ""
      ])
      return Effect.flatMap(subscription.leases.send(operations), (replies) => {
        const error = replies.find((reply) => reply instanceof Error && !reply.message.startsWith("NOGROUP"))
        if (error instanceof Error) {
          return Effect.fail(transportError(`extending in ${key}`, server.settings.label, error))
        }
        // A group that was deleted is created again, and gives everything out from its beginning: nothing is lost to others.
        const found = matters(replies, deliveries)
        const lost = new Set<Delivery>(found.lost)
        const gone: Array<string> = []
        for (const delivery of found.gone) {
          // Acknowledged and deleted by this process, which has not been told yet.
          if (subscription.isMine(delivery) && RedisDelivery.state(delivery).isSettling) continue
          if (subscription.isMine(delivery)) RedisDelivery.state(delivery).isGone = true
          gone.push(delivery.id)
        }
        for (const delivery of deliveries) {
          if (!subscription.isMine(delivery)) continue
          if (lost.has(delivery)) subscription.ended(delivery)
          else {
            const state = RedisDelivery.state(delivery)
            state.keptAt = asked
            state.unsettledAt = 0
          }
        }
        return subscription.reportGone(gone).pipe(
          Effect.andThen(subscription.leases.takeBack(found.unowned.filter(subscription.isMine))),
          Effect.as([...stale, ...lost])
        )
      })
    })
  return (deliveries: Arr.NonEmptyReadonlyArray<Delivery>) => Effect.uninterruptible(extend(deliveries))
}

/** Counts the attempt of an isolated suspect. */
export const beginning = (server: Server, subscription: RedisSubscription) => {
  const { key } = subscription.options
  return (delivery: Delivery): Effect.Effect<boolean, TransportError> =>
    Effect.suspend(() => {
      const state = subscription.isMine(delivery) ? RedisDelivery.state(delivery) : undefined
      if (state?.isSuperseded) return Effect.succeed(false)
      if (state !== undefined) state.isBeginning = true
      const asked = performance.now()
      const command = subscription.leases.commands([[
        "begin",
        delivery.id,
        countOf(delivery),
        "",
        String(delivery.attempt)
      ]])
      return Effect.matchEffect(server.control.one(key, command[0]!), {
        onFailure: (error) =>
          error.message.startsWith("NOGROUP")
            ? Effect.succeed(false)
            : Effect.fail(transportError(`beginning in ${key}`, server.settings.label, error)),
        onSuccess: (reply) =>
          Effect.sync(() => {
            const isOwned = list(reply).length === 0
            if (state === undefined) return isOwned
            state.isBeginning = false
            if (isOwned) {
              state.count = delivery.attempt
              state.keptAt = asked
            } else if (subscription.isMine(delivery)) subscription.ended(delivery)
            return isOwned
          })
      })
    }).pipe(Effect.uninterruptible)
}
