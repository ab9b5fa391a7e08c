import { invalidOption, type TransportError, Unauthorized, Unreachable } from "@millrace/core/TransportError"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import { ErrorReply } from "redis"
import { type Address, nameOf } from "./address.ts"
import { BulkLimit } from "./bulkLimit.ts"
import { Closing } from "./closing.ts"
import { redirection, SlotMap, slotOf } from "./cluster.ts"
import type { Command } from "./command.ts"
import { backoff, type Connection, make as makeConnection } from "./connection.ts"
import { DelayedMoves } from "./delayedMoves.ts"
import { DialError, type Session } from "./dial.ts"
import { Refusals } from "./health.ts"
import { codeOf, failure, isRefusal, millisOfTime } from "./reply.ts"
import { asEval } from "./scripts/script.ts"
import { ServerClock } from "./serverClock.ts"
import type { Settings } from "./settings.ts"
import { speaksOtherwise } from "./tlsProbe.ts"
import * as Topology from "./topology.ts"

/** Connections for one purpose: one, or in a cluster one to each node that is needed. */
export class ConnectionPool {
  private readonly connections = new Map<string, Connection>()
  private readonly options: {
    readonly purpose: string
    readonly settings: Settings
    readonly topology: Topology.Topology
    readonly slots: SlotMap
    readonly scope: Scope.Scope
    /** As of {@link Connection}. */
    readonly minTimeout?: number
  }
  private readonly isCluster: boolean

  constructor(options: ConnectionPool["options"]) {
    this.options = options
    this.isCluster = options.settings.topology === "cluster"
  }

  /** The name of the connection for a key: empty where the node is not known, or is the only one. */
  private nameFor(key: string): string {
    const address = this.isCluster ? this.options.slots.get(slotOf(key)) : undefined
    return address === undefined ? "" : nameOf(address)
  }

  /** The connection for a key, made when first asked for. */
  connection(key: string, first?: Session): Effect.Effect<Connection> {
    return Effect.suspend(() => {
      const { topology } = this.options
      const name = this.nameFor(key)
      const connection = this.connections.get(name)
      if (connection !== undefined) return Effect.succeed(connection)
      const redial = topology.connect(key)
      if (!this.isCluster || name !== "") return this.open(name, redial, first)
      return Effect.andThen(
        Effect.ignore(Effect.flatMap(redial, close)),
        Effect.suspend(() => this.open(this.nameFor(key), redial))
      )
    })
  }

  private open(name: string, redial: Effect.Effect<Session, DialError>, first?: Session): Effect.Effect<Connection> {
    const { minTimeout, purpose, scope } = this.options
    return Effect.tap(
      Scope.provide(makeConnection(purpose, redial, first, minTimeout), scope),
      (connection) => Effect.sync(() => this.connections.set(name, connection))
    )
  }

  /** Whether what is about this key can be sent at once. */
  isUpFor(key: string): boolean {
    return this.connections.get(this.nameFor(key))?.current !== undefined
  }

  /** Whether every node that is needed can be reached. */
  get isUp(): boolean {
    if (!this.isCluster) {
      return this.connections.get("")?.current !== undefined || this.connections.size === 0
    }
    return this.options.slots.known().every((address) =>
      this.connections.get(nameOf(address))?.current !== undefined || !this.connections.has(nameOf(address))
    )
  }

  /** Why a node that is needed cannot be reached. */
  get trouble(): string | undefined {
    for (const connection of this.connections.values()) if (connection.trouble !== undefined) return connection.trouble
    return undefined
  }

  /** When one of its connections was last made again. */
  get madeAgainAt(): number {
    return Math.max(...Array.from(this.connections.values(), (connection) => connection.madeAgainAt))
  }

  /** Gives up those of its connections that answer nothing within a second. */
  readonly test: Effect.Effect<void> = Effect.suspend(() =>
    Effect.forEach(
      [...this.connections.values()],
      (connection) => connection.current === undefined ? Effect.void : connection.send([["PING"]], 1_000),
      { concurrency: "unbounded", discard: true }
    )
  )

  /**
   * Sends commands about one key and gives their replies in order, errors in their places. Waits at most `timeout`
   * milliseconds for a connection.
   */
  send(key: string, commands: ReadonlyArray<Command>, timeout = 2_000): Effect.Effect<ReadonlyArray<unknown>> {
    return Effect.flatMap(this.connection(key), (connection) => {
      const { answerTimeout } = this.options.settings
      const connected = connection.current
      if (connected === undefined) {
        return timeout === 0
          ? connection.send(commands, answerTimeout)
          : Effect.matchEffect(connection.awaitUp(timeout), {
            onFailure: (lost) => Effect.succeed(commands.map(() => lost)),
            onSuccess: () => this.send(key, commands, timeout)
          })
      }
      return Effect.flatMap(connection.send(commands, answerTimeout), (replies) => {
        for (const reply of replies) {
          if (reply instanceof ErrorReply) return this.repair(key, connection, connected, commands, replies, 5)
        }
        return Effect.succeed(replies)
      })
    })
  }

