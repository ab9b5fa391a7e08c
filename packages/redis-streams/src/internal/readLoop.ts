import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import type * as Scope from "effect/Scope"
import { ErrorReply } from "redis"
import type { Command } from "./command.ts"
import { type Connection, Lost } from "./connection.ts"
import type { Session } from "./dial.ts"
import type { RawEntry } from "./entry.ts"
import { type Healed, ReadHealing } from "./readHealing.ts"
import { codeOf, isPassing, isUnknown, list } from "./reply.ts"
import type { Server } from "./server.ts"

/** Without `CLIENT UNBLOCK` nothing can end a read early, so none may be long. */
const shortBlock = 100

/** Reads that a server ends at once, before it is taken for one that cannot block. */
const maxIgnoredBlocks = 3

/** A server that does not answer must not hold up a pause or a shutdown. */
const maxWithdraw = 1_000

/** How long after its end a read may be silent, and how long once the server was told to end it. */
const minTimeout = 1_000

/** A subscription, as the loop that reads for it sees it. */
export interface Reading extends Healed {
  readonly options: { readonly key: string; readonly block: number }
  /** How many unread entries it wants. */
  readonly wantsNew: number
  /** It can take due retries, or something that was released or abandoned. */
  readonly wantsOld: boolean
  readonly takeOld: Effect.Effect<void, Error>
  /** The last read gave as many as it asked for. */
  isHot: boolean
  closing: boolean
  readonly nothingUnderWay: Latch.Latch
  readonly close: Effect.Effect<void>
  readonly received: (entries: ReadonlyArray<RawEntry>, asked: number) => void
  /** The connection of a read is gone: the server may have delivered entries that never arrived. */
  readonly readLost: () => void
}

const nothingAsked: ReadonlyMap<Reading, number> = new Map()

/**
 * Reads many streams for one consumer of one group, on one connection.
 *
 * A turn first takes what is older than anything new (due retries, abandoned entries), then reads: one stream with all
 * it asks for; of several, those that had more each by its own read, the others together. A blocked read is ended by
 * `CLIENT UNBLOCK` whenever something else becomes more urgent, so nothing ever waits for its end.
 */
export class ReadLoop {
  private readonly server: Server
  private readonly connection: Connection | undefined
  private readonly options: {
    readonly server: Server
    /** Absent: the loop polls on a shared one. */
    readonly connection: Connection | undefined
    /** Milliseconds. */
    readonly pollEvery: () => number
    readonly group: string
    readonly consumer: string
    /** Names the node, where streams may live on different ones. */
    readonly key: string
  }
  private readonly subscriptions = new Map<string, Reading>()
  private readonly work = Latch.makeUnsafe(false)
  private readonly done = Latch.makeUnsafe(true)
  /** The read under way: what it asks for each. */
  private asked: ReadonlyMap<Reading, number> = nothingAsked
  /** When the read was sent, and when it should have been answered. */
  private sentAt = 0
  private dueAt = 0
  private timeout = minTimeout
  private isBlocked = false
  private isNudged = false
  private canUnblock: boolean
  private canBlock = true
  /** Blocking reads in a row that ended at once and empty. */
  private ignoredBlocks = 0
  private readonly healing: ReadHealing

  constructor(options: ReadLoop["options"]) {
    this.options = options
    const { connection, group, server } = options
    this.server = server
    this.connection = connection
    this.canUnblock = server.canUnblock
    this.healing = new ReadHealing(server, group, (session, error) => connection?.drop(session, error))
  }

  /** Why nothing can be read now. */
  get disconnected(): string | undefined {
    if (this.connection !== undefined && this.connection.current === undefined) return this.connection.trouble
    return this.server.control.isUp ? undefined : this.server.control.trouble
  }

  get trouble(): string | undefined {
    return this.disconnected ?? this.healing.trouble
  }

  /** Whether a read has been under way for so many milliseconds: what it brings may be on its way. */
  isReadingSince(millis: number): boolean {
    return this.asked !== nothingAsked && performance.now() - this.sentAt > millis
  }

  add(subscription: Reading): void {
    this.subscriptions.set(subscription.options.key, subscription)
  }

  /** Takes the subscription out, once no read can bring anything for it any more. */
  remove(subscription: Reading): Effect.Effect<void> {
    return Effect.suspend(() => {
      subscription.closing = true
      this.nudge()
      return this.asked.has(subscription) ? this.done.await : Effect.void
    }).pipe(
      Effect.andThen(subscription.nothingUnderWay.await),
      this.within(1_000),
      Effect.andThen(this.within(3_000)(subscription.close)),
      Effect.andThen(Effect.sync(() => this.subscriptions.delete(subscription.options.key))),
      Effect.asVoid
    )
  }

  private within(millis: number): (effect: Effect.Effect<void>) => Effect.Effect<unknown> {
    return (effect) => Effect.suspend(() => Effect.timeoutOption(effect, this.server.closing.left(millis)))
  }

