import * as Effect from "effect/Effect"
import * as Net from "node:net"
import type { Kind } from "./versions.ts"

/** What a server that is ready says about itself; a part it does not tell is missing. */
export interface Answer {
  readonly version?: string | undefined
  /** The process id (Redis, Valkey) or name (NATS): tells our server from one that took its port. */
  readonly identity?: string | undefined
}

/** Connects, sends, and reads until `parse` has an answer. No answer is `undefined`: refused, closed or not ready. */
const ask = (
  host: string,
  port: number,
  send: string,
  parse: (received: string) => Answer | "not ready" | "more"
): Effect.Effect<Answer | undefined> =>
  Effect.callback<Answer | undefined>((resume) => {
    let received = ""
    const socket = Net.connect({ host, port })
    const end = (answer: Answer | undefined) => {
      socket.destroy()
      resume(Effect.succeed(answer))
    }
    socket.setEncoding("utf8")
    socket.setTimeout(2_000, () => end(undefined))
    socket.on("error", () => end(undefined))
    socket.on("close", () => end(undefined))
    socket.on("connect", () => send !== "" && socket.write(send))
    socket.on("data", (chunk) => {
      received += chunk
      const answer = parse(received)
      if (answer !== "more") end(answer === "not ready" ? undefined : answer)
    })
    return Effect.sync(() => socket.destroy())
  })

const field = (info: string, name: string): string | undefined => new RegExp(`^${name}:(.*?)\r?$`, "m").exec(info)?.[1]

const parseRedis = (received: string): Answer | "not ready" | "more" => {
  if (received.includes("-LOADING")) return "not ready"
  // A server with a password or access list of its own is up, it only does not tell its version.
  if (/^-(NOAUTH|NOPERM|WRONGPASS|DENIED)/m.test(received)) return {}
  const pong = received.indexOf("+PONG\r\n")
  if (pong === -1) return "more"
  const bulk = /\$(\d+)\r\n/.exec(received.slice(pong))
  if (bulk === null) return "more"
  const info = received.slice(pong + bulk.index + bulk[0].length)
  if (info.length < Number(bulk[1])) return "more"
  return {
    version: field(info, "valkey_version") ?? field(info, "redis_version"),
    identity: field(info, "process_id")
  }
}

const parseNats = (received: string): Answer | "not ready" | "more" => {
  const line = /^INFO (\{.*\})\s*\r\n/.exec(received)
  if (line === null) return "more"
  const info = JSON.parse(line[1]!) as { readonly version?: string; readonly server_name?: string }
  return { version: info.version, identity: info.server_name }
}

/** Asks the server at an address whether it is ready for clients, and who it is. */
export const probe = (
  kind: Kind,
  host: string,
  port: number,
  password: string | undefined
): Effect.Effect<Answer | undefined> =>
  kind === "nats"
    ? ask(host, port, "", parseNats)
    : ask(host, port, `${password === undefined ? "" : auth(password)}PING\r\nINFO server\r\n`, parseRedis)

const auth = (password: string): string => `*2\r\n$4\r\nAUTH\r\n$${Buffer.byteLength(password)}\r\n${password}\r\n`
