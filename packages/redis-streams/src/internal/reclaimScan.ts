import * as Arr from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import type * as Scope from "effect/Scope"
import { slotOf } from "./cluster.ts"
import * as keys from "./keys.ts"
import { isLasting, list, refusal, text, transportError } from "./reply.ts"
import { peek } from "./scripts/peek.ts"
import { evalsha } from "./scripts/script.ts"
import type { Server } from "./server.ts"
import type { RedisSubscription } from "./subscription.ts"

/** How often abandoned entries are looked for: a peer must take what was released within a second. */
const every = 950

/** The same while something is pending: only that can be handed back. */
const often = 250

/** More subscriptions than this may take the server noticeable time. */
const many = 100

/** Subscriptions that one command looks after. */
const atOnce = 1_000

/** Looks for what was abandoned, and for delayed entries that are due, for as long as the scope is open. */
export type ReclaimScan = (subscription: RedisSubscription) => Effect.Effect<void, never, Scope.Scope>

const looking = "looking for abandoned entries"
const moving = "moving delayed messages"

export const make = Effect.fnUntraced(function*(server: Server): Effect.fn.Return<ReclaimScan, never, Scope.Scope> {
  const subscriptions = new Set<RedisSubscription>()
  const isNew = Latch.makeUnsafe(false)

  let isPending = false

  const ask = (some: ReadonlyArray<RedisSubscription>): Effect.Effect<ReadonlyArray<unknown>, Error> =>
    Effect.map(
      server.control.one(
        some[0]!.options.key,
        evalsha(
          peek,
          some.flatMap(({ options: { key } }) => [key, keys.delayed(key)]),
          some.flatMap(({ options: { consumer, group, minIdle } }) => [group, String(minIdle), consumer])
        ),
        0
      ),
      list
    )

  const lookAt = (some: ReadonlyArray<RedisSubscription>): Effect.Effect<void> =>
    Effect.matchEffect(ask(some), {
      onFailure: (error) =>
        Effect.forEach(some, (subscription) => noted(subscription, looking, Effect.fail(error)), { discard: true }),
      onSuccess: (states) => Effect.forEach(some, (subscription, i) => act(subscription, states[i]), { discard: true })
    })

  const act = (subscription: RedisSubscription, reply: unknown): Effect.Effect<void> => {
    const { key } = subscription.options
    const [state, pending, due] = typeof reply === "number" ? [reply, "", ""] : found(reply)
    const next = Math.floor(state / 8)
    if (next > 0) server.delayedMoves.expect(key, next)
    if ((state & 4) !== 0) isPending = true
    const taking = Effect.andThen(
      pending === "" ? (state & 4) === 0 ? Effect.void : subscription.lookFurther : Effect.fail(refusal(pending)),
      Effect.sync(() => subscription.looked((state & 1) !== 0))
    )
    const delayed = due === ""
      ? (state & 2) === 0 ? Effect.void : server.delayedMoves.move(key)
      : Effect.fail(refusal(due))
    return Effect.andThen(noted(subscription, looking, taking), noted(subscription, moving, delayed))
  }

  /** Notes whether the server refuses the operation. Health tells it; what happens to a connection tells the connection. */
  const noted = (
    subscription: RedisSubscription,
    operation: string,
    effect: Effect.Effect<void, Error>
  ): Effect.Effect<void> => {
    const { key } = subscription.options
    return Effect.matchEffect(effect, {
      onSuccess: () =>
        subscription.refusals.clear(operation)
          ? Effect.logDebug(`redis: ${operation} of ${key} is allowed again`)
          : Effect.void,
      onFailure: (error) =>
        Effect.suspend(() => {
          // A group that is gone is the reader's affair.
          if (!isLasting(error)) return Effect.void
          subscription.looked(false)
          // A stream that is none any more is the reader's affair.
          const beside = keys.besideDelayed(key)
          const { message } = transportError(`${operation} of ${key}`, server.settings.label, error, beside)
          return subscription.refusals.add(operation, message) ? Effect.logDebug(message) : Effect.void
        })
    })
  }

  const look = Effect.suspend(() => {
    isPending = false
    isNew.closeUnsafe()
    const wanting: Array<RedisSubscription> = []
    for (const subscription of subscriptions) if (subscription.wantsScan) wanting.push(subscription)
    const bySlot = server.settings.topology === "cluster"
      ? [...Map.groupBy(wanting, ({ options: { key } }) => slotOf(key)).values()]
      : [wanting]
    const chunks = bySlot.flatMap((some) => Arr.chunksOf(some, atOnce))
    return Effect.forEach(chunks, lookAt, { concurrency: "unbounded", discard: true })
  })

  // What waits here must be kept long before it may be claimed.
  const keepEvery = (): number => {
    let least = every
    for (const { options: { minIdle } } of subscriptions) least = Math.min(least, minIdle / 4)
    return Math.max(5, least)
  }
  yield* Effect.suspend(() =>
    Effect.forEach([...subscriptions], (subscription) => subscription.tick, { discard: true })
  ).pipe(
    Effect.andThen(Effect.suspend(() => Effect.sleep(keepEvery()))),
    Effect.forever,
    Effect.forkScoped
  )

  // Later where there is much to look at: it may have a twentieth of the server's time. A few subscriptions cost next to
  // nothing, and how long they took tells only how busy this process is.
  yield* Effect.timed(look).pipe(
    Effect.flatMap(([took]) =>
      subscriptions.size > many
        ? Effect.sleep(Math.max(every, 20 * Duration.toMillis(took)))
        : Effect.asVoid(Effect.timeoutOption(isNew.await, isPending ? often : every))
    ),
    Effect.forever,
    Effect.forkScoped
  )

  return (subscription) =>
    Effect.acquireRelease(
      Effect.sync(() => subscriptions.add(subscription)),
      () => Effect.sync(() => subscriptions.delete(subscription))
    ).pipe(
      // Nothing is read before it is known what was released or abandoned.
      Effect.andThen(lookAt([subscription])),
      Effect.andThen(Effect.sync(() => isNew.openUnsafe())),
      Effect.asVoid
    )
})

/** The reply of `peek` where something is refused. */
const found = (reply: unknown): readonly [state: number, pending: string, due: string] => {
  const [state, pending, due] = list(reply)
  return [Number(state), text(pending), text(due)]
}
