import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as groups from "./groups.ts"
import * as keys from "./keys.ts"
import { list } from "./reply.ts"
import { prune as pruneScript } from "./scripts/prune.ts"
import { evalsha } from "./scripts/script.ts"
import { trim as trimScript } from "./scripts/trim.ts"
import type { Server } from "./server.ts"

/** A stream and a group that are subscribed to, and the token of the stream's present life. */
export interface Maintained {
  readonly options: { readonly key: string; readonly group: string }
  readonly origin: string
}

/** Looks now and then after the streams and groups that are subscribed to. */
export interface Maintenance {
  /** For as long as the scope is open. */
  readonly look: (maintained: Maintained) => Effect.Effect<void, never, Scope.Scope>
}

/** Consumers that one step deletes at most: it holds up the server. */
const maxPruned = 500

/** Trims what every group has acknowledged. */
export const trim = (server: Server, key: string): Effect.Effect<number, Error> =>
  Effect.map(server.keep.one(key, evalsha(trimScript, [key], [])), Number)

/** Deletes consumers of processes that are gone, and puts the origin back where somebody has deleted it. */
const prune = (server: Server, maintained: Maintained, period: number): Effect.Effect<void, Error> => {
  const { group, key } = maintained.options
  const { consumerIdle } = server.settings
  const args = [group, String(consumerIdle), String(maxPruned), String(Math.max(1, Math.floor(period / 4)))]
  return Effect.flatMap(
    Effect.timed(server.keep.one(key, evalsha(pruneScript, [key, keys.maintenance(key, group)], args))),
    ([took, reply]) => {
      const [, more, hasOrigin] = list(reply)
      const again = more === 1
        // A twentieth of the server's time at most.
        ? Effect.andThen(
          Effect.sleep(Math.max(period / 4, 20 * Duration.toMillis(took))),
          Effect.suspend(() => prune(server, maintained, period))
        )
        : Effect.void
      return hasOrigin === 1 ? again : Effect.andThen(groups.origin(server, key, group, maintained.origin), again)
    }
  )
}

export const make = Effect.fnUntraced(function*(server: Server): Effect.fn.Return<Maintenance, never, Scope.Scope> {
  const { consumerIdle, trimsAcknowledged } = server.settings
  const subscribed = new Set<Maintained>()
  const period = Math.min(60_000, consumerIdle, trimsAcknowledged ? 10_000 : Infinity)
  const maintain = (maintained: Maintained): Effect.Effect<void> =>
    Effect.ignore(Effect.andThen(
      prune(server, maintained, Math.min(period, 4_000)),
      trimsAcknowledged ? trim(server, maintained.options.key) : Effect.void
    ))
  yield* Effect.forkScoped(Effect.forever(Effect.andThen(
    Effect.suspend(() => Effect.sleep(period * (0.5 + Math.random() / 2))),
    Effect.suspend(() => Effect.forEach([...subscribed], maintain, { discard: true }))
  )))
  return {
    look: (maintained) =>
      Effect.asVoid(Effect.acquireRelease(
        Effect.sync(() => subscribed.add(maintained)),
        () => Effect.sync(() => subscribed.delete(maintained))
      ))
  }
})
