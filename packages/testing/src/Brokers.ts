/**
 * Runs real Redis, Valkey and NATS servers for tests.
 *
 * A broker lives as long as the scope it is made in: it listens on a free loopback port, keeps its data in a folder of
 * its own, and is gone with the scope, or with the process should that be killed. Tests can kill, stop, pause and
 * restart it; the address stays the same.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import { BrokersError } from "./internal/brokers/BrokersError.ts"
import * as ports from "./internal/brokers/ports.ts"
import * as internal from "./internal/brokers/provision.ts"
import type { Wish } from "./internal/brokers/servers.ts"
import { url } from "./internal/brokers/servers.ts"

export { BrokersError }

/**
 * Describes a server that runs for the tests, and the operations on it.
 *
 * **Details**
 *
 * Operations wait for their effect: after `kill` or `stop` the port refuses connections, after `start` it answers. One
 * that has begun is finished, also when its fiber is interrupted: a handler that restarts its own broker may lose its
 * message meanwhile, and must not leave the broker down.
 * Data outlives `kill` and `restart` as far as the server itself promises: see `persistence` and `sync`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Broker {
  readonly kind: Kind
  /** As the server itself reports it. */
  readonly version: string
  readonly provider: Provider
  /** The same across restarts; with the password, if there is one. */
  readonly url: string
  readonly host: string
  readonly port: number
  /** Ends the server at once (SIGKILL). Does nothing when it is down. */
  readonly kill: Effect.Effect<void>
  /** Asks the server to end (SIGTERM), and kills it when it takes more than five seconds. Nothing when down. */
  readonly stop: Effect.Effect<void>
  /** Starts the server again, on the same port and data. Does nothing when it is up. */
  readonly start: Effect.Effect<void, BrokersError>
  /** `stop`, then `start`. */
  readonly restart: Effect.Effect<void, BrokersError>
  /** Freezes the server: connections stay, nothing is answered. */
  readonly pause: Effect.Effect<void>
  /** Lets a paused server go on. */
  readonly resume: Effect.Effect<void>
}

/**
 * The kinds of brokers.
 *
 * @category models
 * @since 0.1.0
 */
export type Kind = "redis" | "valkey" | "nats"

/**
 * Where a server comes from: an image run by a Docker engine, a program on `PATH`, or a program fetched from the
 * packages of the operating system.
 *
 * @category models
 * @since 0.1.0
 */
export type Provider = "container" | "path" | "packages"

/**
 * Options for {@link redis} and {@link valkey}.
 *
 * @category models
 * @since 0.1.0
 */
export interface RedisOptions {
  /** `"newest"` (default), `"oldest"`, or the beginning of a version: `"8"`, `"8.6"`, `"8.6.3"`. */
  readonly version?: string | undefined
  /** `"always"`: everything answered is on disk. `"none"` (default): a server that ends forgets. */
  readonly persistence?: "none" | "always" | undefined
  /** The password of the default user. */
  readonly password?: string | undefined
  /** More arguments for the server, e.g. `["--maxmemory", "10mb"]`. */
  readonly args?: ReadonlyArray<string> | undefined
}

/**
 * Options for {@link nats}.
 *
 * @category models
 * @since 0.1.0
 */
export interface NatsOptions {
  /** `"newest"` (default), `"oldest"`, or the beginning of a version: `"2"`, `"2.10"`, `"2.10.27"`. */
  readonly version?: string | undefined
  /** `"always"`: messages are on disk before they are confirmed; needs 2.10. `"interval"` (default): now and then. */
  readonly sync?: "interval" | "always" | undefined
  /** More text for the configuration file, e.g. `max_payload: 1KB`, or an `authorization` block. */
  readonly config?: string | undefined
  /** More arguments for the server, e.g. `["-DV"]`. */
  readonly args?: ReadonlyArray<string> | undefined
}

/** Servers take the time they take: a `TestClock` must not stop us from waiting for them. */
const inRealTime = Effect.provideService(Clock.Clock, Clock.Clock.defaultValue())

