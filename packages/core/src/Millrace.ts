/**
 * Pipelines for programs that use promises: start, stop, publish, look at, without Effect.
 *
 * **Example** (A worker)
 *
 * ```ts
 * import { Millrace, Pipeline, Topic } from "@millrace/core"
 * import { RedisStreams } from "@millrace/redis-streams"
 * import { Schema } from "effect"
 *
 * const Mails = Topic.make("mails", { schema: Schema.Struct({ to: Schema.String }) })
 * const mailing = Pipeline.from(Mails, { group: "mailing" }).pipe(
 *   Pipeline.tapPromise(async (mail, { signal }) => {
 *     await fetch("https://mail.example/send", { method: "POST", body: JSON.stringify(mail), signal })
 *   }),
 *   Pipeline.concurrency(5)
 * )
 *
 * export const main = async () => {
 *   const millrace = await Millrace.run(mailing, { broker: RedisStreams.layer({ url: "redis://localhost:6379" }) })
 *   await millrace.publish(Mails, { to: "ada@example.com" })
 * }
 * ```
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import process from "node:process"
import * as DeadLetter from "./DeadLetter.ts"
import { loggable, plainText } from "./internal/errorDetail.ts"
import type { Hint } from "./internal/hint.ts"
import { invalidPipelines, toError, unknownOption } from "./internal/invalid.ts"
import { programOf } from "./internal/pipeline.ts"
import { noCounts } from "./internal/report.ts"
import * as Pipeline from "./Pipeline.ts"
import * as Publisher from "./Publisher.ts"
import type * as Topic from "./Topic.ts"
import { type Published, Transport } from "./Transport.ts"
import { invalidOption, OperationFailed, TransportError } from "./TransportError.ts"

/**
 * Options of {@link make} and {@link run}.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options<out B extends Layer.Layer<Transport, unknown>> {
  /**
   * The broker: `RedisStreams.layer`, `JetStream.layer`, `MemoryTransport.layer`; with your own services, if any, merged.
   * With `url ? RedisStreams.layer({ url }) : MemoryTransport.layer()`, each of the Layers needs all services.
   */
  readonly broker: B
  /**
   * Whether SIGTERM and SIGINT stop the pipelines while they run. Default `true`. The process then ends by itself, with
   * code 0, when nothing else keeps it; a second signal ends it at once, with code 1. `false`: your framework calls
   * `stop`.
   */
  readonly signals?: boolean | undefined
}

/**
 * Pipelines on a broker. Every promise rejects with the typed error that Effect would give: `TransportError`,
 * `PublishError`, or the error of the broker's Layer.
 *
 * @category models
 * @since 0.1.0
 */
export interface Millrace {
  /** Starts all pipelines; resolves when messages flow. Nothing happens when they run already. */
  readonly start: () => Promise<void>
  /**
   * Drains all pipelines and closes the connections: running handlers finish within `drainTimeout`, the rest is released
   * for a peer. Never rejects: a Layer that fails to close is logged. Until a `start` that may follow, publishing and reading dead letters reject.
   */
  readonly stop: () => Promise<void>
  /** Publishes one value; resolves when the broker has confirmed. Connects when needed, also without pipelines. */
  readonly publish: <A, RD>(
    topic: Topic.Topic<A, RD>,
    value: A,
    options?: Publisher.PublishOptions
  ) => Promise<Published>
  /** Publishes many values in order, as one write; resolves when the broker has confirmed all. */
  readonly publishAll: <A, RD>(
    topic: Topic.Topic<A, RD>,
    values: Iterable<A>,
    options?: (value: A, index: number) => Publisher.PublishOptions
  ) => Promise<ReadonlyArray<Published>>
  /** Counts of messages since the start, of one pipeline or of all together. After `stop`, the last counts. */
  readonly counts: (pipeline?: Pipeline.AnyPipeline) => Promise<Pipeline.Counts>
  /** Whether messages can be consumed now, since when and why, of one pipeline, or the worst of all. */
  readonly health: (pipeline?: Pipeline.AnyPipeline) => Promise<Pipeline.Health>
  /** Stops taking messages; handlers that run are finished. */
  readonly pause: (pipeline?: Pipeline.AnyPipeline) => Promise<void>
  /** Takes messages again. */
  readonly resume: (pipeline?: Pipeline.AnyPipeline) => Promise<void>
  /** Lists dead letters, oldest first; 100 unless `limit` says otherwise. Connects when needed, also without pipelines. */
  readonly deadLetters: (
    topic: string,
    options?: DeadLetter.ListOptions
  ) => Promise<ReadonlyArray<DeadLetter.DeadLetter>>
  /** Sends dead letters back to the topic and the group that they failed in; `filter` chooses. */
  readonly redrive: (topic: string, options?: DeadLetter.RedriveOptions) => Promise<DeadLetter.Redriven>
  /**
   * Of this start: resolves when `stop` is done; rejects when a pipeline can no longer run, which is logged too. As the
   * last `await` of a program it ends a process whose pipeline has failed, with code 1.
   */
  readonly closed: Promise<void>
}

