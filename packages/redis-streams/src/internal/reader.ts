import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import type * as Scope from "effect/Scope"
import { ErrorReply } from "redis"
import type { RawEntry } from "./entry.ts"
import type { Feed } from "./feed.ts"
import * as groups from "./groups.ts"
import { type Command, type Connected, type Link, Lost } from "./link.ts"
import { codeOf, isPassing, list, text, transportError } from "./reply.ts"
import type { Server } from "./server.ts"

/** Without `CLIENT UNBLOCK` nothing can end a read early, so none may be long. */
const shortBlock = 100

/** How long after its end a read may be silent, and how long once the server was told to end it. */
const leastPatience = 1_000

/**
 * Reads many streams for one consumer of one group, on one connection.
 *
 * A turn first takes what is older than anything new (due retries, abandoned entries), then reads: one stream with all
 * it asks for; of several, those that had more each by its own read, the others together. A blocked read is ended by
 * `CLIENT UNBLOCK` whenever something else becomes more urgent, so nothing ever waits for its end.
 */
export class Reader {
  private readonly server: Server
  private readonly link: Link | undefined
  private readonly pollEvery: () => number
  private readonly group: string
  private readonly consumer: string
  private readonly key: string
  private readonly feeds = new Map<string, Feed>()
  private readonly work = Latch.makeUnsafe(false)
  private readonly done = Latch.makeUnsafe(true)
  private reading: ReadonlySet<Feed> | undefined
  /** When the read was sent, and when it should have been answered. */
  private sentAt = 0
  private dueAt = 0
  private patience = leastPatience
  private isBlocked = false
  private isNudged = false
  private canUnblock = true
  /** Failed turns in a row. */
  private troubles = 0
  private isStuck = false
  private said = ""

  /** Without a connection of its own it polls on a shared one. */
  constructor(
    server: Server,
    link: Link | undefined,
    pollEvery: () => number,
    group: string,
    consumer: string,
    key: string
  ) {
    this.server = server
    this.link = link
    this.pollEvery = pollEvery
    this.group = group
    this.consumer = consumer
    this.key = key
  }

  get isHealthy(): boolean {
    return (this.link === undefined || this.link.current !== undefined) && this.server.keep.isUp && !this.isStuck
  }

  add(feed: Feed): void {
    this.feeds.set(feed.options.key, feed)
  }

  /** Takes the feed out, once no read can bring anything for it any more. */
  remove(feed: Feed): Effect.Effect<void> {
    return Effect.suspend(() => {
      feed.closing = true
      this.nudge()
      return this.reading?.has(feed) === true ? this.done.await : Effect.void
    }).pipe(
      Effect.andThen(feed.nothingOnItsWay.await),
      Effect.timeoutOption(1_000),
      Effect.andThen(feed.close),
      Effect.timeoutOption(3_000),
      Effect.andThen(Effect.sync(() => this.feeds.delete(feed.options.key))),
      Effect.asVoid
    )
  }

  /** The feed wants something that the read of this moment may not bring. */
  wake(feed: Feed, isUrgent = false): void {
    this.work.openUnsafe()
    if (this.isBlocked && (isUrgent ? feed.wantsOld : !this.reading!.has(feed) && (feed.wantsNew || feed.wantsOld))) {
      this.nudge()
    }
  }

  /** The feed takes its asking back. */
  withdraw(feed: Feed): void {
    if (this.isBlocked && this.reading!.has(feed)) this.nudge()
  }

  private nudge(again = 2): void {
    const id = this.link?.current?.clientId
    if (!this.isBlocked || this.isNudged || id === undefined) return
    this.isNudged = true
    const read = this.reading
    this.runFork(Effect.map(this.server.keep.send(this.key, [["CLIENT", "UNBLOCK", id]]), ([reply]) => {
      if (reply instanceof ErrorReply) this.canUnblock = false
      if (reply !== 0 || this.reading !== read) return
      // It came before the read, on a connection of its own.
      this.isNudged = false
      setTimeout(() => this.reading === read && this.nudge(2 * again), again)
    }))
  }

  private runFork: (effect: Effect.Effect<void>) => void = () => {}

