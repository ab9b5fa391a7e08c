/**
 * Runs a pipeline in several processes on the broker in memory, in an order and with faults that a seed chooses, and
 * checks the events against the laws of settlement. The same seed gives the same run, event by event.
 *
 * Everything is simulated: time, the order in which fibers run, the connections, the processes. It cannot wait for
 * anything real: their dependencies must be fakes that use `Clock`, `Random` and Effects only.
 *
 * @since 0.1.0
 */
import type * as Message from "@millrace/core/Message"
import * as Pipeline from "@millrace/core/Pipeline"
import type * as Publisher from "@millrace/core/Publisher"
import * as Telemetry from "@millrace/core/Telemetry"
import type * as Topic from "@millrace/core/Topic"
import { type Outgoing, Transport } from "@millrace/core/Transport"
import * as TransportAuthor from "@millrace/core/TransportAuthor"
import type { TransportError } from "@millrace/core/TransportError"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Random from "effect/Random"
import * as References from "effect/References"
import * as Result from "effect/Result"
import * as Scheduler from "effect/Scheduler"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { Origin } from "./internal/memory/broker.ts"
import { boundFrom, countFrom, durationFrom } from "./internal/options.ts"
import { Faults, madeOnce, minimize } from "./internal/simulation/faults.ts"
import { Laws, type Violation } from "./internal/simulation/laws.ts"
import { Line } from "./internal/simulation/network.ts"
import { Process, World } from "./internal/simulation/world.ts"
import * as MemoryTransport from "./MemoryTransport.ts"

export type { Violation } from "./internal/simulation/laws.ts"

/**
 * The faults of a simulation.
 *
 * - `crash`: a process ends in the middle of whatever it does; with {@link trouble}, some messages do that to it
 * - `drain`: a process is stopped and started again
 * - `freeze`: a process stands still, for longer than its claims last or not
 * - `cut`: the connection is lost for a while
 * - `pause`: the pipeline is paused and resumed
 * - `clock`: the wall clock of a process jumps
 * - `settle`: settlements, or the answers to them, do not arrive, or some of them only
 * - `publish`: a published message, or the answer to it, does not arrive
 * - `delay`: the network is slow
 * - `handler`: with {@link trouble}, handlers are slow, fail, throw and are interrupted
 * - `poison`: some messages are bytes that cannot be decoded
 *
 * @category models
 * @since 0.1.0
 */
export type Fault = typeof allFaults[number]

const episodes = ["crash", "drain", "freeze", "cut", "pause", "clock"] as const
const allFaults = [...episodes, "settle", "publish", "delay", "handler", "poison"] as const

/**
 * Options of a simulation.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options<out A> {
  /** The values to publish to the source, in this order. */
  readonly values: Iterable<A>
  /** Processes that run the pipeline; default 2. */
  readonly workers?: number | undefined
  /** Default all. */
  readonly faults?: ReadonlyArray<Fault> | undefined
  /** The pipeline keeps the messages of one `Topic.key` in order; default `false`. */
  readonly keepsKeys?: boolean | undefined
  /** The most attempts that its retry policy allows; default: not checked. */
  readonly attempts?: number | undefined
  /** How long an unsettled message stays with a process that does not keep it; default 30 seconds. */
  readonly minIdle?: Duration.Input | undefined
  /** Which messages end the process that handles them, in place of a chance of three in a hundred. */
  readonly kills?: ((message: Message.Any) => boolean) | undefined
  /** Gives the content of a published message, by which a second copy is found; default its id. */
  readonly outputOf?: ((message: Outgoing) => string | undefined) | undefined
  /** The faults that may happen, by name: see {@link Run}; default all. */
  readonly only?: Iterable<string> | undefined
  /** How long it may take, once no more faults happen, until all is settled; default 1 hour. */
  readonly restWithin?: Duration.Input | undefined
  /** Changes the transport of each process: for faults of your own. */
  readonly connect?: ((transport: Transport["Service"]) => Transport["Service"]) | undefined
}

/**
 * The history of a run. `trace` has one line for each event, with the seconds since the beginning; `faults` has what went wrong,
 * by names that `Options.only` takes: publications of messages among them, for a smaller run has fewer.
 *
 * @category models
 * @since 0.1.0
 */