const make = Effect.fnUntraced(function*(
  wish: Wish
): Effect.fn.Return<Broker, BrokersError, Scope.Scope> {
  const controls = yield* inRealTime(internal.provision(wish))
  const turn = yield* Semaphore.make(1)
  const oneAtATime = <A, E>(effect: Effect.Effect<A, E>) => turn.withPermit(Effect.uninterruptible(inRealTime(effect)))
  return {
    kind: wish.kind,
    version: controls.version ?? wish.version,
    provider: controls.provider,
    url: url(wish, controls.host, controls.port),
    host: controls.host,
    port: controls.port,
    kill: oneAtATime(controls.kill),
    stop: oneAtATime(controls.stop),
    start: oneAtATime(controls.start),
    restart: oneAtATime(Effect.andThen(controls.stop, controls.start)),
    pause: oneAtATime(controls.pause),
    resume: oneAtATime(controls.resume)
  }
})

const makeRedis = (kind: "redis" | "valkey", options: RedisOptions | undefined) =>
  make({
    kind,
    version: options?.version ?? "newest",
    persistence: options?.persistence ?? "none",
    password: options?.password,
    args: options?.args ?? [],
    config: ""
  })

/**
 * Starts a Redis server for the current scope.
 *
 * **When to use**
 *
 * Use to test against real servers: their answers, the data that survive a kill, the clients' behaviour in a pause.
 *
 * **Details**
 *
 * The first of these that has the server is used, and printed once to stderr:
 *
 * 1. A Docker engine that answers, with the image of the release line (through `testcontainers`; no other image is
 *    needed). An image that is neither there nor to be pulled is reported, and the search goes on.
 * 2. `redis-server` on `PATH`, if its version is the wanted one.
 * 3. On Debian and its relatives, servers of several versions, fetched from the packages of the operating system.
 *
 * The default version is `"newest"`. With containers, newest and oldest are the ends of the range
 * that Millrace is tested against (Redis 8.6 to 7.0, Valkey 9.1 to 8.1, NATS 2.15 to 2.9). With programs they are the
 * newest and oldest of those on `PATH` and those fetched together; the fetched ones are left alone when the one on
 * `PATH` is at that end of the range or beyond already, and where nothing can be fetched the one on `PATH` is used,
 * whatever it is. So an old server on `PATH` is not mistaken for the newest, nor is it refused where it is all there
 * is.
 *
 * The environment variable `MILLRACE_BROKERS` set to `container`, `path` or `packages` allows only that one.
 *
 * **Gotchas**
 *
 * Fetching takes some 15 seconds, once on a machine: have it done before the tests and their timeouts begin, by
 * running the script or {@link available}.
 *
 * @category constructors
 * @since 0.1.0
 */
export const redis = (options?: RedisOptions): Effect.Effect<Broker, BrokersError, Scope.Scope> =>
  makeRedis("redis", options)

/**
 * Starts a Valkey server for the current scope, found like those of {@link redis}.
 *
 * @category constructors
 * @since 0.1.0
 */
export const valkey = (options?: RedisOptions): Effect.Effect<Broker, BrokersError, Scope.Scope> =>
  makeRedis("valkey", options)

/**
 * Starts a NATS server with JetStream for the current scope, found like those of {@link redis}.
 *
 * @category constructors
 * @since 0.1.0
 */
export const nats = (options?: NatsOptions): Effect.Effect<Broker, BrokersError, Scope.Scope> =>
  make({
    kind: "nats",
    version: options?.version ?? "newest",
    persistence: options?.sync === "always" ? "always" : "none",
    args: options?.args ?? [],
    config: options?.config ?? ""
  })

/**
 * A loopback port that nothing listens on now, for a further listener of a broker: the routes of a cluster, say. It is
 * below the range from which the system takes the ports of outgoing connections: there, a node that dials a peer that
 * is not there yet can connect to itself, and keep the peer's port. Another process may still take the port first.
 *
 * @category brokers
 * @since 0.1.0
 */
export const freePort: Effect.Effect<number, BrokersError> = ports.free

/**
 * Lists the servers that can be had, each kind newest first, for tests that run against every version.
 *
 * **Details**
 *
 * A container's version is its release line (`8.6`), a program's is complete (`8.6.3`). A line that is there as an
 * image is not listed again for programs. Servers are fetched if they have to be.
 *
 * @category accessors
 * @since 0.1.0
 */
export const available: Effect.Effect<
  ReadonlyArray<{ readonly kind: Kind; readonly version: string; readonly provider: Provider }>,
  BrokersError
> = inRealTime(internal.available)
