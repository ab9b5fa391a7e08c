import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { entriesOf, list, text } from "./reply.ts"
import { prune as pruneScript } from "./scripts/prune.ts"
import { evalsha } from "./scripts/script.ts"
import { trim as trimScript } from "./scripts/trim.ts"
import type { Server } from "./server.ts"

/** Looks now and then after the streams and groups that are subscribed to. */
export interface Maintenance {
  /** For as long as the scope is open. */
  readonly look: (key: string, group: string) => Effect.Effect<void, never, Scope.Scope>
}

/** Trims what every group has acknowledged. */
export const trim = (server: Server, key: string): Effect.Effect<number, Error> =>
  Effect.map(server.keep.one(key, evalsha(trimScript, [key], [])), Number)

/** Deletes consumers that own nothing and have been idle for long; both is looked at again in the step that deletes. */
const prune = (server: Server, key: string, group: string): Effect.Effect<void, Error> => {
  const { consumerIdle } = server.settings
  return Effect.flatMap(server.keep.one(key, ["XINFO", "CONSUMERS", key, group]), (reply) =>
    Effect.forEach(
      list(reply).map(entriesOf).filter((one) => one.get("pending") === 0 && Number(one.get("idle")) >= consumerIdle),
      (one) =>
        server.keep.one(
          key,
          evalsha(pruneScript, [key], [group, text(one.get("name")), String(consumerIdle)])
        ),
      { discard: true }
    ))
}

export const make = Effect.fnUntraced(function*(server: Server): Effect.fn.Return<Maintenance, never, Scope.Scope> {
  const { consumerIdle, trimsAcknowledged } = server.settings
  const subscribed = new Set<{ readonly key: string; readonly group: string }>()
  const clean = Effect.suspend(() =>
    Effect.forEach([...subscribed], ({ group, key }) =>
      Effect.ignore(Effect.andThen(
        prune(server, key, group),
        trimsAcknowledged ? trim(server, key) : Effect.void
      )), { discard: true })
  )
  const period = Math.min(60_000, consumerIdle, trimsAcknowledged ? 10_000 : Infinity)
  yield* Effect.forkScoped(Effect.forever(Effect.andThen(
    Effect.suspend(() => Effect.sleep(period * (0.5 + Math.random() / 2))),
    clean
  )))
  return {
    look: (key, group) =>
      Effect.asVoid(Effect.acquireRelease(
        Effect.sync(() => {
          const one = { key, group }
          subscribed.add(one)
          return one
        }),
        (one) => Effect.sync(() => subscribed.delete(one))
      ))
  }
})