/** What one of the Layers lacks: `B` may be a union. */
type Missing<P, B> = B extends Layer.Layer<infer R, infer _E, infer _RIn>
  ? Exclude<Pipeline.Services<P>, R | Transport | Scope.Scope>
  : never

type Provided<P, B> = [Missing<P, B>] extends [never] ? unknown
  : Hint<"the broker's Layer lacks a service that this pipeline needs: another broker's operation, or your own service">

/**
 * Makes pipelines ready to start on a broker; without `pipelines`, it only publishes. Nothing is connected yet. Starting an
 * empty array is refused.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <B extends Layer.Layer<Transport, unknown>, const P extends Pipeline.AnyPipeline = never>(
  options: Options<B> & { readonly pipelines?: ReadonlyArray<P & Provided<P, B>> | undefined }
): Millrace => new MillraceImpl(options as unknown as UntypedOptions)

/**
 * Starts one pipeline, or several (at least one), and resolves when messages flow. SIGTERM and SIGINT drain them, unless `signals` is
 * `false`.
 *
 * @category running
 * @since 0.1.0
 */
export const run = async <B extends Layer.Layer<Transport, unknown>, const P extends Pipeline.AnyPipeline>(
  pipeline: (P & Provided<P, B>) | ReadonlyArray<P & Provided<P, B>>,
  options: Options<B>
): Promise<Millrace> => {
  const pipelines = Array.isArray(pipeline) ? pipeline : [pipeline]
  const millrace = new MillraceImpl({ ...options, pipelines } as unknown as UntypedOptions)
  await millrace.start()
  return millrace
}

interface UntypedOptions extends Options<Layer.Layer<Transport, unknown>> {
  readonly pipelines?: ReadonlyArray<Pipeline.Pipeline<never, unknown, unknown, Transport>> | undefined
}

interface Started {
  readonly scope: Scope.Closeable
  readonly running: ReadonlyArray<Pipeline.Running>
  readonly release: () => void
}

const worst = ["stopped", "reconnecting", "impaired", "draining", "paused", "consuming"] as const

const without = (state: Pipeline.Health["state"], reason: string): Pipeline.Health => ({
  state,
  since: Date.now(),
  reason
})

/** Whatever was given may hold a password. */
const kindOf = (u: unknown) => ({
  toString: () => u === undefined || u === null ? String(u) : Array.isArray(u) ? "an array" : `of type ${typeof u}`
})

const brokers = "give RedisStreams.layer({ url }), JetStream.layer({ url }) or MemoryTransport.layer()"

/** What plain JavaScript can get wrong about the options. */
const invalidIn = (options: UntypedOptions): TransportError | undefined => {
  const unknown = unknownOption("options of Millrace", options, ["broker", "signals", "pipelines"])
  if (unknown !== undefined) return toError("core", unknown)
  const { broker, pipelines, signals } = options
  if (!Layer.isLayer(broker)) return invalidOption("core", "broker", kindOf(broker), brokers)
  if (signals !== undefined && typeof signals !== "boolean") {
    return invalidOption("core", "signals", signals, "write true or false")
  }
  if (pipelines === undefined) return undefined
  const none = invalidPipelines(pipelines)
  if (none !== undefined) return toError("core", none)
  try {
    pipelines.forEach(programOf)
    return undefined
  } catch (error) {
    return error as TransportError
  }
}

