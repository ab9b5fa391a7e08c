import * as Effect from "effect/Effect"
import { execFile } from "node:child_process"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as Process from "node:process"
import { program } from "./servers.ts"
import type { Kind } from "./versions.ts"

/** A server program that is on this machine. */
export interface Program {
  readonly kind: Kind
  readonly version: string
  readonly file: string
  readonly provider: "path" | "packages"
}

const isProgram = (file: string): boolean => {
  try {
    Fs.accessSync(file, Fs.constants.X_OK)
    return Fs.statSync(file).isFile()
  } catch {
    return false
  }
}

/** What `--version` answers: `Redis server v=8.6.3 …`, `Valkey server v=9.1.2 …`, `nats-server: v2.15.1`. */
const askVersion = (file: string): Effect.Effect<string | undefined> =>
  Effect.callback<string | undefined>((resume) => {
    const child = execFile(file, ["--version"], { timeout: 5_000 }, (_error, stdout, stderr) => {
      const match = /\bv=?(\d+\.\d+\.\d+)/.exec(`${stdout}${stderr}`)
      resume(Effect.succeed(match?.[1]))
    })
    return Effect.sync(() => child.kill())
  })

/** The server of this kind on PATH: none or one. */
export const find = Effect.fnUntraced(function*(kind: Kind): Effect.fn.Return<ReadonlyArray<Program>> {
  // Servers are often put where only the administrator's PATH looks.
  const folders = [...(Process.env["PATH"] ?? "").split(Path.delimiter), "/usr/sbin", "/usr/local/sbin"]
  const files = folders.filter((folder) => folder !== "").map((folder) => Path.join(folder, program(kind)))
  const file = files.find(isProgram)
  if (file === undefined) return []
  const version = yield* askVersion(file)
  return version === undefined ? [] : [{ kind, version, file, provider: "path" }]
})
