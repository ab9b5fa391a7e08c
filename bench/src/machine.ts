import { execFileSync } from "node:child_process"
import { cpus, loadavg, release } from "node:os"

/** Where and of what a run was made. */
export interface Machine {
  readonly cpu: string
  readonly cores: number
  readonly node: string
  readonly kernel: string
  readonly redis: string
  readonly nats: string
  readonly commit: string
  readonly command: string
  readonly date: string
  /** Load average of the last minute when the run began. */
  readonly load: number
}

const commit = (): string => {
  const git = (...args: ReadonlyArray<string>) =>
    execFileSync("git", args, { cwd: import.meta.dirname, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] })
      .trim()
  try {
    const changed = git("status", "--porcelain", "--untracked-files=no", "--", "../../packages", "..") !== ""
    return git("rev-parse", "--short", "HEAD") + (changed ? " and changes" : "")
  } catch {
    return "unknown"
  }
}

export const describe = (versions: { readonly redis: string; readonly nats: string }): Machine => ({
  cpu: cpus()[0]!.model.trim(),
  cores: cpus().length,
  node: process.version,
  kernel: release(),
  ...versions,
  commit: process.env["MILLRACE_COMMIT"] ?? commit(),
  command: `pnpm bench ${process.argv.slice(2).join(" ")}`.trim(),
  date: new Date().toISOString().slice(0, 16).replace("T", " "),
  load: loadavg()[0]!
})

export const text = (machine: Machine): string =>
  `${machine.cpu}, ${machine.cores} cores, Linux ${machine.kernel}, Node ${machine.node}, ` +
  `Redis ${machine.redis}, nats-server ${machine.nats}; commit ${machine.commit}; load before ${
    machine.load.toFixed(2)
  }; ` +
  `${machine.date} UTC; \`${machine.command}\``
