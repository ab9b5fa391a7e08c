import type * as Brokers from "@millrace/testing/Brokers"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as net from "node:net"

/** A way to a broker, on which what a network does can be done to it. */
export interface Proxy {
  readonly url: string
  /** From now on nothing passes on the connections there are, and nobody is told; new ones work. */
  readonly hang: Effect.Effect<void>
  /** Ends the clients' side of all connections. The broker is told, but for those that hang. */
  readonly cut: Effect.Effect<void>
}

/** `pass` sees each piece on its way, and may change it; `undefined` was the connection's last. */
export const proxy = (
  target: Brokers.Broker,
  pass: (piece: Buffer, to: "broker" | "client") => Buffer | undefined = (piece) => piece
): Effect.Effect<Proxy, never, Scope.Scope> =>
  Effect.gen(function*() {
    const pairs = new Set<{ readonly client: net.Socket; readonly broker: net.Socket; hangs: boolean }>()
    const server = net.createServer((client) => {
      const broker = net.connect(target.port, target.host)
      const pair = { client, broker, hangs: false }
      pairs.add(pair)
      const forward = (from: net.Socket, to: net.Socket, name: "broker" | "client") =>
        from.setNoDelay().on("error", () => {}).on("data", (piece) => {
          if (pair.hangs) return
          const passed = pass(piece, name)
          if (passed !== undefined) return void to.write(passed)
          client.destroy()
          broker.destroy()
        }).on("close", () => pair.hangs || to.destroy())
      forward(client, broker, "broker")
      forward(broker, client, "client")
    })
    yield* Effect.acquireRelease(
      Effect.callback<void>((resume) => void server.listen(0, "127.0.0.1", () => resume(Effect.void))),
      () =>
        Effect.sync(() => {
          server.close()
          for (const { broker, client } of pairs) for (const socket of [broker, client]) socket.destroy()
        })
    )
    const address = server.address()
    return {
      url: `nats://127.0.0.1:${typeof address === "object" && address !== null ? address.port : 0}`,
      hang: Effect.sync(() => {
        for (const pair of pairs) pair.hangs = true
      }),
      cut: Effect.sync(() => {
        for (const { client } of pairs) client.resetAndDestroy()
      })
    }
  })
