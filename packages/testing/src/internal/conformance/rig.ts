import type * as Message from "@millrace/core/Message"
import * as Pipeline from "@millrace/core/Pipeline"
import * as Publisher from "@millrace/core/Publisher"
import * as Settlement from "@millrace/core/Settlement"
import * as Telemetry from "@millrace/core/Telemetry"
import * as Topic from "@millrace/core/Topic"
import {
  type BrowseOptions,
  type Capabilities,
  type Delivery,
  type Demand,
  type Outgoing,
  type Published,
  type SubscribeOptions,
  type Subscription,
  Transport
} from "@millrace/core/Transport"
import * as TransportAuthor from "@millrace/core/TransportAuthor"
import * as Arr from "effect/Array"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type * as Proxy from "../../Proxy.ts"
import * as Wait from "../../Wait.ts"

type TransportService = Transport["Service"]

/** What a test is run on. */
export class Rig extends Context.Service<Rig, {
  readonly transport: TransportService
  readonly capabilities: Capabilities
  /** Another process of the same broker. */
  readonly connect: Effect.Effect<TransportService, unknown, Scope.Scope>
  readonly restart: Effect.Effect<unknown, unknown>
  readonly cut: Effect.Effect<unknown, unknown>
  readonly halfOpen: Effect.Effect<unknown, unknown>
  readonly shape: (shape: Proxy.Shape) => Effect.Effect<unknown, unknown>
  readonly refuse: Effect.Effect<unknown, unknown, Scope.Scope>
  readonly changeLeader: Effect.Effect<unknown, unknown>
  readonly deleteTopic: (topic: string) => Effect.Effect<unknown, unknown>
  readonly deleteGroup: (topic: string, group: string) => Effect.Effect<unknown, unknown>
  readonly deleteConsumers: (topic: string, group: string) => Effect.Effect<unknown, unknown>
  readonly unreachable: Effect.Effect<unknown, unknown, Scope.Scope>
  /** How long an unsettled message stays with a consumer that says nothing, in milliseconds. */
  readonly claimAfter: number
  readonly clock: "test" | "live"
}>()("@millrace/testing/internal/conformance/Rig") {}

/**
 * A need of a test: a part of `Target`, or a capability that the transport declares.
 *
 * @category models
 * @since 0.1.0
 */
export type Need =
  | "connect"
  | "restart"
  | "cut"
  | "halfOpen"
  | "shape"
  | "refuse"
  | "changeLeader"
  | "deleteTopic"
  | "deleteGroup"
  | "deleteConsumers"
  | "unreachable"
  | "testClock"
  | "deduplication"
  | "delayedPublish"
  | "uncountedRelease"
  | "orderedRelease"
  | "ownership"
  | "maxBody"

export interface Test {
  readonly id: string
  /** The law of DESIGN.md that it proves, or the contract of `Transport.ts`. */
  readonly law: "contract" | `law ${1 | 2 | 3 | 4 | 5 | 6 | 7 | 8}`
  readonly title: string
  readonly needs: ReadonlyArray<Need>
  /** Disturbs others, or is disturbed by them. */
  readonly alone: boolean
  readonly run: Effect.Effect<void, unknown, Rig | Scope.Scope>
}

export const test = (
  id: string,
  law: Test["law"],
  title: string,
  run: () => Effect.fn.Return<void, unknown, Rig | Scope.Scope>,
  options?: { readonly needs?: ReadonlyArray<Need>; readonly alone?: boolean }
): Test => ({ id, law, title, needs: options?.needs ?? [], alone: options?.alone ?? false, run: Effect.gen(run) })

// --- time

export const { pass, until } = Wait

/** Asks again until the answer is right. */
export const eventually = <A, E, R>(
  what: string,
  question: Effect.Effect<A, E, R>,
  isRight: (answer: A) => boolean
): Effect.Effect<A, E, R> => Wait.eventually(what, bounded(what, question), isRight)

/** Runs an effect that must end: no test asserts how fast something is, this only ends one that waits in vain. */
export const bounded = <A, E, R>(
  what: string,
  effect: Effect.Effect<A, E, R>,
  within?: Duration.Input
): Effect.Effect<A, E, R> =>
  Effect.gen(function*() {
    const fiber = yield* Effect.forkChild(effect, { startImmediately: true })
    let exit = fiber.pollUnsafe()
    if (exit === undefined) {
      yield* until(what, () => (exit = fiber.pollUnsafe()) !== undefined, within)
    }
    return yield* exit!
  })

// --- topics and publishing

let topics = 0
const run = Math.random().toString(36).slice(2, 8)

/** A name that no other test uses. */
export const fresh = (name: string): string => `${name}-${run}-${++topics}`

export const numbers = (name: string): Topic.Topic<number> => Topic.make(fresh(name), { schema: Schema.Number })

