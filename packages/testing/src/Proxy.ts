/**
 * A TCP proxy between a client and a broker that plays a network's faults: it breaks connections, stops passing bytes without
 * telling anybody, is slow, has little bandwidth.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as net from "node:net"
import { numberFrom } from "./internal/options.ts"

/**
 * How fast each way of each connection is: `latency` in milliseconds, `bandwidth` in bytes a second.
 *
 * @category models
 * @since 0.1.0
 */
export interface Shape {
  readonly latency: number
  readonly bandwidth: number
}

/**
 * One connection through the proxy: `id` counts from 0. `hang` stops both ways of this connection only.
 *
 * @category models
 * @since 0.1.0
 */
export interface Connection {
  readonly id: number
  readonly hang: () => void
}

/**
 * A running proxy. Its scope ends all connections and stops it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Proxy {
  readonly host: "127.0.0.1"
  readonly port: number
  /** The same URL, by way of the proxy. */
  readonly through: (url: string) => string
  /** Resets all connections. The broker is not told of those that hang. New connections work. */
  readonly cut: Effect.Effect<void>
  /** From now on no byte passes: connections stay open, and new ones hang too. */
  readonly hang: Effect.Effect<void>
  /** New connections work again. Those that hung stay dead, as after a route is lost. */
  readonly heal: Effect.Effect<void>
  readonly shape: (shape: Shape) => Effect.Effect<void>
}

/**
 * Options for {@link make}.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** Gets each piece on its way and returns the piece to pass on; `undefined` ends the connection. */
  readonly pass?: ((piece: Buffer, to: "broker" | "client", connection: Connection) => Buffer | undefined) | undefined
}

/**
 * Starts a proxy before a broker, on a free port of the loopback interface.
 *
 * **Example** (Cutting the connections of a pipeline)
 *
 * ```ts fragment
 * const broker = yield* Brokers.redis()
 * const proxy = yield* Proxy.make(broker)
 * const layer = RedisStreams.layer({ url: proxy.through(broker.url) })
 * // ...
 * yield* proxy.cut
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (
  target: { readonly host: string; readonly port: number },
  options?: Options
): Effect.Effect<Proxy, never, Scope.Scope> =>
  Effect.gen(function*() {
    const pass = options?.pass ?? ((piece) => piece)
    const pairs = new Set<Pair>()
    const state = { hung: false, shape: { latency: 0, bandwidth: Infinity } }
    let ids = 0
    const server = net.createServer((client) => {
      const pair = new Pair(ids++, client, net.connect(target.port, target.host), state, pass)
      pairs.add(pair)
      pair.whenClosed(() => pairs.delete(pair))
      if (state.hung) pair.hang()
    })
    yield* Effect.acquireRelease(
      Effect.callback<void>((resume) => {
        server.once("error", (error) => resume(Effect.die(error)))
        server.listen(0, "127.0.0.1", () => resume(Effect.void))
      }),
      () =>
        Effect.sync(() => {
          server.close()
          for (const pair of pairs) pair.destroy()
        })
    )
    const { port } = server.address() as net.AddressInfo
    return {
      host: "127.0.0.1",
      port,
      through(url) {
        const address = new URL(url)
        address.hostname = "127.0.0.1"
        address.port = String(port)
        return address.href
      },
      cut: Effect.sync(() => pairs.forEach((pair) => pair.cut())),
      hang: Effect.sync(() => {
        state.hung = true
        for (const pair of pairs) pair.hang()
      }),
      heal: Effect.sync(() => {
        state.hung = false
      }),
      shape: (shape) =>
        Effect.sync(() => {
          numberFrom("shape.latency", shape.latency, (n) => n >= 0 && n < Infinity, "give milliseconds, 0 or more")
          numberFrom("shape.bandwidth", shape.bandwidth, (n) => n > 0, "give bytes a second, more than 0")
          state.shape = shape
        })
    }
  })

/** The two sockets of one connection. */
class Pair implements Connection {
  readonly id: number
  private readonly client: net.Socket
  private readonly broker: net.Socket
  private isHung = false

  constructor(
    id: number,
    client: net.Socket,
    broker: net.Socket,
    state: { readonly shape: Shape },
    pass: NonNullable<Options["pass"]>
  ) {
    this.id = id
    this.client = client
    this.broker = broker
    this.forward(client, broker, state, (piece) => pass(piece, "broker", this))
    this.forward(broker, client, state, (piece) => pass(piece, "client", this))
  }

  private forward(
    from: net.Socket,
    to: net.Socket,
    state: { readonly shape: Shape },
    pass: (piece: Buffer) => Buffer | undefined
  ): void {
    const queue: Array<{ readonly due: number; readonly piece: Buffer }> = []
    let [queued, free] = [0, 0]
    let timer: NodeJS.Timeout | undefined
    const send = () => {
      timer = undefined
      while (!this.isHung && queue.length > 0 && queue[0]!.due <= performance.now()) {
        const { piece } = queue.shift()!
        queued -= piece.length
        if (!to.destroyed) to.write(piece)
      }
      if (this.isHung) return
      if (queue.length > 0) timer = setTimeout(send, Math.max(1, queue[0]!.due - performance.now()))
      if (queued < window) from.resume()
    }
    from.setNoDelay()
    from.on("data", (piece: Buffer) => {
      if (this.isHung) return
      const passed = pass(piece)
      if (passed === undefined) return this.destroy()
      free = Math.max(free, performance.now()) + passed.length * 1000 / state.shape.bandwidth
      queue.push({ due: free + state.shape.latency, piece: passed })
      queued += passed.length
      if (queued >= window) from.pause()
      if (timer === undefined) send()
    })
    from.on("error", () => {})
    from.on("close", () => {
      if (!this.isHung) to.destroy()
    })
  }

  hang(): void {
    this.isHung = true
    this.client.pause()
    this.broker.pause()
  }

  cut(): void {
    this.client.resetAndDestroy()
    if (!this.isHung) this.broker.resetAndDestroy()
  }

  destroy(): void {
    this.client.destroy()
    this.broker.destroy()
  }

  whenClosed(f: () => void): void {
    const check = () => {
      if (this.client.destroyed && this.broker.destroyed) f()
    }
    this.client.on("close", check)
    this.broker.on("close", check)
  }
}

/** The most bytes that one way of a connection may have on it. */
const window = 1 << 18
