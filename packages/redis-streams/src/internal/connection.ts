import { connectionDetail } from "@millrace/core/TransportAuthor"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { ErrorReply } from "redis"
import { nameOf } from "./address.ts"
import type { Argument, Command } from "./command.ts"
import { DialError, type Session } from "./dial.ts"
import { asError } from "./reply.ts"
import { asEval } from "./scripts/script.ts"

/** The connection was lost before the answer (`sent`), or there was none to send on. */
export class Lost extends Error {
  readonly sent: boolean
  constructor(sent: boolean, cause: Error) {
    super(cause.message, { cause })
    this.sent = sent
  }
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