export const rename = <A>(topic: Topic.Topic<A>, name: string): Topic.Topic<A> =>
  Topic.make(name, { codec: topic.codec, key: topic.key })

export const publish = <A>(
  transport: TransportService,
  topic: Topic.Topic<A>,
  values: Iterable<NoInfer<A>>,
  options?: (value: A, index: number) => Publisher.PublishOptions
): Effect.Effect<ReadonlyArray<Published>, Publisher.PublishError, Rig> =>
  bounded(
    `the broker takes what is published to ${topic.name}`,
    Effect.provideService(Publisher.publishAll(topic, values, options), Transport, transport)
  )

export const outgoing = (topic: string, body: string | Uint8Array, more?: Partial<Outgoing>): Outgoing => ({
  topic,
  body: typeof body === "string" ? new TextEncoder().encode(body) : body,
  headers: {},
  key: undefined,
  id: undefined,
  delay: undefined,
  ...more
})

export const textOf = (delivery: { readonly body: Uint8Array }): string => new TextDecoder().decode(delivery.body)

export const browse = (
  transport: TransportService,
  topic: string,
  options?: BrowseOptions
): Effect.Effect<ReadonlyArray<Delivery>, unknown, Rig> =>
  bounded(`${topic} can be browsed`, Stream.runCollect(transport.browse(topic, options)))

/** A retry schedule of one delay. */
export const after = (millis: number): Schedule.Schedule<unknown> => Schedule.spaced(millis)

export const range = (length: number): ReadonlyArray<number> => Array.from({ length }, (_, index) => index)

// --- subscriptions

export const subscribing = (topic: string, options?: Partial<SubscribeOptions>): SubscribeOptions => ({
  topic,
  group: "g",
  startFrom: "beginning",
  maxOwned: 1000,
  isolateFrom: Infinity,
  ordered: false,
  timeout: undefined,
  settings: Context.empty(),
  ...options
})

export interface Subscribed extends Subscription {
  readonly close: Effect.Effect<void, never, Rig>
}

/** A subscription that the test can close before it ends. */
export const subscribe = (
  transport: TransportService,
  topic: string,
  options?: Partial<SubscribeOptions>
): Effect.Effect<Subscribed, unknown, Rig | Scope.Scope> =>
  Effect.gen(function*() {
    const scope = yield* Scope.fork(yield* Effect.scope)
    const subscription = yield* bounded(
      `a subscription to ${topic} is ready`,
      Scope.provide(transport.subscribe(subscribing(topic, options)), scope)
    )
    return { ...subscription, close: bounded("the subscription closes", Scope.close(scope, Exit.void)) }
  })

/** `total` deliveries of any kind. */
export const demand = (total: number): Demand => ({ total, fresh: total, suspects: total, bytes: Infinity })

/** Pulls until there are `count`. */
export const take = (
  subscription: Subscription,
  count: number
): Effect.Effect<ReadonlyArray<Delivery>, unknown, Rig> =>
  bounded(
    `${count} deliveries`,
    Effect.gen(function*() {
      const taken: Array<Delivery> = []
      while (taken.length < count) taken.push(...yield* subscription.pull(demand(count - taken.length)))
      return taken
    })
  )

export const one = (subscription: Subscription): Effect.Effect<Delivery, unknown, Rig> =>
  Effect.map(take(subscription, 1), ([delivery]) => delivery!)

/** What a transport is told: the plain settlements, which handlers request by failing. */
export const retry = (after?: Duration.Input): Settlement.Settlement => Settlement.retry(after).settlement
export const terminate = (reason: string): Settlement.Settlement => Settlement.terminate(reason).settlement

export const settle = (
  subscription: Subscription,
  deliveries: Delivery | ReadonlyArray<Delivery>,
  settlement: Settlement.Settlement
): Effect.Effect<ReadonlyArray<Delivery>, unknown, Rig> => {
  const batch = Arr.ensure(deliveries).map((delivery) => ({ delivery, settlement }))
  return Arr.isArrayNonEmpty(batch)
    ? bounded("the broker takes a settlement", Effect.suspend(() => subscription.settle(batch)))
    : Effect.succeed([])
}

/** Acknowledges whatever comes, for so long or until there are `count`. */
export const gather = (
  subscription: Subscription,
  millis: number,
  count = Infinity
): Effect.Effect<ReadonlyArray<Delivery>, never, Rig> =>
  Effect.scoped(Effect.gen(function*() {
    const taken: Array<Delivery> = []
    const pulling = Effect.flatMap(subscription.pull(demand(10)), (deliveries) => {
      taken.push(...deliveries)
      return subscription.settle(Arr.map(deliveries, (delivery) => ({ delivery, settlement: Settlement.ack })))
    })
    yield* Effect.forkScoped(Effect.forever(pulling))
    const end = (yield* Clock.currentTimeMillis) + millis
    while (taken.length < count && (yield* Clock.currentTimeMillis) < end) yield* Wait.tick
    return taken
  }))

