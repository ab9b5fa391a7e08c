/** A broker, a proxy before it, worker processes, a publisher, and the journal that all of them write. */
import { type Outgoing, Transport } from "@millrace/core/Transport"
import * as TransportAuthor from "@millrace/core/TransportAuthor"
import type * as Brokers from "@millrace/testing/Brokers"
import * as Proxy from "@millrace/testing/Proxy"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import process from "node:process"
import { exitCodeOfKiller, group, type Job, jobs, type WorkerOptions } from "./jobs.ts"
import * as Journal from "./journal.ts"
import { layer, type Target, Unsettled } from "./target.ts"

export interface Worker {
  readonly pid: number
  /** Tells it to stop, and waits until it is gone; gives how long that took. */
  readonly stop: Effect.Effect<number>
  readonly kill: Effect.Effect<void>
  readonly pause: Effect.Effect<void>
  readonly resume: Effect.Effect<void>
}

export interface Stage {
  readonly broker: Brokers.Broker
  readonly proxy: Proxy.Proxy
  readonly topic: string
  readonly journal: Journal.Journal
  readonly direct: Context.Context<Transport | Unsettled>
  /** Starts a worker and waits until it consumes. */
  readonly start: (options?: Partial<WorkerOptions>) => Effect.Effect<Worker>
  /** Keeps a worker: another is started whenever it is gone. */
  readonly keep: (options?: Partial<WorkerOptions>) => Effect.Effect<void>
  /** Publishes until all are confirmed, through the proxy. */
  readonly publish: (jobs: ReadonlyArray<Job>) => Effect.Effect<void>
  /** The same for what no topic would encode. */
  readonly send: (messages: ReadonlyArray<{ readonly n: number; readonly message: Outgoing }>) => Effect.Effect<void>
  /** Publishes so many jobs a second, for as long as `during` takes. */
  readonly load: <A, E, R>(during: Effect.Effect<A, E, R>, perSecond?: number) => Effect.Effect<A, E, R>
  /** Notes that a fault begins, and that it has passed. */
  readonly fault: (fault: Journal.Fault, of?: Worker) => Effect.Effect<void>
  readonly healed: (fault: Journal.Fault, of?: Worker) => Effect.Effect<void>
  /** Everything that was accepted has been handled or is a dead letter, and the broker knows. */
  readonly untilDone: Effect.Effect<boolean>
  readonly stopAll: Effect.Effect<void>
}

/** How long nothing may come to its end after the last fault. */
const patience = 90_000

const ends: ReadonlySet<string> = new Set(["Handled", "Filtered", "DeadLettered"])

const workerMain = path.join(import.meta.dirname, "worker.main.ts")

/** Some fail once, some always. What is retried may come back to another process: it has a key of its own. */
export const job = (n: number, more?: Partial<Job>): Job => {
  const failures = n % 500 === 7 ? 99 : n % 40 === 0 ? 1 : 0
  return { n, key: failures > 0 ? `f${n}` : `k${n % 50}`, work: n % 7, failures, kills: false, ...more }
}

/** The same for a single process: what fails holds up its key. */
export const orderlyJob = (n: number): Job => job(n, { key: `k${n % 50}` })