  /** One command; fails with what the server or the connection says. */
  one(key: string, command: Command, timeout?: number): Effect.Effect<unknown, Error> {
    return Effect.flatMap(
      this.send(key, [command], timeout),
      ([reply]) => reply instanceof Error ? Effect.fail(reply) : Effect.succeed(reply)
    )
  }

  /** Sends again what was not done: scripts the server has forgotten, commands for another node. */
  private repair(
    key: string,
    connection: Connection,
    connected: Session,
    commands: ReadonlyArray<Command>,
    replies: ReadonlyArray<unknown>,
    hops: number
  ): Effect.Effect<ReadonlyArray<unknown>> {
    const { settings: { answerTimeout }, slots } = this.options
    const again: Array<{ readonly index: number; readonly command: Command }> = []
    let to = connection
    let target: Address | undefined
    let asking = false
    for (let index = 0; index < replies.length; index++) {
      const reply = replies[index]
      if (!(reply instanceof ErrorReply)) continue
      const code = codeOf(reply)
      const command = commands[index]!
      if (code === "NOSCRIPT") {
        const evaluated = asEval(command)
        if (evaluated !== undefined) again.push({ index, command: evaluated })
      } else if ((code === "MOVED" || code === "ASK") && this.isCluster) {
        const redirected = redirection(reply.message, connected.address)
        if (redirected === undefined) continue
        target = redirected.address
        asking = code === "ASK"
        if (code === "MOVED") slots.set(redirected.slot, target)
        again.push({ index, command })
      } else if (code === "READONLY" || code === "MASTERDOWN") {
        connection.drop(connected, reply)
      }
    }
    if (again.length === 0 || hops === 0) return Effect.succeed(replies)
    return Effect.gen({ self: this }, function*() {
      if (target !== undefined) {
        const name = nameOf(target)
        to = this.connections.get(name) ?? (yield* this.open(name, Topology.dialAt(this.options.settings, target)))
        yield* Effect.ignore(to.awaitUp(answerTimeout))
      }
      const sent = again.flatMap(({ command }) => asking ? [["ASKING"], command] : [command])
      const answers = (yield* to.send(sent, answerTimeout)).filter((_, i) => !asking || i % 2 === 1)
      const merged = replies.slice()
      again.forEach(({ index }, i) => merged[index] = answers[i])
      const next = to.current ?? connected
      return answers.some((answer) => answer instanceof ErrorReply)
        ? yield* this.repair(key, to, next, commands, merged, hops - 1)
        : merged
    })
  }
}

const close = (connected: Session) => Effect.sync(() => connected.client.destroy())

/** What all parts of a transport share: the way to the server, and one channel for each purpose. */
export interface Server {
  readonly settings: Settings
  readonly slots: SlotMap
  /** Settlements and publishing. */
  readonly write: ConnectionPool
  /** Claims, heartbeats and whatever must not wait behind a long write. */
  readonly control: ConnectionPool
  /** Reads of those that have no connection of their own, and what may take long. */
  readonly poll: ConnectionPool
  /** A connection of its own, that may block. */
  readonly reading: (purpose: string, key: string) => Effect.Effect<Connection, never, Scope.Scope>
  readonly clock: ServerClock
  /** What it refuses to all: it is full, or this user may not publish. */
  readonly refusals: Refusals
  readonly bulkLimit: BulkLimit
  readonly delayedMoves: DelayedMoves
  readonly closing: Closing
  /** Whether this user may end a blocking read by `CLIENT UNBLOCK`. */
  readonly canUnblock: boolean
  /** XACKDEL: asked, not read from a version, and given up when it turns out otherwise. */
  hasRemoval: boolean
}

/** Connects, or says within `connectTimeout` why that cannot be done. */
export const make = Effect.fnUntraced(
  function*(settings: Settings): Effect.fn.Return<Server, TransportError, Scope.Scope> {
    // Connections are made when they are needed, and must all outlive the subscriptions: a scope of this moment.
    const scope = yield* Scope.fork(yield* Effect.scope)
    const slots = new SlotMap()
    const topology = Topology.make(settings, slots)
    const first = yield* firstConnection(settings, topology)
    const hasRemoval = yield* knowsRemoval(first)
    const canUnblock = yield* mayUnblock(first)
    const clock = new ServerClock()
    yield* setClock(clock, first)
    const shared = { settings, topology, slots, scope }
    const write = new ConnectionPool({ ...shared, purpose: "settlements and publishing" })
    // It is asked about once a second, and little at a time: the first to know that nothing passes any more.
    const minTimeout = Math.max(1_000, settings.answerTimeout / 5)
    const control = new ConnectionPool({ ...shared, purpose: "claims and heartbeats", minTimeout })
    const poll = new ConnectionPool({ ...shared, purpose: "browsing and polling" })
    yield* write.connection("", first)
    const delayedMoves = yield* Effect.acquireRelease(
      Effect.sync(() => new DelayedMoves((key, command) => control.one(key, command))),
      (moves) => Effect.sync(() => moves.close())
    )
    const readClock = Effect.match(control.one("", ["TIME"]), {
      onFailure: () => {},
      onSuccess: (reply) => clock.set(millisOfTime(reply))
    })
    // Whatever made it be lost may have happened to the others too, and they would not know for long. Another server may
    // have another clock.
    let seen = -Infinity
    yield* Effect.suspend(() => {
      if (control.madeAgainAt === seen) return Effect.void
      seen = control.madeAgainAt
      return Effect.all([write.test, poll.test, readClock])
    }).pipe(Effect.andThen(Effect.sleep(500)), Effect.forever, Effect.forkScoped)
    yield* readClock.pipe(Effect.delay("1 minute"), Effect.forever, Effect.forkScoped)
    return {
      settings,
      slots,
      write,
      control,
      poll,
      reading: (purpose, key) => makeConnection(purpose, topology.connect(key)),
      clock,
      refusals: new Refusals(),
      bulkLimit: new BulkLimit((setting) => control.one("", ["CONFIG", "GET", setting])),
      delayedMoves,
      closing: new Closing(() => control.isUp),
      canUnblock,
      hasRemoval
    }
  }
)