  /** The subscription wants something that the read of this moment may not bring. */
  wake(subscription: Reading, isUrgent = false): void {
    this.work.openUnsafe()
    if (!this.isBlocked) return
    const isRead = this.asked.has(subscription)
    if (subscription.wantsOld && (isUrgent || !isRead) || !isRead && subscription.wantsNew > 0) this.nudge()
  }

  /** The demand has changed: a read that asks for more than is wanted now must not go on. */
  changed(subscription: Reading): void {
    const asked = this.asked.get(subscription)
    if (this.isBlocked && asked !== undefined && asked > subscription.wantsNew) this.nudge()
    this.wake(subscription, true)
  }

  /** Resolves when nothing new arrives for the subscription any more, or cannot be known to. */
  withdraw(subscription: Reading): Effect.Effect<void> {
    return Effect.suspend(() => {
      if (!this.asked.has(subscription)) return subscription.nothingUnderWay.await
      this.nudge()
      return Effect.andThen(this.done.await, subscription.nothingUnderWay.await)
    }).pipe(Effect.timeoutOption(maxWithdraw), Effect.asVoid)
  }

  private nudge(again = 2): void {
    const connected = this.connection?.current
    const id = connected?.clientId
    if (!this.isBlocked || this.isNudged || id === undefined || !this.isSameServer(connected!)) return
    this.isNudged = true
    const read = this.asked
    this.runFork(Effect.map(this.server.control.send(this.options.key, [["CLIENT", "UNBLOCK", id]]), ([reply]) => {
      if (reply instanceof ErrorReply) this.canUnblock = false
      if (reply !== 0 || this.asked !== read) return
      // It came before the read, on a connection of its own.
      this.isNudged = false
      setTimeout(() => this.asked === read && this.nudge(2 * again), again)
    }))
  }

  /**
   * Whether the control connection surely ends at the server of this one. After it was made again it may be another one,
   * where the id of this connection is a stranger's.
   */
  private isSameServer(connected: Session): boolean {
    return connected.madeAt > this.server.control.madeAgainAt
  }

  private runFork: (effect: Effect.Effect<void>) => void = () => {}

  readonly run: Effect.Effect<void, never, Scope.Scope> = Effect.gen({ self: this }, function*() {
    const fork = Effect.runForkWith(yield* Effect.context<never>())
    this.runFork = (effect) => void fork(effect)
    yield* Effect.forkScoped(Effect.forever(Effect.andThen(Effect.sleep(minTimeout / 2), this.doubt)))
    return yield* Effect.forever(this.turn, { disableYield: true })
  })

  private readonly turn: Effect.Effect<void> = Effect.suspend(() => {
    this.work.closeUnsafe()
    const old = [...this.subscriptions.values()].filter((subscription) => subscription.wantsOld)
    if (old.length === 0) return this.readNew
    return Effect.andThen(
      Effect.forEach(old, (subscription) => this.mend(subscription, subscription.takeOld), {
        concurrency: "unbounded",
        discard: true
      }),
      this.readNew
    )
  })

  private readonly readNew: Effect.Effect<void> = Effect.suspend(() => {
    const wanting: Array<Reading> = []
    let isBusy = false
    for (const subscription of this.subscriptions.values()) {
      if (subscription.wantsNew > 0) wanting.push(subscription)
      isBusy ||= subscription.wantsOld
    }
    if (wanting.length === 0) return isBusy ? Effect.void : this.work.await
    const connected = this.connection?.current
    if (this.connection !== undefined && connected === undefined) return Effect.ignore(this.connection.awaitUp(60_000))
    if (this.connection !== undefined && this.connection.isStale(this.server.control.madeAgainAt)) {
      return Effect.ignore(this.connection.renew)
    }
    return this.read(connected, wanting, isBusy)
  })