export const make = Effect.fnUntraced(function*(target: Target, options: Partial<WorkerOptions>, toJob = job) {
  const broker = yield* target.broker
  const proxy = yield* Proxy.make(broker)
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "millrace-faults-"))
  const journal = Journal.open(path.join(folder, "journal"))
  const log = fs.openSync(path.join(folder, "log"), "a")
  const topic = "jobs"
  const direct = yield* Layer.build(layer(target.kind, broker.url))
  const publisher = Context.get(
    yield* Layer.build(Layer.fresh(layer(target.kind, proxy.through(broker.url)))),
    Transport
  )
  yield* publisher.declare(topic, "output")
  const scope = yield* Effect.scope
  const workers = new Set<Worker>()

  const seen = { lines: 0, open: new Set<string>(), closed: new Set<string>(), up: new Set<number>() }
  /** Takes note of the lines that are new. */
  const look = () => {
    const lines = journal.lines()
    for (; seen.lines < lines.length; seen.lines++) {
      const line = lines[seen.lines]!
      if (line._tag === "Up") seen.up.add(line.pid)
      if (line._tag === "Accepted" && !seen.closed.has(line.id)) seen.open.add(line.id)
      if (line._tag === "Ended" && ends.has(line.outcome)) {
        seen.closed.add(line.id)
        seen.open.delete(line.id)
      }
    }
    return seen
  }

  const spawnWorker = (more: Partial<WorkerOptions>, onGone: () => void) => {
    const given: WorkerOptions = {
      kind: target.kind,
      url: proxy.through(broker.url),
      journal: journal.file,
      topic,
      concurrency: 16,
      keyed: true,
      retries: 4,
      drainTimeout: 5_000,
      earlyAck: false,
      ...options,
      ...more
    }
    const child = spawn(process.execPath, [workerMain, JSON.stringify(given)], { stdio: ["pipe", log, log] })
    const of = child.pid!
    let told: { readonly to: "stop" | "die"; readonly at: number } | undefined
    const tell = (to: "stop" | "die") => {
      told = { to, at: performance.now() }
      child.kill(to === "stop" ? "SIGTERM" : "SIGKILL")
    }
    const gone = new Promise<number>((resolve) =>
      child.on("exit", (code, signal) => {
        const after = told === undefined ? 0 : performance.now() - told.at
        // Told before its program listens for signals, it has nothing to drain.
        const isEarly = signal === "SIGTERM" && !journal.lines().some((line) => line._tag === "Up" && line.pid === of)
        const how = told?.to === "stop" && (code === 130 || isEarly)
          ? "drained"
          : told?.to === "die" || code === exitCodeOfKiller
          ? "killed"
          : "crashed"
        workers.delete(worker)
        journal.write({ _tag: "Gone", of, how, after })
        resolve(after)
        onGone()
      })
    )
    const worker: Worker = {
      pid: of,
      stop: Effect.andThen(Effect.sync(() => tell("stop")), Effect.promise(() => gone)),
      kill: Effect.asVoid(Effect.andThen(Effect.sync(() => tell("die")), Effect.promise(() => gone))),
      pause: Effect.sync(() => void child.kill("SIGSTOP")),
      resume: Effect.sync(() => void child.kill("SIGCONT"))
    }
    workers.add(worker)
    return worker
  }

  const starting = (more: Partial<WorkerOptions>, onGone: () => void) =>
    Scope.provide(
      Effect.acquireRelease(
        Effect.sync(() => spawnWorker(more, onGone)),
        (worker) => Effect.suspend(() => workers.has(worker) ? worker.kill : Effect.void)
      ),
      scope
    )

  const send = Effect.fnUntraced(
    function*(messages: ReadonlyArray<{ readonly n: number; readonly message: Outgoing }>) {
      let left = messages
      while (Arr.isReadonlyArrayNonEmpty(left)) {
        const sent = left
        const results = yield* publisher.publish(Arr.map(sent, ({ message }) => message))
        left = sent.filter(({ n }, i) => {
          const result = results[i]!
          if (Result.isSuccess(result)) journal.write({ _tag: "Accepted", id: result.success.id, n })
          // A broker that cannot take it has not accepted it.
          return Result.isFailure(result) && result.failure.reason._tag !== "TooLarge"
        })
        if (left.length > 0) yield* Effect.sleep("100 millis")
      }
    }
  )

  const publish: Stage["publish"] = (wanted) =>
    Effect.forEach(
      wanted,
      (one) =>
        Effect.map(
          TransportAuthor.outgoing(jobs(topic), one, { id: `job-${one.n}` }),
          (message) => ({ n: one.n, message })
        )
    ).pipe(
      Effect.orDie,
      Effect.flatMap(send)
    )

  let published = 0
  let over = false
  const stage: Stage = {
    broker,
    proxy,
    topic,
    journal,
    direct,
    start: (more = {}) =>
      Effect.tap(
        starting(more, () => {}),
        (worker) =>
          Effect.repeat(Effect.sync(() => look().up.has(worker.pid) || !workers.has(worker)), {
            until: (is) => is,
            schedule: Schedule.spaced("10 millis")
          })
      ),
    keep: (more = {}) => {
      const next: Effect.Effect<void> = Effect.suspend(() =>
        over ? Effect.void : Effect.asVoid(starting(more, () => Effect.runFork(next)))
      )
      return next
    },
    publish,
    send,
    load: Effect.fnUntraced(function*(during, perSecond = 1_000) {
      const size = Math.ceil(perSecond / 50)
      const batch = Effect.suspend(() => publish(Arr.makeBy(size, () => toJob(published++))))
      let isOver = false
      const publishing = yield* Effect.forkChild(
        Effect.repeat(batch, { until: () => isOver, schedule: Schedule.spaced("20 millis") }),
        { startImmediately: true }
      )
      const result = yield* during
      isOver = true
      yield* Fiber.join(publishing)
      return result
    }),
    fault: (fault, of) => Effect.sync(() => journal.write({ _tag: "Fault", fault, of: of?.pid ?? 0 })),
    healed: (fault, of) => Effect.sync(() => journal.write({ _tag: "Healed", fault, of: of?.pid ?? 0 })),
    untilDone: Effect.suspend(() => {
      let [open, deadline] = [Infinity, 0]
      const unsettled = Context.get(direct, Unsettled)(topic, group)
      return Effect.suspend(() => {
        const { size } = look().open
        if (size !== open) [open, deadline] = [size, performance.now() + patience]
        return size > 0 ? Effect.succeed(false) : Effect.map(unsettled, (n) => n === 0)
      })
        .pipe(
          Effect.catch(() => Effect.succeed(false)),
          Effect.repeat({
            until: (is) => is || performance.now() > deadline,
            schedule: Schedule.spaced("50 millis")
          })
        )
    }),
    stopAll: Effect.suspend(() => {
      over = true
      return Effect.forEach([...workers], (worker) => worker.stop, { concurrency: "unbounded", discard: true })
    })
  }
  return { ...stage, folder }
})
