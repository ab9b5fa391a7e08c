import { connectionDetail } from "@millrace/core/TransportAuthor"
import * as TransportError from "@millrace/core/TransportError"
import {
  JetStreamApiError,
  type JetStreamManager,
  jetstreamManager,
  type JetStreamManagerOptions
} from "@nats-io/jetstream"
import { errors, type NatsConnection, type Status } from "@nats-io/nats-core"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Lives } from "./life.ts"

/** What happens to a connection. `lost` comes before `closed`; a closed connection never comes back. */
export interface Listener {
  readonly lost?: () => void
  readonly restored?: () => void
  readonly refused?: (error: InstanceType<typeof errors.PermissionViolationError>) => void
}

/** Differences between clocks that are not worth a correction, in milliseconds. */
const minSkew = 50

/** How long a measured difference between clocks is good, in milliseconds. */
const skewAge = 60_000

/** How often our connections ask the server for a sign of life, in milliseconds. */
export const pingEvery = 2000

/** How often a process shows that it does not stand still, in milliseconds. */
const beatEvery = 250

/** A connection of which one knows whether it is there. */
export interface Connection {
  readonly nc: NatsConnection
  readonly jsm: JetStreamManager
  readonly apiPrefix: string
  /** Subjects on which this client is answered begin with it. */
  readonly inboxPrefix: string
  readonly lives: Lives
  readonly state: () => "connected" | "reconnecting" | "closed"
  /** Why there is no connection, while there is none. */
  readonly trouble: () => string
  /** What the server has refused on this connection last, beside logins and permissions: subscriptions beyond a limit, say. */
  readonly complaint: () => string | undefined
  readonly listen: (listener: Listener) => () => void
  /** Succeeds when the server has read everything written before. */
  readonly flush: Effect.Effect<void, TransportError.TransportError>
  /** Suspends while the connection is being re-made; fails when it is closed for good. */
  readonly whenConnected: Effect.Effect<void, TransportError.TransportError>
  /** How far the server's wall clock is ahead of ours, in milliseconds, as its last dated answer says. */
  readonly clockSkew: () => number
  readonly isSkewKnown: () => boolean
  /** The server has just said what time it is; `tookMillis` is how long its answer was on its way. */
  readonly noteServerTime: (serverTime: number, tookMillis: number) => void
  /** When, in monotonic milliseconds, what is read now was sent at the earliest. */
  readonly sentSince: () => number
  /** When bytes of the server were last seen to arrive, in monotonic milliseconds: also those of a message under way. */
  readonly heardAt: () => number
  /** Suspends until nothing has arrived for so many milliseconds, counted from now at the earliest. */
  readonly untilSilent: (millis: number) => Effect.Effect<void>
  /** One call of the JetStream API. What the server answers stays what it is, the rest is a `TransportError`. */
  readonly call: <A>(
    operation: string,
    f: (jsm: JetStreamManager) => Promise<A>
  ) => Effect.Effect<A, TransportError.TransportError | JetStreamApiError>
}

export const transport = "nats"

/** The server has JetStream, and nothing answers for what was asked: there is no leader now. */
export class NoAnswer extends Error {
  /** The domain is another one than the server's: its name may be wrong. */
  readonly isElsewhere: boolean
  constructor(text: string, isElsewhere: boolean) {
    super(text)
    this.isElsewhere = isElsewhere
  }
}

export const failure = (reason: TransportError.TransportErrorReason) =>
  new TransportError.TransportError({ transport, reason })

export const invalidOption = (option: string, value: unknown, remedy: string): TransportError.TransportError =>
  TransportError.invalidOption(transport, option, value, remedy)

export const interrupted = (operation: string, cause?: unknown) =>
  failure(new TransportError.OperationFailed(cause === undefined ? { operation } : { operation, cause }))

const closedError = (address: string) =>
  failure(new TransportError.Unreachable({ address, cause: new Error("the connection has been closed") }))

/** Finds the violated permission, which requests wrap into errors of their own. */
const permissionOf = (cause: unknown): InstanceType<typeof errors.PermissionViolationError> | undefined =>
  cause instanceof errors.PermissionViolationError
    ? cause
    : cause instanceof Error && cause.cause !== undefined
    ? permissionOf(cause.cause)
    : undefined

/** The client does not export the class. */
const isNotEnabled = (cause: unknown): cause is Error => cause instanceof Error && cause.name === "JetStreamNotEnabled"

