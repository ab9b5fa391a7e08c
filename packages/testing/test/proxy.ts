import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as net from "node:net"

/** A way to a broker that can be cut. */
export interface Proxy {
  readonly port: number
  /** Ends all connections that go through it; new ones may be made at once. */
  readonly cut: Effect.Effect<void>
}

export const proxy = (
  target: { readonly host: string; readonly port: number }
): Effect.Effect<Proxy, never, Scope.Scope> =>
  Effect.gen(function*() {
    const sockets = new Set<net.Socket>()
    const cut = Effect.sync(() => sockets.forEach((socket) => socket.resetAndDestroy()))
    const keep = (socket: net.Socket) => {
      sockets.add(socket)
      socket.setNoDelay(true).on("error", () => {}).on("close", () => sockets.delete(socket))
    }
    const server = net.createServer((client) => {
      const broker = net.connect(target.port, target.host)
      keep(client)
      keep(broker)
      client.pipe(broker).pipe(client)
      client.on("close", () => broker.destroy())
      broker.on("close", () => client.destroy())
    })
    yield* Effect.acquireRelease(
      Effect.callback<void>((resume) => void server.listen(0, "127.0.0.1", () => resume(Effect.void))),
      () => Effect.andThen(cut, Effect.callback<void>((resume) => void server.close(() => resume(Effect.void))))
    )
    const address = server.address()
    return { port: typeof address === "object" && address !== null ? address.port : 0, cut }
  })
