/**
 * Runs a pipeline over given messages, on the broker in memory, and shows the outcome of each.
 *
 * Time moves by itself, from one due instant to the next, until nothing is due: a retry of six minutes costs nothing.
 *
 * @since 0.1.0
 */
import * as DeadLetter from "@millrace/core/DeadLetter"
import type * as Message from "@millrace/core/Message"
import * as Pipeline from "@millrace/core/Pipeline"
import type * as Publisher from "@millrace/core/Publisher"
import * as Telemetry from "@millrace/core/Telemetry"
import type * as Topic from "@millrace/core/Topic"
import { type Outgoing, Transport } from "@millrace/core/Transport"
import { outgoing as outgoingOf } from "@millrace/core/TransportAuthor"
import { invalidOption, type TransportError } from "@millrace/core/TransportError"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { isTestClock, liveActivity, rest, Sleepers, type Watched } from "./internal/activity.ts"
import { durationFrom } from "./internal/options.ts"
import * as MemoryTransport from "./MemoryTransport.ts"

/**
 * The outcomes so far, in order.
 *
 * @category models
 * @since 0.1.0
 */
export interface Report {
  /** The result of the last step, for each handled message. */
  readonly handled: ReadonlyArray<{ readonly message: Message.Any; readonly value: unknown }>
  readonly filtered: ReadonlyArray<Message.Any>
  readonly retried: ReadonlyArray<
    { readonly id: string; readonly attempt: number; readonly delay: number; readonly error: unknown }
  >
  /** Everything published, by the test, by the pipeline and as dead letters. */
  readonly published: ReadonlyArray<Outgoing>
  readonly settled: ReadonlyArray<MemoryTransport.Settled>
  readonly deadLettered: ReadonlyArray<{ readonly record: DeadLetter.Record; readonly letter: Outgoing }>
  readonly counts: Pipeline.Counts
}

/**
 * The pipeline did not come to rest, and these messages are not settled: no timer is due, the limit has passed, or the
 * pipeline goes on without end while the clock stands still.
 *
 * @category errors
 * @since 0.1.0
 */
export class NotIdle extends Schema.Error<NotIdle>("@millrace/testing/NotIdle")({
  _tag: Schema.tag("NotIdle"),
  elapsed: Schema.Duration,
  /** Why nothing goes on, and what to do, in one sentence. */
  why: Schema.String,
  groups: Schema.Array(Schema.Struct({
    topic: Schema.String,
    group: Schema.String,
    lag: Schema.Number,
    pending: Schema.Array(Schema.Struct({ id: Schema.String, attempts: Schema.Number })),
    delayed: Schema.Array(Schema.Struct({ id: Schema.String, attempts: Schema.Number, due: Schema.Number }))
  }))
}) {
  override get message(): string {
    const groups = this.groups.map(({ delayed, group, lag, pending, topic }) =>
      `${topic}/${group}: ${lag} not delivered, not settled: [${pending.map(({ id }) => id).join(", ")}], ` +
      `${delayed.length} waiting for a retry`
    )
    return `not idle after ${Duration.format(this.elapsed)}: ${groups.join("; ")}: ${this.why}`
  }
}

/**
 * A running pipeline under test.
 *
 * @category models
 * @since 0.1.0
 */
export interface TestHarness<in A, out R> {
  readonly running: Pipeline.Running
  /** Publishes a value; `subject` is the one it was published on, for a pipeline of `JetStream.from`. */
  readonly publish: (
    value: A,
    options?: Publisher.PublishOptions & { readonly subject?: string | undefined }
  ) => Effect.Effect<void, Publisher.PublishError, R>
  /** Publishes bytes as some other producer might: not decodable, or with headers of its own. */
  readonly publishRaw: (
    body: Uint8Array | string,
    headers?: Message.Headers
  ) => Effect.Effect<void, Publisher.PublishError>
  /** Runs until every message is settled, moving `TestClock` from one due instant to the next, at most `limit`. */
  readonly runUntilIdle: (limit?: Duration.Input) => Effect.Effect<Report, NotIdle>
}

