import { durationOf, type Hints } from "@millrace/core/TransportAuthor"
import { invalidOption, type TransportError } from "@millrace/core/TransportError"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import { hostname } from "node:os"
import type { ConnectionOptions } from "node:tls"
import type { Bound, Client, ClientOptions, Options } from "../Options.ts"
import { type Address, readNode, readUrl, refuse, type Target } from "./address.ts"
import { checkNames, isSecret } from "./optionTypes.ts"
import { isInternal } from "./scripts/lua.ts"

export interface Login {
  readonly username: string | undefined
  readonly password: string | undefined
}

/** How streams are bounded. Milliseconds. */
export type Trim =
  | { readonly by: "length"; readonly length: number; readonly exact: boolean }
  | { readonly by: "age"; readonly age: number; readonly exact: boolean }

/** Options, checked and with their defaults. Durations are whole milliseconds. */
export interface Settings {
  /** For logs and errors: without credentials. */
  readonly label: string
  readonly seeds: readonly [Address, ...Array<Address>]
  readonly topology: "standalone" | "cluster" | {
    readonly master: string
    readonly login: Effect.Effect<Login, unknown>
  }
  /** Asked for each connection. */
  readonly login: Effect.Effect<Login, unknown>
  /** Whose options connections are made with. */
  readonly client: Client | undefined
  readonly database: number
  readonly tls: ConnectionOptions | undefined
  readonly connectTimeout: number
  readonly answerTimeout: number
  readonly consumer: string
  readonly keyPrefix: string
  readonly block: number
  readonly minIdle: number
  readonly untilAcked: boolean
  readonly bound: Trim | undefined
  readonly trimsAcknowledged: boolean
  readonly consumerIdle: number
  readonly deduplication: number
  readonly offline: { readonly wait: number; readonly max: number }
}

const transport = "redis"

/** Whole milliseconds: servers take no fractions. */
const millis = (input: Duration.Input | Hints["duration"] | undefined, otherwise: number): number =>
  input === undefined ? otherwise : Math.ceil(Duration.toMillis(durationOf("", input).duration))

/** The longest timer and the longest claim time. */
const maxDuration = 2 ** 31 - 1

/** A duration that makes sense where `least` milliseconds are the smallest that do. */
export const checkDuration = (
  option: string,
  value: number,
  least: number,
  most = maxDuration
): TransportError | undefined =>
  value >= least && value <= most
    ? undefined
    : invalidOption(
      transport,
      option,
      `${value} ms`,
      `give a duration of at least ${least} ms and at most ${Math.floor(most / 86_400_000)} days`
    )

/** Servers read the number of a database as 32 bits. */
const maxDatabase = 2 ** 31 - 1

const checkDatabase = (options: Options, target: Target): Result.Result<number, TransportError> => {
  const path = target.database
  const database = options.database ?? (path === "" ? 0 : /^\d+$/.test(path) ? Number(path) : NaN)
  if (!Number.isInteger(database) || database < 0 || database > maxDatabase) {
    return options.database === undefined
      ? refuse("url", target.label, "the path of the URL is the number of a database, as in redis://host:port/0")
      : refuse("database", database, "give a whole number of at least 0")
  }
  return options.cluster !== undefined && options.cluster !== false && database !== 0
    ? refuse("database", database, "a cluster has only database 0: leave it out")
    : Result.succeed(database)
}

const loginOf = (options: Options, target: Target): Effect.Effect<Login, unknown> => {
  const { credentials } = options
  if (credentials === undefined) {
    return Effect.succeed({
      username: options.username ?? target.username,
      password: options.password === undefined ? target.password : secretOf(options.password)
    })
  }
  const ask = Effect.isEffect(credentials)
    ? credentials
    : Effect.tryPromise(() => Promise.resolve().then(credentials))
  return Effect.flatMap(ask, (given) =>
    isSecret(given?.password)
      ? Effect.succeed({ username: given.username, password: secretOf(given.password) })
      : Effect.fail(new NoPassword()))
}