  readonly run: Effect.Effect<void, never, Scope.Scope> = Effect.gen({ self: this }, function*() {
    const fork = Effect.runForkWith(yield* Effect.context<never>())
    this.runFork = (effect) => void fork(effect)
    yield* Effect.forkScoped(Effect.forever(Effect.andThen(Effect.sleep(leastPatience / 2), this.doubt)))
    return yield* Effect.forever(this.turn, { disableYield: true })
  })

  private readonly turn: Effect.Effect<void> = Effect.suspend(() => {
    this.work.closeUnsafe()
    const old = [...this.feeds.values()].filter((feed) => feed.wantsOld)
    if (old.length === 0) return this.readNew
    return Effect.andThen(
      Effect.forEach(old, (feed) => this.mend(feed, feed.takeOld), { concurrency: "unbounded", discard: true }),
      this.readNew
    )
  })

  private readonly readNew: Effect.Effect<void> = Effect.suspend(() => {
    const wanting: Array<Feed> = []
    let isBusy = false
    for (const feed of this.feeds.values()) {
      if (feed.wantsNew) wanting.push(feed)
      isBusy ||= feed.wantsOld
    }
    if (wanting.length === 0) return isBusy ? Effect.void : this.work.await
    const connected = this.link?.current
    if (this.link !== undefined && connected === undefined) return Effect.ignore(this.link.awaitUp(60_000))
    return this.read(connected, wanting, isBusy)
  })

  private read(connected: Connected | undefined, wanting: ReadonlyArray<Feed>, isBusy: boolean): Effect.Effect<void> {
    const hot = wanting.length === 1 ? [] : wanting.filter((feed) => feed.isHot)
    const cold = wanting.length === 1 ? wanting : wanting.filter((feed) => !feed.isHot)
    const block = isBusy || hot.length > 0 || connected === undefined ? undefined : this.blockFor(connected, cold)
    const reads: Array<{ readonly feeds: ReadonlyArray<Feed>; readonly count: number }> = hot.map((feed) => ({
      feeds: [feed],
      count: feed.credit
    }))
    if (cold.length > 0) {
      reads.push({
        feeds: cold,
        count: cold.reduce((least, feed) => Math.min(least, feed.credit), Infinity)
      })
    }
    const commands = reads.map(({ count, feeds }): Command => [
      "XREADGROUP",
      "GROUP",
      this.group,
      this.consumer,
      "COUNT",
      String(count),
      ...(block === undefined ? [] : ["BLOCK", String(block)]),
      "STREAMS",
      ...feeds.map((feed) => feed.options.key),
      ...feeds.map(() => ">")
    ])
    this.reading = new Set(wanting)
    this.sentAt = performance.now()
    this.dueAt = this.sentAt + (block ?? 0)
    this.isBlocked = block !== undefined
    this.isNudged = false
    this.done.closeUnsafe()
    const sent = this.link === undefined
      ? this.server.poll.send(this.key, commands)
      : this.link.send(commands, (block ?? 0) + this.server.settings.answerTimeout)
    return Effect.flatMap(sent, (replies) => {
      this.reading = undefined
      this.isBlocked = false
      let failed: { readonly error: Error; readonly feeds: ReadonlyArray<Feed> } | undefined
      replies.forEach((reply, i) => {
        const { count, feeds } = reads[i]!
        if (reply instanceof Error) failed = { error: reply, feeds }
        else this.dispatch(reply, feeds, count)
      })
      // Last: it resumes a feed that is being closed at once, and that hands back what has just come.
      this.done.openUnsafe()
      if (failed !== undefined) return this.heal(connected, failed.error, failed.feeds)
      this.troubles = 0
      this.patience = leastPatience
      this.isStuck = false
      // Polling, and nothing there: not again at once.
      return this.link === undefined && replies.every((reply) => reply === null)
        ? Effect.asVoid(Effect.timeoutOption(this.work.await, this.pollEvery()))
        : Effect.void
    })
  }

  private blockFor(connected: Connected, feeds: ReadonlyArray<Feed>): number {
    const block = feeds.reduce((least, feed) => Math.min(least, feed.options.block), Infinity)
    return connected.clientId === undefined || !this.canUnblock ? Math.min(block, shortBlock) : block
  }