export interface Run {
  readonly seed: number | string
  readonly faults: ReadonlyMap<string, string>
  readonly trace: ReadonlyArray<string>
  readonly violations: ReadonlyArray<Violation>
}

/**
 * A law did not hold. `run` is the smallest that was found to violate the same law: the seed's, with fewer faults. The
 * message tells its history.
 *
 * @category errors
 * @since 0.1.0
 */
export class Violated extends Schema.Error<Violated>("@millrace/testing/Violated")({
  _tag: Schema.tag("Violated"),
  run: Schema.Struct({
    seed: Schema.Union([Schema.Number, Schema.String]),
    faults: Schema.ReadonlyMap(Schema.String, Schema.String),
    trace: Schema.Array(Schema.String),
    violations: Schema.Array(Schema.Struct({ law: Schema.String, at: Schema.Number, text: Schema.String }))
  })
}) {
  override get message(): string {
    const { faults, seed, trace, violations } = this.run
    const history = trace.slice(0, 1 + trace.findIndex((line) => line.includes("VIOLATION")))
    const left = history.length - mostLines
    return [
      `${violations.length} violations with seed ${
        JSON.stringify(seed)
      }; Simulation.run with that seed, and \`only\` the ` +
      "names in `run.faults`, shows it again",
      ...violations.map(({ law, text }) => `  ${law}: ${text}`),
      "the faults:",
      ...[...faults.values()].filter((text) => !text.endsWith(" is published")).map((text) => `  ${text}`),
      "the history:",
      ...(left > 0 ? [`  ... ${left} lines`] : []),
      ...history.slice(-mostLines).map((line) => `  ${line}`)
    ].join("\n")
  }
}

const mostLines = 60

/**
 * The error of {@link trouble}.
 *
 * @category errors
 * @since 0.1.0
 */
export class Trouble extends Schema.Error<Trouble>("@millrace/testing/Trouble")({ _tag: Schema.tag("Trouble") }) {}

const fails = madeOnce(() => Effect.fail(new Trouble()))
const throws = madeOnce(() => Effect.die(new Error("trouble")))

const Troubles = Context.Reference<((message: Message.Any) => Effect.Effect<void, Trouble>) | undefined>(
  "@millrace/testing/Simulation/Troubles",
  { defaultValue: () => undefined }
)

/**
 * Stands for all that handlers do: takes some time, fails, throws, is interrupted, ends its process, as the seed says.
 * `Pipeline.tap((_, message) => Simulation.trouble(message))`, or called by the fake of a service. Outside of a simulation
 * it does nothing.
 *
 * **Details**
 *
 * A simulation sees handlers begin and end where this is called, and only there can it check the laws that concern them:
 * the order within a key, and the number of attempts.
 *
 * @category simulating
 * @since 0.1.0
 */
export const trouble = (message: Message.Any): Effect.Effect<void, Trouble> =>
  Effect.flatMap(Troubles, (make) => make === undefined ? Effect.void : make(message))

/** One life of one process. */
interface Worker {
  readonly name: string
  readonly process: Process
  readonly line: Line
  readonly scope: Scope.Closeable
  readonly context: Context.Context<never>
  running: Pipeline.Running | undefined
  isEnding: boolean
}

/**
 * Runs a pipeline once, as the seed has it; `topic` is its source. A limit that the pipeline shares (`Concurrency.Limit`) is
 * each process's own here, and as large as its ceiling.
 *
 * @category simulating
 * @since 0.1.0
 */
