import { durationOf, type Hints } from "@millrace/core/TransportAuthor"
import * as TransportError from "@millrace/core/TransportError"
import type { Authenticator, ConnectionOptions, NatsConnection, TlsOptions } from "@nats-io/nats-core"
import { credsAuthenticator, nkeyAuthenticator } from "@nats-io/nats-core"
import { connect as connectNode } from "@nats-io/transport-node"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { isIP } from "node:net"
import { checkServerIdentity as checkIdentity, type PeerCertificate } from "node:tls"
import type { Options } from "../Options.ts"
import { failure, fromCause, invalidOption, pingEvery } from "./connection.ts"
import { checkOptions } from "./options.ts"
import { probe, probeAfter } from "./probing.ts"

const schemes = new Set(["nats:", "tls:"])

/** Takes the credentials out of the addresses, which the client would put into its messages. */
const parse = (text: string) => {
  const servers: Array<string> = []
  let user: string | undefined
  let pass: string | undefined
  let tls = false
  for (const part of text.split(",")) {
    const given = part.trim()
    const url = URL.canParse(given) ? new URL(given) : undefined
    // A password with an unescaped / ? or # ends the host: the rest of it would be looked up, and shown.
    if (/[/?#].*@/.test(given.replace(/^\w+:\/\//, ""))) {
      return invalidOption(
        "url",
        "<redacted>",
        "percent-encode the user and the password, or give a token, credentials or an nkey beside the URL"
      )
    }
    if (url === undefined || !schemes.has(url.protocol) || url.hostname === "") {
      return invalidOption(
        "url",
        url === undefined ? "not a URL" : TransportError.redactUrl(given),
        url !== undefined && /^wss?:$/.test(url.protocol)
          ? "connect with wsconnect of @nats-io/nats-core and pass the connection to JetStream.layerFromConnection"
          : "give nats://host:port or tls://host:port, several separated by commas"
      )
    }
    if (!["", "/"].includes(url.pathname) || url.search !== "" || url.hash !== "") {
      return invalidOption(
        "url",
        TransportError.redactUrl(given),
        "an address ends with its port: percent-encode / ? # in a user or password, and give a token as an option"
      )
    }
    servers.push(url.port === "" ? `${url.hostname}:4222` : url.host)
    try {
      if (url.username !== "") user = decodeURIComponent(url.username)
      if (url.password !== "") pass = decodeURIComponent(url.password)
    } catch {
      return invalidOption("url", TransportError.redactUrl(given), "write a percent sign in a user or password as %25")
    }
    tls ||= url.protocol === "tls:"
  }
  return { servers, user, pass, tls }
}

/** What answers the server's challenge; a text that cannot is refused now, without being shown. */
const authenticatorOf = ({ credentials, nkey }: Options) => {
  const given = credentials ?? nkey
  if (given === undefined) return undefined
  const text = secretOf(given).trim()
  // The client wants the end of the last line, and none behind a seed.
  const authenticator: Authenticator = credentials === undefined
    ? nkeyAuthenticator(new TextEncoder().encode(text))
    : credsAuthenticator(new TextEncoder().encode(`${text}\n`))
  try {
    authenticator()
    return authenticator
  } catch {
    return credentials === undefined
      ? invalidOption("nkey", "<redacted>", "give the seed of a user: SU and 56 more characters")
      : invalidOption("credentials", "<redacted>", "give the text of a credentials file")
  }
}

/** Shows where a URL leads to. */
export const addressOf = (url: string | Redacted.Redacted<string>): string =>
  Redacted.isRedacted(url)
    ? addressOf(Redacted.value(url))
    : TransportError.redactUrl(url)

const hostOf = (server: string): string => server.replace(/:\d+$/, "").replace(/^\[(.*)\]$/, "$1")

/**
 * The client names no host when it connects by IP, and Node then looks for "localhost" in the certificate. So it is looked
 * for the addresses that the client connects to.
 */
const verifying = (tls: TlsOptions | undefined, hosts: () => ReadonlyArray<string>): TlsOptions => {
  /** Node's error holds the certificate, which no log can show: it refers to itself. */
  const check = (host: string, certificate: PeerCertificate): Error | undefined => {
    const error = checkIdentity(host, certificate)
    return error === undefined ? undefined : new Error(error.message)
  }
  const checkServerIdentity = (name: string, certificate: PeerCertificate): Error | undefined => {
    const all = hosts()
    const byName = check(name, certificate)
    if (name !== "localhost" || (all.includes("localhost") && byName === undefined)) return byName
    const byAddress = all.filter((host) => isIP(host) !== 0).map((address) => check(address, certificate))
    return byAddress.length === 0 ? byName : byAddress.includes(undefined) ? undefined : byAddress[0]
  }
  return Object.assign({ checkServerIdentity }, tls)
}

/**
 * Connects within `connectTimeout`. A connection that is lost later is re-made for ever: at once, then after delays
 * that grow from 0.1 to 2 seconds, jittered.
 */
export const connect = Effect.fnUntraced(function*(
  options: Options
): Effect.fn.Return<NatsConnection, TransportError.TransportError, Scope.Scope> {
  const wrong = checkOptions(options, ["url", "name", "token", "credentials", "nkey", "tls", "connectTimeout"])
  if (wrong !== undefined) return yield* wrong
  if (typeof options.url !== "string" && !Redacted.isRedacted(options.url)) {
    const shown = options.url === undefined ? undefined : { toString: () => "of another type" }
    return yield* invalidOption("url", shown, "give nats://host:port")
  }
  const parsed = parse(secretOf(options.url))
  if (parsed instanceof TransportError.TransportError) return yield* parsed
  const address = addressOf(options.url)
  const timeout = durationOf("connectTimeout", options.connectTimeout ?? "10 seconds").duration
  const authenticator = authenticatorOf(options)
  if (authenticator instanceof TransportError.TransportError) return yield* authenticator
  let client: NatsConnection | undefined
  const hosts = () => [...parsed.servers, ...client?.getServers().map((server) => server.toString()) ?? []].map(hostOf)
  const settings: ConnectionOptions = {
    servers: parsed.servers,
    name: options.name ?? "millrace",
    timeout: Duration.toMillis(timeout),
    maxReconnectAttempts: -1,
    ignoreAuthErrorAbort: true,
    // A server that is frozen, or a network that swallows, is noticed after four to six seconds.
    pingInterval: pingEvery,
    maxPingOut: 2,
    noAsyncTraces: true,
    reconnectDelayHandler() {
      // Tries since one of the servers was last reached.
      const tries = Math.min(...client?.getServers().map(({ reconnects }) => reconnects) ?? [0])
      return Math.min(100 * 1.5 ** tries, 2000) * (0.5 + Math.random())
    },
    ...(parsed.user === undefined
      ? {}
      : parsed.pass === undefined
      ? { token: parsed.user }
      : { user: parsed.user, pass: parsed.pass }),
    ...(options.token === undefined ? {} : { token: secretOf(options.token) }),
    ...(authenticator === undefined ? {} : { authenticator }),
    ...(options.inboxPrefix === undefined ? {} : { inboxPrefix: options.inboxPrefix }),
    ...(options.tls === undefined && !parsed.tls ? {} : { tls: verifying(options.tls, hosts) })
  }
  return yield* Effect.acquireRelease(
    Effect.tryPromise({
      try: (signal) =>
        connectNode(settings).then((nc) => {
          // Nobody waits any longer.
          if (signal.aborted) void nc.close()
          return client = nc
        }),
      catch(cause) {
        const isForeign = cause instanceof Error && cause.message === "unexpected response from server"
        const error = fromCause(
          address,
          "connecting",
          isForeign ? new Error("this is not a NATS server: its first line is not INFO", { cause }) : cause
        )
        return error.reason._tag === "OperationFailed"
          ? failure(new TransportError.Unreachable({ address, cause: error.reason.cause }))
          : error
      }
    }).pipe(
      Effect.raceFirst(sayIfSilent(address, timeout)),
      // A server that expects TLS from the first byte waits for it.
      Effect.raceFirst(options.tls?.handshakeFirst === true ? Effect.never : failIfForeign(address, parsed.servers)),
      Effect.timeoutOrElse({
        duration: timeout,
        orElse: () =>
          Effect.fail(failure(
            new TransportError.Unreachable({
              address,
              cause: new Error(`no connection within connectTimeout, ${Duration.format(timeout)}`)
            })
          ))
      })
    ),
    // Closing does not write what has not been written yet.
    (nc) =>
      Effect.tryPromise(() => nc.flush()).pipe(
        Effect.timeoutOption("1 second"),
        Effect.ignore,
        Effect.andThen(Effect.promise(() => nc.close()))
      ),
    { interruptible: true }
  )
})

/** A server that has said nothing for two seconds is worth a line. */
const sayIfSilent = (address: string, timeout: Duration.Duration): Effect.Effect<never> =>
  Effect.sleep("2 seconds").pipe(
    Effect.andThen(Effect.logWarning(
      `${address}: no connection yet: the server does not answer; trying for ${Duration.format(timeout)}`
    )),
    Effect.andThen(Effect.never)
  )

/** A server that says nothing is asked what it is, where that can be known. */
const failIfForeign = (
  address: string,
  servers: ReadonlyArray<string>
): Effect.Effect<never, TransportError.TransportError> =>
  Effect.sleep(Duration.millis(probeAfter)).pipe(
    Effect.andThen(Effect.promise((signal) => Promise.all(servers.map((server) => probe(server, signal))))),
    Effect.flatMap((answers) =>
      // Another one of several may be a NATS server.
      answers.includes(undefined)
        ? Effect.never
        : Effect.fail(failure(new TransportError.Unreachable({ address, cause: new Error(answers.join("; ")) })))
    )
  )

/** JavaScript may give a plain text, or hide what is none. */
const secretOf = (secret: string | Redacted.Redacted<string> | Hints["secret"]): string => {
  const value: unknown = Redacted.isRedacted(secret) ? Redacted.value(secret) : secret
  return typeof value === "string" ? value : ""
}