  private dispatch(reply: unknown, feeds: ReadonlyArray<Feed>, count: number): void {
    for (const feed of feeds) feed.isHot = false
    for (const stream of list(reply)) {
      const [name, entries] = list(stream)
      const feed = feeds.length === 1 ? feeds[0]! : this.feeds.get(String(name))
      feed?.received(list(entries) as ReadonlyArray<RawEntry>, count)
    }
  }

  // --- healing

  /**
   * A read that is overdue, or older than the last loss of the keeping connection, is ended at the server. When that
   * answers and nothing comes here, this connection is half-open.
   */
  private readonly doubt: Effect.Effect<void> = Effect.suspend(() => {
    const { link, patience, reading } = this
    const connected = link?.current
    const now = performance.now()
    if (link === undefined || connected === undefined || reading === undefined) return Effect.void
    if (now < this.dueAt + patience && this.sentAt > this.server.keep.madeAgainAt) return Effect.void
    return Effect.flatMap(
      this.server.keep.send(this.key, [["CLIENT", "UNBLOCK", connected.clientId ?? "0"]]),
      ([reply]) => {
        const isOn = this.reading === reading && (reply !== 0 || performance.now() - this.sentAt > leastPatience)
        if (reply instanceof Lost || !isOn) return Effect.void
        return Effect.map(link.send([["PING"]], patience), ([reply]) => {
          if (reply instanceof Lost) this.patience = Math.min(2 * patience, this.server.settings.answerTimeout)
        })
      }
    )
  })

  private mend(feed: Feed, effect: Effect.Effect<void, Error>): Effect.Effect<void> {
    return Effect.catch(effect, (error) => this.heal(undefined, error, [feed]))
  }

  private heal(connected: Connected | undefined, error: Error, feeds: ReadonlyArray<Feed>): Effect.Effect<void> {
    const code = codeOf(error)
    const pause = Effect.suspend(() =>
      Effect.sleep(Math.min(50 * 2 ** this.troubles++, 2_000) * (0.5 + Math.random() / 2))
    )
    if (!(error instanceof ErrorReply)) return connected === undefined ? pause : Effect.void // the link tries again
    if (code === "NOGROUP") {
      return Effect.forEach(feeds, (feed) => groups.recreate(this.server, feed.options.key, this.group), {
        discard: true
      }).pipe(
        Effect.matchEffect({
          onFailure: (error) => this.stuck(`creating group ${this.group} again`, error),
          onSuccess: () => Effect.sync(() => this.isStuck = false)
        }),
        Effect.andThen(Effect.suspend(() => this.troubles++ > 0 ? pause : Effect.void))
      )
    }
    if (code === "WRONGTYPE" || code === "NOPERM" || code === "NOAUTH") {
      return Effect.forEach(feeds, (feed) => this.failIfWrong(feed, error), { discard: true })
    }
    if (connected !== undefined && isPassing(error)) {
      this.isStuck = true
      return Effect.andThen(pause, Effect.sync(() => this.link?.drop(connected, error)))
    }
    return Effect.andThen(this.stuck(`reading for group ${this.group}`, error), pause)
  }

  /** Said once, until it goes on. */
  private stuck(operation: string, error: Error): Effect.Effect<void> {
    if (this.isStuck && this.said === error.message) return Effect.void
    this.isStuck = true
    this.said = error.message
    return Effect.logWarning(transportError(operation, this.server.settings.label, error).message)
  }

  /** Of several streams read together only some may be to blame. */
  private failIfWrong(feed: Feed, error: ErrorReply): Effect.Effect<void> {
    const { key } = feed.options
    const fail = Effect.sync(() => feed.fail(transportError(`reading ${key}`, this.server.settings.label, error)))
    if (codeOf(error) !== "WRONGTYPE") return fail
    return Effect.matchEffect(this.server.keep.one(key, ["TYPE", key]), {
      onFailure: () => fail,
      onSuccess: (type) => text(type) === "stream" || text(type) === "none" ? Effect.void : fail
    })
  }
}
