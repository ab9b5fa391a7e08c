import { invalidOption, redactUrl, type TransportError } from "@millrace/core/TransportError"
import * as Duration from "effect/Duration"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import { hostname } from "node:os"
import type { ConnectionOptions } from "node:tls"
import type { Bound, Options } from "../Options.ts"

export interface Address {
  readonly host: string
  readonly port: number
}

/** Options, checked and with their defaults. */
export interface Settings {
  /** For logs and errors: without credentials. */
  readonly label: string
  readonly seeds: readonly [Address, ...Array<Address>]
  readonly topology: "standalone" | "cluster" | { readonly master: string; readonly password: string | undefined }
  readonly username: string | undefined
  readonly password: string | undefined
  readonly database: number
  readonly tls: ConnectionOptions | undefined
  readonly connectTimeout: number
  readonly answerTimeout: number
  readonly consumer: string
  readonly keyPrefix: string
  readonly block: number
  readonly minIdle: number
  readonly untilAcked: boolean
  readonly bound: Bound | undefined
  readonly trimsAcknowledged: boolean
  readonly consumerIdle: number
  readonly deduplication: number
  readonly offline: { readonly wait: number; readonly max: number }
}

const transport = "redis"

const millis = (input: Duration.Input | undefined, otherwise: number): number =>
  input === undefined ? otherwise : Duration.toMillis(Duration.fromInputUnsafe(input))

const parseUrl = (url: string): URL | undefined => {
  try {
    return new URL(url)
  } catch {
    return undefined
  }
}

const addressOf = (text: string): Address | undefined => {
  const url = parseUrl(text.includes("://") ? text : `redis://${text}`)
  if (url === undefined || url.hostname === "") return undefined
  return { host: url.hostname.replace(/^\[(.*)\]$/, "$1"), port: url.port === "" ? 6379 : Number(url.port) }
}

/** A duration that makes sense where `least` milliseconds are the smallest that do. */
export const checkDuration = (
  option: string,
  value: number,
  least: number
): TransportError | undefined =>
  value >= least && value <= 2 ** 31 - 1
    ? undefined
    : invalidOption(transport, option, `${value} ms`, `give a duration of at least ${least} ms and at most 24 days`)

export const check = (options: Options): Result.Result<Settings, TransportError> => {
  const given = Redacted.isRedacted(options.url) ? Redacted.value(options.url) : options.url
  const url = parseUrl(given)
  const refuse = (option: string, value: unknown, remedy: string) =>
    Result.fail(invalidOption(transport, option, value, remedy))
  if (url === undefined || (url.protocol !== "redis:" && url.protocol !== "rediss:") || url.hostname === "") {
    return refuse("url", redactUrl(given), "give redis://host:port, or rediss://host:port for TLS")
  }
  const database = url.pathname.length > 1 ? Number(url.pathname.slice(1)) : 0
  if (!Number.isInteger(database) || database < 0) {
    return refuse("url", redactUrl(given), "the path of the URL is the number of a database, as in redis://host:port/0")
  }
  if (options.cluster !== undefined && options.cluster !== false && options.sentinel !== undefined) {
    return refuse(
      "cluster",
      "given together with sentinel",
      "a server is in a cluster or watched by Sentinel, give one"
    )
  }
  const more = options.sentinel?.nodes ?? (typeof options.cluster === "object" ? options.cluster.nodes : [])
  const seeds: Array<Address> = []
  for (const node of more) {
    const address = addressOf(node)
    if (address === undefined) return refuse("nodes", redactUrl(node), "give each node as host:port")
    seeds.push(address)
  }
  const secret = options.password
  const settings: Settings = {
    label: redactUrl(given),
    seeds: [addressOf(given)!, ...seeds],
    topology: options.sentinel !== undefined
      ? {
        master: options.sentinel.master,
        password: options.sentinel.password === undefined ? undefined : Redacted.value(options.sentinel.password)
      }
      : options.cluster !== undefined && options.cluster !== false
      ? "cluster"
      : "standalone",
    username: options.username ?? (url.username === "" ? undefined : decodeURIComponent(url.username)),
    password: secret !== undefined
      ? Redacted.value(secret)
      : url.password === ""
      ? undefined
      : decodeURIComponent(url.password),
    database,
    tls: url.protocol === "rediss:" ? options.tls ?? {} : undefined,
    connectTimeout: millis(options.connectTimeout, 10_000),
    answerTimeout: millis(options.answerTimeout, 10_000),
    consumer: options.consumer ?? `${hostname()}-${process.pid}-${Math.random().toString(36).slice(2, 8)}`,
    keyPrefix: options.keyPrefix ?? "",
    block: millis(options.block, 2_000),
    minIdle: millis(options.claim?.minIdle, 30_000),
    untilAcked: options.retention === "until-acked",
    bound: typeof options.retention === "object" ? options.retention : undefined,
    trimsAcknowledged: options.retention === "acknowledged",
    consumerIdle: millis(options.forgetConsumersAfter, 3_600_000),
    deduplication: millis(options.deduplicateFor, 120_000),
    offline: { wait: millis(options.offline?.wait, 5_000), max: options.offline?.max ?? 10_000 }
  }
  if (options.tls !== undefined && settings.tls === undefined) {
    return refuse("tls", "given", "the URL says redis://, write rediss://")
  }
  const bad = checkDuration("connectTimeout", settings.connectTimeout, 1) ??
    checkDuration("answerTimeout", settings.answerTimeout, 1) ??
    checkDuration("block", settings.block, 1) ??
    checkDuration("claim.minIdle", settings.minIdle, 10) ??
    checkDuration("forgetConsumersAfter", settings.consumerIdle, 1) ??
    checkDuration("deduplicateFor", settings.deduplication, 1) ??
    checkDuration("offline.wait", settings.offline.wait, 0) ??
    checkBound(settings.bound)
  if (bad !== undefined) return Result.fail(bad)
  if (settings.consumer === "" || /\s/.test(settings.consumer)) {
    return refuse("consumer", settings.consumer, "a consumer name has no spaces")
  }
  return Result.succeed(settings)
}

const checkBound = (bound: Bound | undefined): TransportError | undefined => {
  if (bound === undefined) return undefined
  if (bound.maxLength === undefined && bound.maxAge === undefined) {
    return invalidOption(transport, "retention", "an empty bound", "give maxLength or maxAge")
  }
  if (bound.maxLength !== undefined && bound.maxAge !== undefined) {
    return invalidOption(transport, "retention", "both maxLength and maxAge", "Redis trims by one of them, give one")
  }
  if (bound.maxLength !== undefined && !(Number.isInteger(bound.maxLength) && bound.maxLength >= 0)) {
    return invalidOption(transport, "retention.maxLength", bound.maxLength, "give a whole number of entries")
  }
  return undefined
}
