/**
 * Runs a pipeline in several processes on the broker in memory, in an order and with faults that a seed chooses, and
 * holds what happens against the laws of settlement. The same seed gives the same run, event by event.
 *
 * Everything is simulated: time, the order in which fibers run, the connections, the processes. It cannot wait for
 * anything real: what handlers call must be a fake that uses `Clock`, `Random` and Effects only.
 *
 * @since 0.1.0
 */
import * as Message from "@millrace/core/Message"
import * as Pipeline from "@millrace/core/Pipeline"
import * as Publisher from "@millrace/core/Publisher"
import * as Telemetry from "@millrace/core/Telemetry"
import type * as Topic from "@millrace/core/Topic"
import { type Outgoing, Transport } from "@millrace/core/Transport"
import type { TransportError } from "@millrace/core/TransportError"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Random from "effect/Random"
import * as References from "effect/References"
import * as Result from "effect/Result"
import * as Scheduler from "effect/Scheduler"
import * as Scope from "effect/Scope"
import { Laws } from "./internal/simulation/laws.ts"
import { Line } from "./internal/simulation/network.ts"
import { Process, World } from "./internal/simulation/world.ts"
import * as MemoryTransport from "./MemoryTransport.ts"

/**
 * What may happen to a pipeline.
 *
 * - `crash`: a process ends in the middle of whatever it does; with {@link trouble}, some messages do that to it
 * - `drain`: a process is stopped and started again
 * - `freeze`: a process stands still, for longer than its claims last or not
 * - `cut`: the connection is lost for a while
 * - `pause`: the pipeline is paused and resumed
 * - `clock`: the wall clock of a process jumps
 * - `settle`: settlements, or the answers to them, do not arrive, or some of them only
 * - `publish`: what is published, or the answer to it, does not arrive
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
 * What is simulated.
 *
 * - `values`: what is published to the source, in this order
 * - `workers`: processes that run the pipeline; default 2
 * - `faults`: default all
 * - `keepsKeys`: the pipeline keeps the messages of one `Topic.key` in order; default `false`
 * - `attempts`: the most attempts that its retry policy allows; default: not checked
 * - `minIdle`: how long an unsettled message stays with a process that does not keep it; default 30 seconds
 * - `restWithin`: how long it may take, once no more faults happen, until all is settled; default 1 hour
 * - `connect`: changes the transport of each process: for faults of your own
 *
 * @category models
 * @since 0.1.0
 */
export interface Options<out A> {
  readonly values: Iterable<A>
  readonly workers?: number | undefined
  readonly faults?: ReadonlyArray<Fault> | undefined
  readonly keepsKeys?: boolean | undefined
  readonly attempts?: number | undefined
  readonly minIdle?: Duration.Input | undefined
  readonly restWithin?: Duration.Input | undefined
  readonly connect?: ((transport: Transport["Service"]) => Transport["Service"]) | undefined
}

/**
 * A law that did not hold: `law 1` to `law 8`, or `contract`, and when, in milliseconds since the beginning.
 *
 * @category models
 * @since 0.1.0
 */
export interface Violation {
  readonly law: string
  readonly at: number
  readonly text: string
}

/**
 * What happened: one line for each event, with the seconds since the beginning.
 *
 * @category models
 * @since 0.1.0
 */
export interface Run {
  readonly seed: number | string
  readonly trace: ReadonlyArray<string>
  readonly violations: ReadonlyArray<Violation>
}

/**
 * A law did not hold. The message names the seed, which gives the same run again.
 *
 * @category errors
 * @since 0.1.0
 */
export class Violated extends Data.TaggedError("Violated")<{ readonly run: Run }> {
  override get message(): string {
    const { seed, trace, violations } = this.run
    const last = trace.slice(0, 1 + trace.findIndex((line) => line.includes("VIOLATION"))).slice(-30)
    return [
      `${violations.length} violations with seed ${JSON.stringify(seed)}; Simulation.run with that seed shows it again`,
      ...violations.map(({ law, text }) => `  ${law}: ${text}`),
      "what happened before the first:",
      ...last.map((line) => `  ${line}`)
    ].join("\n")
  }
}

