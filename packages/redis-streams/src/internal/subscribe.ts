import type { SubscribeOptions, Subscription } from "@millrace/core/Transport"
import { invalidOption, type TransportError, Unreachable } from "@millrace/core/TransportError"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as RcMap from "effect/RcMap"
import type * as Scope from "effect/Scope"
import * as groups from "./groups.ts"
import type { Maintain } from "./maintenance.ts"
import { ReadLoop } from "./readLoop.ts"
import * as ReclaimScan from "./reclaimScan.ts"
import { failure, isRefusal, isUnknown, transportError } from "./reply.ts"
import type { Server } from "./server.ts"
import { checkDuration, nameRemedy } from "./settings.ts"
import { beginning, extending, settling } from "./settle.ts"
import { RemoveOnSuccess, Source } from "./source.ts"
import { RedisSubscription } from "./subscription.ts"

/** Gives out consumer names: a second subscription to a group of a stream must not pass for the first. */
class Names {
  private readonly taken = new Set<string>()

  take(base: string, stream: string, group: string): Effect.Effect<string, never, Scope.Scope> {
    return Effect.acquireRelease(
      Effect.sync(() => {
        for (let n = 1;; n++) {
          const name = n === 1 ? base : `${base}.${n}`
          const id = JSON.stringify([stream, group, name])
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
interface ReadLoopId {
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
  maintain: Maintain
): Effect.fn.Return<Subscribe, never, Scope.Scope> {
  const { settings } = server
  const names = new Names()
  const clock = yield* Clock.Clock
  const reclaimScan = yield* ReclaimScan.make(server)
  /** Streams that grow without end, which is told once. */
  const growing = new Set<string>()
  let own = 0
  let polling = 0
  const readLoops = yield* RcMap.make({
    lookup: ({ consumer, group, key }: ReadLoopId) =>
      Effect.gen(function*() {
        const hasOwn = own < mostOwn
        yield* Effect.acquireRelease(
          Effect.sync(() => hasOwn ? own++ : polling++),
          () => Effect.sync(() => hasOwn ? own-- : polling--)
        )
        const connection = hasOwn ? yield* server.reading(`reading for group ${group}`, key) : undefined
        const pollEvery = () => Math.max(leastPoll, polling / 4)
        const readLoop = new ReadLoop({ server, connection, pollEvery, group, consumer, key })
        yield* Effect.forkScoped(readLoop.run)
        return { readLoop, connection }
      })
  })

  /** Where this user may not see or make consumers, the place is named without its life. */
  const originOf = (key: string, group: string): Effect.Effect<string, TransportError> =>
    groups.patiently(server, groups.origin(server, key, group)).pipe(
      Effect.catchIf(
        (error) => isRefusal(error) && !/evalsha|'eval'/i.test(error.message),
        (error) =>
          Effect.as(
            Effect.logWarning(
              `redis: cannot tell lives of ${key} apart, a stream that is deleted and created again may be taken for the same (${error.message})`
            ),
            groups.placeOf(server, key)
          )
      ),
      Effect.catchIf(
        isUnknown,
        (error) => Effect.flatMap(groups.missingCommand(server, key), (named) => Effect.fail(named ?? error))
      ),
      Effect.mapError((error) => transportError(`looking at group ${group} of ${key}`, settings.label, error))
    )

  return Effect.fnUntraced(function*(options: SubscribeOptions) {
    for (const kind of ["topic", "group"] as const) {
      const remedy = nameRemedy(settings)(kind, options[kind])
      if (remedy !== undefined) return yield* invalidOption("redis", kind, options[kind], remedy)
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
    const { connection, readLoop } = yield* RcMap.get(
      readLoops,
      { group, consumer, key: settings.topology === "cluster" ? key : "" }
    )
    if (connection !== undefined) {
      yield* Effect.mapError(
        connection.awaitUp(settings.connectTimeout),
        (lost) => failure(new Unreachable({ address: settings.label, cause: lost }))
      )
    }
    const origin = yield* originOf(key, group)
    const subscription = new RedisSubscription(server, readLoop, clock, origin, {
      topic,
      key,
      group,
      consumer,
      minIdle,
      block,
      isolateFrom: options.isolateFrom,
      onVanished: options.onVanished ?? (() => {}),
      ordered: options.ordered ?? false
    })
    readLoop.add(subscription)
    yield* maintain(subscription)
    yield* Effect.addFinalizer(() => readLoop.remove(subscription))
    yield* reclaimScan(subscription)
    const removes = settings.untilAcked || Context.get(options.settings, RemoveOnSuccess)
    if (!removes && settings.bound === undefined && !settings.trimsAcknowledged && !growing.has(key)) {
      growing.add(key)
      yield* Effect.logInfo(
        `stream ${key} never removes an entry: give the layer retention "acknowledged", "until-acked" or { maxLength }, or remove entries with RedisStreams.remove`
      )
    }
    return {
      pull: subscription.pull,
      withdraw: subscription.withdraw,
      settle: settling(server, subscription, removes),
      extend: extending(server, subscription),
      begin: beginning(server, subscription),
      clientId: consumer,
      lease: Duration.millis(minIdle),
      health: subscription.health
    }
  })
})
