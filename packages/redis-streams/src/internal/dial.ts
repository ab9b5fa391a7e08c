import { connectionDetail } from "@millrace/core/TransportAuthor"
import * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { isIP } from "node:net"
import type { ConnectionOptions } from "node:tls"
import { ErrorReply, RedisClient, RESP_TYPES } from "redis"
import type { Client as GivenClient } from "../Options.ts"
import { type Address, nameOf } from "./address.ts"
import { counting, type Received } from "./received.ts"
import { asError, codeOf, isRefusal, isUnknown } from "./reply.ts"
import type { Login } from "./settings.ts"

/** How our connections differ from the client's defaults. */
const ours = {
  // One shape of replies on every server, and no HELLO.
  RESP: 2,
  disableOfflineQueue: true,
  maintNotifications: "disabled",
  // The client ignores what is replied to these, also the reason why the server closes the connection.
  disableClientInfo: true,
  // The client's own timeout costs half the speed, and only counts the time until a command is written.
  commandOptions: { timeout: undefined as never, typeMapping: { [RESP_TYPES.BLOB_STRING]: Buffer } }
} as const

/** One class for all connections: `createClient` makes a class of every command for each, in about 20 ms. */
const make = RedisClient.factory({ RESP: ours.RESP })

type None = Record<never, never>
type Client = RedisClient<None, None, None, typeof ours.RESP, typeof ours.commandOptions.typeMapping>

const create = (options: DialOptions, address: Address, login: Login): Client =>
  make({
    ...ours,
    socket: {
      ...(address.path === undefined ? { host: address.host, port: address.port } : { path: address.path }),
      connectTimeout: options.within,
      reconnectStrategy: false,
      ...(options.tls === undefined
        ? {}
        // A server name is sent for names only.
        : { ...(isIP(address.host) === 0 ? { servername: address.host } : {}), ...options.tls, tls: true })
    },
    ...(login.username === undefined ? {} : { username: login.username }),
    ...(login.password === undefined ? {} : { password: login.password }),
    database: options.database
  })

/** A connection of our own that logs in as the client does. */
const copy = (client: NonNullable<DialOptions["client"]>, within: number): Client => {
  const { socket } = (client.options ?? {}) as { readonly socket?: object }
  const overrides = {
    ...ours,
    clientSideCache: undefined,
    commandsQueueMaxLength: undefined,
    pingInterval: undefined,
    socket: { ...socket, connectTimeout: within, reconnectStrategy: false }
  }
  return client.duplicate(overrides as never) as Client
}

export interface DialOptions {
  /** Asked for each connection. */
  readonly login: Effect.Effect<Login, unknown>
  /** Its options are used instead of all others. */
  readonly client?: GivenClient | undefined
  readonly database: number
  readonly tls: ConnectionOptions | undefined
  readonly within: number
}

/** A connection that works now. */
export interface Session {
  readonly client: Client
  readonly address: Address
  /** For `CLIENT UNBLOCK`; `undefined` when this user may not ask. */
  readonly clientId: string | undefined
  /** A connection that receives is alive, however long one reply takes. */
  readonly received: Received
  /** On the clock of `performance.now`. */
  readonly madeAt: number
}

/** A connection could not be made. */
export class DialError extends Data.TaggedError("DialError")<{
  readonly address: Address
  readonly error: Error
  /** Nothing listens at any of the addresses that were given. */
  readonly isAlone?: boolean
}> {
  static of(address: Address, words: string): DialError {
    return new DialError({ address, error: new Error(words) })
  }
  override get message(): string {
    return `${nameOf(this.address)}: ${this.detail}`
  }
  /** Trying again with the same options cannot help. */
  get isFinal(): boolean {
    const { error } = this
    return isRefusal(error) ||
      error instanceof ErrorReply && /DB index|cluster support disabled|SELECT is not/i.test(error.message) ||
      /\bDENIED\b|Unknown RESP type|unknown command '?SENTINEL|knows no master/i.test(error.message) ||
      /^(CERT_|ERR_TLS_|ERR_SSL_|SELF_SIGNED|DEPTH_ZERO|UNABLE_TO_)/.test(systemCode(error))
  }
  /** Nothing listens there. */
  get isAbsent(): boolean {
    return ["ECONNREFUSED", "ENOTFOUND", "ENOENT", "EACCES"].includes(systemCode(this.error))
  }
  /** The server ended the connection. */
  get isClosed(): boolean {
    return connectionDetail(this.error)?.startsWith("the server closed") === true
  }
  /** Why, in a few words. */
  get detail(): string {
    return connectionDetail(this.error) ?? this.error.message
  }
}

const systemCode = (error: Error): string => "code" in error && typeof error.code === "string" ? error.code : ""

/** Commands that tell whether a connection works; of these only the second one must be answered. */
const probes = [["CLIENT", "ID"], ["PING"]] as const

const dialAs = (options: DialOptions, address: Address, login: Login): Effect.Effect<Session, DialError> =>
  Effect.callback<Session, DialError>((resume) => {
    let heard: Error | undefined
    const client = options.client === undefined ? create(options, address, login) : copy(options.client, options.within)
    let isOver = false
    const fail = (error: unknown) => {
      isOver = true
      client.destroy()
      resume(Effect.fail(new DialError({ address, error: heard ?? asError(error) })))
    }
    client.on("error", (error) => {
      heard ??= asError(error)
      // The client goes on waiting for a server that speaks another protocol.
      if (!isOver) fail(heard)
    })
    const [connecting, received] = counting(() => client.connect())
    connecting
      // Nothing of the handshake tells that a password is missing or the server still loading: these do.
      .then(() =>
        Promise.all(
          probes.map(([name, ...args], i) =>
            client.sendCommand([name, ...args]).catch((error) =>
              codeOf(error) === "NOPERM" || i === 0 && isUnknown(error) ? undefined : Promise.reject(error)
            )
          )
        )
      )
      .then(([id]) => {
        if (!client.isReady) return fail(new Error("closed while connecting"))
        const clientId = id === undefined ? undefined : String(id)
        isOver = true
        resume(Effect.succeed({ client, address, clientId, received, madeAt: performance.now() }))
      })
      .catch(fail)
    return Effect.sync(() => client.destroy())
  })

export const dial = (options: DialOptions, address: Address): Effect.Effect<Session, DialError> =>
  options.login.pipe(
    Effect.mapError((cause) => DialError.of(address, `the credentials could not be had: ${describe(cause)}`)),
    Effect.flatMap((login) => dialAs(options, address, login)),
    Effect.timeoutOrElse({
      duration: options.within,
      orElse: () =>
        Effect.fail(DialError.of(
          address,
          options.tls === undefined
            ? `no answer within ${options.within} ms`
            : `no answer within ${options.within} ms: the server is busy, or it does not begin TLS: write redis:// if this port has none, or give the TLS port`
        ))
    })
  )

/** The words of a failure of whoever gives credentials; what else it holds may be secret. */
const describe = (cause: unknown): string => {
  const own = Cause.isUnknownError(cause) && "cause" in cause ? cause.cause : cause
  return own instanceof Error ? own.name : typeof own
}