const isLoginRefused = (cause: unknown): cause is Error =>
  cause instanceof errors.AuthorizationError || cause instanceof errors.UserAuthenticationExpiredError

/** Answers arrive on an inbox of the client. */
export const noInbox = (subject: string): string =>
  `no permission to subscribe to ${subject}, where answers arrive: allow it, or give inboxPrefix`

/** What a failed request means. */
export const fromCause = (address: string, operation: string, cause: unknown): TransportError.TransportError => {
  const permission = permissionOf(cause)
  if (permission !== undefined) {
    return failure(
      new TransportError.Unauthorized({
        address,
        operation,
        detail: permission.operation === "publish"
          ? `no permission to publish to ${permission.subject}`
          : noInbox(permission.subject)
      })
    )
  }
  if (isLoginRefused(cause)) {
    return failure(new TransportError.Unauthorized({ address, operation, detail: cause.message }))
  }
  if (isNotEnabled(cause)) {
    return failure(
      new TransportError.Unsupported({
        operation,
        remedy: `JetStream does not answer at ${address}: start nats-server with -js, or enable it for this account`
      })
    )
  }
  return interrupted(operation, cause)
}

export const unauthorized = (connection: { readonly nc: NatsConnection }, operation: string, subject: string) =>
  failure(
    new TransportError.Unauthorized({
      address: connection.nc.getServer(),
      operation,
      detail: `no permission to publish to ${subject}`
    })
  )

/** What the API refused and we have no better words for. */
export const unexpected =
  (operation: string) => (error: TransportError.TransportError | JetStreamApiError): TransportError.TransportError =>
    error instanceof JetStreamApiError ? interrupted(operation, error) : error

/** One call of the JetStream API, whose refusals have no meaning of their own. */
export const ask = <A>(
  connection: Pick<Connection, "call">,
  operation: string,
  f: (jsm: JetStreamManager) => Promise<A>
): Effect.Effect<A, TransportError.TransportError> =>
  Effect.mapError(connection.call(operation, f), unexpected(operation))