export const run = <A, RD, RE, M extends Message.Message<A>, B, E, R>(
  topic: Topic.Topic<A, RD, RE>,
  pipeline: Pipeline.Pipeline<M, B, E, R>,
  options: Options<NoInfer<A>> & { readonly seed: number | string }
): Effect.Effect<Run, TransportError | Publisher.PublishError, Exclude<R, Transport | Scope.Scope> | RE> =>
  Effect.gen(function*() {
    const random = yield* Random.withSeed(Random.Random, options.seed)
    const world = new World(() => random.nextDoubleUnsafe())
    const kinds = new Set<Fault>(options.faults ?? allFaults)
    const faults = new Faults(options.only)
    const minIdle = durationFrom("minIdle", options.minIdle ?? "30 seconds")
    const slots = countFrom("workers", options.workers ?? 2, 1)
    const attempts = boundFrom("attempts", options.attempts ?? Infinity)
    const patience = Duration.toMillis(durationFrom("restWithin", options.restWithin ?? "1 hour"))
    const surroundings = (process: Process) =>
      Context.make(Clock.Clock, process.clock).pipe(
        Context.add(Scheduler.Scheduler, process.scheduler),
        Context.add(Random.Random, random),
        Context.add(References.MinimumLogLevel, "None")
      )
    const broker = surroundings(new Process(world)).pipe(
      Context.add(Scheduler.PreventSchedulerYield, true),
      Context.add(Origin, "memory")
    )
    const memory = yield* Effect.provideContext(MemoryTransport.make({ history: true, minIdle }), broker)
    const published = yield* memory.published
    const laws = new Laws(world, {
      topic: topic.name,
      minIdle: Duration.toMillis(minIdle),
      keepsKeys: options.keepsKeys ?? false,
      attempts,
      outputOf: options.outputOf ?? (({ id }) => id),
      published: () => published
    })
    const atBroker = Effect.runForkWith(broker)
    const context = yield* Effect.context<any>()
    const outgoing = yield* Effect.forEach(options.values, (value) => TransportAuthor.outgoing(topic, value))

    const workers = new Set<Worker>()
    let failure: Exit.Exit<never, TransportError> | undefined
    let lives = 0
    let isIdle = false
    let isOver = false
    /** What has begun and is not over: faults, and messages to be published. */
    let open = 0
    let beginSource = () => {}
    const later = (millis: number, f: () => void) => {
      open++
      world.after(millis, undefined, () => {
        open--
        f()
      })
    }

    const fates = new Map<string, "fine" | "bad" | "killer">()
    const fateOf = (message: Message.Any): "fine" | "bad" | "killer" => {
      const { id } = message
      const known = fates.get(id)
      if (known !== undefined) return known
      const kills = options.kills === undefined ? kinds.has("crash") && world.chance(0.03) : options.kills(message)
      const fails = kinds.has("handler") && world.chance(0.05)
      const fate = faults.happens(kills, () => `kill ${id}`, () => `${id} ends each process that handles it`)
        ? "killer"
        : faults.happens(fails, () => `fail ${id}`, () => `${id} always fails`)
        ? "bad"
        : "fine"
      fates.set(id, fate)
      return fate
    }
    const troubles = (worker: Worker) => (message: Message.Any): Effect.Effect<void, Trouble> =>
      Effect.suspend(() => {
        const { delivery } = TransportAuthor.received(message)!
        if (worker.process.state === "dead") return Effect.never
        const fate = fateOf(message)
        const ended = laws.begun(worker.name, delivery)
        let isOwn = false
        const begin = world.chance(0.4) ? Effect.void : Effect.sleep(world.between(0, 200))
        const end = Effect.suspend((): Effect.Effect<void, Trouble> => {
          if (fate === "killer") {
            laws.killed(worker.name, delivery)
            crash(worker)
            return Effect.never
          }
          if (fate === "bad") return fails
          const isTroubled = kinds.has("handler") && world.chance(0.15)
          const long = world.between(1, 100_000)
          const text = world.oneOf(["fails", "throws", "interrupts itself", "takes long"] as const)!
          const name = () => `${delivery.id}#${delivery.attempt} in ${worker.name}`
          if (!faults.happens(isTroubled, () => `trouble ${name()}`, () => `${name()} ${text}`)) return Effect.void
          switch (text) {
            case "fails":
              return fails
            case "throws":
              return throws
            case "interrupts itself": {
              isOwn = true
              return Effect.interrupt
            }
            case "takes long":
              return Effect.sleep(long)
          }
        })
        return Effect.onExit(Effect.andThen(begin, end), (exit) =>
          Effect.sync(() => {
            const isStopped = Exit.hasInterrupts(exit) && !isOwn
            const isTimeout = isStopped && Cause.isTimeoutError(message.signal.reason)
            ended(isStopped && !isTimeout)
          }))
      })

    const launch = () => {
      const process = new Process(world)
      const bare = Effect.runSync(Scope.provide(memory.connect, Scope.makeUnsafe()))
      const scope = Scope.makeUnsafe()
      const name = `p${++lives}`
      const line = new Line({
        worker: name,
        world,
        process,
        laws,
        atBroker,
        faults,
        kinds: { settle: kinds.has("settle"), publish: kinds.has("publish"), delay: kinds.has("delay") }
      })
      const worker: Worker = {
        name,
        process,
        line,
        scope,
        running: undefined,
        isEnding: false,
        context: Context.merge(context, surroundings(process)).pipe(
          Context.add(Transport, line.transport(options.connect?.(bare) ?? bare)),
          Context.add(Scope.Scope, scope),
          Context.add(Telemetry.Observer, (outcome) => {
            if (process.state === "dead") return
            laws.outcome(name, outcome)
            // A handler that is told has a moment to end.
            if (outcome._tag === "Lost") world.after(1000, process, () => laws.stopped(name, outcome.delivery))
          }),
          Context.add(Telemetry.LookInterval, undefined),
          Context.add(Telemetry.Logs, false),
          Context.add(Troubles, (message) => troubles(worker)(message))
        )
      }
      workers.add(worker)
      laws.note(() => `${name} starts`)
      const own = TransportAuthor.inOtherProcess(pipeline)
      const start = Pipeline.start(own) as Effect.Effect<Pipeline.Running, TransportError>
      Effect.runForkWith(worker.context)(start).addObserver((exit) => {
        if (Exit.isFailure(exit)) failure = Exit.failCause(exit.cause)
        else {
          worker.running = exit.value
          beginSource()
        }
      })
    }
    const crash = (worker: Worker) => {
      laws.note(() => `${worker.name} is gone`)
      worker.process.state = "dead"
      worker.line.cut()
      workers.delete(worker)
      beginSource()
      if (!isOver) later(world.between(0, 10_000), launch)
    }
    const drain = (worker: Worker) => {
      laws.stopping(worker.name)
      worker.isEnding = true
      const since = world.now
      Effect.runForkWith(worker.context)(Scope.close(worker.scope, Exit.void)).addObserver(() => {
        laws.drained(worker.name, worker.line.isCut || worker.line.disturbedUntil >= since)
        crash(worker)
      })
    }
    const strike = (name: string) => {
      const worker = world.oneOf(
        [...workers].filter((worker) =>
          !worker.isEnding && worker.running !== undefined && worker.process.state === "running"
        )
      )
      const episode = world.oneOf(episodes.filter((episode) => kinds.has(episode)))
      const spell = world.chance(0.5) ? world.between(0, 5000) : world.between(5000, 120_000)
      if (worker === undefined || episode === undefined) return
      const text = () => `${worker.name}: ${episode} at ${(world.now / 1000).toFixed(3)}`
      if (!faults.happens(true, () => name, text)) return
      laws.note(() => `${worker.name}: ${episode}`)
      const { line, process, running } = worker
      const tell = (effect: Effect.Effect<void>) =>
        void world.after(0, process, () => Effect.runForkWith(worker.context)(effect))
      switch (episode) {
        case "crash": {
          laws.crashed(worker.name)
          return crash(worker)
        }
        case "drain": {
          return drain(worker)
        }
        case "freeze": {
          process.state = "frozen"
          return later(spell, () => process.thaw())
        }
        case "cut": {
          line.cut()
          return later(spell, () => {
            laws.note(() => `${worker.name} is connected again`)
            if (process.state !== "dead") line.restore()
          })
        }
        case "pause": {
          tell(running!.pause)
          return later(spell, () => tell(running!.resume))
        }
        case "clock": {
          process.skew += world.between(-100_000, 100_000)
        }
      }
    }

    // The group is there before the first message: then it makes no difference where it begins.
    launch()
    for (let slot = 1; slot < slots; slot++) later(world.between(0, 20_000), launch)
    const span = world.between(1000, 90_000)
    const producer = yield* Scope.provide(memory.connect, Scope.makeUnsafe())
    const publish = (message: Outgoing, isPoison: boolean) =>
      laws.atOnce(() => {
        const [result] = Effect.runSync(producer.publish([message]))
        if (Result.isSuccess(result!)) laws.published(result.success.id, message, isPoison)
      })
    const source = () => {
      const isBurst = world.chance(0.5)
      let at = 0
      for (const [n, message] of outgoing.entries()) {
        at += isBurst && world.chance(0.9) ? 0 : world.between(0, 2 * span / outgoing.length)
        const isPoison = kinds.has("poison") && world.chance(0.05)
        const isPublished = faults.happens(true, () => `message ${n}`, () => `value ${n} is published`)
        if (isPublished) later(at, () => publish(message, false))
        const text = () => `bytes that cannot be decoded follow value ${n}`
        if (faults.happens(isPoison, () => `poison ${n}`, text)) later(at, () => publish(poison(message), true))
      }
    }
    open++
    beginSource = () => {
      if (workers.values().next().value?.running === undefined) return
      beginSource = () => {}
      open--
      source()
    }
    beginSource()
    open++
    const struck = Math.floor(world.between(0, 8))
    for (let n = 0; n < struck; n++) later(world.between(0, span), () => strike(`episode ${n}`))
    world.after(span, undefined, () => open--)

    let trace: ReadonlyArray<string> | undefined
    const result = (): Run => ({
      seed: options.seed,
      faults: faults.happened,
      get trace() {
        return trace ??= laws.trace
      },
      violations: laws.violations
    })
    const areIdle = () => {
      for (const { isEnding, running } of workers) {
        if (running === undefined || running.limit.inUse > 0 || isEnding) return false
      }
      return true
    }
    let calmSince: number | undefined
    yield* world.run(() => {
      if (failure !== undefined || laws.violations.length > 0) return true
      if (open > 0) return false
      calmSince ??= world.now
      isIdle = areIdle() &&
        Effect.runSync(memory.groups).every(({ delayed, lag, pending }) => lag + pending.length + delayed.length === 0)
      return isIdle || world.now - calmSince > patience
    }, 1_000_000)
    if (failure !== undefined) return yield* failure
    if (laws.violations.length > 0) return result()
    isOver = true
    for (const worker of workers) if (!worker.isEnding) drain(worker)
    const haveEnded = yield* world.run(() => workers.size === 0, world.steps + 100_000)
    laws.ended(isIdle && haveEnded)
    return result()
  }) as any

