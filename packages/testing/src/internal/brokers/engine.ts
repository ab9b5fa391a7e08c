import * as Effect from "effect/Effect"
import * as Fs from "node:fs"
import * as Http from "node:http"
import * as Os from "node:os"
import * as Path from "node:path"
import * as Process from "node:process"

/** Where an engine listens, for Node's HTTP client. */
export type Address = { readonly socketPath: string } | { readonly host: string; readonly port: string }

/** What an engine answers; without a status, why it did not. */
export interface Answer {
  readonly status?: number | undefined
  readonly message: string
}

/** A Docker engine that answers. */
export interface Engine {
  readonly at: Address
  /** Asks for a path of the engine's API. */
  readonly get: (path: string, timeout: number) => Effect.Effect<Answer>
}

/** Where an engine may listen, in the order in which `testcontainers` looks: the setting, or the usual sockets. */
const addresses = (): ReadonlyArray<string> => {
  const setting = Process.env["DOCKER_HOST"]
  if (setting !== undefined && setting !== "") return [setting]
  if (Process.platform === "win32") return ["npipe:////./pipe/docker_engine"]
  const run = Process.env["XDG_RUNTIME_DIR"]
  return [
    "/var/run/docker.sock",
    ...(run === undefined ? [] : [Path.join(run, "docker.sock")]),
    Path.join(Os.homedir(), ".docker", "run", "docker.sock"),
    Path.join(Os.homedir(), ".docker", "desktop", "docker.sock"),
    `/run/user/${Os.userInfo().uid}/docker.sock`
  ].filter((socket) => Fs.existsSync(socket)).map((socket) => `unix://${socket}`)
}

const make = (address: string): Engine => {
  const { protocol, hostname, port, pathname } = new URL(address)
  const at: Address = protocol === "unix:" || protocol === "npipe:"
    ? { socketPath: pathname }
    : { host: hostname, port: port === "" ? "2375" : port }
  return {
    at,
    get: (path, timeout) =>
      Effect.callback((resume) => {
        const request = Http.get({ ...at, path, timeout, agent: false }, (response) => {
          let body = ""
          response.setEncoding("utf8").on("data", (chunk) => body += chunk)
          response.on("end", () => {
            const [, message = JSON.stringify(body)] = /^\{"message":(".*")\}\s*$/.exec(body) ?? []
            resume(Effect.succeed({ status: response.statusCode, message: JSON.parse(message) }))
          })
        })
        request.on("timeout", () => request.destroy(new Error(`no answer within ${timeout} ms`)))
        request.on("error", ({ message }) => resume(Effect.succeed({ message })))
        return Effect.sync(() => request.destroy())
      })
  }
}

const look = Effect.fnUntraced(function*(): Effect.fn.Return<Engine | string> {
  const tried = addresses()
  for (const address of tried) {
    if (!URL.canParse(address)) return `DOCKER_HOST is not a URL: ${address}`
    const engine = make(address)
    if ((yield* engine.get("/_ping", 2_000)).status === 200) return engine
  }
  return tried.length === 0 ? "no Docker engine is there" : `no Docker engine answers at ${tried.join(", ")}`
})

let outcome: Engine | string | undefined

/** The engine, or why there is none. Looked for once. */
export const engine: Effect.Effect<Engine | string> = Effect.suspend(() =>
  outcome !== undefined ? Effect.succeed(outcome) : Effect.map(look(), (found) => outcome = found)
)
