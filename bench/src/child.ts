import * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import { fork, type Serializable } from "node:child_process"
import * as path from "node:path"

/** A program of ours ended before it sent the message that was waited for. */
export class ChildFailed extends Data.TaggedError("ChildFailed")<{ readonly detail: string }> {
  override get message(): string {
    return this.detail
  }
}

/** A process that messages are sent to and come from. */
export interface Child<In extends Serializable, Out> {
  readonly send: (message: In) => Effect.Effect<void>
  readonly next: Effect.Effect<Out, ChildFailed>
  readonly exited: Effect.Effect<void>
}

/** What Node has compiled: half of what the start of a process costs. */
const compiled = path.join(import.meta.dirname, "../results/compiled")

/** Starts a program of this package, or of this package at another commit; it is killed with the scope. */
export const start = Effect.fnUntraced(function*<In extends Serializable, Out>(
  program: string,
  args: ReadonlyArray<string>,
  folder: string = import.meta.dirname,
  nodeOptions: ReadonlyArray<string> = []
): Effect.fn.Return<Child<In, Out>, never, Scope.Scope> {
  const said = yield* Queue.unbounded<Out, ChildFailed>()
  const child = yield* Effect.acquireRelease(
    Effect.sync(() =>
      fork(path.join(folder, program), args, {
        execArgv: ["--expose-gc", ...nodeOptions],
        env: { ...process.env, NODE_COMPILE_CACHE: compiled },
        stdio: ["ignore", "inherit", "inherit", "ipc"]
      })
    ),
    (child) => Effect.sync(() => child.kill("SIGKILL"))
  )
  child.on("message", (message) => Queue.offerUnsafe(said, message as Out))
  // Sent to a process that has ended: its exit says more.
  child.on("error", () => {})
  child.on(
    "exit",
    (code, signal) =>
      Queue.failCauseUnsafe(said, Cause.fail(new ChildFailed({ detail: `${program} ended with ${signal ?? code}` })))
  )
  return {
    send: (message) => Effect.sync(() => void child.send(message)),
    next: Queue.take(said),
    exited: Effect.callback<void>((resume) => {
      if (child.exitCode !== null || child.signalCode !== null) return resume(Effect.void)
      child.once("exit", () => resume(Effect.void))
    })
  }
})
