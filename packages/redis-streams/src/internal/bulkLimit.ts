import * as Effect from "effect/Effect"
import { list, text } from "./reply.ts"

/** The least that a server can be told to take. Smaller arguments are never looked at. */
export const leastLimit = 1024 * 1024

/** What a server takes unless it was told otherwise. */
const usualLimit = 512 * 1024 * 1024

/** An answer that is older is asked for again before a message is refused: an operator may have raised the limit. */
const goodFor = 10_000

/**
 * The largest argument of a command, in bytes, that the server takes (`proto-max-bulk-len`). It ends the connection of a
 * client that sends more, and with it whatever else was under way there.
 */
export class BulkLimit {
  private limit = usualLimit
  private askedAt = -Infinity
  private readonly ask: (setting: string) => Effect.Effect<unknown, Error>

  constructor(ask: (setting: string) => Effect.Effect<unknown, Error>) {
    this.ask = ask
  }

  /** The limit where an argument of `size` bytes is over it. `isRefused`: the server has just ended a connection for it. */
  over(size: number, isRefused = false): Effect.Effect<number | undefined> {
    return Effect.suspend(() => {
      if (size <= this.limit && !isRefused && this.askedAt > -Infinity) return Effect.succeed(undefined)
      const isFresh = performance.now() - this.askedAt < goodFor
      return Effect.map(isFresh && !isRefused ? Effect.void : this.refresh, () => {
        // A server that does not show its settings is believed.
        if (isRefused && size <= this.limit) this.limit = Math.max(leastLimit, size - 1)
        return size > this.limit ? this.limit : undefined
      })
    })
  }

  /** After a connection was lost under an argument of `size` bytes: the limit, if that was the reason. */
  after(size: number): Effect.Effect<number | undefined> {
    return Effect.map(this.refresh, () => size > this.limit ? this.limit : undefined)
  }

  /** Asks the server; one that refuses to say keeps what is known. */
  readonly refresh: Effect.Effect<void> = Effect.suspend(() =>
    Effect.forEach(settings, (setting) => Effect.map(this.ask(setting), (reply) => Number(text(list(reply)[1]))))
  ).pipe(
    Effect.map((limits) => {
      this.limit = Math.min(...limits.filter((limit) => limit > 0), Infinity)
    }),
    Effect.ignore,
    Effect.ensuring(Effect.sync(() => this.askedAt = performance.now()))
  )
}

const settings = ["proto-max-bulk-len", "client-query-buffer-limit"]
