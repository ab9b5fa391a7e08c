import { connectionDetail } from "@millrace/core/TransportAuthor"
import { invalidOption, TransportError, Unauthorized, Unreachable } from "@millrace/core/TransportError"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import { ErrorReply } from "redis"
import { redirection, SlotMap, slotOf } from "./cluster.ts"
import type { Command } from "./command.ts"
import { Refusals } from "./health.ts"
import { backoff, type Connected, type DialError, type Link, make as makeLink } from "./link.ts"
import { codeOf, isRefusal, list, text } from "./reply.ts"
import { asEval } from "./scripts/script.ts"
import { ServerClock } from "./serverClock.ts"
import { type Address, nameOf, type Settings } from "./settings.ts"
import * as Topology from "./topology.ts"

/** Connections for one purpose: one, or in a cluster one to each node that is needed. */
export class Channel {
  private readonly links = new Map<string, Link>()
  private readonly purpose: string
  private readonly settings: Settings
  private readonly topology: Topology.Topology
  private readonly slots: SlotMap
  private readonly scope: Scope.Scope
  private readonly leastPatience: number | undefined

  constructor(
    purpose: string,
    settings: Settings,
    topology: Topology.Topology,
    slots: SlotMap,
    scope: Scope.Scope,
    leastPatience?: number
  ) {
    this.purpose = purpose
    this.settings = settings
    this.topology = topology
    this.slots = slots
    this.scope = scope
    this.leastPatience = leastPatience
  }

  /** The connection for a key, made when first asked for. */
  link(key: string, first?: Connected): Effect.Effect<Link> {
    return Effect.suspend(() => {
      const isCluster = this.settings.topology === "cluster"
      const address = isCluster ? this.slots.get(slotOf(key)) : undefined
      const name = address === undefined ? "" : nameOf(address)
      const link = this.links.get(name)
      if (link !== undefined) return Effect.succeed(link)
      if (isCluster && address === undefined) {
        return Effect.andThen(
          Effect.ignore(Effect.flatMap(this.topology.connect(key), close)),
          Effect.suspend(() => {
            const address = this.slots.get(slotOf(key))
            return address === undefined ? this.open("", key) : this.open(nameOf(address), key)
          })
        )
      }
      return this.open(name, key, first)
    })
  }

  private open(name: string, key: string, first?: Connected): Effect.Effect<Link> {
    return Effect.map(
      Scope.provide(makeLink(this.purpose, this.topology.connect(key), first, this.leastPatience), this.scope),
      (link) => {
        this.links.set(name, link)
        return link
      }
    )
  }

  /** Whether what is about this key can be sent at once. */
  isUpFor(key: string): boolean {
    const address = this.settings.topology === "cluster" ? this.slots.get(slotOf(key)) : undefined
    return this.links.get(address === undefined ? "" : nameOf(address))?.current !== undefined
  }

  /** Whether every node that is needed can be reached. */
  get isUp(): boolean {
    if (this.settings.topology !== "cluster") return this.links.get("")?.current !== undefined || this.links.size === 0
    return this.slots.known().every((address) =>
      this.links.get(nameOf(address))?.current !== undefined || !this.links.has(nameOf(address))
    )
  }

  /** Why a node that is needed cannot be reached. */
  get trouble(): string | undefined {
    for (const link of this.links.values()) if (link.trouble !== undefined) return link.trouble
    return undefined
  }

  /** When one of its connections was last made again. */
  get madeAgainAt(): number {
    return Math.max(...Array.from(this.links.values(), (link) => link.madeAgainAt))
  }

  /** Gives up those of its connections that answer nothing `within` milliseconds. */
  readonly test = (within: number): Effect.Effect<void> =>
    Effect.forEach(
      [...this.links.values()],
      (link) => link.current === undefined ? Effect.void : link.send([["PING"]], within),
      { concurrency: "unbounded", discard: true }
    )

