import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { ChildProcess } from "node:child_process"
import { spawn } from "node:child_process"
import * as Crypto from "node:crypto"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { BrokersError } from "./BrokersError.ts"
import type { Controls } from "./controls.ts"
import { awaitReady } from "./controls.ts"
import * as Ports from "./ports.ts"
import { probe } from "./probe.ts"
import * as Reaper from "./reaper.ts"
import type { Place, Wish } from "./servers.ts"
import { configFile, serverArgs } from "./servers.ts"

const host = "127.0.0.1"

/** How long a server may take to end after SIGTERM. */
const grace = "5 seconds"

const portIsTaken = /address already in use|could not create server tcp listening socket/i

const ended = (child: ChildProcess): boolean => child.exitCode !== null || child.signalCode !== null

const awaitEnd = (child: ChildProcess): Effect.Effect<void> =>
  Effect.callback<void>((resume) => {
    if (ended(child)) return resume(Effect.void)
    const listener = () => resume(Effect.void)
    child.once("exit", listener)
    return Effect.sync(() => child.off("exit", listener))
  })

/**
 * A signal is sent, not waited for: the threads of a server may answer a little longer. Where the system tells
 * (Linux), we wait until each of them has stopped.
 */
const isStopped = (pid: number): boolean => {
  try {
    const threads = `/proc/${pid}/task`
    return Fs.readdirSync(threads).every((thread) => {
      const stat = Fs.readFileSync(`${threads}/${thread}/stat`, "utf8")
      return /^ [TtZX]/.test(stat.slice(stat.lastIndexOf(")") + 1)) // "<id> (<name>) <state> …"
    })
  } catch {
    return !Fs.existsSync(`/proc/${pid}`) // ended, or a system that does not tell; else a thread ended as we looked
  }
}

const awaitStopped = (pid: number): Effect.Effect<void> =>
  Effect.suspend(() => isStopped(pid) ? Effect.void : Effect.delay(awaitStopped(pid), "1 millis"))

/**
 * Runs a server program on a free loopback port with a data folder of its own; process and folder are gone when the
 * scope closes.
 */
export const make = Effect.fnUntraced(function*(
  wish: Wish,
  file: string
): Effect.fn.Return<Controls, BrokersError, Scope.Scope> {
  const folder = yield* Effect.acquireRelease(
    Effect.sync(() => Reaper.makeFolder(wish.kind)),
    (folder) => Effect.sync(() => Fs.rmSync(folder, { recursive: true, force: true }))
  )
  const log = Path.join(folder, "output.log")
  const configAt = Path.join(folder, "server.conf")
  const place = (port: number): Place => ({
    host,
    port,
    folder: Path.join(folder, "data"),
    name: `millrace-${Crypto.randomUUID().slice(0, 8)}`
  })

  let child: ChildProcess | undefined

  const signal = (name: NodeJS.Signals) =>
    Effect.suspend(() => {
      if (child === undefined) return Effect.void
      child.kill(name)
      return awaitEnd(child)
    })
  const kill = signal("SIGKILL")
  const stop = Effect.suspend(() => {
    if (child === undefined) return Effect.void
    child.kill("SIGTERM")
    child.kill("SIGCONT") // a paused process does not hear SIGTERM
    return awaitEnd(child).pipe(Effect.timeoutOrElse({ duration: grace, orElse: () => kill }))
  })

  // The data is removed with the scope, so there is nothing to shut down gently for.
  yield* Effect.addFinalizer(() => kill)

  const output = Effect.sync(() => {
    const lines = Fs.existsSync(log) ? Fs.readFileSync(log, "utf8").trimEnd().split("\n") : []
    return lines.slice(-20).join("\n")
  })

  const spawned = Effect.fnUntraced(function*({ port, folder: data, name }: Place) {
    const at: Place = { host, port, folder: data, name }
    const server = yield* Effect.try({
      try: () => {
        Fs.mkdirSync(data, { recursive: true })
        if (wish.kind === "nats") Fs.writeFileSync(configAt, configFile(wish, at))
        const out = Fs.openSync(log, "w")
        try {
          return spawn(file, serverArgs(wish, at, configAt), {
            cwd: folder,
            stdio: ["ignore", out, out],
            detached: true // a session of its own: a Ctrl-C in the terminal is for the tests, which then clean up
          })
        } finally {
          Fs.closeSync(out)
        }
      },
      catch: (cause) => new BrokersError({ reason: "start", message: `cannot run ${file}: ${String(cause)}`, cause })
    })
    child = server
    let failure: unknown
    server.on("error", (cause) => {
      failure = cause
    })
    const pid = server.pid
    if (pid !== undefined) {
      Reaper.watch(pid)
      server.once("exit", () => Reaper.forget(pid))
    }
    const identity = wish.kind === "nats" ? name : String(pid)
    return yield* awaitReady({
      title: `${Path.basename(file)} on port ${port}`,
      probe: probe(wish.kind, host, port, wish.password).pipe(
        Effect.map((answer) => answer?.identity !== undefined && answer.identity !== identity ? undefined : answer)
      ),
      gone: Effect.sync(() => {
        if (failure !== undefined) return `could not be run: ${String(failure)}`
        if (!ended(server)) return undefined
        return `ended with ${server.signalCode ?? `exit code ${server.exitCode}`}`
      }),
      output
    }).pipe(Effect.onExit((exit) => exit._tag === "Failure" ? kill : Effect.void))
  })

  const attempt = Effect.gen(function*() {
    const at = place(yield* Ports.free)
    return { at, answer: yield* spawned(at) }
  })
  const first = yield* Effect.retry(attempt, { times: 4, while: (error) => portIsTaken.test(error.message) })

  return {
    host,
    port: first.at.port,
    version: first.answer.version,
    kill,
    stop,
    start: Effect.suspend(() => child !== undefined && !ended(child) ? Effect.void : Effect.asVoid(spawned(first.at))),
    pause: Effect.suspend(() => {
      child?.kill("SIGSTOP")
      return child?.pid === undefined ? Effect.void : awaitStopped(child.pid)
    }),
    resume: Effect.sync(() => {
      child?.kill("SIGCONT")
    })
  }
})