/**
 * What {@link trouble} fails with.
 *
 * @category errors
 * @since 0.1.0
 */
export class Trouble extends Data.TaggedError("Trouble")<{}> {}

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
 * Runs a pipeline once, as the seed has it; `topic` is its source.
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
    const faults = new Set<Fault>(options.faults ?? allFaults)
    const minIdle = Duration.fromInputUnsafe(options.minIdle ?? "30 seconds")
    const surroundings = (process: Process) =>
      Context.make(Clock.Clock, process.clock).pipe(
        Context.add(Scheduler.Scheduler, process.scheduler),
        Context.add(Random.Random, random),
        Context.add(References.MinimumLogLevel, "None")
      )
    const broker = Context.add(surroundings(new Process(world)), Scheduler.PreventSchedulerYield, true)
    const memory = yield* Effect.provideContext(MemoryTransport.make({ history: true, minIdle }), broker)
    const published = yield* memory.published
    const laws = new Laws(world, {
      topic: topic.name,
      minIdle: Duration.toMillis(minIdle),
      keepsKeys: options.keepsKeys ?? false,
      attempts: options.attempts ?? Infinity,
      published: () => published
    })
    const context = yield* Effect.context<any>()
    const outgoing = yield* Effect.forEach(options.values, (value) => Publisher.outgoing(topic, value))

    const workers = new Set<Worker>()
    let failure: Exit.Exit<never, TransportError> | undefined
    let lives = 0
    let isIdle = false
    let isOver = false
    /** What has begun and is not over: faults, and messages to be published. */
    let open = 0
    const later = (millis: number, f: () => void) => {
      open++
      world.after(millis, undefined, () => {
        open--
        f()
      })
    }

    const fates = new Map<string, "fine" | "bad" | "killer">()
    const troubles = (worker: Worker) => (message: Message.Any): Effect.Effect<void, Trouble> =>
      Effect.suspend(() => {
        const { delivery } = Message.received(message)!
        if (worker.process.state === "dead") return Effect.never
        const ended = laws.begun(worker.name, delivery)
        const fate = fates.get(delivery.id) ??
          (faults.has("crash") && world.chance(0.03)
            ? "killer"
            : faults.has("handler") && world.chance(0.05)
            ? "bad"
            : "fine")
        fates.set(delivery.id, fate)
        const begin = world.chance(0.4) ? Effect.void : Effect.sleep(world.between(0, 200))
        const end = Effect.suspend((): Effect.Effect<void, Trouble> => {
          if (fate === "killer") {
            laws.killed(worker.name, delivery)
            crash(worker)
            return Effect.never
          }
          if (fate === "bad") return Effect.fail(new Trouble())
          if (!faults.has("handler") || !world.chance(0.15)) return Effect.void
          const kinds = [
            Effect.fail(new Trouble()),
            Effect.die(new Error("trouble")),
            Effect.interrupt,
            Effect.sleep(world.between(1, 100_000))
          ]
          return world.oneOf(kinds)!
        })
        return Effect.onExit(Effect.andThen(begin, end), () => Effect.sync(ended))
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
        atBroker: Effect.runForkWith(broker),
        faults: { settle: faults.has("settle"), publish: faults.has("publish"), delay: faults.has("delay") }
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
            if (process.state !== "dead") laws.outcome(name, outcome)
          }),
          Context.add(Telemetry.LookInterval, undefined),
          Context.add(Telemetry.Logs, false),
          Context.add(Troubles, (message) => troubles(worker)(message))
        )
      }
      workers.add(worker)
      laws.note(`${name} starts`)
      const start = Pipeline.start(pipeline) as Effect.Effect<Pipeline.Running, TransportError>
      Effect.runForkWith(worker.context)(start).addObserver((exit) => {
        if (Exit.isFailure(exit)) failure = Exit.failCause(exit.cause)
        else worker.running = exit.value
      })
    }
    const crash = (worker: Worker) => {
      laws.note(`${worker.name} is gone`)
      worker.process.state = "dead"
      worker.line.cut()
      workers.delete(worker)
      if (!isOver) later(world.between(0, 10_000), launch)
    }
    const drain = (worker: Worker) => {
      laws.note(`${worker.name} is told to stop`)
      worker.isEnding = true
      const since = world.now
      Effect.runForkWith(worker.context)(Scope.close(worker.scope, Exit.void)).addObserver(() => {
        laws.drained(worker.name, worker.line.disturbedUntil >= since)
        crash(worker)
      })
    }
    const strike = () => {
      const worker = world.oneOf(
        [...workers].filter((worker) =>
          !worker.isEnding && worker.running !== undefined && worker.process.state === "running"
        )
      )
      const episode = world.oneOf(episodes.filter((episode) => faults.has(episode)))
      if (worker === undefined || episode === undefined) return
      laws.note(`${worker.name}: ${episode}`)
      const { line, process, running } = worker
      const spell = world.chance(0.5) ? world.between(0, 5000) : world.between(5000, 120_000)
      const tell = (effect: Effect.Effect<void>) =>
        void world.after(0, process, () => Effect.runForkWith(worker.context)(effect))
      switch (episode) {
        case "crash": {
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
            laws.note(`${worker.name} is connected again`)
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
    const slots = options.workers ?? 2
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
      for (const message of outgoing) {
        at += isBurst && world.chance(0.9) ? 0 : world.between(0, 2 * span / outgoing.length)
        later(at, () => publish(message, false))
        if (faults.has("poison") && world.chance(0.05)) later(at, () => publish(poison(message), true))
      }
    }
    const wait = () => workers.values().next().value?.running === undefined ? later(1, wait) : source()
    wait()
    open++
    const struck = Math.floor(world.between(0, 8))
    for (let n = 0; n < struck; n++) later(world.between(0, span), strike)
    world.after(span, undefined, () => open--)

    let calmSince: number | undefined
    const patience = Duration.toMillis(Duration.fromInputUnsafe(options.restWithin ?? "1 hour"))
    yield* world.run(() => {
      if (failure !== undefined || laws.violations.length > 0) return true
      if (open > 0) return false
      calmSince ??= world.now
      isIdle = Effect.runSync(memory.groups).every(({ delayed, lag, pending }) =>
        lag + pending.length + delayed.length === 0
      ) && [...workers].every(({ isEnding, running }) =>
        running !== undefined && running.limit.inUse === 0 && !isEnding
      )
      return isIdle || world.now - calmSince > patience
    }, 1_000_000)
    if (failure !== undefined) return yield* failure
    if (laws.violations.length > 0) return { seed: options.seed, trace: laws.trace, violations: laws.violations }
    isOver = true
    for (const worker of workers) if (!worker.isEnding) drain(worker)
    const haveEnded = yield* world.run(() => workers.size === 0, world.steps + 100_000)
    laws.ended(isIdle && haveEnded)
    return { seed: options.seed, trace: laws.trace, violations: laws.violations }
  }) as any

const poison = (message: Outgoing): Outgoing => ({ ...message, body: new Uint8Array([0xff, 0xfe]) })

/**
 * Runs a pipeline with many seeds (default 100, from `first`, default 1) and fails with the first that violates a law.
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
    const first = options.first ?? 1
    for (let seed = first; seed < first + (options.seeds ?? 100); seed++) {
      const result = yield* run(topic, pipeline, { ...options, seed })
      if (result.violations.length > 0) return yield* new Violated({ run: result })
    }
  })
