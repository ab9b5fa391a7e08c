import { connectionDetail } from "@millrace/core/TransportAuthor"
import * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { isIP } from "node:net"
import type { ConnectionOptions } from "node:tls"
import { createClient, ErrorReply, RESP_TYPES } from "redis"
import type { Client as GivenClient } from "../Options.ts"
import { type Address, nameOf } from "./address.ts"
import type { Argument, Command } from "./command.ts"
import { counting, type Received } from "./received.ts"
import { asError, codeOf, isRefusal, isUnknown } from "./reply.ts"
import { asEval } from "./scripts/script.ts"
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

const create = (options: DialOptions, address: Address, login: Login) =>
  createClient({
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

type Client = ReturnType<typeof create>

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

/** The connection was lost before the answer (`sent`), or there was none to send on. */
export class Lost extends Error {
  readonly sent: boolean
  constructor(sent: boolean, cause: Error) {
    super(cause.message, { cause })
    this.sent = sent
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
    Effect.mapError((cause) =>
      new DialError({ address, error: new Error(`the credentials could not be had: ${describe(cause)}`) })
    ),
    Effect.flatMap((login) => dialAs(options, address, login)),
    Effect.timeoutOrElse({
      duration: options.within,
      orElse: () =>
        Effect.fail(
          new DialError({
            address,
            error: new Error(
              options.tls === undefined
                ? `no answer within ${options.within} ms`
                : "the server accepts connections and does not begin TLS: write redis:// if this port has none, or give the TLS port"
            )
          })
        )
    })
  )

/** The words of a failure of whoever gives credentials; what else it holds may be secret. */
const describe = (cause: unknown): string => {
  const own = Cause.isUnknownError(cause) && "cause" in cause ? cause.cause : cause
  return own instanceof Error ? own.name : typeof own
}

/** 50 ms to 2 s, jittered: while a server is down, every connection asks for it once every other second at most. */
export const backoff = Schedule.min([Schedule.exponential("50 millis"), Schedule.spaced("2 seconds")]).pipe(
  Schedule.jittered
)

/** Why a connection is given up that another one's loss has made doubtful. */
const renewed = new Error("made again with the others")

/** A connection that is made again whenever it is lost, for as long as its scope is open. */
export class Connection {
  private connected: Session | undefined
  private readonly up = Latch.makeUnsafe(false)
  private readonly down = Latch.makeUnsafe(true)
  private cause: Error = new Error("not connected yet")
  private readonly purpose: string
  private readonly minTimeout: number
  private timeout: number
  private answered = 0
  /** When it was last made again, on the clock of `performance.now`. */
  madeAgainAt = -Infinity

  /** What is not answered within `minTimeout` is given up; what needs longer teaches to wait longer. */
  constructor(purpose: string, minTimeout = Infinity) {
    this.purpose = purpose
    this.minTimeout = this.timeout = minTimeout
  }

  get current(): Session | undefined {
    return this.connected
  }

  /** Why there is no connection now. */
  get trouble(): string | undefined {
    // A renewal is no trouble: the connections that it follows tell theirs.
    if (this.connected !== undefined || this.cause === renewed) return undefined
    // The same for all connections: an outage is one.
    const { cause } = this
    return `no connection: ${cause instanceof DialError ? cause.message : connectionDetail(cause) ?? cause.message}`
  }

  /** Waits for the connection at most `within` milliseconds. */
  awaitUp(within: number): Effect.Effect<Session, Lost> {
    return Effect.suspend(() => {
      if (this.connected !== undefined) return Effect.succeed(this.connected)
      return this.up.await.pipe(
        Effect.timeoutOrElse({ duration: within, orElse: () => Effect.fail(new Lost(false, this.cause)) }),
        Effect.andThen(this.awaitUp(within))
      )
    })
  }

  /**
   * Sends commands in one write and gives their replies in order. What the server refuses is an `ErrorReply` in its
   * place, what the connection lost is a `Lost`. No answer to anything `within` milliseconds (or this connection's
   * timeout, if that is less) ends the connection.
   */
  send(commands: ReadonlyArray<Command>, within: number): Effect.Effect<ReadonlyArray<unknown>> {
    return Effect.callback((resume) => {
      const connected = this.connected
      if (connected === undefined) {
        const lost = new Lost(false, this.cause)
        return resume(Effect.succeed(commands.map(() => lost)))
      }
      if (commands.length === 0) return resume(Effect.succeed([]))
      const replies = new Array<unknown>(commands.length)
      let left = commands.length
      let progress = this.answered + connected.received.bytes
      const timeout = Math.min(within, this.timeout)
      const giveUp = () => {
        if (left === 0) return
        const now = this.answered + connected.received.bytes
        if (now === progress) {
          this.timeout = Math.max(this.minTimeout, Math.min(2 * this.timeout, within))
          return this.drop(connected, new Error(`no answer within ${Math.round(timeout)} ms`))
        }
        // Other replies arrive, or this one does: the connection is slow, not dead.
        progress = now
        timer = setTimeout(expire, timeout)
      }
      // After the loop stood still, what has come meanwhile is read first.
      const expire = () => setImmediate(giveUp)
      let timer = setTimeout(expire, timeout)
      const done = () => {
        this.answered++
        if (--left > 0) return
        clearTimeout(timer)
        if (this.timeout > this.minTimeout) this.timeout = Math.max(this.minTimeout, 0.98 * this.timeout)
        resume(Effect.succeed(replies))
      }
      for (let i = 0; i < commands.length; i++) {
        connected.client.sendCommand(this.known(commands[i]!)).then(
          (reply) => {
            replies[i] = reply
            done()
          },
          (error) => {
            replies[i] = error instanceof ErrorReply ? error : new Lost(true, this.causeOf(connected, asError(error)))
            done()
          }
        )
      }
    })
  }

  /** Scripts that this connection has sent in full: the others would be sent again, behind what was sent after them. */
  private readonly scripts = new Set<Argument>()

  private known(command: Command): Command {
    const [name, sha] = command
    if (name !== "EVALSHA" || this.scripts.has(sha!)) return command
    this.scripts.add(sha!)
    return asEval(command) ?? command
  }

  /** Gives a connection up, so that another one is made. */
  drop(connected: Session, cause: Error): void {
    if (this.connected !== connected) return
    this.connected = undefined
    this.cause = cause
    this.up.closeUnsafe()
    this.down.openUnsafe()
    connected.client.destroy()
  }

  /** Whether the connection was made before `time`, on the clock of `performance.now`. */
  isStale(time: number): boolean {
    return this.connected !== undefined && this.connected.madeAt < time
  }

  /** Replaces the connection by a new one, without a word: nothing may be under way on it. */
  readonly renew: Effect.Effect<void> = Effect.suspend(() => {
    const { connected } = this
    if (connected === undefined) return Effect.void
    this.isRenewing = true
    this.drop(connected, renewed)
    return Effect.ignore(this.awaitUp(60_000))
  })

  private isRenewing = false

  private causeOf(connected: Session, error: Error): Error {
    return this.connected === connected ? error : this.cause
  }

  private adopt(connected: Session): void {
    this.connected = connected
    this.scripts.clear()
    connected.client.on("error", (error) => this.drop(connected, asError(error)))
    connected.client.on("end", () => this.drop(connected, new Error("the connection was closed")))
    this.down.closeUnsafe()
    this.up.openUnsafe()
    if (!connected.client.isReady) this.drop(connected, new Error("the connection was closed"))
  }

  /** Keeps it connected. `first` is a connection that exists already. */
  readonly maintain = (
    redial: Effect.Effect<Session, DialError>,
    first?: Session
  ): Effect.Effect<never, never, Scope.Scope> => {
    // The pipelines log the outage, which is one for all connections.
    const connect = (established: boolean) =>
      redial.pipe(
        Effect.tapError((error) => Effect.sync(() => void (this.cause = error))),
        Effect.retry(backoff),
        Effect.orDie,
        Effect.timed,
        Effect.flatMap(([took, connected]) => {
          this.adopt(connected)
          if (established) this.madeAgainAt = performance.now()
          return established && !this.isRenewing
            ? Effect.logDebug(
              `redis: ${this.purpose}: connected again to ${nameOf(connected.address)} after ${
                Math.round(Duration.toMillis(took))
              } ms`
            )
            : Effect.sync(() => void (this.isRenewing = false))
        })
      )
    const lost = Effect.andThen(
      this.down.await,
      Effect.suspend(() =>
        this.isRenewing
          ? Effect.void
          : Effect.logDebug(`redis: ${this.purpose}: connection lost (${this.cause.message}), connecting again`)
      )
    )
    return Effect.addFinalizer(() =>
      Effect.sync(() => {
        if (this.connected !== undefined) this.drop(this.connected, new Error("closed"))
      })
    ).pipe(
      Effect.andThen(first === undefined ? connect(false) : Effect.sync(() => this.adopt(first))),
      Effect.andThen(Effect.forever(Effect.andThen(lost, connect(true))))
    )
  }
}

/** Starts a connection in the current scope. */
export const make = Effect.fnUntraced(function*(
  purpose: string,
  redial: Effect.Effect<Session, DialError>,
  first?: Session,
  minTimeout?: number
): Effect.fn.Return<Connection, never, Scope.Scope> {
  const connection = new Connection(purpose, minTimeout)
  yield* Effect.forkScoped(connection.maintain(redial, first), { startImmediately: true })
  return connection
})
