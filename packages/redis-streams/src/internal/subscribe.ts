import * as Topic from "@millrace/core/Topic"
import type { SubscribeOptions, Subscription } from "@millrace/core/Transport"
import { invalidOption, TransportError, Unreachable } from "@millrace/core/TransportError"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as RcMap from "effect/RcMap"
import type * as Scope from "effect/Scope"
import { Feed } from "./feed.ts"
import * as groups from "./groups.ts"
import type { Janitor } from "./janitor.ts"
import { checkDuration } from "./options.ts"
import { Reader } from "./reader.ts"
import * as Scanner from "./scanner.ts"
import type { Server } from "./server.ts"
import { extending, settling } from "./settle.ts"
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
      health: Effect.sync(() => feed.isHealthy && reader.isHealthy ? "consuming" : "reconnecting")
    }
    return subscription
  })
})
