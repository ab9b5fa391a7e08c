import type { ChildProcess } from "node:child_process"
import { spawn } from "node:child_process"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import * as Process from "node:process"
import type { Address } from "./engine.ts"

// A test worker may be killed, and then no finalizer runs. So a small shell, one for each worker, is told which
// processes and containers exist. It waits for the end of its input, which comes when the worker is gone however it
// went, ends what is left and removes the worker's folder. It has a session of its own, out of reach of a Ctrl-C.
// (Ryuk, with which testcontainers does this, is an image more to be had, and does not know processes.)
const script = `
left=" "
while read -r what server; do
  case $what in
    started) left="$left$server " ;;
    ended) left="\${left%% $server *} \${left#* $server }" ;;
  esac
done
containers=
for server in $left; do
  case $server in
    */*) containers="$containers $server" ;;
    *) kill -9 "$server" 2>/dev/null ;;
  esac
done
if [ -n "$containers" ]; then "$2" -e "$3" $containers; fi
rm -rf "$1"
`

const removeContainers = `
for (const container of process.argv.slice(1)) {
  const [at, name] = container.split("/")
  const path = "/containers/" + name + "?force=true&v=true"
  require("http").request({ ...JSON.parse(decodeURIComponent(at)), path, method: "DELETE" }).on("error", () => {}).end()
}
`

interface Reaper {
  readonly folder: string
  readonly input: NonNullable<ChildProcess["stdin"]>
}

let current: Reaper | undefined

const reaper = (): Reaper => {
  if (current !== undefined) return current
  const folder = Fs.mkdtempSync(Path.join(Os.tmpdir(), "millrace-brokers-"))
  const child = spawn("/bin/sh", ["-c", script, "reaper", folder, Process.execPath, removeContainers], {
    stdio: ["pipe", "ignore", "ignore"],
    detached: true
  })
  child.on("error", () => {})
  child.stdin.on("error", () => {})
  child.unref()
  // The input is a socket underneath, which would keep the worker alive.
  const input: NonNullable<ChildProcess["stdin"]> & { readonly unref?: () => void } = child.stdin
  input.unref?.()
  current = { folder, input }
  return current
}

/** Makes a folder that is gone, at the latest, after the worker is. */
export const makeFolder = (name: string): string => Fs.mkdtempSync(Path.join(reaper().folder, `${name}-`))

/** The container of this name in the engine at this address, to be watched. */
export const container = (at: Address, name: string): string => `${encodeURIComponent(JSON.stringify(at))}/${name}`

/** Has this process or {@link container} ended should the worker die before {@link forget} is called. */
export const watch = (server: number | string): void => {
  reaper().input.write(`started ${server}\n`)
}

/** Says that there is nothing left to end. */
export const forget = (server: number | string): void => {
  reaper().input.write(`ended ${server}\n`)
}
