import { connect } from "node:net"

/** How long a server may be silent before it is asked what it is. A NATS server speaks first. Milliseconds. */
export const probeAfter = 500

/** Milliseconds. */
const probeTimeout = 2000

const redis = "is not a NATS server: it answers as Redis does; correct the host and the port"

/** How answers begin to a line that no NATS server waits for. `INFO` is one's. */
const answers: ReadonlyArray<readonly [first: string, answer: string]> = [
  ["+PONG", redis],
  ["-", redis],
  ["HTTP/", "is not a NATS server: it answers as an HTTP server does; correct the port, 4222 unless configured"],
  [
    "\u0015\u0003",
    "expects TLS from the first byte: for a NATS server with handshake_first, give tls: { handshakeFirst: true }"
  ]
]

/** Says why the client waits in vain for the first line of this server; `undefined` where that is not known. */
export const probe = (server: string, signal: AbortSignal): Promise<string | undefined> =>
  new Promise((resolve) => {
    const { hostname, port } = new URL(`nats://${server}`)
    const socket = connect({ host: hostname.replace(/^\[(.*)\]$/, "$1"), port: Number(port), timeout: probeTimeout })
    const end = (answer?: string) => {
      socket.destroy()
      resolve(answer === undefined ? undefined : `${server} ${answer}`)
    }
    signal.addEventListener("abort", () => end())
    socket.on("connect", () => socket.write("PING\r\n\r\n"))
    socket.on("data", (data) => {
      const first = data.toString("latin1")
      end(answers.find(([start]) => first.startsWith(start))?.[1])
    })
    socket.on("timeout", () => end())
    socket.on("error", () => end())
    socket.on("close", () => end())
  })
