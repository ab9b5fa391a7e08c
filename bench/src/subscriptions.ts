import { Brokers } from "@millrace/testing"
import { connect as connectNats } from "@nats-io/transport-node"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import * as redis from "./arms/redis.ts"
import * as Child from "./child.ts"
import { estimate } from "./statistics.ts"
import { interval, markdown } from "./table.ts"

export interface Subscriptions {
  readonly broker: "redis" | "jetstream"
  readonly count: number
  /** Milliseconds until all were ready, of each process; everything they need had to be created. */
  readonly started: ReadonlyArray<number>
  /** As the server counts them: of `count` subscriptions, and of ten. */
  readonly connections: number
  readonly connectionsOfTen: number
  /** Share of one core, second by second. */
  readonly idleCpu: ReadonlyArray<number>
  /** Commands a second while idle, by name; Redis only. */
  readonly commands: Readonly<Record<string, number>> | undefined
  readonly rss: number
}

interface Watch {
  readonly connections: Effect.Effect<number>
  readonly commands: Effect.Effect<Readonly<Record<string, number>> | undefined>
}

const watchRedis = Effect.fnUntraced(function*(url: string): Effect.fn.Return<Watch, never, Scope.Scope> {
  const client = yield* Effect.acquireRelease(
    Effect.promise(() => redis.connect(url)),
    (client) => Effect.sync(() => client.destroy())
  )
  return {
    connections: Effect.map(
      Effect.promise(() => client.info("clients")),
      (info) => Number(/connected_clients:(\d+)/.exec(info)![1])
    ),
    commands: Effect.map(Effect.promise(() => client.info("commandstats")), (info) =>
      Object.fromEntries(
        [...info.matchAll(/^cmdstat_(\S+?):calls=(\d+)/gm)].map(([, name, calls]) => [name, Number(calls)])
      ))
  }
})

/** Only an account of the system's own may ask who is connected. */
const accounts = `
accounts {
  BENCH { jetstream: enabled, users: [{ user: bench, password: bench }] }
  SYSTEM { users: [{ user: system, password: system }] }
}
system_account: SYSTEM
no_auth_user: bench
`

const watchNats = Effect.fnUntraced(function*(url: string): Effect.fn.Return<Watch, never, Scope.Scope> {
  const nc = yield* Effect.acquireRelease(
    Effect.promise(() => connectNats({ servers: url, user: "system", pass: "system" })),
    (nc) => Effect.promise(() => nc.close())
  )
  return {
    connections: Effect.map(
      Effect.promise(() => nc.request("$SYS.REQ.SERVER.PING.CONNZ", "{}")),
      (reply) => (reply.json<{ readonly data: { readonly num_connections: number } }>()).data.num_connections
    ),
    commands: Effect.succeed(undefined)
  }
})

/** One process, until it has been idle for so many seconds. `onIdle` runs when that time begins. */
const program = Effect.fnUntraced(function*(
  broker: "redis" | "jetstream",
  count: number,
  seconds: number,
  onIdle: Effect.Effect<unknown> = Effect.void
): Effect.fn.Return<Omit<Subscriptions, "connectionsOfTen">, Child.ChildFailed | Brokers.BrokersError, Scope.Scope> {
  const { url } = yield* broker === "redis" ? Brokers.redis() : Brokers.nats({ config: accounts })
  const watch = yield* broker === "redis" ? watchRedis(url) : watchNats(url)
  const before = yield* watch.connections
  const child = yield* Child.start<
    "end",
    | { readonly _tag: "Idle"; readonly started: number }
    | { readonly _tag: "Counted"; readonly cpu: ReadonlyArray<number>; readonly rss: number }
  >("subscriptions.main.ts", [broker, url, String(count), String(seconds)])
  const idle = yield* child.next
  const connections = (yield* watch.connections) - before
  yield* onIdle
  const commandsBefore = yield* watch.commands
  const counted = yield* child.next
  const commandsAfter = yield* watch.commands
  yield* child.send("end")
  yield* child.exited
  if (idle._tag !== "Idle" || counted._tag !== "Counted") {
    return yield* new Child.ChildFailed({ detail: "out of order" })
  }
  return {
    broker,
    count,
    started: [idle.started],
    connections,
    idleCpu: counted.cpu,
    commands: commandsAfter === undefined ? undefined : Object.fromEntries(
      Object.entries(commandsAfter)
        .map(([name, calls]) => [name, (calls - (commandsBefore?.[name] ?? 0)) / seconds] as const)
        .filter(([name, rate]) => rate > 0 && name !== "info")
    ),
    rss: counted.rss
  }
})

/** Starts `starts` processes, each on a new broker. While the last one is idle, the caller goes on. */
const begin = Effect.fnUntraced(function*(
  broker: "redis" | "jetstream",
  count: number,
  starts: number,
  seconds: number
) {
  const started: Array<number> = []
  for (let n = 1; n < starts; n++) started.push(...(yield* Effect.scoped(program(broker, count, 0))).started)
  const idle = yield* Deferred.make<void>()
  const last = yield* Effect.forkChild(
    Effect.scoped(program(broker, count, seconds, Deferred.succeed(idle, undefined)))
  )
  yield* Effect.race(Deferred.await(idle), Fiber.join(last))
  return Effect.map(Fiber.join(last), (one) => ({ ...one, started: [...started, ...one.started] }))
})

const brokers = ["redis", "jetstream"] as const

/** What `count` idle subscriptions in one process cost. */
export const measure = Effect.fnUntraced(function*(
  count: number,
  starts: number,
  seconds: number
): Effect.fn.Return<ReadonlyArray<Subscriptions>, Child.ChildFailed | Brokers.BrokersError> {
  const few = yield* Effect.forEach(brokers, (broker) => Effect.scoped(program(broker, 10, 0)), { concurrency: 2 })
  const begun = yield* Effect.forEach(brokers, (broker) => begin(broker, count, starts, seconds))
  const measured = yield* Effect.all(begun)
  return measured.map((one, i) => ({ ...one, connectionsOfTen: few[i]!.connections }))
})

export const text = (measured: ReadonlyArray<Subscriptions>): string =>
  markdown(
    ["broker", "subscriptions", "start s", "idle CPU %", "connections", "commands a second", "RSS MB"],
    measured.map(({ broker, commands = {}, connections, count, idleCpu, rss, started }) => [
      broker,
      String(count),
      interval(estimate(started.map((millis) => millis / 1000))),
      interval(estimate(idleCpu.map((share) => share * 100))),
      String(connections),
      Object.entries(commands).map(([name, rate]) => `${name} ${rate.toFixed(2)}`).join(", "),
      (rss / 1e6).toFixed(0)
    ])
  )
