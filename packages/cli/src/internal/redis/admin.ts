import { OperationFailed, redactUrl, TransportError, Unauthorized, Unreachable } from "@millrace/core/TransportError"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { createClient, createCluster, createSentinel } from "redis"

export interface Target {
  readonly url: Redacted.Redacted<string>
  readonly cluster: boolean
  readonly sentinel: string | undefined
  readonly keyPrefix: string
}

type Args = ReadonlyArray<string>

/** One server that holds data, and its name without credentials. */
export interface Node {
  readonly name: string
  /** What was dialled for it, `host:port`; `undefined` where a Sentinel chose it. */
  readonly dialled: string | undefined
  readonly send: (args: Args) => Effect.Effect<unknown, CommandError>
}

/** A connection for commands that a transport does not need. */
export interface Admin {
  readonly send: (key: string, args: Args) => Effect.Effect<unknown, CommandError>
  /** Every master of a cluster, or the one server. */
  readonly nodes: ReadonlyArray<Node>
}

/** What the server or the connection said to one command. */
export class CommandError extends Data.TaggedError("CommandError")<{ readonly message: string }> {}

const asError = (cause: unknown): CommandError =>
  new CommandError({ message: cause instanceof Error ? cause.message : String(cause) })

const attempt = (f: () => Promise<unknown>): Effect.Effect<unknown, CommandError> =>
  Effect.tryPromise({ try: f, catch: asError }).pipe(
    Effect.timeoutOrElse({
      duration: "10 seconds",
      orElse: () => Effect.fail(new CommandError({ message: "no answer within 10 seconds" }))
    })
  )

const options = { RESP: 2, maintNotifications: "disabled" } as const
const socket = { connectTimeout: 5_000, reconnectStrategy: false } as const

/** The first connection fails at once; one that was lost is made again. */
const lasting = () => {
  let isFirst = true
  return {
    connected: () => void (isFirst = false),
    socket: {
      connectTimeout: 5_000,
      reconnectStrategy: (attempts: number) => isFirst ? false as const : Math.min(2 ** attempts * 50, 2_000)
    }
  }
}

/** A URL that the layer has taken: its schemes are more than the client's, which knows `redis:` and `rediss:` only. */
const read = (given: string) => {
  const { hostname, password, pathname, port, protocol, username } = new URL(given)
  const isSocket = protocol === "unix:"
  return {
    host: hostname.replace(/^\[(.*)\]$/, "$1"),
    port: port === "" ? undefined : Number(port),
    path: isSocket ? decodeURIComponent(pathname) : undefined,
    tls: protocol === "rediss:" || protocol === "valkeys:" ? { tls: true as const } : {},
    database: isSocket ? 0 : Number(pathname.slice(1) || 0),
    login: {
      ...(username === "" ? {} : { username: decodeURIComponent(username) }),
      ...(password === "" ? {} : { password: decodeURIComponent(password) })
    }
  }
}

const open = async (target: Target): Promise<{ readonly admin: Admin; readonly close: () => void }> => {
  const url = Redacted.value(target.url)
  const name = redactUrl(url)
  const { database, host, login, path, port, tls } = read(url)
  if (target.cluster) {
    const cluster = createCluster({
      RESP: options.RESP,
      rootNodes: [{ socket: { host, port: port ?? 6379 } }],
      defaults: { ...options, ...login, socket: { ...socket, ...tls } }
    })
    cluster.on("error", () => {})
    await cluster.connect()
    const nodes: Array<Node> = []
    for (const master of cluster.masters) {
      const client = await cluster.nodeClient(master)
      nodes.push({
        name: master.address,
        dialled: master.address,
        send: (args) => attempt(() => client.sendCommand([...args]))
      })
    }
    return {
      admin: { nodes, send: (key, args) => attempt(() => cluster.sendCommand(key, false, [...args])) },
      close: () => cluster.destroy()
    }
  }
  if (target.sentinel !== undefined) {
    const sentinel = createSentinel({
      RESP: options.RESP,
      name: target.sentinel,
      sentinelRootNodes: [{ host, port: port ?? 26379 }],
      // As in the layer: TLS is for the Sentinels and for the master, the login for the master.
      sentinelClientOptions: { socket: { connectTimeout: socket.connectTimeout, ...tls } },
      nodeClientOptions: {
        ...options,
        ...login,
        database,
        socket: { connectTimeout: socket.connectTimeout, ...tls }
      }
    })
    sentinel.on("error", () => {})
    await sentinel.connect()
    const send = (args: Args) => attempt(() => sentinel.sendCommand(false, [...args]))
    return {
      admin: { nodes: [{ name, dialled: undefined, send }], send: (_, args) => send(args) },
      close: () => sentinel.destroy()
    }
  }
  const connection = lasting()
  const place = path === undefined ? { host, port: port ?? 6379, ...tls } : { path }
  const client = createClient({ ...options, ...login, database, socket: { ...connection.socket, ...place } })
  client.on("error", () => {})
  await client.connect()
  connection.connected()
  const send = (args: Args) => attempt(() => client.sendCommand([...args]))
  const dialled = path === undefined ? `${host}:${port ?? 6379}` : undefined
  return {
    admin: { nodes: [{ name, dialled, send }], send: (_, args) => send(args) },
    close: () => client.destroy()
  }
}

export const make = (target: Target): Effect.Effect<Admin, TransportError, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(
      Effect.tryPromise({
        try: () => open(target),
        catch: (cause) => failure("connecting", target)(asError(cause), true)
      }),
      ({ close }) => Effect.ignore(Effect.try({ try: close, catch: asError }))
    ),
    ({ admin }) => admin
  )

/** The transport's error for what the server or the connection said. */
export const failure =
  (operation: string, target: Target) => (cause: CommandError, connecting = false): TransportError => {
    const address = redactUrl(Redacted.value(target.url))
    const isRefused = /^(NOAUTH|WRONGPASS|NOPERM)/.test(cause.message)
    return new TransportError({
      transport: "redis",
      reason: isRefused
        ? new Unauthorized({ address, operation, detail: cause.message })
        : connecting
        ? new Unreachable({ address, cause })
        : new OperationFailed({ operation, cause })
    })
  }

/** A flat list of names and values, as RESP2 has it. */
export const pairs = (reply: unknown): ReadonlyMap<string, unknown> => {
  const map = new Map<string, unknown>()
  const all = Array.isArray(reply) ? reply : []
  for (let i = 0; i + 1 < all.length; i += 2) map.set(String(all[i]), all[i + 1])
  return map
}

export const list = (reply: unknown): ReadonlyArray<unknown> => Array.isArray(reply) ? reply : []

export const millisOf = (id: unknown): number | undefined => {
  const millis = Number.parseInt(String(id), 10)
  return Number.isFinite(millis) && millis > 0 ? millis : undefined
}

/** Consumers of this name belong to Millrace: they hold the life of a stream, and what processes have released. */
export const isInternal = (consumer: string): boolean => consumer.startsWith("millrace:")

/** `INFO`'s answer. */
export const info = (reply: unknown): ReadonlyMap<string, string> =>
  new Map(
    String(reply).split(/\r?\n/).flatMap((line): ReadonlyArray<readonly [string, string]> => {
      const at = line.indexOf(":")
      return line.startsWith("#") || at < 0 ? [] : [[line.slice(0, at), line.slice(at + 1)]]
    })
  )