class NoPassword extends Data.TaggedError("NoPassword") {
  override readonly message = "no password was given"
}

/** Keys beside a stream must lie in its slot: a name whose braces hold nothing, or stand the wrong way round, cannot. */
const tagRemedy = (name: string): string | undefined =>
  /[{}]/.test(name) && !/^[^{}]*\{[^{}]+\}/.test(name)
    ? "braces mark the part that a cluster hashes: they must stand around something, as in {orders}:eu"
    : undefined

/** Half of a character is stored as another one: the name that the server gives back would be a stranger's. */
const isText = (name: string): boolean => !/\p{Surrogate}/u.test(name)

const textRemedy = "it holds half of a character (a lone surrogate), give a name that can be written as UTF-8"

/** Says how to mend a name that this broker cannot take. */
export const nameRemedy =
  ({ keyPrefix, topology }: Settings) => (kind: "topic" | "group", name: string): string | undefined => {
    if (name === "") return `give the ${kind} a name`
    if (!isText(name)) return textRemedy
    return kind === "topic" && topology === "cluster" ? tagRemedy(keyPrefix + name) : undefined
  }

export const check = (options: Options): Result.Result<Settings, TransportError> =>
  Result.gen(function*() {
    const wrong = checkNames(options)
    if (wrong !== undefined) return yield* Result.fail(wrong)
    const target = yield* readUrl(secretOf(options.url))
    const { address, isTls, label } = target
    const database = yield* checkDatabase(options, target)
    const isCluster = options.cluster !== undefined && options.cluster !== false
    if (isCluster && options.sentinel !== undefined) {
      return yield* refuse(
        "cluster",
        "given together with sentinel",
        "a server is in a cluster or watched by Sentinel, give one"
      )
    }
    if (address.path !== undefined && (isCluster || options.sentinel !== undefined)) {
      return yield* refuse("url", label, "a cluster or Sentinel has nodes elsewhere: give the host of one")
    }
    if (
      options.credentials !== undefined &&
      (options.password ?? options.username ?? target.password ?? target.username) !== undefined
    ) {
      return yield* refuse("credentials", "given together with a user or password, here or in the URL", "give one")
    }
    if (options.tls !== undefined && !isTls) {
      return yield* refuse(
        "tls",
        "given",
        address.path === undefined ? "the URL says redis://, write rediss://" : "a unix socket has none"
      )
    }
    const [option, more] = options.sentinel === undefined
      ? ["cluster.nodes", typeof options.cluster === "object" ? options.cluster.nodes : []] as const
      : ["sentinel.nodes", options.sentinel.nodes ?? []] as const
    const seeds: Array<Address> = []
    for (const node of more) seeds.push(yield* readNode(option, node, isTls))
    const bound = yield* checkBound(typeof options.retention === "object" ? options.retention : undefined)
    const { sentinel } = options
    const settings: Settings = {
      label,
      seeds: [address, ...seeds],
      topology: sentinel !== undefined
        ? {
          master: sentinel.master,
          login: Effect.succeed({
            username: undefined,
            password: sentinel.password === undefined ? undefined : secretOf(sentinel.password)
          })
        }
        : isCluster
        ? "cluster"
        : "standalone",
      login: loginOf(options, target),
      client: undefined,
      database,
      tls: isTls ? options.tls ?? {} : undefined,
      connectTimeout: millis(options.connectTimeout, 10_000),
      answerTimeout: millis(options.answerTimeout, 10_000),
      consumer: options.consumer ?? `${hostname()}-${process.pid}-${Math.random().toString(36).slice(2, 8)}`,
      keyPrefix: options.keyPrefix ?? "",
      block: millis(options.block, 2_000),
      minIdle: millis(options.claim?.minIdle, 30_000),
      untilAcked: options.retention === "until-acked",
      bound,
      trimsAcknowledged: options.retention === "acknowledged",
      consumerIdle: millis(options.forgetConsumersAfter, 3_600_000),
      deduplication: millis(options.deduplicateFor, 120_000),
      offline: { wait: millis(options.offline?.wait, 5_000), max: options.offline?.max ?? 10_000 }
    }
    const bad = checkDuration("connectTimeout", settings.connectTimeout, 1) ??
      checkDuration("answerTimeout", settings.answerTimeout, 1) ??
      checkDuration("block", settings.block, 1) ??
      checkDuration("claim.minIdle", settings.minIdle, 10) ??
      checkDuration("forgetConsumersAfter", settings.consumerIdle, 1) ??
      checkDuration("deduplicateFor", settings.deduplication, 1) ??
      checkDuration("offline.wait", settings.offline.wait, 0)
    if (bad !== undefined) return yield* Result.fail(bad)
    if (!(settings.offline.max >= 0)) {
      return yield* refuse("offline.max", settings.offline.max, "give a number of at least 0")
    }
    if (settings.consumer === "") {
      return yield* refuse("consumer", settings.consumer, "give it a name")
    }
    if (isInternal(settings.consumer)) {
      return yield* refuse("consumer", settings.consumer, "names that begin with millrace: belong to Millrace itself")
    }
    for (const option of ["consumer", "keyPrefix"] as const) {
      if (!isText(settings[option])) return yield* refuse(option, settings[option], textRemedy)
    }
    const remedy = isCluster ? tagRemedy(`${settings.keyPrefix}topic`) : undefined
    return remedy === undefined ? settings : yield* refuse("keyPrefix", settings.keyPrefix, remedy)
  })