  /**
   * Sends commands about one key and gives their replies in order, errors in their places. Waits at most `patience`
   * milliseconds for a connection.
   */
  send(key: string, commands: ReadonlyArray<Command>, patience = 2_000): Effect.Effect<ReadonlyArray<unknown>> {
    return Effect.flatMap(this.link(key), (link) => {
      const connected = link.current
      if (connected === undefined) {
        return patience === 0
          ? link.send(commands, this.settings.answerTimeout)
          : Effect.matchEffect(link.awaitUp(patience), {
            onFailure: (lost) => Effect.succeed(commands.map(() => lost)),
            onSuccess: () => this.send(key, commands, patience)
          })
      }
      return Effect.flatMap(link.send(commands, this.settings.answerTimeout), (replies) => {
        for (const reply of replies) {
          if (reply instanceof ErrorReply) return this.repair(key, link, connected, commands, replies, 5)
        }
        return Effect.succeed(replies)
      })
    })
  }

  /** One command; fails with what the server or the connection says. */
  one(key: string, command: Command, patience?: number): Effect.Effect<unknown, Error> {
    return Effect.flatMap(
      this.send(key, [command], patience),
      ([reply]) => reply instanceof Error ? Effect.fail(reply) : Effect.succeed(reply)
    )
  }

  /** Sends again what was not done: scripts the server has forgotten, commands for another node. */
  private repair(
    key: string,
    link: Link,
    connected: Connected,
    commands: ReadonlyArray<Command>,
    replies: ReadonlyArray<unknown>,
    hops: number
  ): Effect.Effect<ReadonlyArray<unknown>> {
    const again: Array<{ readonly index: number; readonly command: Command }> = []
    let to = link
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
      } else if ((code === "MOVED" || code === "ASK") && this.settings.topology === "cluster") {
        const redirected = redirection(reply.message, connected.address)
        if (redirected === undefined) continue
        target = redirected.address
        asking = code === "ASK"
        if (code === "MOVED") this.slots.set(redirected.slot, target)
        again.push({ index, command })
      } else if (code === "READONLY" || code === "MASTERDOWN") {
        link.drop(connected, reply)
      }
    }
    if (again.length === 0 || hops === 0) return Effect.succeed(replies)
    return Effect.gen({ self: this }, function*() {
      if (target !== undefined) {
        const known = this.links.get(nameOf(target))
        to = known ?? (yield* this.openAt(target))
        yield* Effect.ignore(to.awaitUp(this.settings.answerTimeout))
      }
      const sent = again.flatMap(({ command }) => asking ? [["ASKING"], command] : [command])
      const answers = (yield* to.send(sent, this.settings.answerTimeout)).filter((_, i) => !asking || i % 2 === 1)
      const merged = replies.slice()
      again.forEach(({ index }, i) => merged[index] = answers[i])
      const next = to.current ?? connected
      return answers.some((answer) => answer instanceof ErrorReply)
        ? yield* this.repair(key, to, next, commands, merged, hops - 1)
        : merged
    })
  }

  private openAt(address: Address): Effect.Effect<Link> {
    const redial = Topology.dialAt(this.settings, address)
    return Effect.map(
      Scope.provide(makeLink(this.purpose, redial, undefined, this.leastPatience), this.scope),
      (link) => {
        this.links.set(nameOf(address), link)
        return link
      }
    )
  }
}

const close = (connected: Connected) => Effect.sync(() => connected.client.destroy())