const poison = (message: Outgoing): Outgoing => ({ ...message, body: new Uint8Array([0xff, 0xfe]) })

/**
 * Runs a pipeline with many seeds (default 100, from `first`, default 1) and fails with the first that violates a law,
 * after making it as small as it can: it leaves out messages and faults as long as the same law is violated.
 *
 * @category simulating
 * @since 0.1.0
 */
export const check = <A, RD, RE, M extends Message.Message<A>, B, E, R>(
  topic: Topic.Topic<A, RD, RE>,
  pipeline: Pipeline.Pipeline<M, B, E, R>,
  options: Options<NoInfer<A>> & { readonly seeds?: number | undefined; readonly first?: number | undefined }
): Effect.Effect<void, Violated | TransportError | Publisher.PublishError, Exclude<R, Transport | Scope.Scope> | RE> =>
  Effect.gen(function*() {
    const first = countFrom("first", options.first ?? 1, 0)
    const seeds = boundFrom("seeds", options.seeds ?? 100)
    for (let seed = first; seed < first + seeds; seed++) {
      const result = yield* run(topic, pipeline, { ...options, seed })
      if (result.violations.length > 0) {
        return yield* shrink(result, (only) => run(topic, pipeline, { ...options, seed, only }))
      }
    }
  })

/** Runs again and again with fewer of the faults. */
const shrink = <E, R>(
  failed: Run,
  again: (only: Iterable<string>) => Effect.Effect<Run, E, R>
): Effect.Effect<never, Violated, R> =>
  Effect.flatMap(Effect.context<R>(), (context) =>
    Effect.flatMap(
      Effect.promise(async () => {
        const { law } = failed.violations[0]!
        let smallest = failed
        await minimize([...failed.faults.keys()], async (left) => {
          const exit = await Effect.runPromiseExitWith(context)(again(left))
          if (Exit.isFailure(exit) || !exit.value.violations.some((violation) => violation.law === law)) return false
          smallest = exit.value
          return true
        }, mostRuns)
        return smallest
      }),
      (run) => Effect.fail(new Violated({ run }))
    ))

/** The most runs in which a failing one is made smaller. */
const mostRuns = 400