export const texts = (deliveries: ReadonlyArray<Delivery>): ReadonlyArray<string> => deliveries.map(textOf)

// --- processes

/** A process that the test can end, or stop for a while, without its having a say in it. */
export interface Process {
  readonly transport: TransportService
  /** It says nothing more, and what it had taken stays with it as far as the broker knows. */
  readonly crash: Effect.Effect<void>
  readonly freeze: Effect.Effect<void>
  readonly thaw: Effect.Effect<void>
}

/**
 * A process of its own. Its connection is closed with the test; when it crashes its subscriptions are closed without
 * anything being settled.
 */
export const connect: Effect.Effect<Process, unknown, Rig | Scope.Scope> = Effect.gen(function*() {
  const rig = yield* Rig
  const inner = yield* bounded("another process connects", rig.connect)
  const death = yield* Deferred.make<void>()
  const awake = Latch.makeUnsafe(true)
  const scopes = new Set<Scope.Closeable>()
  let alive = true
  // Lazily: a transport may do its work when it is called and answer with an Exit.
  const living = <A, E, R>(f: () => Effect.Effect<A, E, R>, dead: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.andThen(awake.await, Effect.suspend(() => alive ? f() : dead))
  const untilDeath = <A, E, R>(f: () => Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    living(() =>
      Effect.flatten(
        Effect.raceFirst(
          Effect.map(Effect.suspend(f), Effect.succeed<A>),
          Effect.as(Deferred.await(death), Effect.never)
        )
      ), Effect.never)
  const transport: TransportService = {
    ...inner,
    publish: (messages) => untilDeath(() => inner.publish(messages)),
    subscribe: (options) =>
      Effect.gen(function*() {
        const scope = yield* Scope.fork(yield* Effect.scope)
        scopes.add(scope)
        const subscription = yield* Scope.provide(inner.subscribe(options), scope)
        return {
          ...subscription,
          pull: (demand) => untilDeath(() => subscription.pull(demand)),
          withdraw: living(() => subscription.withdraw, Effect.void),
          settle: (batch) => living(() => subscription.settle(batch), Effect.succeed([])),
          extend: (deliveries) => living(() => subscription.extend(deliveries), Effect.succeed([])),
          begin: (delivery) => living(() => subscription.begin(delivery), Effect.succeed(false))
        }
      })
  }
  return {
    transport,
    crash: Effect.suspend(() => {
      alive = false
      awake.openUnsafe()
      Deferred.doneUnsafe(death, Exit.void)
      return Effect.forEach([...scopes], (scope) => Scope.close(scope, Exit.void), { discard: true })
    }),
    freeze: awake.close,
    thaw: awake.open
  }
})

// --- pipelines

export const from = <A>(
  transport: TransportService,
  topic: Topic.Topic<A>,
  options?: Partial<Pipeline.FromOptions>
): Pipeline.Open<Message.Message<A>, A> =>
  TransportAuthor.fromTransport(topic, { group: "g", startFrom: "beginning", drainTimeout: "10 seconds", ...options }, {
    transport: Effect.succeed(transport)
  })

export interface Started {
  readonly running: Pipeline.Running
  readonly outcomes: ReadonlyArray<Telemetry.Outcome>
  /** Drains it. */
  readonly stop: Effect.Effect<void, never, Rig>
}

export const start = <M extends Message.Any, A, E>(
  pipeline: Pipeline.Pipeline<M, A, E>
): Effect.Effect<Started, unknown, Rig | Scope.Scope> =>
  Effect.gen(function*() {
    const scope = yield* Scope.fork(yield* Effect.scope)
    const outcomes: Array<Telemetry.Outcome> = []
    const running = yield* bounded(
      `${pipeline.name} starts`,
      Pipeline.start(pipeline).pipe(
        Effect.provideService(Telemetry.Observer, (outcome) => void outcomes.push(outcome)),
        Effect.provideService(Scope.Scope, scope)
      )
    )
    return { running, outcomes, stop: bounded(`${pipeline.name} drains`, Scope.close(scope, Exit.void)) }
  })

/** Runs a test as `Conformance.suite` does: what it leaves open must close. */
export const conduct = (self: Test): Effect.Effect<void, unknown, Rig> =>
  Effect.gen(function*() {
    const scope = yield* Scope.make()
    const exit = yield* Effect.exit(Scope.provide(self.run, scope))
    yield* bounded(`what ${self.id} left open closes`, Scope.close(scope, exit), 60_000)
    return yield* exit
  })
