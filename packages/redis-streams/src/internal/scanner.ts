import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import type * as Scope from "effect/Scope"
import { slotOf } from "./cluster.ts"
import type { Feed } from "./feed.ts"
import * as keys from "./keys.ts"
import { isRefusal, list, transportError } from "./reply.ts"
import * as scripts from "./scripts.ts"
import type { Server } from "./server.ts"

/** How often abandoned entries are looked for: a peer must take what was released within a second. */
const every = 950

/** The same while something is pending: only that can be handed back. */
const often = 250

/** More subscriptions than this may take the server noticeable time. */
const many = 100

/** Subscriptions that one command looks after. */
const atOnce = 1_000

/** Looks for what was abandoned, and for delayed entries that are due, on behalf of all subscriptions. */
export interface Scanner {
  /** For as long as the scope is open. */
  readonly look: (feed: Feed) => Effect.Effect<void, never, Scope.Scope>
}

export const make = Effect.fnUntraced(function*(server: Server): Effect.fn.Return<Scanner, never, Scope.Scope> {
  const feeds = new Set<Feed>()
  const isNew = Latch.makeUnsafe(false)

  const move = (feed: Feed): Effect.Effect<void, Error> => {
    const { key } = feed.options
    return Effect.flatMap(
      server.keep.one(key, scripts.evalsha(scripts.move, [key, keys.delayed(key)], [])),
      (left) => Number(left) > 0 ? move(feed) : Effect.void
    )
  }

  let isPending = false

  const lookAt = (some: ReadonlyArray<Feed>): Effect.Effect<void> =>
    server.keep.one(
      some[0]!.options.key,
      scripts.evalsha(
        scripts.peek,
        some.flatMap(({ options: { key } }) => [key, keys.delayed(key)]),
        some.flatMap(({ options: { group, minIdle } }) => [group, String(minIdle)])
      ),
      0
    ).pipe(
      Effect.flatMap((states) => {
        const due: Array<Feed> = []
        some.forEach((feed, i) => {
          const state = Number(list(states)[i])
          if ((state & 1) !== 0) feed.foundSomething()
          if ((state & 2) !== 0) due.push(feed)
          if ((state & 4) !== 0) isPending = true
        })
        return Effect.forEach(due, move, { discard: true })
      }),
      Effect.matchEffect({
        onFailure: (error) => report(some, isRefusal(error) ? error : undefined),
        onSuccess: () => report(some, undefined)
      })
    )

  const report = (some: ReadonlyArray<Feed>, error: Error | undefined): Effect.Effect<void> =>
    Effect.forEach(some, (feed) => {
      const isNews = feed.refused("claiming", error !== undefined)
      return error === undefined || !isNews ? Effect.void : Effect.logError(
        `${
          transportError(`looking for abandoned entries of ${feed.options.key}`, server.settings.label, error).message
        }`
      )
    }, { discard: true })

  const look = Effect.suspend(() => {
    isPending = false
    isNew.closeUnsafe()
    const wanting: Array<Feed> = []
    for (const feed of feeds) if (feed.wantsScan) wanting.push(feed)
    const bySlot = server.settings.topology === "cluster"
      ? [...Map.groupBy(wanting, ({ options: { key } }) => slotOf(key)).values()]
      : [wanting]
    return Effect.forEach(bySlot.flatMap(chunksOf), lookAt, { concurrency: "unbounded", discard: true })
  })

  // What waits here must be kept long before it may be claimed.
  const keepEvery = (): number => {
    let least = every
    for (const { options: { minIdle } } of feeds) least = Math.min(least, minIdle / 4)
    return Math.max(5, least)
  }
  yield* Effect.suspend(() => Effect.forEach([...feeds], (feed) => feed.tick, { discard: true })).pipe(
    Effect.andThen(Effect.suspend(() => Effect.sleep(keepEvery()))),
    Effect.forever,
    Effect.forkScoped
  )

  // Later where there is much to look at: it may have a twentieth of the server's time. A few subscriptions cost next to
  // nothing, and how long they took tells only how busy this process is.
  yield* Effect.timed(look).pipe(
    Effect.flatMap(([took]) =>
      feeds.size > many
        ? Effect.sleep(Math.max(every, 20 * Duration.toMillis(took)))
        : Effect.asVoid(Effect.timeoutOption(isNew.await, isPending ? often : every))
    ),
    Effect.forever,
    Effect.forkScoped
  )

  return {
    look: (feed) =>
      Effect.asVoid(Effect.acquireRelease(
        Effect.sync(() => {
          feeds.add(feed)
          isNew.openUnsafe()
        }),
        () => Effect.sync(() => feeds.delete(feed))
      ))
  }
})

const chunksOf = (feeds: ReadonlyArray<Feed>): ReadonlyArray<ReadonlyArray<Feed>> => {
  const chunks: Array<ReadonlyArray<Feed>> = []
  for (let i = 0; i < feeds.length; i += atOnce) chunks.push(feeds.slice(i, i + atOnce))
  return chunks
}
