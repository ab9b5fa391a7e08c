/**
 * Two ways to have several workers: as processes, which share a real broker, and as fibers, which share one in memory.
 */
import { Pipeline, Transport, type TransportError } from "@millrace/core"
import { MemoryTransport } from "@millrace/testing"
import { Console, Deferred, Effect, Exit, Option, Redacted, Scope, Stream } from "effect"
import { ChildProcess, type ChildProcessSpawner } from "effect/process"
import type * as broker from "./broker.ts"
import { worker } from "./taskQueue.ts"

/** Called by a worker, here or in another process, for each task it has done. */
export type OnDone = (worker: number, task: number) => Effect.Effect<void>

export interface Worker {
  /** Ends it without a word to anybody. */
  readonly crash: Effect.Effect<void>
}

/** The whole of a worker's process: works until it is stopped, and says what it has done. */
export const work = Pipeline.run(worker(({ id }) => Console.log(`done ${id}`)))

const url = (flag: string, value: Option.Option<Redacted.Redacted>) =>
  Option.match(value, { onNone: () => [], onSome: (url) => [flag, Redacted.value(url)] })

export const asProcess = Effect.fnUntraced(function*(
  name: number,
  flags: broker.Flags,
  onDone: OnDone
): Effect.fn.Return<Worker, never, ChildProcessSpawner.ChildProcessSpawner | Scope.Scope> {
  const script = new URL("taskQueue.main.ts", import.meta.url).pathname
  const child = yield* ChildProcess.make(
    process.execPath,
    [script, "--worker", ...url("--redis", flags.redis), ...url("--nats", flags.nats)],
    { stderr: "inherit" }
  ).pipe(Effect.orDie)
  yield* child.stdout.pipe(
    Stream.decodeText(),
    Stream.splitLines,
    // The worker logs there too.
    Stream.filter((line) => line.startsWith("done ")),
    Stream.runForEach((line) => onDone(name, Number(line.slice("done ".length)))),
    Effect.orDie,
    Effect.forkScoped
  )
  return { crash: Effect.orDie(child.kill({ killSignal: "SIGKILL" })) }
})

/**
 * A fiber cannot be killed as a process can: what interrupts it also lets it clean up. So it is cut off from the broker
 * and left alone: it may go on, but nothing it says arrives any more. To the broker that is a crash.
 */
export const asFiber = Effect.fnUntraced(function*(
  name: number,
  onDone: OnDone
): Effect.fn.Return<Worker, TransportError.TransportError, MemoryTransport.MemoryTransport | Scope.Scope> {
  const memory = yield* MemoryTransport.MemoryTransport
  const cut = yield* Deferred.make<void>()
  const scope = yield* Scope.make()
  yield* Effect.addFinalizer((exit) => Deferred.isDoneUnsafe(cut) ? Effect.void : Scope.close(scope, exit))
  const connection = cutOff(yield* memory.connect, cut)
  yield* Pipeline.start(worker(({ id }) => untilCut(cut, onDone(name, id)))).pipe(
    Effect.provideService(Transport.Transport, connection),
    Scope.provide(scope)
  )
  return { crash: Deferred.done(cut, Exit.void) }
})

const untilCut = <A, E, R>(cut: Deferred.Deferred<void>, effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.raceFirst(Effect.as(Deferred.await(cut), Option.none<A>()), Effect.asSome(effect)).pipe(
    Effect.flatMap(Option.match({ onNone: () => Effect.never, onSome: Effect.succeed }))
  )

const cutOff = (
  transport: Transport.Transport["Service"],
  cut: Deferred.Deferred<void>
): Transport.Transport["Service"] => ({
  ...transport,
  publish: (messages) => untilCut(cut, transport.publish(messages)),
  subscribe: (options) =>
    Effect.map(transport.subscribe(options), (subscription) => ({
      ...subscription,
      pull: (max) => untilCut(cut, subscription.pull(max)),
      settle: (batch) => untilCut(cut, subscription.settle(batch)),
      extend: (deliveries) => untilCut(cut, subscription.extend(deliveries))
    }))
})
