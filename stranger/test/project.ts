/** Empty projects outside of the workspace, with the packages as they would be published. */
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import { createRequire } from "node:module"
import * as os from "node:os"
import * as path from "node:path"
import { pack, type Tarballs } from "../../scripts/pack.ts"

export const tarballs: Tarballs = pack()

const programs = path.join(import.meta.dirname, "..", "programs")
const bin = path.join(import.meta.dirname, "..", "node_modules", ".bin")

/** The versions that the repository itself uses. */
const version = (name: string): string =>
  (JSON.parse(
    fs.readFileSync(path.join(import.meta.dirname, "..", "..", "node_modules", name, "package.json"), "utf8")
  ) as {
    readonly version: string
  }).version
export const effect = version("effect")
export const platformNode = version("@effect/platform-node")
export const nodeTypes = version("@types/node")

export interface Ran {
  readonly code: number | null
  readonly output: string
}

export interface Project {
  readonly folder: string
  readonly run: (command: string, args: ReadonlyArray<string>, env?: NodeJS.ProcessEnv) => Promise<Ran>
  readonly remove: () => void
}

/** The compiler of this workspace. */
export const tsc = path.join(import.meta.dirname, "..", "..", "node_modules", ".bin", "tsc")

/** A program of this workspace's own: a package manager, another runtime. */
export const own = (name: string): string => {
  if (name !== "bun") return path.join(bin, name)
  // Its own link needs a script at install time.
  const bun = createRequire(fs.realpathSync(path.join(bin, "..", "bun", "package.json")))
  return bun.resolve(`@oven/bun-${process.platform}-${process.arch}/bin/bun`)
}

/** A new folder with a manifest and all programs. */
export const project = (manifest: object): Project => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "millrace-stranger-"))
  fs.cpSync(programs, folder, { recursive: true })
  fs.writeFileSync(path.join(folder, "package.json"), JSON.stringify({ type: "module", ...manifest }))
  return {
    folder,
    run: (command, args, env) => {
      // Nothing of the pnpm and the vitest that run this test, and no cache of code for a folder that will be gone.
      const clean = Object.fromEntries(
        Object.entries(process.env).filter(([name]) =>
          !/^(npm|pnpm|vitest|NODE_OPTIONS|NODE_COMPILE_CACHE|VITE|NODE_ENV|TEST)/i.test(name)
        )
      )
      return new Promise((resolve, reject) => {
        const child = spawn(command, args, {
          cwd: folder,
          // `npm` and `npx` run on the node that is first on PATH.
          env: { ...clean, PATH: `${path.dirname(process.execPath)}:${process.env["PATH"]}`, NO_COLOR: "1", ...env },
          stdio: ["ignore", "pipe", "pipe"]
        })
        let output = ""
        child.stdout.on("data", (chunk) => output += chunk)
        child.stderr.on("data", (chunk) => output += chunk)
        child.on("error", reject)
        child.on("close", (code) => resolve({ code, output }))
      })
    },
    remove: () => fs.rmSync(folder, { recursive: true, force: true })
  }
}

/** The named packages as dependencies. */
export const files = (...names: ReadonlyArray<string>): Record<string, string> =>
  Object.fromEntries(names.map((name) => [`@millrace/${name}`, `file:${tarballs[`@millrace/${name}`]}`]))
