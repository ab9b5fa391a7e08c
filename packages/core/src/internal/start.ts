import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as Tracer from "effect/Tracer"
import { isLimit } from "../Concurrency.ts"
import type { TransportError } from "../TransportError.ts"
import { drain } from "./drain.ts"
import { inspectedAs } from "./inspection.ts"
import { isolateFrom } from "./isolation.ts"
import { monotonicMillis } from "./monotonic.ts"
import { Prefetch } from "./prefetch.ts"
import type { Program } from "./program.ts"
import { quietly, unlessQuiet } from "./quietly.ts"
import { allowedAttempts, defaultRetry } from "./retryDecision.ts"
import { Run } from "./run.ts"
import type { Health, Running } from "./running.ts"
import { advise, claimGroup, warnIfStoppedAtOnce } from "./startup.ts"
import { batchSize, deadLetterTopic, outputs, timeoutOf, validate } from "./validate.ts"

/** Checks, declares, subscribes, and begins to read; closing the scope drains. */
export const start = Effect.fnUntraced(function*(
  program: Program
): Effect.fn.Return<Running, TransportError, Scope.Scope> {
  const { policies, source } = program
  const transport = yield* source.transport
  const bad = validate(program, transport)
  if (bad !== undefined) return yield* bad
  yield* claimGroup(program, transport)
  yield* unlessQuiet(advise(program))
  const { concurrency, key, settings } = policies
  const limit = isLimit(concurrency) ? concurrency.ceiling : concurrency
  const deadLetter = deadLetterTopic(program)
  let started: Run | undefined
  const subscription = yield* quietly(transport.subscribe({
    topic: source.topic.name,
    group: source.group,
    startFrom: source.startFrom,
    maxOwned: limit * batchSize(program) + (source.prefetch ?? Prefetch.expected) +
      (key === undefined ? 0 : source.maxBlocked),
    isolateFrom: isolateFrom(allowedAttempts(policies.retry ?? defaultRetry)),
    ordered: key !== undefined,
    timeout: timeoutOf(program),
    deadLetter,
    onVanished: (ids) => started?.settlements.vanished(ids),
    settings
  }))
  // After the source: a source that cannot be must not leave topics behind.
  for (const topic of outputs(program)) {
    yield* quietly(transport.declare(topic, topic === deadLetter ? "deadLetter" : "output"))
  }
  // A message is not part of the span that its pipeline happened to be started in.
  const context = Context.omit(Tracer.ParentSpan)(yield* Effect.context<never>())
  const clock = Context.get(context, Clock.Clock)
  const run = started = new Run(program, transport, subscription, context)
  const heartbeat = run.run(run.ownership.heartbeat)

  let state: Extract<Health["state"], "paused" | "draining" | "stopped"> | undefined
  let since = 0
  const become = (next: typeof state) =>
    Effect.sync(() => {
      // Nothing resumes a pipeline that ends, and a state goes on from when it began.
      const isEnding = state === "draining" || state === "stopped"
      if (state === next || (isEnding && next !== "stopped")) return
      state = next
      run.sight.became(next)
      since = clock.currentTimeMillisUnsafe()
    })
  yield* drainedTogether(
    Effect.andThen(become("draining"), quietly(drain(run))).pipe(
      Effect.andThen(Fiber.interrupt(heartbeat)),
      Effect.andThen(become("stopped"))
    )
  )
  const now = monotonicMillis(clock)
  const startedAt = now()
  yield* Effect.addFinalizer((exit) =>
    unlessQuiet(Effect.suspend(() =>
      warnIfStoppedAtOnce(program, exit, {
        messages: run.holding.buffered + run.holding.begun + sum(run.outcomes.report.counts),
        lasted: now() - startedAt
      })
    ))
  )
  run.sight.started()
  yield* run.reader.start
  const description = { name: program.name, topic: source.topic.name, group: source.group }
  const owned = () => ({ waiting: run.holding.buffered, running: run.holding.begun })
  const counts = () => ({ ...run.outcomes.report.counts })
  return Object.assign(Object.create(inspectedAs("Running")), {
    toJSON: () => ({ ...description, counts: counts(), owned: owned() }),
    ...description,
    pause: Effect.andThen(become("paused"), run.reader.pause),
    resume: Effect.andThen(become(undefined), run.reader.resume),
    health: Effect.suspend((): Effect.Effect<Health> => {
      // Nothing that follows makes it run again, and nothing tells more.
      if (run.stoppedAt !== undefined) {
        return Effect.succeed({ state: "stopped", since: run.stoppedAt, reason: run.stoppedBecause })
      }
      return state === undefined ? run.sight.health : Effect.succeed({ state, since, reason: reasons[state] })
    }),
    limit: run.limit,
    owned: Effect.sync(owned),
    counts: Effect.sync(counts),
    await: Deferred.await(run.failure)
  })
})

const reasons = {
  paused: "`pause` was called",
  draining: "the pipeline's scope is closing: running handlers finish",
  stopped: "the pipeline's scope was closed"
}

const sum = (counts: object): number => Object.values(counts).reduce((sum: number, n: number) => sum + n, 0)

/** The drains of the pipelines of one scope. */
const drains = new WeakMap<Scope.Scope, Set<() => Fiber.Fiber<void>>>()

/** Drains when the scope closes; all pipelines of the scope drain at the same time, not one after the other. */
const drainedTogether = (drain: Effect.Effect<void>): Effect.Effect<void, never, Scope.Scope> =>
  Effect.flatMap(Effect.context<Scope.Scope>(), (context) => {
    const scope = Context.get(context, Scope.Scope)
    const begun = drains.get(scope) ?? new Set()
    drains.set(scope, begun)
    let fiber: Fiber.Fiber<void> | undefined
    const begin = () => fiber ??= Effect.runForkWith(context)(drain)
    begun.add(begin)
    return Effect.addFinalizer(() =>
      Effect.suspend(() => {
        for (const other of begun) other()
        begun.delete(begin)
        return Fiber.join(begin())
      })
    )
  })
