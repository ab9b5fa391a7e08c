/** Runs the examples as their users do: as processes, on a broker of their own. */
import { Brokers } from "@millrace/testing"
import { type Duration, Effect, type Scope, Stream } from "effect"
import { ChildProcess } from "effect/process"

export interface Transport {
  readonly name: "memory" | "redis" | "nats"
  /** The flag that chooses it. */
  readonly flags: Effect.Effect<ReadonlyArray<string>, Brokers.BrokersError, Scope.Scope>
}

export const memory: Transport = { name: "memory", flags: Effect.succeed([]) }
export const redis: Transport = {
  name: "redis",
  flags: Effect.map(Brokers.redis(), ({ url }) => ["--redis", url])
}
export const nats: Transport = {
  name: "nats",
  flags: Effect.map(Brokers.nats(), ({ url }) => ["--nats", url])
}

/** Starts a script of `examples/src`; what it writes to stderr is shown with the test. */
export const start = (
  script: string,
  args: ReadonlyArray<string>,
  options?: { readonly env?: Record<string, string>; readonly stderr?: "inherit" | "pipe" }
) =>
  ChildProcess.make(process.execPath, [new URL(`../src/${script}`, import.meta.url).pathname, ...args], {
    stderr: options?.stderr ?? "inherit",
    env: { ...options?.env, NO_COLOR: "1" },
    extendEnv: true
  })

/** Runs a script to its end; one that does not come to it fails with what it wrote. */
export const run = Effect.fnUntraced(
  function*(script: string, args: ReadonlyArray<string>, within: Duration.Input = "100 seconds") {
    const child = yield* start(script, args, { stderr: "pipe" })
    const written = { stdout: "", stderr: "" }
    const collect = (from: "stdout" | "stderr") =>
      Stream.runForEach(Stream.decodeText(child[from]), (text) => Effect.sync(() => void (written[from] += text)))
    const [, , exitCode] = yield* Effect.all([collect("stdout"), collect("stderr"), child.exitCode], { concurrency: 3 })
      .pipe(
        Effect.timeoutOrElse({
          duration: within,
          orElse: () => Effect.die(new Error(`${script} did not end: ${written.stdout}${written.stderr}`))
        })
      )
    return { ...written, exitCode: Number(exitCode) }
  },
  Effect.scoped
)
