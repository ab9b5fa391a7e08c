import * as Topic from "@millrace/core/Topic"
import type { Delivery, Settling, SubscribeOptions, Subscription } from "@millrace/core/Transport"
import { Interrupted, invalidOption, TransportError, Unreachable } from "@millrace/core/TransportError"
import type * as Arr from "effect/Array"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as RcMap from "effect/RcMap"
import type * as Scope from "effect/Scope"
import { Feed, isOf } from "./feed.ts"
import * as groups from "./groups.ts"
import type { Janitor } from "./janitor.ts"
import type { Command } from "./link.ts"
import { checkDuration } from "./options.ts"
import { Reader } from "./reader.ts"
import { codeOf, isUnknown, list, transportError } from "./reply.ts"
import * as Scanner from "./scanner.ts"
import * as scripts from "./scripts.ts"
import type { Server } from "./server.ts"
import { RemoveOnSuccess, Source } from "./source.ts"

/** Gives out consumer names: a second subscription to a group of a stream must not pass for the first. */
class Names {
  private readonly taken = new Set<string>()

  take(base: string, stream: string, group: string): Effect.Effect<string, never, Scope.Scope> {
    return Effect.acquireRelease(
      Effect.sync(() => {
        for (let n = 1;; n++) {
          const name = n === 1 ? base : `${base}.${n}`
          const id = `${stream} ${group} ${name}`
          if (this.taken.has(id)) continue
          this.taken.add(id)
          return { name, id }
        }
      }),
      ({ id }) => Effect.sync(() => this.taken.delete(id))
    ).pipe(Effect.map(({ name }) => name))
  }
}

/** What a connection for reading is for; `key` where streams may live on different nodes. */
interface ReaderId {
  readonly group: string
  readonly consumer: string
  readonly key: string
}

/** Groups, in a cluster streams, that are read on a connection of their own. Those beyond are polled on a shared one. */
const mostOwn = 16

/** How often to poll in ms; less often for very many, so that they ask for no more than 4,000 reads a second. */
const leastPoll = 50

export type Subscribe = (options: SubscribeOptions) => Effect.Effect<Subscription, TransportError, Scope.Scope>

export const make = Effect.fnUntraced(function*(
  server: Server,
  janitor: Janitor
): Effect.fn.Return<Subscribe, never, Scope.Scope> {
  const { settings } = server
  const names = new Names()
  const clock = yield* Clock.Clock
  const scanner = yield* Scanner.make(server)
  let own = 0
  let polling = 0
  const readers = yield* RcMap.make({
    lookup: (id: string) =>
      Effect.gen(function*() {
        const { consumer, group, key }: ReaderId = JSON.parse(id)
        const hasOwn = own < mostOwn
        yield* Effect.acquireRelease(
          Effect.sync(() => hasOwn ? own++ : polling++),
          () => Effect.sync(() => hasOwn ? own-- : polling--)
        )
        const link = hasOwn ? yield* server.reading(`reading for group ${group}`, key) : undefined
        const reader = new Reader(server, link, () => Math.max(leastPoll, polling / 4), group, consumer, key)
        yield* Effect.forkScoped(reader.run)
        return { reader, link }
      })
  })

  return Effect.fnUntraced(function*(options: SubscribeOptions) {
    const bad = Topic.validateName("redis", options.topic)
    if (bad !== undefined) return yield* bad
    if (!/^[A-Za-z0-9_-]+$/.test(options.group)) {
      return yield* invalidOption(
        "redis",
        "group",
        options.group,
        "a group name is made of letters, digits and the signs _ -"
      )
    }
    const source = Context.get(options.settings, Source)
    const minIdle = source.minIdle ?? settings.minIdle
    const block = source.block ?? settings.block
    const wrong = checkDuration("claim.minIdle", minIdle, 10) ?? checkDuration("block", block, 1)
    if (wrong !== undefined) return yield* wrong
    const { group, topic } = options
    const key = settings.keyPrefix + topic
    yield* groups.ensure(server, key, group, source.startFrom ?? (options.startFrom === "new" ? "$" : "0"))

    const consumer = yield* names.take(settings.consumer, key, group)
    // One connection for all streams of a group; in a cluster, where they may live on different nodes, one for each.
    const { link, reader } = yield* RcMap.get(
      readers,
      JSON.stringify({ group, consumer, key: settings.topology === "cluster" ? key : "" } satisfies ReaderId)
    )
    if (link !== undefined) {
      yield* Effect.mapError(
        link.awaitUp(settings.connectTimeout),
        (lost) =>
          new TransportError({ transport: "redis", reason: new Unreachable({ address: settings.label, cause: lost }) })
      )
    }
    const feed = new Feed(server, reader, clock, {
      topic,
      key,
      group,
      consumer,
      minIdle,
      block,
      waiting: options.waiting
    })
    reader.add(feed)
    yield* janitor.look(key, group)
    yield* Effect.addFinalizer(() => reader.remove(feed))
    yield* scanner.look(feed)
    const subscription: Subscription = {
      pull: feed.pull,
      settle: settling(server, feed, settings.untilAcked || Context.get(options.settings, RemoveOnSuccess)),
      extend: extending(server, feed),
      extendEvery: Duration.millis(Math.max(1, Math.floor(minIdle / 3))),
      health: Effect.sync(() => feed.failure === undefined && reader.isHealthy ? "consuming" : "reconnecting")
    }
    return subscription
  })
})

const interrupted = (operation: string, cause: Error): TransportError =>
  new TransportError({ transport: "redis", reason: new Interrupted({ operation, cause }) })

const settling = (server: Server, feed: Feed, removes: boolean) => {
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
            ops.push("retry", delivery.id, String(delayOf(settlement.after)))
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
          return Effect.fail(interrupted(`settling in ${key}`, reply))
        }
        feed.settling(false)
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
  return settle
}

const delayOf = (after: Duration.Duration | undefined): number =>
  after === undefined ? 0 : Math.ceil(Duration.toMillis(after))

const extending = (server: Server, feed: Feed) => {
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
        })
      )
    })
}
