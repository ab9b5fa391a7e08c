import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import * as Tracer from "effect/Tracer"
import { isLimit } from "../Concurrency.ts"
import type { Running } from "../Pipeline.ts"
import type { TransportError } from "../TransportError.ts"
import { drain } from "./drain.ts"
import { Engine } from "./engine.ts"
import { Prefetch } from "./prefetch.ts"
import type { Program } from "./program.ts"
import { batchSize, outputs, timeoutOf, validate } from "./validate.ts"

/** Checks, declares, subscribes, and begins to read; closing the scope drains. */
export const start = Effect.fnUntraced(function*(
  program: Program
): Effect.fn.Return<Running, TransportError, Scope.Scope> {
  const { source } = program
  const transport = yield* source.transport
  const bad = validate(program, transport.name)
  if (bad !== undefined) return yield* bad
  for (const topic of outputs(program)) yield* transport.declare(topic)

  const { concurrency, key, settings } = program.policies
  const limit = isLimit(concurrency) ? concurrency.ceiling : concurrency
  const subscription = yield* transport.subscribe({
    topic: source.topic.name,
    group: source.group,
    startFrom: source.startFrom,
    maxOwned: limit * batchSize(program) + (source.prefetch ?? Prefetch.most) + (key === undefined ? 0 : source.waiting),
    waiting: source.waiting,
    timeout: timeoutOf(program),
    settings
  })
  // A message is not part of the span that its pipeline happened to be started in.
  const context = Context.omit(Tracer.ParentSpan)(yield* Effect.context<never>())
  const engine = new Engine(program, transport, subscription, context)

  let reader: Fiber.Fiber<void> | undefined
  const read = Effect.sync(() => {
    reader = engine.run(Effect.catchCause(engine.read, (cause) => {
      if (Cause.hasInterruptsOnly(cause)) return Effect.void
      Deferred.doneUnsafe(engine.failure, Exit.failCause(cause))
      return Effect.logError(`${program.name} can no longer run`, cause)
    }))
  })
  const stopReading = Effect.suspend(() => reader === undefined ? Effect.void : Fiber.interrupt(reader))
  if (subscription.extendEvery !== undefined) {
    yield* engine.extend.pipe(Effect.delay(subscription.extendEvery), Effect.forever, Effect.forkScoped)
  }
  yield* Effect.addFinalizer(() => drain(engine, stopReading, source.drainTimeout))
  yield* read

  return {
    name: program.name,
    topic: source.topic.name,
    group: source.group,
    pause: Effect.suspend(() => {
      engine.paused = true
      return stopReading
    }),
    resume: Effect.suspend(() => {
      if (!engine.paused || engine.draining) return Effect.void
      engine.paused = false
      return read
    }),
    health: Effect.suspend(() => engine.paused ? Effect.succeed("paused" as const) : subscription.health),
    limit: engine.limit,
    owned: Effect.sync(() => ({ waiting: engine.waiting, running: engine.inUse })),
    counts: Effect.sync(() => ({ ...engine.counts })),
    await: Deferred.await(engine.failure)
  }
})
