import * as Effect from "effect/Effect"
import * as Fs from "node:fs"
import * as Http from "node:http"
import * as Os from "node:os"
import * as Path from "node:path"
import * as Process from "node:process"

/** Where an engine listens, for Node's HTTP client. */
export type Address = { readonly socketPath: string } | { readonly host: string; readonly port: string }

/** What an engine answers: no message is no error; without a status, it is why there was no answer. */
export interface Answer {
  readonly status?: number | undefined
  readonly message: string
}

/** A Docker engine that answers. */
export interface Engine {
  readonly at: Address
  /** Asks for a path of the engine's API; ends when nothing comes for as long as `patience`, in milliseconds. */
  readonly ask: (method: "GET" | "POST", path: string, patience: number) => Effect.Effect<Answer>
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

/** An engine tells an error as JSON, at once or, when it found out on the way, in the last line. */
const messageOf = (body: string): string => {
  try {
    const { error, errorDetail, message } = JSON.parse(body.trimEnd().split("\n").at(-1)!)
    return message ?? error ?? errorDetail?.message ?? ""
  } catch {
    return ""
  }
}

const make = (address: string): Engine => {
  const { protocol, hostname, port, pathname } = new URL(address)
  const at: Address = protocol === "unix:" || protocol === "npipe:"
    ? { socketPath: pathname }
    : { host: hostname, port: port === "" ? "2375" : port }
  return {
    at,
    ask: (method, path, patience) =>
      Effect.callback((resume) => {
        const request = Http.request({ ...at, method, path, timeout: patience, agent: false }, (response) => {
          let body = ""
          response.setEncoding("utf8").on("data", (chunk) => body += chunk)
          response.on("error", ({ message }) => resume(Effect.succeed({ message })))
          response.on("end", () => resume(Effect.succeed({ status: response.statusCode, message: messageOf(body) })))
        })
        request.on("timeout", () => request.destroy(new Error(`no answer within ${patience} ms`)))
        request.on("error", ({ message }) => resume(Effect.succeed({ message })))
        request.end()
        return Effect.sync(() => request.destroy())
      })
  }
}

const look = Effect.fnUntraced(function*(): Effect.fn.Return<Engine | string> {
  const tried = addresses()
  for (const address of tried) {
    if (!URL.canParse(address)) return `DOCKER_HOST is not a URL: ${address}`
    const engine = make(address)
    if ((yield* engine.ask("GET", "/_ping", 2_000)).status === 200) return engine
  }
  return tried.length === 0 ? "no Docker engine is there" : `no Docker engine answers at ${tried.join(", ")}`
})

let outcome: Engine | string | undefined

/** The engine, or why there is none. Looked for once. */
export const engine: Effect.Effect<Engine | string> = Effect.suspend(() =>
  outcome !== undefined ? Effect.succeed(outcome) : Effect.map(look(), (found) => outcome = found)
)
