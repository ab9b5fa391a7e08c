/** A TCP proxy that stands between processes and a broker, and does what networks do. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as net from "node:net"

export interface Shape {
  /** Milliseconds, each way. */
  readonly latency: number
  /** Bytes a second, each way and connection. */
  readonly bandwidth: number
}

export interface Proxy {
  readonly port: number
  /** Breaks all connections, both ways at once. */
  readonly cut: Effect.Effect<void>
  /** From now on nothing passes, and nobody is told: connections stay open, new ones too. */
  readonly hang: Effect.Effect<void>
  /** New connections work again. Those that hung stay dead, as after a route is lost. */
  readonly heal: Effect.Effect<void>
  readonly shape: (shape: Shape) => Effect.Effect<void>
}

const unshaped: Shape = { latency: 0, bandwidth: Infinity }

/** The most bytes that one way of a connection may have on it. */
const window = 1 << 18

export const make = (
  target: { readonly host: string; readonly port: number }
): Effect.Effect<Proxy, Error, Scope.Scope> =>
  Effect.gen(function*() {
    const sockets = new Set<net.Socket>()
    let hung = false
    let shape = unshaped

    const forward = (from: net.Socket, to: net.Socket) => {
      const queue: Array<{ readonly due: number; readonly chunk: Buffer }> = []
      let [queued, free, isDead] = [0, 0, false]
      let timer: NodeJS.Timeout | undefined
      const send = () => {
        timer = undefined
        while (!isDead && queue.length > 0 && queue[0]!.due <= performance.now()) {
          const { chunk } = queue.shift()!
          queued -= chunk.length
          if (!to.destroyed) to.write(chunk)
        }
        if (isDead) return
        if (queue.length > 0) timer = setTimeout(send, Math.max(1, queue[0]!.due - performance.now()))
        if (queued < window) from.resume()
      }
      from.on("data", (chunk: Buffer) => {
        if (isDead) return
        free = Math.max(free, performance.now()) + chunk.length * 1000 / shape.bandwidth
        queue.push({ due: free + shape.latency, chunk })
        queued += chunk.length
        if (queued >= window) from.pause()
        if (timer === undefined) send()
      })
      from.on("close", () => {
        sockets.delete(from)
        if (!isDead) to.destroy()
      })
      from.on("error", () => {})
      return () => {
        isDead = true
        from.pause()
      }
    }

    let freezers: Array<() => void> = []
    const server = net.createServer((client) => {
      const broker = net.connect(target.port, target.host)
      for (const socket of [client, broker]) sockets.add(socket.setNoDelay())
      const pair = [forward(client, broker), forward(broker, client)]
      if (hung) { for (const freeze of pair) freeze() }
      freezers.push(...pair)
    })
    yield* Effect.acquireRelease(
      Effect.callback<void, Error>((resume) => {
        server.once("error", (error) => resume(Effect.fail(error)))
        server.listen(0, "127.0.0.1", () => resume(Effect.void))
      }),
      () =>
        Effect.sync(() => {
          server.close()
          for (const socket of sockets) socket.destroy()
        })
    )
    return {
      port: (server.address() as net.AddressInfo).port,
      cut: Effect.sync(() => {
        for (const socket of sockets) socket.resetAndDestroy()
        freezers = []
      }),
      hang: Effect.sync(() => {
        hung = true
        for (const freeze of freezers) freeze()
        freezers = []
      }),
      heal: Effect.sync(() => {
        hung = false
      }),
      shape: (next) =>
        Effect.sync(() => {
          shape = next
        })
    }
  })