/**
 * As {@link layer}, on whichever clock is there: for handlers that wait for something real, such as a server. Retries take
 * the time that their schedule says.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerLive: Layer.Layer<MemoryTransport.MemoryTransport | Transport> = MemoryTransport.layer({
  history: true,
  // Without a claim there is no heartbeat, so that nothing is due when nothing is left to do.
  minIdle: Duration.infinity
})

/**
 * Provides the broker in memory as the harness needs it, with history and without claims, and a clock of its own: time
 * moves to the next instant at which something is due. Where a `TestClock` is provided already, that one is used.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<MemoryTransport.MemoryTransport | Transport> = Layer.unwrap(
  Clock.clockWith((clock) =>
    Effect.succeed(isTestClock(clock) ? layerLive : Layer.provideMerge(layerLive, TestClock.layer()))
  )
)

/**
 * Starts a pipeline under test; `topic` is its source.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <A, RD, RE, M extends Message.Message<A>, B, E, R>(
  topic: Topic.Topic<A, RD, RE>,
  pipeline: Pipeline.Pipeline<M, B, E, R>
): Effect.Effect<
  TestHarness<A, RE>,
  TransportError,
  R | MemoryTransport.MemoryTransport | Transport | Scope.Scope
> =>
  Effect.gen(function*() {
    const memory = yield* MemoryTransport.MemoryTransport
    const transport = yield* Transport
    const clock = yield* Clock.clockWith((clock) => Effect.sync(() => new Sleepers(clock)))
    const outcomes: Array<Telemetry.Outcome> = []
    let moving: Fiber.Fiber<void> | undefined
    yield* Effect.addFinalizer(() => moving === undefined ? Effect.void : Fiber.interrupt(moving))
    const running = yield* Pipeline.start(pipeline).pipe(
      Effect.provideService(Telemetry.Observer, (outcome) => void outcomes.push(outcome)),
      // Nothing is due when nothing is left to do.
      Effect.provideService(Telemetry.LookInterval, undefined),
      Effect.provideService(Clock.Clock, clock.watched)
    )
    const watched: Watched = { memory, running, clock, outcomes }
    if (clock.isTestClock) {
      yield* Effect.addFinalizer(() =>
        Effect.map(
          Effect.forkDetach(moveWhileDraining(watched), { startImmediately: true }),
          (fiber) => void (moving = fiber)
        )
      )
    }
    if (topic.name !== running.topic) {
      return yield* invalidOption("memory", "topic", topic.name, `the pipeline reads ${running.topic}: give that one`)
    }
    const publish = (outgoing: Outgoing) =>
      Effect.flatMap(transport.publish([outgoing]), (results) => Effect.asVoid(Effect.fromResult(results[0]!)))
    return {
      running,
      publish: (value, { subject, ...options } = {}) =>
        Effect.flatMap(outgoingOf(topic, value, options), (outgoing) => {
          return publish(
            subject === undefined
              ? outgoing
              : { ...outgoing, headers: { ...outgoing.headers, "millrace-subject": subject } }
          )
        }),
      publishRaw: (body, headers) =>
        publish({
          topic: topic.name,
          body: typeof body === "string" ? new TextEncoder().encode(body) : body,
          fields: undefined,
          headers: headers ?? {},
          key: undefined,
          id: undefined,
          delay: undefined
        }),
      runUntilIdle: (limit) =>
        Effect.andThen(
          Effect.suspend(() => untilIdle(watched, durationFrom("runUntilIdle", limit ?? "1 day"))),
          report(memory, running, outcomes)
        )
    }
  })

/**
 * Runs `values` through a pipeline until all are settled, then drains it.
 *
 * **Example** (Testing a pipeline)
 *
 * ```ts import.meta.vitest
 * import { Pipeline, Topic } from "@millrace/core"
 * import { TestHarness } from "@millrace/testing"
 * import { Effect, Schema } from "effect"
 *
 * const Numbers = Topic.make("numbers", { schema: Schema.Number })
 * const doubled = Pipeline.from(Numbers, { group: "double" }).pipe(Pipeline.map((n) => n * 2))
 *
 * const report = await Effect.runPromise(TestHarness.run(Numbers, doubled, [1, 2]).pipe(Effect.provide(TestHarness.layer)))
 * report.handled.map(({ value }) => value) // => [2, 4]
 * ```
 *
 * @category running
 * @since 0.1.0
 */
export const run = <A, RD, RE, M extends Message.Message<A>, B, E, R>(
  topic: Topic.Topic<A, RD, RE>,
  pipeline: Pipeline.Pipeline<M, B, E, R>,
  values: Iterable<NoInfer<A>>
): Effect.Effect<
  Report,
  TransportError | Publisher.PublishError | NotIdle,
  Exclude<R | RE | MemoryTransport.MemoryTransport | Transport, Scope.Scope>
> =>
  Effect.scoped(Effect.gen(function*() {
    const harness = yield* make(topic, pipeline)
    if (!Predicate.isIterable(values) || typeof values === "string") {
      return yield* invalidOption("memory", "values", values, "give an array of values")
    }
    yield* Effect.forEach(values, (value) => harness.publish(value), { discard: true })
    return yield* harness.runUntilIdle()
  })) as any

const report = (
  memory: MemoryTransport.MemoryTransport["Service"],
  running: Pipeline.Running,
  outcomes: ReadonlyArray<Telemetry.Outcome>
): Effect.Effect<Report> =>
  Effect.gen(function*() {
    const published = [...yield* memory.published]
    return {
      handled: outcomes.flatMap((outcome) =>
        outcome._tag === "Handled" ? [{ message: outcome.message!, value: outcome.value }] : []
      ),
      filtered: outcomes.flatMap((outcome) => outcome._tag === "Filtered" ? [outcome.message!] : []),
      retried: outcomes.flatMap((outcome) =>
        outcome._tag === "Retried"
          ? [{
            id: outcome.delivery.id,
            attempt: outcome.delivery.attempt,
            delay: outcome.delay,
            error: thrown(outcome.cause)
          }]
          : []
      ),
      published,
      settled: [...yield* memory.settled],
      deadLettered: published.flatMap((letter) => {
        const record = DeadLetter.fromHeaders(letter.headers)
        return Exit.isSuccess(record) ? [{ record: record.value, letter }] : []
      }),
      counts: yield* running.counts
    }
  })