/** Where a client connects to. Its own options say how; other clients have others, such as a `host` of `ioredis`. */
export const checkClient = (client: Client, options: ClientOptions): Result.Result<Settings, TransportError> => {
  const given = client?.options
  if (typeof client?.duplicate !== "function" || typeof given !== "object" || given === null || "host" in given) {
    return refuse("client", client, "give what createClient of npm redis returns; for a cluster or Sentinel use layer")
  }
  const { database, socket = {} } = given as {
    readonly database?: number
    readonly socket?: {
      readonly host?: string
      readonly port?: number
      readonly path?: string
      readonly tls?: boolean
    }
  }
  const { host = "localhost", path, port = 6379, tls } = socket
  const name = host.includes(":") ? `[${host}]` : host
  const url = path === undefined ? `${tls === true ? "rediss" : "redis"}://${name}:${port}` : `unix://${path}`
  return Result.map(check({ ...options, url, database }), (settings) => ({ ...settings, client }))
}

/** Ids are milliseconds since the epoch: no stream is older. */
const maxAge = 50 * 365 * 86_400_000

const checkBound = (bound: Bound | undefined): Result.Result<Trim | undefined, TransportError> => {
  if (bound === undefined) return Result.succeed(undefined)
  const { maxLength } = bound
  if (maxLength === undefined && bound.maxAge === undefined) {
    return refuse("retention", "an empty bound", "give maxLength or maxAge")
  }
  if (maxLength !== undefined && bound.maxAge !== undefined) {
    return refuse("retention", "both maxLength and maxAge", "Redis trims by one of them, give one")
  }
  const exact = bound.exact === true
  if (maxLength !== undefined) {
    return Number.isSafeInteger(maxLength) && maxLength >= 1
      ? Result.succeed({ by: "length", length: maxLength, exact })
      : refuse("retention.maxLength", maxLength, "give a whole number of entries, at least 1")
  }
  const age = millis(bound.maxAge, 0)
  const bad = checkDuration("retention.maxAge", age, 1, maxAge)
  return bad === undefined ? Result.succeed({ by: "age", age, exact }) : Result.fail(bad)
}

/** JavaScript may give a plain text. */
const secretOf = (secret: string | Redacted.Redacted<string> | Hints["secret"]): string => {
  const value: unknown = Redacted.isRedacted(secret) ? Redacted.value(secret) : secret
  return typeof value === "string" ? value : ""
}
