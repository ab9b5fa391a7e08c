import { durationOf, type Hints } from "@millrace/core/TransportAuthor"
import { invalidOption, redactUrl, type TransportError } from "@millrace/core/TransportError"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import { hostname } from "node:os"
import type { ConnectionOptions } from "node:tls"
import type { Bound, Client, ClientOptions, Options } from "../Options.ts"
import { checkNames, isSecret } from "./optionTypes.ts"
import { isInternal } from "./scripts/lua.ts"

/** Where a server listens; `path`: a unix socket, host and port mean nothing then. */
export interface Address {
  readonly host: string
  readonly port: number
  readonly path?: string | undefined
}

export const nameOf = ({ host, path, port }: Address): string => path ?? `${host}:${port}`

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

const refuse = (option: string, value: unknown, remedy: string) =>
  Result.fail(invalidOption(transport, option, value, remedy))

/** Whole milliseconds: servers take no fractions. */
const millis = (input: Duration.Input | Hints["duration"] | undefined, otherwise: number): number =>
  input === undefined ? otherwise : Math.ceil(Duration.toMillis(durationOf("", input).duration))

const parseUrl = (url: string): URL | undefined => {
  try {
    return new URL(url)
  } catch {
    return undefined
  }
}

const addressOf = (text: string): Address | undefined => {
  const url = parseUrl(text.includes("://") ? text : `redis://${text}`)
  if (url === undefined) return undefined
  if (url.protocol === "unix:") {
    return url.pathname.length > 1 ? { host: "localhost", port: 0, path: decodeURIComponent(url.pathname) } : undefined
  }
  if (url.hostname === "") return undefined
  return { host: url.hostname.replace(/^\[(.*)\]$/, "$1"), port: url.port === "" ? 6379 : Number(url.port) }
}

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

const schemes = new Set(["redis:", "rediss:", "valkey:", "valkeys:", "unix:"])

const decoded = (text: string): string | undefined => {
  try {
    return decodeURIComponent(text)
  } catch {
    return undefined
  }
}