/** Watches a client's connection for as long as the scope is open. Closing it is its owner's business. */
export const watch = Effect.fnUntraced(function*(
  nc: NatsConnection,
  options: JetStreamManagerOptions & { readonly address: string; readonly inboxPrefix: string }
): Effect.fn.Return<Connection, TransportError.TransportError, Scope.Scope> {
  const { address, inboxPrefix, ...apiOptions } = options
  const listeners = new Set<Listener>()
  /** Of the login. */
  let refusal: string | undefined
  /** Why the last attempt to connect again failed. */
  let dialError: string | undefined
  onDialError(nc, (error) => dialError = connectionDetail(error))
  /** A subscription that the server refused: answers to requests may not arrive. */
  let refusedInbox: InstanceType<typeof errors.PermissionViolationError> | undefined
  let complaint: string | undefined
  let state: "connected" | "reconnecting" | "closed" = nc.isClosed() ? "closed" : "connected"

  const lose = (next: "reconnecting" | "closed") => {
    if (state === "closed" || state === next) return
    state = next
    for (const listener of listeners) listener.lost?.()
  }
  const onStatus = (status: Status) => {
    switch (status.type) {
      case "disconnect":
        endHandshake(nc)
        return lose("reconnecting")
      case "close":
        return lose("closed")
      case "reconnect":
        // Said twice after a handshake that was cut off.
        if (state === "connected") return
        state = "connected"
        refusal = dialError = complaint = undefined
        refusedInbox = undefined
        for (const listener of listeners) listener.restored?.()
        return
      case "error":
        if (isLoginRefused(status.error)) {
          refusal = `the server refuses the login: ${status.error.message}`
        }
        if (status.error instanceof errors.PermissionViolationError) {
          const { operation, subject } = status.error
          if (operation === "subscription" && subject.startsWith(inboxPrefix)) refusedInbox = status.error
          for (const listener of listeners) listener.refused?.(status.error)
        } else complaint = status.error.message
    }
  }
  const listen = (listener: Listener) => {
    listeners.add(listener)
    return () => listeners.delete(listener)
  }
  yield* Stream.fromAsyncIterable(nc.status(), (cause) => cause).pipe(
    Stream.runForEach((status) => Effect.sync(() => onStatus(status))),
    Effect.ensuring(Effect.sync(() => nc.isClosed() && lose("closed"))),
    Effect.ignore,
    Effect.forkScoped({ startImmediately: true })
  )

  /** Runs a promise of the client, none of which fail when the connection does. */
  const whileConnected = <A, E>(
    operation: string,
    f: () => Promise<A>,
    refused: (cause: unknown) => E
  ): Effect.Effect<A, E | TransportError.TransportError> =>
    Effect.callback((resume) => {
      if (state !== "connected") {
        return resume(Effect.fail(state === "closed" ? closedError(address) : interrupted(operation, notConnected)))
      }
      const stop = listen({ lost: () => done(Effect.fail(interrupted(operation, notConnected))) })
      const done = (exit: Effect.Effect<A, E | TransportError.TransportError>) => {
        stop()
        resume(exit)
      }
      try {
        f().then((value) => done(Effect.succeed(value)), (cause) => done(Effect.fail(refused(cause))))
      } catch (cause) {
        done(Effect.fail(refused(cause)))
      }
      return Effect.sync(stop)
    })

  // A process that stood still finds in its socket what was sent in the meantime, up to the answer to a flush.
  const clock = yield* Clock.clockWith(Effect.succeed)
  const now = () => Number(clock.monotonicTimeNanosUnsafe()) / 1e6
  let beat = now()
  let stoodStillSince = Infinity
  let answers = 0
  let bytes = bytesRead(nc)
  let bytesAt = beat
  const heardAt = () => {
    const last = bytes
    bytes = bytesRead(nc)
    if (bytes !== last) bytesAt = now()
    return bytesAt
  }
  yield* keepWhileHeard(nc, () => now() - heardAt() < pingEvery)
  const sentSince = () => {
    const last = beat
    beat = now()
    if (beat - last > 2 * beatEvery && state === "connected" && !nc.isClosed()) {
      stoodStillSince = Math.min(stoodStillSince, last)
      answers++
      const answered = () => {
        if (--answers === 0) stoodStillSince = Infinity
      }
      nc.flush().then(answered, answered)
    }
    return Math.min(stoodStillSince, beat)
  }
  let skew = 0
  let skewAt = -Infinity
  const noteServerTime = (serverTime: number, tookMillis: number) => {
    const measured = serverTime + tookMillis / 2 - clock.currentTimeMillisUnsafe()
    skewAt = now()
    // Less than the answer can tell is no difference.
    skew = Math.abs(measured) <= tookMillis + minSkew ? 0 : measured
  }
  yield* Effect.acquireRelease(
    Effect.sync(() =>
      setInterval(() => {
        sentSince()
        heardAt()
      }, beatEvery).unref()
    ),
    (timer) => Effect.sync(() => clearInterval(timer))
  )

  const noAnswer = () => {
    const { domain } = apiOptions
    const info: unknown = nc.info
    const own = Predicate.hasProperty(info, "domain") ? String(info.domain) : undefined
    if (domain === undefined || domain === own) {
      return new NoAnswer("JetStream does not answer: it may have no leader now", false)
    }
    const found = own === undefined ? "has no domain" : `is in the domain ${own}`
    return new NoAnswer(
      `JetStream of the domain ${domain} does not answer: this server ${found}; correct the option domain, or mend the leaf node's connection`,
      true
    )
  }
  const jsm = yield* Effect.tryPromise({
    try: () => jetstreamManager(nc, { ...apiOptions, checkAPI: false }),
    catch: (cause) => fromCause(address, "opening JetStream", cause)
  })

  return {
    nc,
    jsm,
    lives: new Lives(),
    inboxPrefix,
    apiPrefix: apiOptions.apiPrefix ?? (apiOptions.domain === undefined ? "$JS.API" : `$JS.${apiOptions.domain}.API`),
    // A connection that is being drained takes no more.
    state: () => nc.isClosed() || nc.isDraining() ? "closed" : state,
    trouble: () => refusal ?? `no connection: ${dialError ?? "the server does not answer"}`,
    complaint: () => complaint,
    listen,
    sentSince,
    heardAt,
    untilSilent: (millis) =>
      Effect.suspend(() => {
        const since = now()
        const left = () => Math.max(since, heardAt()) + millis - now()
        const wait: Effect.Effect<void> = Effect.suspend(() =>
          left() <= 0 ? Effect.void : Effect.andThen(Effect.sleep(Math.min(beatEvery, left())), wait)
        )
        return wait
      }),
    clockSkew: () => skew,
    isSkewKnown: () => now() - skewAt < skewAge,
    noteServerTime,
    flush: whileConnected("flush", () => nc.flush(), () => interrupted("flush", notConnected)),
    whenConnected: Effect.callback((resume) => {
      if (nc.isClosed() || state === "closed") return resume(Effect.fail(closedError(address)))
      if (state === "connected") return resume(Effect.void)
      const stop = listen({
        restored: () => {
          stop()
          resume(Effect.void)
        },
        lost: () => {
          if (state !== "closed") return
          stop()
          resume(Effect.fail(closedError(address)))
        }
      })
      return Effect.sync(stop)
    }),
    call: (operation, f) =>
      whileConnected(operation, () => f(jsm), (cause) => {
        if (cause instanceof JetStreamApiError) return cause
        const unheard = isNotEnabled(cause) && !(cause.cause instanceof JetStreamApiError) &&
          nc.info?.jetstream === true
        if (refusedInbox !== undefined && (unheard || cause instanceof errors.TimeoutError)) {
          return failure(
            new TransportError.Unauthorized({
              address,
              operation,
              detail: noInbox(refusedInbox.subject)
            })
          )
        }
        return unheard || cause instanceof errors.TimeoutError
          ? interrupted(operation, noAnswer())
          : fromCause(address, operation, cause)
      })
  }
})