  private read(
    connected: Session | undefined,
    wanting: ReadonlyArray<Reading>,
    isBusy: boolean
  ): Effect.Effect<void> {
    const { consumer, group, key } = this.options
    const hot = wanting.length === 1 ? [] : wanting.filter((subscription) => subscription.isHot)
    const cold = wanting.length === 1 ? wanting : wanting.filter((subscription) => !subscription.isHot)
    const block = isBusy || hot.length > 0 || connected === undefined || !this.canBlock
      ? undefined
      : this.blockFor(connected, cold)
    const reads: Array<{ readonly subscriptions: ReadonlyArray<Reading>; readonly count: number }> = hot.map((one) => ({
      subscriptions: [one],
      count: one.wantsNew
    }))
    if (cold.length > 0) {
      reads.push({
        subscriptions: cold,
        count: cold.reduce((least, subscription) => Math.min(least, subscription.wantsNew), Infinity)
      })
    }
    const commands = reads.map(({ count, subscriptions }): Command => [
      "XREADGROUP",
      "GROUP",
      group,
      consumer,
      "COUNT",
      String(count),
      ...(block === undefined ? [] : ["BLOCK", String(block)]),
      "STREAMS",
      ...subscriptions.map((subscription) => subscription.options.key),
      ...subscriptions.map(() => ">")
    ])
    this.asked = new Map(reads.flatMap(({ count, subscriptions }) => subscriptions.map((one) => [one, count])))
    this.sentAt = performance.now()
    this.dueAt = this.sentAt + (block ?? 0)
    this.isBlocked = block !== undefined
    this.isNudged = false
    this.done.closeUnsafe()
    const sent = this.connection === undefined
      ? this.server.poll.send(key, commands)
      : this.connection.send(commands, (block ?? 0) + this.server.settings.answerTimeout)
    return Effect.flatMap(sent, (replies) => {
      this.asked = nothingAsked
      this.isBlocked = false
      let failed: { readonly error: Error; readonly subscriptions: ReadonlyArray<Reading> } | undefined
      replies.forEach((reply, i) => {
        const { count, subscriptions } = reads[i]!
        if (!(reply instanceof Error)) return this.dispatch(reply, subscriptions, count)
        failed = { error: reply, subscriptions }
        if (!(reply instanceof ErrorReply)) { for (const subscription of subscriptions) subscription.readLost() }
      })
      // Last: it resumes a subscription that is being closed at once, and that hands back what has just come.
      this.done.openUnsafe()
      if (failed !== undefined) return this.failed(connected, failed.error, failed.subscriptions)
      this.timeout = minTimeout
      this.healing.succeeded()
      if (!replies.every((reply) => reply === null)) return Effect.void
      const isPolling = this.connection === undefined || !this.canBlock
      // Polling, and nothing there: not again at once.
      if (isPolling) {
        return isBusy
          ? Effect.void
          : Effect.asVoid(Effect.timeoutOption(this.work.await, this.options.pollEvery()))
      }
      return block === undefined ? Effect.void : this.watchBlock(block)
    })
  }

  /** A server that takes BLOCK and does not wait would be asked as fast as it answers. */
  private watchBlock(block: number): Effect.Effect<void> {
    const wasIgnored = !this.isNudged && block >= 20 && performance.now() - this.sentAt < block / 2
    this.ignoredBlocks = wasIgnored ? this.ignoredBlocks + 1 : 0
    return this.ignoredBlocks < maxIgnoredBlocks ? Effect.void : this.poll("does not wait where XREADGROUP says BLOCK")
  }

  private poll(why: string): Effect.Effect<void> {
    this.canBlock = false
    return Effect.logWarning(
      `redis: this server ${why}: it is asked every ${this.options.pollEvery()} ms, and a message may take so long to be seen`
    )
  }

  private failed(
    session: Session | undefined,
    error: Error,
    subscriptions: ReadonlyArray<Reading>
  ): Effect.Effect<void> {
    const isRefused = error instanceof ErrorReply && (isUnknown(error) || /block/i.test(error.message)) &&
      !isPassing(error) && codeOf(error) !== "NOGROUP"
    return this.canBlock && isRefused
      ? this.poll(`refuses reads that wait (${error.message})`)
      : this.healing.heal(session, error, subscriptions)
  }

  private blockFor(connected: Session, subscriptions: ReadonlyArray<Reading>): number {
    const block = subscriptions.reduce((least, subscription) => Math.min(least, subscription.options.block), Infinity)
    return connected.clientId === undefined || !this.canUnblock ? Math.min(block, shortBlock) : block
  }

  private dispatch(reply: unknown, subscriptions: ReadonlyArray<Reading>, count: number): void {
    for (const subscription of subscriptions) subscription.isHot = false
    for (const stream of list(reply)) {
      const [name, entries] = list(stream)
      const subscription = subscriptions.length === 1 ? subscriptions[0]! : this.subscriptions.get(String(name))
      subscription?.received(list(entries) as ReadonlyArray<RawEntry>, count)
    }
  }

  // --- healing

  /**
   * A read that is overdue, or older than the last loss of the control connection, is ended at the server. When that
   * answers and nothing comes here, this connection is half-open.
   */
  private readonly doubt: Effect.Effect<void> = Effect.suspend(() => {
    const { asked: reading, connection, timeout } = this
    const connected = connection?.current
    const now = performance.now()
    if (connection === undefined || connected === undefined || reading === nothingAsked) return Effect.void
    const isSame = this.isSameServer(connected)
    if (isSame ? now < this.dueAt + timeout && this.sentAt > this.server.control.madeAgainAt : now < this.dueAt) {
      return Effect.void
    }
    const ping = Effect.map(Effect.suspend(() => connection.send([["PING"]], timeout)), ([reply]) => {
      if (reply instanceof Lost) this.timeout = Math.min(2 * timeout, this.server.settings.answerTimeout)
    })
    // At another server the id of this connection would be a stranger's.
    if (!isSame || connected.clientId === undefined) return ping
    return Effect.flatMap(
      this.server.control.send(this.options.key, [["CLIENT", "UNBLOCK", connected.clientId]]),
      ([reply]) => {
        const isOn = this.asked === reading && (reply !== 0 || performance.now() - this.sentAt > minTimeout)
        return reply instanceof Lost || !isOn ? Effect.void : ping
      }
    )
  })

  private mend(subscription: Reading, effect: Effect.Effect<void, Error>): Effect.Effect<void> {
    return Effect.catch(effect, (error) => this.healing.heal(undefined, error, [subscription]))
  }
}
