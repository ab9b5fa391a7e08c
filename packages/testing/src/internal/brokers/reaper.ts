import type { ChildProcess } from "node:child_process"
import { spawn } from "node:child_process"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"

// A test worker may be killed, and then no finalizer runs. So a small shell, one for each worker, is told which
// processes exist. It waits for the end of its input, which comes when the worker is gone however it went, kills the
// processes that are left and removes the worker's folder. It has a session of its own, out of reach of a Ctrl-C.
const script = `
left=" "
while read -r what process; do
  case $what in
    started) left="$left$process " ;;
    ended) left="\${left%% $process *} \${left#* $process }" ;;
  esac
done
for process in $left; do kill -9 "$process" 2>/dev/null; done
rm -rf "$1"
`

interface Reaper {
  readonly folder: string
  readonly input: NonNullable<ChildProcess["stdin"]>
}

let current: Reaper | undefined

const reaper = (): Reaper => {
  if (current !== undefined) return current
  const folder = Fs.mkdtempSync(Path.join(Os.tmpdir(), "millrace-brokers-"))
  const child = spawn("/bin/sh", ["-c", script, "reaper", folder], {
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

/** Has this process killed should the worker die before {@link forget} is called. */
export const watch = (pid: number): void => {
  reaper().input.write(`started ${pid}\n`)
}

/** Says that the process has ended. */
export const forget = (pid: number): void => {
  reaper().input.write(`ended ${pid}\n`)
}
