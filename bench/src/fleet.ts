import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import * as Child from "./child.ts"
import type { Result, Results } from "./results.ts"
import { connectServer, type Server } from "./server.ts"
import {
  type BrokerName,
  type FromRound,
  group,
  type Measured,
  outputOf,
  type Spec,
  type ToRound,
  workOf
} from "./spec.ts"

/** The brokers of a run. */
export interface Urls {
  readonly redis: string
  readonly jetstream: string
}

/** Arms that are compared with each other: everything else is the same. */
export interface Cell extends Omit<Spec, "arm"> {
  readonly arms: ReadonlyArray<string>
  readonly passes: number
}

export interface Options {
  /** The folder with the child programs; default ours. */
  readonly folder?: string
  /** Where to leave a CPU profile. */
  readonly profileTo?: string
  /** Every pass has a topic of its own, as child programs of older commits need. */
  readonly ownTopics?: boolean
  /** Topics stay until the brokers end, so that no pass waits for the one before to leave its topic. */
  readonly keepsTopics?: boolean
}

export type Member = Child.Child<ToRound, FromRound>

/** They take ten times as long, or more: fewer messages do. */
const isSlow = (arm: string) => arm.startsWith("bullmq") || arm === "naive"

/** Enough for everything to be compiled. */
const maxWarmUp = (arm: string) => isSlow(arm) ? 3_000 : 40_000

const warmUpCount = (spec: Spec): number => {
  const wanted = spec.delay === 0 && spec.rate === undefined ? warmUpOf(spec) : Math.floor(spec.count / 5)
  return Math.min(maxWarmUp(spec.arm), Math.max(spec.concurrency, wanted))
}

/** Passes of a quick run are shorter than compiling takes; large bodies need fewer messages. */
const warmUpOf = ({ count, size }: Spec): number => size > 1000 ? count : 3 * count

/** Names of topics differ between all runs on one broker. */
let names = 0

/** Processes that measure, each one arm on one broker, with the topics that they share. */
export class Fleet {
  private readonly urls: Urls
  private readonly options: Options
  private readonly scope: Scope.Scope
  private readonly members = new Map<string, Member>()
  private readonly producers = new Map<BrokerName, Child.Child<{ spec: Spec; topic: string }, "ready">>()
  private readonly servers = new Map<string, Server>()
  private readonly topics = new Map<string, string>()
  private readonly warm = new Set<string>()

  static readonly make = (urls: Urls, options: Options = {}): Effect.Effect<Fleet, never, Scope.Scope> =>
    Effect.map(Effect.scope, (scope) => new Fleet(urls, options, scope))

  private constructor(urls: Urls, options: Options, scope: Scope.Scope) {
    this.urls = urls
    this.options = options
    this.scope = scope
  }

  urlOf(broker: BrokerName): string {
    return broker === "memory" ? "" : this.urls[broker]
  }

  /** The process of an arm, and others of the same arm by number; it is started when it is first needed. */
  member(spec: Spec, number = 0): Effect.Effect<Member, Child.ChildFailed> {
    const key = `${spec.broker}/${spec.arm}/${number}`
    const { folder, profileTo } = this.options
    const { members } = this
    const args = [JSON.stringify(spec), this.urlOf(spec.broker), ...(profileTo === undefined ? [] : [profileTo])]
    return Effect.suspend(() => {
      const known = members.get(key)
      return known !== undefined ? Effect.succeed(known) : Effect.tap(
        Effect.tap(Child.start<ToRound, FromRound>("round.main.ts", args, folder), (member) => member.next),
        (member) => Effect.sync(() => members.set(key, member))
      )
    }).pipe(Scope.provide(this.scope))
  }

  private producer(broker: BrokerName) {
    const { producers } = this
    return Effect.suspend(() => {
      const known = producers.get(broker)
      return known !== undefined ? Effect.succeed(known) : Effect.tap(
        Child.start<{ spec: Spec; topic: string }, "ready">("producer.main.ts", [broker, this.urlOf(broker)]),
        (producer) => Effect.andThen(producer.next, Effect.sync(() => producers.set(broker, producer)))
      )
    }).pipe(Scope.provide(this.scope))
  }

  server(broker: "redis" | "jetstream", arm = ""): Effect.Effect<Server> {
    const key = arm.startsWith("bullmq") ? "bullmq" : broker
    const { servers } = this
    return Effect.suspend(() => {
      const known = servers.get(key)
      return known !== undefined ? Effect.succeed(known) : Effect.acquireRelease(
        Effect.tap(
          Effect.promise(() => connectServer(broker, this.urlOf(broker), arm)),
          (server) => Effect.sync(() => servers.set(key, server))
        ),
        (server) => Effect.promise(() => server.close())
      )
    }).pipe(Scope.provide(this.scope))
  }

  /** A topic with so many messages. Arms that only consume share it, each pass in a group of its own. */
  topic(server: Server, spec: Spec, count: number, use: "measured" | "warm" = "measured"): Effect.Effect<string> {
    const isOwn = this.options.ownTopics === true || spec.rate !== undefined || workOf(spec.arm) !== "consume" ||
      spec.arm === "bullmq"
    const key = `${spec.broker}/${spec.size}/${count}/${use}`
    const known = isOwn ? undefined : this.topics.get(key)
    if (known !== undefined) return Effect.succeed(known)
    const name = `bench${names++}x`
    const stored = spec.rate !== undefined || workOf(spec.arm) !== "consume" ? 0 : count
    return Effect.as(
      Effect.promise(async () => {
        await server.fill(name, spec, stored)
        if (!isOwn) this.topics.set(key, name)
      }),
      name
    )
  }

