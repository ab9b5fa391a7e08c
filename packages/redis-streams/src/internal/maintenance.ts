import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as groups from "./groups.ts"
import * as keys from "./keys.ts"
import { isLasting, list, transportError } from "./reply.ts"
import { prune as pruneScript } from "./scripts/prune.ts"
import { evalsha } from "./scripts/script.ts"
import { trim as trimScript } from "./scripts/trim.ts"
import type { Server } from "./server.ts"

/** A stream and a group that are subscribed to, and the token of the stream's present life. */
export interface Maintained {
  readonly options: { readonly key: string; readonly group: string }
  readonly origin: string
}

/** Looks now and then after a stream and a group, for as long as the scope is open. */
export type Maintain = (maintained: Maintained) => Effect.Effect<void, never, Scope.Scope>

/** Consumers that one step deletes at most: it holds up the server. */
const maxPruned = 500

/** Trims what every group has acknowledged. */
export const trim = (server: Server, key: string): Effect.Effect<number, Error> =>
  Effect.map(server.control.one(key, evalsha(trimScript, [key], [])), Number)

/** Deletes consumers of processes that are gone, and puts the origin back where somebody has deleted it. */
const prune = (server: Server, maintained: Maintained, period: number): Effect.Effect<void, Error> => {
  const { group, key } = maintained.options
  // Consumers that live show themselves at least as often as their reads end.
  const idle = Math.max(server.settings.consumerIdle, 2 * server.settings.block)
  const args = [group, String(idle), String(maxPruned), String(Math.max(1, Math.floor(period / 4)))]
  return Effect.flatMap(
    Effect.timed(server.control.one(key, evalsha(pruneScript, [key, keys.maintenance(key, group)], args))),
    ([took, reply]) => {
      const [, more, hasOrigin] = list(reply)
      const again = more === 1
        // A twentieth of the server's time at most.
        ? Effect.andThen(
          Effect.sleep(Math.max(period / 4, Math.min(2_000, 20 * Duration.toMillis(took)))),
          Effect.suspend(() => prune(server, maintained, period))
        )
        : Effect.void
      return hasOrigin === 1 ? again : Effect.andThen(groups.origin(server, key, group, maintained.origin), again)
    }
  )
}

export const make = Effect.fnUntraced(function*(server: Server): Effect.fn.Return<Maintain, never, Scope.Scope> {
  const { consumerIdle, trimsAcknowledged } = server.settings
  const subscribed = new Set<Maintained>()
  const period = Math.min(60_000, consumerIdle, trimsAcknowledged ? 10_000 : Infinity)
  const refused = new Set<string>()
  const maintain = (maintained: Maintained): Effect.Effect<void> => {
    const { key } = maintained.options
    return Effect.andThen(
      prune(server, maintained, Math.min(period, 4_000)),
      trimsAcknowledged ? trim(server, key) : Effect.void
    ).pipe(Effect.matchEffect({
      onSuccess: () => Effect.sync(() => void refused.delete(key)),
      onFailure: (error) => {
        // A group that is gone is the reader's affair, a connection tells by itself.
        if (!isLasting(error) || refused.has(key)) return Effect.void
        refused.add(key)
        return Effect.logWarning(transportError(`tidying up ${key}`, server.settings.label, error).message)
      }
    }))
  }
  yield* Effect.forkScoped(Effect.forever(Effect.andThen(
    Effect.suspend(() => Effect.sleep(period * (0.5 + Math.random() / 2))),
    Effect.suspend(() => Effect.forEach([...subscribed], maintain, { discard: true }))
  )))
  return (maintained) =>
    Effect.asVoid(Effect.acquireRelease(
      Effect.sync(() => subscribed.add(maintained)),
      () => Effect.sync(() => subscribed.delete(maintained))
    ))
})