const untilIdle = (watched: Watched, limit: Duration.Duration): Effect.Effect<void, NotIdle> =>
  Effect.gen(function*() {
    const { clock, memory, running } = watched
    const since = clock.now
    const isGoingRound = goingRound(watched)
    let told = false
    for (;;) {
      const isResting = yield* rest(watched)
      const groups = (yield* memory.groups).filter(({ delayed, group, lag, pending, topic }) =>
        topic === running.topic && group === running.group && lag + pending.length + delayed.length > 0
      )
      const held = yield* running.owned
      if (isResting && groups.length === 0 && held.running + held.waiting === 0) return
      const { due, now } = clock
      const elapsed = Duration.millis(now - since)
      if (Duration.isGreaterThan(elapsed, limit)) {
        const why = `${Duration.format(limit)} are the limit, which \`runUntilIdle(limit)\` moves`
        return yield* new NotIdle({ elapsed, why, groups })
      }
      const outstanding = groups.reduce(
        (sum, { delayed, lag, pending }) => sum + lag + pending.length + delayed.length,
        0
      )
      if (yield* isGoingRound(outstanding)) {
        const why = "the pipeline goes on without end while the clock stands still: does it publish to its own topic?"
        return yield* new NotIdle({ elapsed, why, groups })
      }
      if (!isResting) continue
      // A handler may be waiting for something real: it has 20 ms before the clock moves, or 2 s if nothing can move it.
      const patience = Number.isFinite(due) ? 20 : realPatience
      if (held.running > 0 && (yield* liveActivity(watched, patience))) continue
      if (clock.isTestClock && !Number.isFinite(due)) {
        return yield* new NotIdle({ elapsed, why: yield* whyNot(running, held.running), groups })
      }
      if (clock.isTestClock) yield* clock.moveToDue
      else if (!told && due - now > 1000) {
        told = true
        yield* Effect.logWarning(
          `TestHarness waits ${
            Duration.format(Duration.millis(due - now))
          } for what ${running.name} is due to do next, ` +
            "a retry for example: on TestHarness.layer, or under a TestClock, that takes no time"
        )
      }
    }
  })

/**
 * Whether all work is in vain: after many looks and settlements no fewer messages are outstanding, and the clock has not
 * moved. Work is counted, not real time, so that a slow machine makes no difference.
 */
const goingRound = ({ clock, running }: Watched) => {
  let since = { now: -Infinity, outstanding: Infinity, settled: 0, looks: 0 }
  return (outstanding: number): Effect.Effect<boolean> =>
    Effect.map(running.counts, (counts) => {
      const settled = Object.values(counts).reduce((sum: number, count: number) => sum + count, 0)
      if (outstanding < since.outstanding || clock.now >= since.now + 1) {
        since = { now: clock.now, outstanding, settled, looks: 0 }
      }
      // All that is outstanding may be retried several times at one instant.
      return settled - since.settled > 20_000 + 10 * since.outstanding || ++since.looks > 10_000
    })
}

/** A drain waits on the clock that only the harness moves: a handler that never ends does not hold its test. */
const moveWhileDraining = (watched: Watched): Effect.Effect<void> =>
  Effect.gen(function*() {
    const { clock, running } = watched
    for (;;) {
      yield* liveActivity(watched, 5)
      if (!Number.isFinite(clock.due)) continue
      if ((yield* running.owned).running > 0 && (yield* liveActivity(watched, 500))) continue
      yield* clock.moveToDue
    }
  })

/** Milliseconds that a handler has which may be waiting for something real. */
const realPatience = 2000

const whyNot = (running: Pipeline.Running, handlers: number): Effect.Effect<string> =>
  Effect.map(running.health, ({ state }) => {
    if (handlers > 0) {
      return `${
        handlers === 1 ? "a handler has" : `${handlers} handlers have`
      } not ended after 2 seconds of real time: ` +
        "TestHarness.layerLive waits for as long as it takes, Pipeline.timeout bounds it"
    }
    return state === "consuming" ? "no handler runs, and nothing is due" : `the pipeline is ${state}`
  })

/** The user's own error, also where a promise was rejected with it. */
const thrown = (cause: Cause.Cause<unknown>): unknown => {
  const error = Cause.squash(cause)
  try {
    return Cause.isUnknownError(error) && "cause" in error ? error.cause : error
  } catch {
    // An object that cannot be looked at.
    return error
  }
}