/** A Layer that lacks what a pipeline needs is a defect for Effect, whose types find it. JavaScript has no such types. */
const missingService = (defect: unknown): Effect.Effect<never, TransportError> => {
  const missing = defect instanceof Error ? /^Service not found: (\S+)/.exec(defect.message)?.[1] : undefined
  if (missing === undefined) return Effect.die(defect)
  const remedy = missing === Transport.key
    ? brokers
    : "the pipeline needs it: give that broker's Layer, or merge your own"
  return Effect.fail(invalidOption("core", "broker", { toString: () => `a Layer without ${missing}` }, remedy))
}

const afterStop = "this Millrace was stopped: call `start` first"

class MillraceImpl implements Millrace {
  private readonly options: UntypedOptions
  private readonly invalid: TransportError | undefined
  private runtime: ManagedRuntime.ManagedRuntime<Transport, unknown> | undefined
  private started: Promise<Started> | undefined
  private stopping: Promise<void> | undefined
  /** Those that have started, until they have drained. */
  private current: ReadonlyArray<Pipeline.Running> = []
  /** Those of the last start, also when they have drained: their counts stay. */
  private counted: ReadonlyArray<Pipeline.Running> = []
  /** While there are none. */
  private idle = without("stopped", "no pipeline has started")
  private hasStopped = false
  private closing = unread()

  constructor(options: UntypedOptions) {
    this.options = options
    this.invalid = invalidIn(options)
  }

  get closed(): Promise<void> {
    return this.closing.promise
  }

  private promise<A, E>(effect: Effect.Effect<A, E, Transport>): Promise<A> {
    if (this.invalid !== undefined) return Promise.reject(this.invalid)
    this.runtime ??= ManagedRuntime.make(this.options.broker)
    return this.runtime.runPromise(Effect.catchDefect(effect, missingService))
  }

  /** Not after `stop`: a connection that nothing closes would keep the process. */
  private connected<A, E>(operation: string, effect: Effect.Effect<A, E, Transport>): Promise<A> {
    if (!this.hasStopped) return this.promise(effect)
    const reason = new OperationFailed({ operation, cause: new Error(afterStop) })
    return Promise.reject(new TransportError({ transport: "core", reason }))
  }

  private publishing<A>(
    topic: { readonly name: string },
    effect: Effect.Effect<A, Publisher.PublishError, Transport>
  ): Promise<A> {
    if (!this.hasStopped) return this.promise(effect)
    const reason = new Publisher.NotSent({ detail: afterStop })
    return Promise.reject(new Publisher.PublishError({ topic: String(topic?.name), reason }))
  }

  readonly start = async (): Promise<void> => {
    await this.stopping
    if (this.started === undefined) {
      this.idle = without("reconnecting", "the pipelines are starting")
      if (this.hasStopped) this.closing = unread()
      this.counted = []
      this.hasStopped = false
    }
    this.started ??= this.begin()
    try {
      this.counted = this.current = (await this.started).running
    } catch (error) {
      this.started = undefined
      this.idle = without("stopped", `the start failed: ${plainText(error) ?? "no reason was given"}`)
      await this.dispose()
      throw error
    }
  }

  private async begin(): Promise<Started> {
    const scope = Scope.makeUnsafe()
    const release = hold(this.options.signals === false ? undefined : this.stop)
    try {
      const running = await this.promise(
        Effect.forEach(this.options.pipelines ?? [], (pipeline) => Pipeline.start(pipeline)).pipe(Scope.provide(scope))
      )
      for (const one of running) Effect.runPromise(one.await).catch(this.closing.reject)
      return { scope, running, release }
    } catch (error) {
      release()
      await this.promise(Scope.close(scope, Exit.interrupt())).catch(() => {})
      throw error
    }
  }

  readonly stop = (): Promise<void> => this.stopping ??= this.end()

  private async end(): Promise<void> {
    const started = await this.started?.catch(() => undefined)
    this.started = undefined
    // As an interruption: the pipelines were not stopped by mistake.
    if (started !== undefined) await closed(this.promise(Scope.close(started.scope, Exit.interrupt())))
    this.current = []
    this.idle = without("stopped", "`stop` was called")
    this.hasStopped = true
    await this.dispose()
    started?.release()
    this.stopping = undefined
    this.closing.resolve()
  }