/** The client keeps to itself why it cannot connect again. */
const onDialError = (nc: NatsConnection, listener: (error: unknown) => void): void => {
  if (!Predicate.hasProperty(nc, "protocol")) return
  const { protocol } = nc
  if (!Predicate.hasProperty(protocol, "dial") || typeof protocol.dial !== "function") return
  const dial = protocol.dial.bind(protocol)
  protocol.dial = async (...server: ReadonlyArray<unknown>) => {
    try {
      return await dial(...server)
    } catch (error) {
      listener(error)
      throw error
    }
  }
}

/** A server that hangs up during the handshake is waited for as long as one that is silent: the client is told. */
const endHandshake = (nc: NatsConnection): void => {
  if (!Predicate.hasProperty(nc, "protocol")) return
  const { protocol } = nc
  if (!Predicate.hasProperty(protocol, "connectError") || !Predicate.hasProperty(protocol, "transport")) return
  const { connectError, transport } = protocol
  if (
    typeof connectError === "function" && Predicate.hasProperty(transport, "isClosed") && transport.isClosed === true
  ) {
    connectError(notConnected)
  }
}

/** Bytes that have arrived on the present socket; where the client has none, bytes of whole messages. */
const bytesRead = (nc: NatsConnection): number => {
  if (Predicate.hasProperty(nc, "protocol") && Predicate.hasProperty(nc.protocol, "transport")) {
    const { transport } = nc.protocol
    if (Predicate.hasProperty(transport, "socket") && Predicate.hasProperty(transport.socket, "bytesRead")) {
      return Number(transport.socket.bytesRead)
    }
  }
  return nc.stats().inBytes
}

/**
 * The client gives up a connection whose answers to its pings wait behind one long message: not while that arrives, for as
 * long as the scope is open. The connection may be the user's, and outlive it.
 */
const keepWhileHeard = (nc: NatsConnection, isHeard: () => boolean): Effect.Effect<void, never, Scope.Scope> => {
  if (!Predicate.hasProperty(nc, "protocol") || !Predicate.hasProperty(nc.protocol, "heartbeats")) return Effect.void
  const { heartbeats } = nc.protocol
  if (
    !Predicate.hasProperty(heartbeats, "cancel") || typeof heartbeats.cancel !== "function" ||
    !Predicate.hasProperty(heartbeats, "start") || typeof heartbeats.start !== "function"
  ) return Effect.void
  const { cancel, start } = heartbeats
  let isOpen = true
  const kept = (isStale?: boolean) =>
    isOpen && isStale === true && isHeard() ? start.call(heartbeats) : cancel.call(heartbeats, isStale)
  return Effect.asVoid(Effect.acquireRelease(
    Effect.sync(() => heartbeats.cancel = kept),
    () =>
      Effect.sync(() => {
        isOpen = false
        if (heartbeats.cancel === kept) heartbeats.cancel = cancel
      })
  ))
}

export const notConnected = new Error("the connection was lost")
// Where this module was loaded from helps nobody.
notConnected.stack = `${notConnected}`