/** A script that finds a wrong clock says so: this only spares it the first time. */
const setClock = (clock: ServerClock, connected: Session): Effect.Effect<void> =>
  Effect.promise(() => connected.client.sendCommand(["TIME"]).then((reply) => clock.set(millisOfTime(reply)), () => {}))

/** Tried on itself, which is not blocked: only a user who may not is refused. */
const mayUnblock = ({ client, clientId }: Session): Effect.Effect<boolean> =>
  clientId === undefined
    ? Effect.succeed(false)
    : Effect.promise(() => client.sendCommand(["CLIENT", "UNBLOCK", clientId]).then(() => true, () => false))

/** Whether the server has XACKDEL. */
const knowsRemoval = ({ client }: Session): Effect.Effect<boolean> =>
  Effect.promise(() =>
    client.sendCommand(["XACKDEL"]).then(
      () => true,
      (error) => error instanceof ErrorReply && /wrong number of arguments/.test(error.message)
    )
  )

/** Tries as long as trying may help: where nothing listens, or the wrong protocol is spoken, that is said at once. */
const firstConnection = (settings: Settings, topology: Topology.Topology): Effect.Effect<Session, TransportError> => {
  let last: DialError | undefined
  const limit = Duration.format(Duration.millis(settings.connectTimeout))
  let isSaid = false
  /** Once. */
  const saying = (detail: string) =>
    Effect.suspend(() => {
      if (isSaid) return Effect.void
      isSaid = true
      return Effect.logWarning(`${settings.label}: no connection yet: ${detail}; trying for ${limit}`)
    })
  const isFinal = (error: DialError) => error.isFinal || error.isAlone === true
  let isProbed = false
  /** Fails where one side speaks TLS and the other does not; asks the server once. */
  const probe = (address: Address): Effect.Effect<void, DialError> =>
    Effect.suspend(() => {
      if (isProbed || settings.client !== undefined) return Effect.void
      isProbed = true
      const withTls = settings.tls !== undefined
      const text = withTls ? "the server does not support 'TLS'" : "TLS is required by the server: write rediss://"
      return Effect.flatMap(speaksOtherwise(address, withTls), (isOther) =>
        isOther ? Effect.fail(new DialError({ address, error: new Error(text), isAlone: true })) : Effect.void)
    })
  return topology.connect("").pipe(
    Effect.tapError((error) => {
      // A connection that ends without a word says less than an earlier one.
      if (last === undefined || !error.isClosed) last = error
      if (isFinal(error)) return Effect.void
      return Effect.andThen(error.isClosed ? probe(error.address) : Effect.void, saying(error.detail))
    }),
    Effect.retry({ schedule: backoff, while: (error) => !isFinal(error) }),
    Effect.raceFirst(
      Effect.sleep(silence).pipe(
        Effect.andThen(probe(settings.seeds[0])),
        Effect.andThen(saying("the server does not answer")),
        Effect.andThen(Effect.never)
      )
    ),
    Effect.mapError((error) => refused(settings, error)),
    Effect.timeoutOrElse({
      duration: settings.connectTimeout,
      orElse: () => Effect.fail(unreachable(settings, last))
    })
  )
}

/** In milliseconds: a server that has said nothing for so long is asked otherwise, and worth a line. */
const silence = 1_000

const unreachable = (settings: Settings, last: DialError | undefined): TransportError =>
  failure(
    new Unreachable({ address: settings.label, ...(last === undefined ? {} : { cause: new Error(last.detail) }) })
  )

const refused = (settings: Settings, last: DialError): TransportError => {
  const { error } = last
  return /ERR AUTH .*without any password/.test(error.message)
    ? invalidOption("redis", "password", { toString: () => "given" }, "this server has none, leave it out")
    : isRefusal(error) || /\bDENIED\b/.test(error.message)
    ? failure(new Unauthorized({ address: settings.label, operation: "the connection", detail: error.message }))
    : unreachable(settings, last)
}
