import { invalidOption, redactUrl, type TransportError } from "@millrace/core/TransportError"
import * as Result from "effect/Result"
import { domainToASCII } from "node:url"

/** Where a server listens; `path`: a unix socket, host and port mean nothing then. */
export interface Address {
  readonly host: string
  readonly port: number
  readonly path?: string | undefined
}

export const nameOf = ({ host, path, port }: Address): string => path ?? `${host}:${port}`

/** What a URL says, with its user and password decoded. */
export interface Target {
  readonly address: Address
  /** For logs and errors: without credentials. */
  readonly label: string
  readonly isTls: boolean
  readonly username: string | undefined
  readonly password: string | undefined
  /** The path of the URL. */
  readonly database: string
}

const transport = "redis"

export const refuse = (option: string, value: unknown, remedy: string) =>
  Result.fail(invalidOption(transport, option, value, remedy))

const isTls: { readonly [scheme: string]: boolean | undefined } = {
  "redis:": false,
  "valkey:": false,
  "rediss:": true,
  "valkeys:": true
}

const decoded = (text: string): string | undefined => {
  try {
    return decodeURIComponent(text)
  } catch {
    return undefined
  }
}

/** `undefined` for a URL that names no host and port. */
const hostOf = ({ hostname, port }: URL): Address | undefined => {
  // Of other schemes than http the parser leaves names outside ASCII encoded.
  const host = hostname.includes("%") ? domainToASCII(decoded(hostname) ?? "") : hostname.replace(/^\[(.*)\]$/, "$1")
  return host === "" || port === "0" ? undefined : { host, port: port === "" ? 6379 : Number(port) }
}

const socketOf = (given: string, url: URL): Address | undefined => {
  const path = decoded(url.pathname)
  return /^\s*unix:\/\/\//i.test(given) && path !== undefined && path.length > 1
    ? { host: "localhost", port: 0, path }
    : undefined
}

/** Reads a URL, or says how to mend it. */
export const readUrl = (given: string): Result.Result<Target, TransportError> => {
  const url = URL.parse(given) ?? undefined
  const shown = redactUrl(given)
  const isSocket = url?.protocol === "unix:"
  // A password with an unescaped / ? or # ends the host: the rest of it would be looked up, and shown.
  if (url !== undefined && !isSocket && /[/?#].*@/.test(given.replace(/^\w+:\/\//, ""))) {
    return refuse("url", "<redacted>", "percent-encode the user and the password, or give them beside the URL")
  }
  const withTls = url === undefined ? undefined : isSocket ? false : isTls[url.protocol]
  const address = url === undefined ? undefined : isSocket ? socketOf(given, url) : hostOf(url)
  if (url === undefined || withTls === undefined || address === undefined) {
    return refuse("url", shown, "give redis://host:port, rediss://host:port for TLS, or unix:///path/of/the.sock")
  }
  const [username, password] = [decoded(url.username), decoded(url.password)]
  if (username === undefined || password === undefined) {
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
      parameter !== "db"
        ? "a URL takes no parameters, give options beside it"
        : isSocket
        ? "give the database as the option database"
        : "the database is the path of the URL, as in redis://host:port/3, or the option database"
    )
  }
  return Result.succeed({
    address,
    label: isSocket ? `unix:${address.path}` : redactUrl(`${url.protocol}//${url.host}`),
    isTls: withTls,
    username: username === "" ? undefined : username,
    password: password === "" ? undefined : password,
    database: isSocket ? "" : url.pathname.slice(1)
  })
}

/** Reads another node of a cluster, or another Sentinel: everything but its place is said by the URL. */
export const readNode = (option: string, node: unknown, withTls: boolean): Result.Result<Address, TransportError> => {
  const remedy = "give each node as host:port; the URL says user, password, database and TLS for all of them"
  if (typeof node !== "string") return refuse(option, { toString: () => "no text" }, remedy)
  const url = URL.parse(node.includes("://") ? node : `${withTls ? "rediss" : "redis"}://${node}`) ?? undefined
  const address = url === undefined ? undefined : hostOf(url)
  const isPlain = url !== undefined && isTls[url.protocol] === withTls &&
    /^\/?$/.test(url.username + url.password + url.pathname + url.search + url.hash)
  return address !== undefined && isPlain ? Result.succeed(address) : refuse(option, redactUrl(node), remedy)
}
