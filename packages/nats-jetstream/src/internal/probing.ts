import { connect, type Socket } from "node:net"
import { connect as connectTls } from "node:tls"

/** How long a server may be silent before it is asked what it is. A NATS server speaks first. Milliseconds. */
export const probeAfter = 500

/** Milliseconds. */
const probeTimeout = 2000

const redis = "is not a NATS server: it answers as Redis does; correct the host and the port"

/** How answers begin to a line that no NATS server waits for. */
const answers: ReadonlyArray<readonly [first: string, answer: string]> = [
  ["+PONG", redis],
  ["-", redis],
  ["HTTP/", "is not a NATS server: it answers as an HTTP server does; correct the port, 4222 unless configured"]
]

const tlsFirst =
  "is encrypted from the first byte: for a NATS server with handshake_first, give handshakeFirst: true in the option tls"

/** Says why the client waits in vain for the first line of this server; `undefined` where that is not known. */
export const probe = async (server: string, signal: AbortSignal): Promise<string | undefined> => {
  const { hostname, port } = new URL(`nats://${server}`)
  const to = { host: hostname.replace(/^\[(.*)\]$/, "$1"), port: Number(port) }
  const first = await firstOf(connect(to).once("connect", ask), signal)
  // A TLS server hangs up on plain text. Nothing is said to it, so its certificate does not matter.
  const found = first === ""
    ? await firstOf(connectTls({ ...to, rejectUnauthorized: false }), signal) === "TLS" ? tlsFirst : undefined
    : answers.find(([start]) => first?.startsWith(start))?.[1]
  return found === undefined ? undefined : `${server} ${found}`
}

function ask(this: Socket): void {
  this.write("PING\r\n\r\n")
}

/** What a server says first; nothing where it hangs up, `undefined` where it is silent or away. */
const firstOf = (socket: Socket, signal: AbortSignal): Promise<string | undefined> =>
  new Promise((resolve) => {
    const end = (first?: string) => {
      resolve(first)
      socket.destroy()
    }
    signal.addEventListener("abort", () => end())
    socket.setTimeout(probeTimeout, () => end())
    socket.once("secureConnect", () => end("TLS"))
    socket.once("data", (data: Buffer) => end(data.toString("latin1")))
    socket.once("end", () => end(""))
    socket.once("error", (error: NodeJS.ErrnoException) => end(error.code === "ECONNRESET" ? "" : undefined))
    socket.once("close", () => end())
  })