const checkUrl = (given: string): Result.Result<URL, TransportError> => {
  const url = parseUrl(given)
  const shown = redactUrl(given)
  // A password with an unescaped / ? or # ends the host: the rest of it would be looked up, and shown.
  if (url !== undefined && /[/?#].*@/.test(given.replace(/^\w+:\/\//, "")) && url.protocol !== "unix:") {
    return refuse("url", "<redacted>", "percent-encode the user and the password, or give them beside the URL")
  }
  if (url === undefined || !schemes.has(url.protocol) || addressOf(given) === undefined) {
    return refuse("url", shown, "give redis://host:port, rediss://host:port for TLS, or unix:///path/of/the.sock")
  }
  if (decoded(url.username) === undefined || decoded(url.password) === undefined) {
    return refuse(
      "url",
      shown,
      "user or password hold a % that begins no code: write %25 for it, or give the password apart"
    )
  }
  if (url.hash !== "") return refuse("url", shown, "take the # and what follows it out of the URL")
  const [parameter] = [...url.searchParams.keys()]
  if (parameter !== undefined) {
    return refuse(
      "url",
      `${shown}?${parameter}`,
      parameter === "db"
        ? "the database is the path of the URL, as in redis://host:port/3, or the option database"
        : "a URL takes no parameters, give options beside it"
    )
  }
  return Result.succeed(url)
}

const checkDatabase = (options: Options, url: URL): Result.Result<number, TransportError> => {
  const path = url.protocol === "unix:" ? "" : url.pathname.slice(1)
  const database = options.database ?? (path === "" ? 0 : /^\d+$/.test(path) ? Number(path) : NaN)
  if (!Number.isInteger(database) || database < 0) {
    return options.database === undefined
      ? refuse("url", redactUrl(url.href), "the path of the URL is the number of a database, as in redis://host:port/0")
      : refuse("database", database, "give a whole number of at least 0")
  }
  return options.cluster !== undefined && options.cluster !== false && database !== 0
    ? refuse("database", database, "a cluster has only database 0: leave it out")
    : Result.succeed(database)
}

const loginOf = (options: Options, url: URL): Effect.Effect<Login, unknown> => {
  const { credentials } = options
  if (credentials === undefined) {
    return Effect.succeed({
      username: options.username ?? (url.username === "" ? undefined : decoded(url.username)),
      password: options.password !== undefined
        ? secretOf(options.password)
        : url.password === ""
        ? undefined
        : decoded(url.password)
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

/** Says how to mend a name that this broker cannot take. */
export const nameRemedy =
  ({ keyPrefix, topology }: Settings) => (kind: "topic" | "group", name: string): string | undefined => {
    if (name === "") return `give the ${kind} a name`
    return kind === "topic" && topology === "cluster" ? tagRemedy(keyPrefix + name) : undefined
  }

export const check = (options: Options): Result.Result<Settings, TransportError> => {
  const wrong = checkNames(options)
  if (wrong !== undefined) return Result.fail(wrong)
  const given = secretOf(options.url)
  const checked = checkUrl(given)
  if (Result.isFailure(checked)) return Result.fail(checked.failure)
  const url = checked.success
  const database = checkDatabase(options, url)
  if (Result.isFailure(database)) return Result.fail(database.failure)
  const isCluster = options.cluster !== undefined && options.cluster !== false
  const isTls = url.protocol === "rediss:" || url.protocol === "valkeys:"
  if (isCluster && options.sentinel !== undefined) {
    return refuse(
      "cluster",
      "given together with sentinel",
      "a server is in a cluster or watched by Sentinel, give one"
    )
  }
  if (url.protocol === "unix:" && (isCluster || options.sentinel !== undefined)) {
    return refuse("url", redactUrl(given), "a cluster or Sentinel has nodes elsewhere: give the host of one")
  }
  if (options.credentials !== undefined && (options.password !== undefined || options.username !== undefined)) {
    return refuse("credentials", "given together with username or password", "give one")
  }
  if (options.tls !== undefined && !isTls) return refuse("tls", "given", "the URL says redis://, write rediss://")
  const more = options.sentinel?.nodes ?? (typeof options.cluster === "object" ? options.cluster.nodes : [])
  const seeds: Array<Address> = []
  for (const node of more) {
    const address = addressOf(node)
    if (address === undefined) return refuse("nodes", redactUrl(node), "give each node as host:port")
    seeds.push(address)
  }
  const bound = checkBound(typeof options.retention === "object" ? options.retention : undefined)
  if (Result.isFailure(bound)) return Result.fail(bound.failure)
  const { sentinel } = options
  const settings: Settings = {
    label: url.protocol === "unix:" ? `unix:${addressOf(given)!.path}` : redactUrl(given),
    seeds: [addressOf(given)!, ...seeds],
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
    login: loginOf(options, url),
    client: undefined,
    database: database.success,
    tls: isTls ? options.tls ?? {} : undefined,
    connectTimeout: millis(options.connectTimeout, 10_000),
    answerTimeout: millis(options.answerTimeout, 10_000),
    consumer: options.consumer ?? `${hostname()}-${process.pid}-${Math.random().toString(36).slice(2, 8)}`,
    keyPrefix: options.keyPrefix ?? "",
    block: millis(options.block, 2_000),
    minIdle: millis(options.claim?.minIdle, 30_000),
    untilAcked: options.retention === "until-acked",
    bound: bound.success,
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
  if (bad !== undefined) return Result.fail(bad)
  if (!(settings.offline.max >= 0)) return refuse("offline.max", settings.offline.max, "give a number of at least 0")
  if (settings.consumer === "") return refuse("consumer", settings.consumer, "give it a name")
  if (isInternal(settings.consumer)) {
    return refuse("consumer", settings.consumer, "names that begin with millrace: belong to Millrace itself")
  }
  const remedy = isCluster ? tagRemedy(`${settings.keyPrefix}topic`) : undefined
  return remedy === undefined ? Result.succeed(settings) : refuse("keyPrefix", settings.keyPrefix, remedy)
}

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