  /** Removes a topic that no other pass uses, or what a pass has left beside a shared one. */
  private cleanUp(server: Server, topic: string, group: string): Effect.Effect<void> {
    const isShared = [...this.topics.values()].includes(topic)
    if (this.options.keepsTopics === true) return Effect.void
    return Effect.promise(() => server.remove(isShared ? outputOf(topic, group) : topic))
  }

  /** Forgets the topics that passes have shared. */
  readonly forgetTopics: Effect.Effect<void> = Effect.suspend(() => {
    const shared = [...this.topics]
    this.topics.clear()
    if (this.options.keepsTopics === true) return Effect.void
    return Effect.forEach(shared, ([key, topic]) => {
      const server = this.servers.get(key.slice(0, key.indexOf("/")))
      return server === undefined ? Effect.void : Effect.promise(() => server.remove(topic))
    }, { discard: true })
  })

  /** One pass, in the process of its arm. */
  pass(spec: Spec): Effect.Effect<Measured, Child.ChildFailed> {
    const { ownTopics } = this.options
    return Effect.gen({ self: this }, function*() {
      const member = yield* this.member(spec)
      const key = JSON.stringify([spec.broker, spec.arm, spec.concurrency, spec.delay, spec.size])
      const warming = this.warm.has(key) ? 0 : warmUpCount(spec)
      this.warm.add(key)
      const server = spec.broker === "memory" ? undefined : yield* this.server(spec.broker, spec.arm)
      const consumers = ownTopics === true ? group : `g${names++}`
      const topics = { topic: `memory${names++}`, warmUp: `memory${names++}` }
      if (server !== undefined) {
        const { rate: _, ...still } = spec
        if (warming > 0) topics.warmUp = yield* this.topic(server, still, warming, "warm")
        topics.topic = yield* this.topic(server, spec, spec.count)
      }
      const producer = spec.rate === undefined ? undefined : yield* this.producer(spec.broker)
      const saysEarly = this.options.keepsTopics === true
      yield* member.send({ _tag: "Go", ...topics, warmUpCount: warming, spec, group: consumers, saysEarly })
      let message = yield* member.next
      if (message._tag === "Consuming") {
        yield* producer!.send({ spec, topic: topics.topic })
        message = yield* member.next
      }
      if (server !== undefined) {
        if (warming > 0) yield* this.cleanUp(server, topics.warmUp, consumers)
        yield* this.cleanUp(server, topics.topic, consumers)
      }
      if (message._tag !== "Measured") return yield* new Child.ChildFailed({ detail: `unexpected ${message._tag}` })
      return message.measured
    })
  }

  /** A pass that counts; a void one is reported and run again. */
  valid(spec: Spec): Effect.Effect<Measured, Child.ChildFailed> {
    return Effect.gen({ self: this }, function*() {
      let reason: string | undefined
      for (let attempt = 0; attempt < maxVoid; attempt++) {
        const measured = yield* this.pass(spec)
        if (measured.void === undefined) return measured
        reason = measured.void
        yield* Effect.sync(() => console.error(`void: ${JSON.stringify(spec)}: ${reason}`))
      }
      return yield* new Child.ChildFailed({ detail: `${maxVoid} void passes: ${JSON.stringify(spec)}: ${reason}` })
    })
  }
}

const maxVoid = 3

export const specOf = ({ arms: _, passes: __, ...common }: Cell, arm: string): Spec => ({
  ...common,
  arm,
  ...(isSlow(arm) ? { count: Math.ceil(common.count / 10) } : {})
})

/** Runs the arms of a cell in turn, in reversed order every other round. `first` is the number of the first round. */
export const runCell = Effect.fnUntraced(function*(
  fleet: Fleet,
  cell: Cell,
  onResult: (result: Result) => void,
  first = 0
): Effect.fn.Return<Results, Child.ChildFailed> {
  // Two at a time: that is how many cores there may be.
  yield* Effect.forEach(cell.arms, (arm) => fleet.member(specOf(cell, arm)), { concurrency: 2, discard: true })
  const results: Array<Result> = []
  for (let round = first; round < first + cell.passes; round++) {
    for (const arm of round % 2 === 0 ? cell.arms : [...cell.arms].reverse()) {
      const spec = specOf(cell, arm)
      const result = { spec, round, measured: yield* fleet.valid(spec) }
      results.push(result)
      onResult(result)
    }
  }
  return results
})

/** Runs a cell in `generations` of processes of its own, so that the chance of one process is not the result. */
export const runFresh = Effect.fnUntraced(function*(
  urls: Urls,
  cell: Cell,
  generations: number,
  onResult: (result: Result) => void
): Effect.fn.Return<Results, Child.ChildFailed> {
  const results: Array<Result> = []
  for (let n = 0; n < generations; n++) {
    results.push(
      ...yield* Effect.scoped(Effect.gen(function*() {
        const fleet = yield* Fleet.make(urls)
        const some = yield* runCell(fleet, cell, onResult, n * cell.passes)
        yield* fleet.forgetTopics
        return some
      }))
    )
  }
  return results
})