/** What all parts of a transport share: the way to the server, and one channel for each purpose. */
export interface Server {
  readonly settings: Settings
  readonly slots: SlotMap
  /** Settlements and publishing. */
  readonly write: Channel
  /** Claims, heartbeats and whatever must not wait behind a long write. */
  readonly keep: Channel
  /** Reads of those that have no connection of their own, and what may take long. */
  readonly poll: Channel
  /** A connection of its own, that may block. */
  readonly reading: (purpose: string, key: string) => Effect.Effect<Link, never, Scope.Scope>
  readonly clock: ServerClock
  /** What it refuses to all: it is full, or this user may not publish. */
  readonly refusals: Refusals
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
    const hasRemoval = yield* knows(first, "XACKDEL")
    const clock = new ServerClock()
    yield* setClock(clock, first)
    const write = new Channel("settling and publishing", settings, topology, slots, scope)
    // It is asked about once a second, and little at a time: the first to know that nothing passes any more.
    const patience = Math.max(1_000, settings.answerTimeout / 5)
    const keep = new Channel("claiming and keeping", settings, topology, slots, scope, patience)
    const poll = new Channel("browsing and polling", settings, topology, slots, scope)
    yield* write.link("", first)
    // Whatever made it be lost may have happened to the others too, and they would not know for long.
    let seen = -Infinity
    yield* Effect.suspend(() => {
      if (keep.madeAgainAt === seen) return Effect.void
      seen = keep.madeAgainAt
      return Effect.andThen(write.test(1_000), poll.test(1_000))
    }).pipe(Effect.andThen(Effect.sleep(500)), Effect.forever, Effect.forkScoped)
    return {
      settings,
      slots,
      write,
      keep,
      poll,
      reading: (purpose, key) => makeLink(purpose, topology.connect(key)),
      clock,
      refusals: new Refusals(),
      hasRemoval
    }
  }
)

/** A script that finds a wrong clock says so: this only spares it the first time. */
const setClock = (clock: ServerClock, connected: Connected): Effect.Effect<void> =>
  Effect.promise(() =>
    connected.client.sendCommand(["TIME"]).then((reply) => {
      const [seconds, micros] = list(reply).map((part) => Number(text(part)))
      clock.set(seconds! * 1_000 + Math.floor(micros! / 1_000))
    }, () => {})
  )

/** Whether the server has a command. */
const knows = (connected: Connected, command: string): Effect.Effect<boolean> =>
  Effect.promise(() =>
    connected.client.sendCommand([command]).then(
      () => true,
      (error) => error instanceof ErrorReply && /wrong number of arguments/.test(error.message)
    )
  )

/** Tries as long as trying may help: where nothing listens, that is said at once. */
const firstConnection = (settings: Settings, topology: Topology.Topology): Effect.Effect<Connected, TransportError> => {
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
  return topology.connect("").pipe(
    Effect.tapError((error) => {
      last = error
      return isFinal(error) ? Effect.void : saying(reasonOf(settings, error))
    }),
    Effect.retry({ schedule: backoff, while: (error) => !isFinal(error) }),
    Effect.mapError((error) => refused(settings, error)),
    Effect.raceFirst(
      Effect.andThen(
        Effect.sleep(silence),
        Effect.andThen(
          saying(`the server does not answer${settings.tls === undefined ? "" : ", it may not speak TLS"}`),
          Effect.never
        )
      )
    ),
    Effect.timeoutOrElse({
      duration: settings.connectTimeout,
      orElse: () => Effect.fail(unreachable(settings, last))
    })
  )
}

/** In milliseconds: a server that has said nothing for so long is worth a line. */
const silence = 2_000

/** Why a first connection failed; a server that expects TLS says nothing and closes it. */
const reasonOf = ({ tls }: Settings, { detail }: DialError): string =>
  tls === undefined && detail === connectionDetail(new Error("socket closed")) ? `${detail}; it may expect TLS` : detail

const unreachable = (settings: Settings, last: DialError | undefined): TransportError =>
  new TransportError({
    transport: "redis",
    reason: new Unreachable({
      address: settings.label,
      ...(last === undefined ? {} : { cause: new Error(reasonOf(settings, last)) })
    })
  })

const refused = (settings: Settings, failure: DialError): TransportError => {
  const { error } = failure
  return /ERR AUTH .*without any password/.test(error.message)
    ? invalidOption("redis", "password", "given", "this server has none, leave it out")
    : isRefusal(error) || /\bDENIED\b/.test(error.message)
    ? new TransportError({
      transport: "redis",
      reason: new Unauthorized({ address: settings.label, operation: "the connection", detail: error.message })
    })
    : unreachable(settings, failure)
}
