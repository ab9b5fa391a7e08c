import type { Delivery, Settling } from "@millrace/core/Transport"
import { Interrupted, TransportError } from "@millrace/core/TransportError"
import type * as Arr from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { type Feed, isOf } from "./feed.ts"
import type { Command } from "./link.ts"
import { codeOf, isRefusal, isUnknown, list, transportError } from "./reply.ts"
import * as scripts from "./scripts.ts"
import type { Server } from "./server.ts"

const interrupted = (operation: string, cause: Error): TransportError =>
  new TransportError({ transport: "redis", reason: new Interrupted({ operation, cause }) })

/** Tells the server about a batch; `removes` deletes what is acknowledged as well. */
export const settling = (server: Server, feed: Feed, removes: boolean) => {
  const { consumer, group, key } = feed.options
  const isMine = isOf(feed)
  const settle = (batch: Arr.NonEmptyReadonlyArray<Settling>): Effect.Effect<ReadonlyArray<Delivery>, TransportError> =>
    Effect.suspend(() => {
      const acks: Array<string> = []
      const ops: Array<string> = []
      const opsOf: Array<Delivery> = []
      const ends: Array<Delivery> = []
      for (const { delivery, settlement } of batch) {
        switch (settlement._tag) {
          case "Ack":
            acks.push(delivery.id)
            break
          case "Release":
            ops.push("release", delivery.id, String(delivery.attempt - 1))
            opsOf.push(delivery)
            break
          case "@millrace/Terminate":
            if (removes) {
              ends.push(delivery)
            } else {
              ops.push("end", delivery.id, "")
              opsOf.push(delivery)
            }
            break
          case "@millrace/Retry":
            ops.push("retry", delivery.id, `${delayOf(settlement.after)} ${delivery.firstFailedAt ?? ""}`)
            opsOf.push(delivery)
        }
      }
      const commands: Array<Command> = []
      if (acks.length > 0) {
        commands.push(
          !removes
            ? ["XACK", key, group, ...acks]
            : server.hasRemoval
            ? ["XACKDEL", key, group, "ACKED", "IDS", String(acks.length), ...acks]
            : scripts.evalsha(scripts.remove, [key], [group, "", "0", ...acks])
        )
      }
      const opsAt = ops.length === 0
        ? -1
        : commands.push(scripts.evalsha(scripts.settle, [key, feed.dues], [group, consumer, ...ops])) - 1
      const endsAt = ends.length === 0
        ? -1
        : commands.push(scripts.evalsha(scripts.remove, [key], [group, consumer, "0", ...ends.map(({ id }) => id)])) - 1
      return Effect.flatMap(server.write.send(key, commands), (replies) => {
        if (removes && server.hasRemoval && (isUnknown(replies[0]) || codeOf(replies[0]) === "NOPERM")) {
          server.hasRemoval = false
          return settle(batch)
        }
        for (const reply of replies) {
          // With the group everything that was owned is gone.
          if (!(reply instanceof Error) || reply.message.startsWith("NOGROUP")) continue
          feed.settling(true)
          if (isRefusal(reply)) {
            return feed.refused("settling", true)
              ? Effect.fail(transportError(`settling in ${key}`, server.settings.label, reply))
              : Effect.andThen(Effect.interruptible(Effect.sleep("2 seconds")), settle(batch))
          }
          return Effect.fail(interrupted(`settling in ${key}`, reply))
        }
        feed.settling(false)
        feed.refused("settling", false)
        const lost = new Set<Delivery>()
        if (opsAt >= 0) {
          const reply = replies[opsAt]
          if (reply instanceof Error) opsOf.forEach((delivery) => lost.add(delivery))
          else for (const i of list(reply)) lost.add(opsOf[Number(i)]!)
        }
        if (endsAt >= 0) list(replies[endsAt]).forEach((reply, i) => reply === 3 && lost.add(ends[i]!))
        for (const { delivery, settlement } of batch) {
          if (!isMine(delivery)) continue
          if (settlement._tag === "@millrace/Retry" && !lost.has(delivery)) {
            feed.wait(delivery.id, delayOf(settlement.after))
          }
          feed.ended(delivery)
        }
        return Effect.succeed([...lost])
      })
    })
  // What was sent has to be accounted for, whoever still wants to know.
  return (batch: Arr.NonEmptyReadonlyArray<Settling>) => Effect.uninterruptible(settle(batch))
}

const delayOf = (after: Duration.Duration | undefined): number =>
  after === undefined ? 0 : Math.ceil(Duration.toMillis(after))

/** Keeps what the engine works on. */
export const extending = (server: Server, feed: Feed) => {
  const { consumer, group, key } = feed.options
  const isMine = isOf(feed)
  return (deliveries: Arr.NonEmptyReadonlyArray<Delivery>): Effect.Effect<ReadonlyArray<Delivery>, TransportError> =>
    Effect.suspend(() => {
      const ops = deliveries.flatMap((delivery) => ["extend", delivery.id, ""])
      return server.keep.one(key, scripts.evalsha(scripts.settle, [key, feed.dues], [group, consumer, ...ops])).pipe(
        Effect.catchIf(
          (error) => error.message.startsWith("NOGROUP"),
          () => Effect.succeed(deliveries.map((_, i) => i))
        ),
        Effect.mapError((error) => transportError(`extending in ${key}`, server.settings.label, error)),
        Effect.map((reply) => {
          feed.extended()
          const lost = list(reply).map((index) => deliveries[Number(index)]!)
          for (const delivery of lost) if (isMine(delivery)) feed.ended(delivery)
          return lost
        }),
        Effect.uninterruptible
      )
    })
}
