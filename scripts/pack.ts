/**
 * Builds and packs the packages into `.cache/packed`, once for each state of their sources: the checks and the tests of
 * what is published share the tarballs.
 */
import { spawnSync } from "node:child_process"
import { createHash } from "node:crypto"
import * as fs from "node:fs"
import * as path from "node:path"
import process from "node:process"

export const root = path.dirname(import.meta.dirname)

/** Where the project lives: the root manifest names the repository, and nothing else does. */
export const repository = (): { readonly type: string; readonly url: string; readonly home: string } => {
  const { repository } = JSON.parse(fs.readFileSync(path.join(root, "package.json"), "utf8")) as {
    readonly repository: { readonly type: string; readonly url: string }
  }
  return { ...repository, home: repository.url.replace(/^git\+/, "").replace(/\.git$/, "") }
}

/** The tarballs by the name of their package. */
export type Tarballs = Readonly<Record<string, string>>

/** Runs a program and gives what it printed; throws when it fails. */
export const run = (
  cwd: string,
  command: string,
  args: ReadonlyArray<string>,
  env: NodeJS.ProcessEnv = process.env
): string => {
  const { error, status, stderr, stdout } = spawnSync(command, args, {
    cwd,
    encoding: "utf8",
    env,
    maxBuffer: Infinity
  })
  if (status === 0) return stdout
  throw new Error(`$ ${[path.basename(command), ...args].join(" ")}\n${error ?? ""}${stdout}${stderr}`)
}

/** Runs the pnpm that runs this script. */
export const pnpm = (cwd: string, ...args: ReadonlyArray<string>): string => {
  const self = process.env["npm_execpath"]
  return self?.endsWith("pnpm") ? run(cwd, self, args) : run(cwd, "npx", ["-y", "pnpm@12", ...args])
}

/** The sources of what is published, as one hash. */
const state = (): string => {
  const hash = createHash("sha256")
  const files = fs.globSync(
    ["packages/*/{src,scripts,web}/**/*", "packages/*/{package.json,README.md,LICENSE}", "*.json"],
    {
      cwd: root,
      withFileTypes: true
    }
  )
  for (
    const file of files.filter((file) => file.isFile()).map((file) => path.join(file.parentPath, file.name)).sort()
  ) {
    hash.update(path.relative(root, file)).update("\0").update(fs.readFileSync(file)).update("\0")
  }
  return hash.digest("hex").slice(0, 16)
}

/** Calls `f` while no other process does. */
const alone = <A>(lock: string, f: () => A): A => {
  fs.mkdirSync(path.dirname(lock), { recursive: true })
  for (;;) {
    try {
      fs.writeFileSync(lock, String(process.pid), { flag: "wx" })
      break
    } catch {
      // A process that was killed leaves its lock behind.
      if (!isAlive(Number(read(lock)))) fs.rmSync(lock, { force: true })
      else Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 200)
    }
  }
  try {
    return f()
  } finally {
    fs.rmSync(lock, { force: true })
  }
}

const read = (file: string): string => {
  try {
    return fs.readFileSync(file, "utf8")
  } catch {
    return ""
  }
}

const isAlive = (pid: number): boolean => {
  // Between its creation and its first byte a lock has no pid.
  if (pid === 0) return true
  try {
    return process.kill(pid, 0)
  } catch {
    return false
  }
}

/** The tarballs of the present sources. */
export const pack = (): Tarballs => {
  const packed = path.join(root, ".cache", "packed")
  const folder = path.join(packed, state())
  return alone(path.join(root, ".cache", "packing"), () => {
    if (!fs.existsSync(path.join(folder, "complete"))) {
      fs.rmSync(packed, { recursive: true, force: true })
      fs.mkdirSync(folder, { recursive: true })
      for (const dist of fs.globSync("packages/*/dist", { cwd: root })) {
        fs.rmSync(path.join(root, dist), { recursive: true })
      }
      run(root, path.join(root, "node_modules/.bin/tsc"), [
        "-b",
        ...fs.globSync("packages/*/tsconfig.build.json", { cwd: root })
      ])
      pnpm(root, "--recursive", "--filter", "./packages/*", "pack", "--pack-destination", folder)
      fs.writeFileSync(path.join(folder, "complete"), "")
    }
    const tarballs: Record<string, string> = {}
    for (const file of fs.globSync("*.tgz", { cwd: folder }).sort()) {
      const manifest = run(folder, "tar", ["xzOf", file, "package/package.json"])
      tarballs[(JSON.parse(manifest) as { readonly name: string }).name] = path.join(folder, file)
    }
    return tarballs
  })
}
