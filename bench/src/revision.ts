/**
 * Another commit of this repository, installed beside this one.
 */
import { execFileSync, spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as path from "node:path"

const root = path.join(import.meta.dirname, "../..")

const git = (...args: ReadonlyArray<string>): string =>
  execFileSync("git", args, { cwd: root, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] }).trim()

export interface Revision {
  readonly commit: string
  /** With its child programs. */
  readonly folder: string
}

/** Checks out and installs a commit in `.cache`, once. */
export const checkOut = (name: string): Revision => {
  const commit = git("rev-parse", "--short=10", `${name}^{commit}`)
  const tree = path.join(root, ".cache/bench", commit)
  const revision = { commit, folder: path.join(tree, "bench/src") }
  const installed = path.join(tree, ".installed")
  if (fs.existsSync(installed)) return revision
  if (!fs.existsSync(tree)) {
    git("worktree", "prune")
    git("worktree", "add", "--detach", tree, commit)
  }
  console.error(`installing ${commit} in ${path.relative(root, tree)}`)
  const { status } = spawnSync("npx", ["-y", "pnpm@12", "install", "--frozen-lockfile"], {
    cwd: tree,
    stdio: ["ignore", "ignore", "inherit"]
  })
  if (status !== 0) throw new Error(`pnpm install failed in ${tree}`)
  fs.writeFileSync(installed, "")
  return revision
}
