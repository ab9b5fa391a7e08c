import { layer } from "@effect/vitest"
import type * as Settlement from "@millrace/core/Settlement"
import { type Demand, type Outgoing, type SubscribeOptions, Transport } from "@millrace/core/Transport"
import { RedisStreams } from "@millrace/redis-streams"
import { Brokers } from "@millrace/testing"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import type * as Scope from "effect/Scope"
import { createClient, ErrorReply } from "redis"

export type Kind = "redis" | "valkey"

/** The servers to test against: the newest and the oldest, or all with `MILLRACE_MATRIX=all`. */
export const servers: ReadonlyArray<{ readonly kind: Kind; readonly version: string }> =
  process.env["MILLRACE_MATRIX"] === "all"
    ? (await Effect.runPromise(Brokers.available)).flatMap(({ kind, version }) =>
      kind === "nats" ? [] : [{ kind, version }]
    )
    : [{ kind: "redis", version: "newest" }, { kind: "redis", version: "oldest" }]

/** Says what is skipped where servers run in containers: they see neither each other's loopback nor our files. */
export const skipsInContainers = async (what: string): Promise<boolean> => {
  const servers = await Effect.runPromise(Brokers.available)
  const skips = servers.some(({ kind, provider }) => kind === "redis" && provider === "container")
  if (skips) console.warn(`skipped, ${what}: containers see neither each other's loopback nor our files`)
  return skips
}

/** A server of the test's own, and a plain client to look at it with. */
export class Server extends Context.Service<Server, {
  readonly broker: Brokers.Broker
  readonly url: string
  readonly run: (...command: ReadonlyArray<string>) => Effect.Effect<any>
}>()("test/Server") {}

/** Runs commands with a plain client; one that the server refuses gives its error. */
export const admin = Effect.fnUntraced(function*(url: string) {
  const client = yield* Effect.acquireRelease(
    Effect.promise(async () => {
      const client = createClient({ url, RESP: 2, socket: { reconnectStrategy: (n) => Math.min(20 * n, 200) } })
      client.on("error", () => {})
      await client.connect()
      return client
    }),
    (client) => Effect.sync(() => client.destroy())
  )
  return (...command: ReadonlyArray<string>) =>
    Effect.promise(() =>
      client.sendCommand(command as Array<string>).catch((error) => {
        if (error instanceof ErrorReply) return error
        throw error
      })
    ) as Effect.Effect<any>
})

export const serving = (
  kind: Kind,
  options?: Brokers.RedisOptions
): Layer.Layer<Server, Brokers.BrokersError> =>
  Layer.effect(
    Server,
    Effect.gen(function*() {
      const broker = yield* Brokers[kind](options)
      return { broker, url: broker.url, run: yield* admin(broker.url) }
    })
  )

const withServer = ({ kind, version }: (typeof servers)[number]) =>
  layer(serving(kind, { version }), { excludeTestServices: true })

type It = Parameters<Parameters<ReturnType<typeof withServer>>[1]>[0]

/** The same tests for each of the servers. */
export const eachServer = (tests: (it: It, server: (typeof servers)[number]) => void): void => {
  for (const server of servers) withServer(server)(`${server.kind} ${server.version}`, (it) => tests(it, server))
}

/** A transport of its own: what a process would have. */
export const connect = (
  options?: Partial<RedisStreams.Options>
): Effect.Effect<Context.Context<RedisStreams.RedisStreams | Transport>, never, Server | Scope.Scope> =>
  // A machine that is busy may take long to connect.
  Server.use(({ url }) => Effect.orDie(RedisStreams.make({ url, connectTimeout: "1 minute", ...options })))

export const transport = (options?: Partial<RedisStreams.Options>) =>
  Effect.map(connect(options), (context) => Context.get(context, Transport))

let topics = 0

/** A name that no other test uses. */
export const fresh = (name: string): string => `${name}-${process.pid}-${++topics}`

export const subscribing = (topic: string, options?: Partial<SubscribeOptions>): SubscribeOptions => ({
  topic,
  group: "g",
  startFrom: "beginning",
  maxOwned: 1000,
  isolateFrom: 3,
  timeout: undefined,
  settings: Context.empty(),
  ...options
})

/** Whatever there is, `total` at most. */
export const demand = (total: number, more?: Partial<Demand>): Demand => ({
  total,
  fresh: total,
  suspects: total,
  bytes: Infinity,
  ...more
})

export const retry = (after: Duration.Input): Settlement.Retry => ({
  _tag: "Retry",
  after: Duration.fromInputUnsafe(after)
})

export const outgoing = (topic: string, body: string | Uint8Array, more?: Partial<Outgoing>): Outgoing => ({
  topic,
  body: typeof body === "string" ? new TextEncoder().encode(body) : body,
  headers: {},
  key: undefined,
  id: undefined,
  delay: undefined,
  ...more
})

export const textOf = (delivery: { readonly body: Uint8Array }): string => new TextDecoder().decode(delivery.body)

/** Notes what is logged. */
export const noting = (said: Array<string>) =>
  Logger.layer([Logger.make(({ cause, message }) => {
    said.push(`${Array.isArray(message) ? message.join(" ") : String(message)} ${Cause.pretty(cause)}`)
  })])