  private async dispose(): Promise<void> {
    const { runtime } = this
    this.runtime = undefined
    if (runtime !== undefined) await closed(runtime.dispose())
  }

  readonly publish: Millrace["publish"] = (topic, value, options) =>
    this.publishing(topic, Publisher.publish(topic, value, options))

  readonly publishAll: Millrace["publishAll"] = (topic, values, options) =>
    this.publishing(topic, Publisher.publishAll(topic, values, options))

  readonly deadLetters: Millrace["deadLetters"] = (topic, options) =>
    this.connected("reading dead letters", Stream.runCollect(DeadLetter.list(topic, listed(options))))

  readonly redrive: Millrace["redrive"] = (topic, options) =>
    this.connected("redriving dead letters", DeadLetter.redrive(topic, options))

  private async of(
    pipeline: Pipeline.AnyPipeline | undefined,
    drained: ReadonlyArray<Pipeline.Running> = []
  ): Promise<ReadonlyArray<Pipeline.Running>> {
    return this.among((await this.started)?.running ?? drained, pipeline)
  }

  /** All of them, or the named one, which must be ours: the counts of another are not 0. */
  private among(
    running: ReadonlyArray<Pipeline.Running>,
    pipeline: Pipeline.AnyPipeline | undefined
  ): ReadonlyArray<Pipeline.Running> {
    if (this.invalid !== undefined) throw this.invalid
    if (pipeline === undefined) return running
    const { name } = programOf(pipeline)
    const names = (this.options.pipelines ?? []).map((pipeline) => pipeline.name)
    if (names.includes(name)) return running.filter((one) => one.name === name)
    const remedy = `this Millrace has ${names.length === 0 ? "no pipeline" : names.join(", ")}`
    throw invalidOption("core", "pipeline", name, remedy)
  }

  readonly counts: Millrace["counts"] = async (pipeline) => {
    const sum = noCounts()
    for (const running of await this.of(pipeline, this.counted)) {
      const counts = await Effect.runPromise(running.counts)
      for (const name of Object.keys(sum) as Array<keyof Pipeline.Counts>) sum[name] += counts[name]
    }
    return sum
  }

  readonly health: Millrace["health"] = async (pipeline) => {
    const all: Array<Pipeline.Health> = []
    // A probe does not wait for the start.
    for (const { health } of this.among(this.current, pipeline)) all.push(await Effect.runPromise(health))
    if (all.length === 0) return this.idle
    return all.sort((a, b) => worst.indexOf(a.state) - worst.indexOf(b.state))[0]!
  }

  readonly pause: Millrace["pause"] = async (pipeline) => {
    for (const { pause } of await this.of(pipeline)) await Effect.runPromise(pause)
  }

  readonly resume: Millrace["resume"] = async (pipeline) => {
    for (const { resume } of await this.of(pipeline)) await Effect.runPromise(resume)
  }
}

const listed = (options: DeadLetter.ListOptions | undefined): DeadLetter.ListOptions | undefined =>
  options === undefined || (typeof options === "object" && options?.limit === undefined)
    ? { ...options, limit: 100 }
    : options

/** A finalizer of the user's Layers may fail: the others have run, and the log says so. */
const closed = (closing: Promise<void>): Promise<void> =>
  closing.catch((error) =>
    Effect.runPromise(Effect.logError("a Layer failed to close; all others are closed", loggable(Cause.die(error))))
  )

/** Without a reader of `closed` there is the log. */
const unread = (): PromiseWithResolvers<void> => {
  const resolvers = Promise.withResolvers<void>()
  resolvers.promise.catch(() => {})
  return resolvers
}

/** Keeps the process until released: a broker in memory has no socket that does. Signals call `onSignal`. */
const hold = (onSignal: (() => Promise<void>) | undefined): () => void => {
  const timer = setInterval(() => {}, 2 ** 31 - 1)
  let signals = 0
  const listener = () => {
    if (++signals > 1) process.exit(1)
    void onSignal?.()
  }
  if (onSignal !== undefined) { for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, listener) }
  return () => {
    clearInterval(timer)
    for (const signal of ["SIGINT", "SIGTERM"] as const) process.off(signal, listener)
  }
}
