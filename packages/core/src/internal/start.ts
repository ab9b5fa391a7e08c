import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Tracer from "effect/Tracer"
import { isLimit } from "../Concurrency.ts"
import type { Health, Running } from "../Pipeline.ts"
import type { TransportError } from "../TransportError.ts"
import { drain } from "./drain.ts"
import { Engine } from "./engine.ts"
import { Prefetch } from "./prefetch.ts"
import type { Program } from "./program.ts"
import { advise, claimGroup, warnIfStoppedAtOnce } from "./startup.ts"
import { batchSize, deadLetterTopic, outputs, timeoutOf, validate } from "./validate.ts"

/** Checks, declares, subscribes, and begins to read; closing the scope drains. */
export const start = Effect.fnUntraced(function*(
  program: Program
): Effect.fn.Return<Running, TransportError, Scope.Scope> {
  const { source } = program
  const transport = yield* source.transport
  const bad = validate(program, transport)
  if (bad !== undefined) return yield* bad
  yield* claimGroup(program, transport)
  yield* advise(program)
  const { concurrency, key, settings } = program.policies
  const limit = isLimit(concurrency) ? concurrency.ceiling : concurrency
  const maxOwned = limit * batchSize(program) + (source.prefetch ?? Prefetch.most) +
    (key === undefined ? 0 : source.waiting)
  const subscription = yield* transport.subscribe({
    topic: source.topic.name,
    group: source.group,
    startFrom: source.startFrom,
    maxOwned,
    isolateFrom: 2,
    timeout: timeoutOf(program),
    deadLetter: deadLetterTopic(program),
    settings
  })
  // After the source: a source that cannot be must not leave topics behind.
  for (const topic of outputs(program)) {
    yield* transport.declare(topic, topic === deadLetterTopic(program) ? "deadLetter" : "output")
  }
  // A message is not part of the span that its pipeline happened to be started in.
  const context = Context.omit(Tracer.ParentSpan)(yield* Effect.context<never>())
  const engine = new Engine(program, transport, subscription, context, maxOwned)

  let reader: Fiber.Fiber<void> | undefined
  const read = Effect.sync(() => {
    reader = engine.run(Effect.catchCause(engine.read, (cause) => {
      if (Cause.hasInterruptsOnly(cause)) return Effect.void
      Deferred.doneUnsafe(engine.failure, Exit.failCause(cause))
      return Effect.logError(`${program.name} can no longer run`, cause)
    }))
  })
  const stopReading = Effect.suspend(() =>
    reader === undefined ? Effect.void : Effect.andThen(Fiber.interrupt(reader), subscription.withdraw)
  )
  if (subscription.lease !== undefined) {
    const every = Duration.times(subscription.lease, 1 / 3)
    yield* engine.extend.pipe(Effect.delay(every), Effect.forever, Effect.forkScoped)
  }
  // One after the other: a second reader must not begin before the first has given its asking back.
  const inTurn = Semaphore.makeUnsafe(1)
  let paused = false
  const readOn = Effect.suspend(() => paused || engine.draining ? Effect.void : read)
  engine.takeBack = inTurn.withPermit(Effect.andThen(stopReading, readOn))
  const startedAt = performance.now()
  yield* Effect.addFinalizer((exit) =>
    warnIfStoppedAtOnce(program, exit, { messages: engine.waiting + engine.inUse + sum(engine.counts), startedAt })
  )
  yield* Effect.addFinalizer(() => drain(engine, inTurn.withPermit(stopReading), source.drainTimeout))
  yield* read
  return {
    name: program.name,
    topic: source.topic.name,
    group: source.group,
    pause: inTurn.withPermit(Effect.suspend(() => {
      paused = true
      return stopReading
    })),
    resume: inTurn.withPermit(Effect.suspend(() => {
      if (!paused) return Effect.void
      paused = false
      return readOn
    })),
    health: Effect.suspend((): Effect.Effect<Health> =>
      Deferred.isDoneUnsafe(engine.failure)
        ? Effect.succeed({ state: "stopped" as const, since: 0 })
        : paused
        ? Effect.succeed({ state: "paused" as const, since: 0 })
        : subscription.health
    ),
    limit: engine.limit,
    owned: Effect.sync(() => ({ waiting: engine.waiting, running: engine.inUse })),
    counts: Effect.sync(() => ({ ...engine.counts })),
    await: Deferred.await(engine.failure)
  }
})

const sum = (counts: object): number => Object.values(counts).reduce((sum: number, n: number) => sum + n, 0)
