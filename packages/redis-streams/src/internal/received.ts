import { AsyncLocalStorage } from "node:async_hooks"
import * as Diagnostics from "node:diagnostics_channel"
import { Socket } from "node:net"

/** Counts the bytes that a connection has received. */
export interface Received {
  readonly bytes: number
}

class SocketBytes implements Received {
  private readonly sockets: Array<Socket> = []

  add(socket: Socket): void {
    this.sockets.push(socket)
  }

  get bytes(): number {
    return this.sockets.reduce((sum, { bytesRead }) => sum + bytesRead, 0)
  }
}

const current = new AsyncLocalStorage<SocketBytes>()

let isSubscribed = false

/**
 * Runs `connect` and counts what its socket receives. The client shows whole replies only, and a large one may take long
 * to arrive over a slow network; Node tells which socket was made.
 */
export const counting = <A>(connect: () => A): readonly [A, Received] => {
  if (!isSubscribed) {
    isSubscribed = true
    Diagnostics.subscribe("net.client.socket", (message) => {
      const { socket } = message as { readonly socket: unknown }
      if (socket instanceof Socket) current.getStore()?.add(socket)
    })
  }
  const bytes = new SocketBytes()
  return [current.run(bytes, connect), bytes]
}
