/**
 * The contract between pipelines and a broker. `core` knows no broker and transports know no pipeline: they meet here.
 *
 * The comments are the behavioural contract; `Conformance.suite` of `@millrace/testing` checks it.
 *
 * @since 0.1.0
 */
import type * as Arr from "effect/Array"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import type * as Codec from "./Codec.ts"
import type * as Concurrency from "./Concurrency.ts"
import type * as Message from "./Message.ts"
import type { PublishError } from "./Publisher.ts"
import type * as Settlement from "./Settlement.ts"
import type { TransportError } from "./TransportError.ts"

/**
 * One delivery of one message: raw, not yet decoded. Fields may be lazy getters.
 *
 * @category models
 * @since 0.1.0
 */
export interface Delivery extends Codec.Wire {
  /** The broker's id: unique within the topic, the same on every redelivery. */
  readonly id: string
  /** The concrete topic: for a subscription with wildcards, the subject it was published on. */
  readonly topic: string
  readonly key: string | undefined
  readonly headers: Message.Headers
  /** 1-based: how often a handler has been given it, this time included; releases and what was never run do not count. */
  readonly attempt: number
  readonly redelivered: boolean
  /** An earlier delivery was never settled: whoever had it may have died of it. The engine runs such a one alone. */
  readonly suspect: boolean
  /** Milliseconds since the epoch. */
  readonly publishedAt: number
  /** When its first retry was asked for, in whatever process: kept with the retry. Absent where that is not known. */
  readonly firstFailedAt?: number | undefined
}

/**
 * One settlement of one delivery.
 *
 * @category models
 * @since 0.1.0
 */
export interface Settling {
  readonly delivery: Delivery
  readonly settlement: Settlement.Settlement
}

/**
 * What a subscription is for. A transport's own options travel in `settings` (see `Pipeline.fromTransport`).
 *
 * @category models
 * @since 0.1.0
 */
export interface SubscribeOptions {
  readonly topic: string
  readonly group: string
  /** Applies when the group is created; an existing group goes on where it stands. */
  readonly startFrom: "new" | "beginning"
  /** The most deliveries the engine will ever own at once (limits such as `max_ack_pending` follow from it). */
  readonly maxOwned: number
  /** How many retries may wait in this process; at the bound `pull` suspends. */
  readonly waiting: number
  /** The pipeline's handler timeout, where it has one. */
  readonly timeout: Duration.Duration | undefined
  /** Where dead letters go: a source with wildcards must refuse to catch them. */
  readonly deadLetter?: string | undefined
  readonly settings: Context.Context<never>
}

/**
 * A ready subscription. Its scope closes it, after the last `settle`: what was fetched and never pulled is released then.
 * It heals by itself (reconnects with backoff, re-creates what it declared, logs once per episode) for as long as its
 * scope is open; an Effect below fails only with what cannot heal, or, for `settle` and `extend`, with "send it again".
 *
 * @category models
 * @since 0.1.0
 */
export interface Subscription {
  /**
   * Suspends until a delivery is there, then gives at most `max`, new and reclaimed ones alike. `max` is all that the
   * engine will take on top of what it owns: between two pulls a transport may leave the rest asked for, never more.
   * Interrupting it takes the asking back; what arrives all the same is for the next pull. Never called concurrently.
   * A due retry comes back here, to the process that asked for it where the broker allows.
   */
  readonly pull: (max: number) => Effect.Effect<Arr.NonEmptyReadonlyArray<Delivery>, TransportError>
  /**
   * Tells the broker, in order, and returns the deliveries that this consumer no longer owned (nothing was done to
   * them, except that an `ack` by a former owner stands). A failure says that some may not have arrived: the engine
   * calls it again with the same batch, so that must be safe. The next batch may be given before this one is confirmed.
   */
  readonly settle: (
    batch: Arr.NonEmptyReadonlyArray<Settling>
  ) => Effect.Effect<ReadonlyArray<Delivery>, TransportError>
  /** Keeps deliveries from being given to a peer; returns those that this consumer no longer owns. */
  readonly extend: (
    deliveries: Arr.NonEmptyReadonlyArray<Delivery>
  ) => Effect.Effect<ReadonlyArray<Delivery>, TransportError>
  /** How often the engine must extend what it owns; `undefined` where ownership does not run out. */
  readonly extendEvery: Duration.Duration | undefined
  /** Whether messages can be consumed now, not merely whether a socket answers. */
  readonly health: Effect.Effect<Health>
}

/**
 * Whether messages can be consumed now.
 *
 * @category models
 * @since 0.1.0
 */
export type Health = "consuming" | "reconnecting"

/**
 * A message to publish. `id` deduplicates where the broker can, for as long as it can; `delay` postpones delivery.
 *
 * @category models
 * @since 0.1.0
 */
export interface Outgoing extends Codec.Wire {
  readonly topic: string
  readonly headers: Message.Headers
  readonly key: string | undefined
  readonly id: string | undefined
  readonly delay: Duration.Duration | undefined
}

/**
 * The broker has it. `duplicate`: it had it before, under the same id.
 *
 * @category models
 * @since 0.1.0
 */
export interface Published {
  readonly id: string
  readonly duplicate: boolean
}

/**
 * What a broker can do; conformance tests of what it cannot are skipped with this as the printed reason.
 *
 * @category models
 * @since 0.1.0
 */
export interface Capabilities {
  /** A published `id` is recognised as a duplicate. */
  readonly deduplication: boolean
  /** `Outgoing.delay` is honoured. */
  readonly delayedPublish: boolean
  /** `release` leaves the attempt count as it was, also across processes. */
  readonly uncountedRelease: boolean
  /** `settle` and `extend` know whether this consumer still owns a delivery. */
  readonly ownership: boolean
  /** The largest body in bytes; `undefined` where only the server's own limit counts. */
  readonly maxBody: number | undefined
}

/**
 * A broker. Its Layer owns the connections and closes them after the last subscription; everything here may be called
 * from many fibers at once, and publishing works while no subscription is open.
 *
 * @category services
 * @since 0.1.0
 */
export class Transport extends Context.Service<Transport, {
  /** As in errors, spans and `messaging.system`: `redis`, `nats`, `memory`. */
  readonly name: string
  readonly capabilities: Capabilities
  /** The pool that all pipelines on this broker share. */
  readonly limit: Concurrency.Limit
  /** Returns once messages flow, however empty the topic and however long a read may block. */
  readonly subscribe: (options: SubscribeOptions) => Effect.Effect<Subscription, TransportError, Scope.Scope>
  /** Creates the topic, or verifies that what has its name can take messages. */
  readonly declare: (topic: string) => Effect.Effect<void, TransportError>
  /** One result a message, in order. Never retries by itself: only the caller knows whether a repeat is safe. */
  readonly publish: (
    messages: Arr.NonEmptyReadonlyArray<Outgoing>
  ) => Effect.Effect<ReadonlyArray<Result.Result<Published, PublishError>>>
  /** What the topic holds now, oldest first, whoever has consumed it; ends at what was the last when it began. */
  readonly browse: (topic: string) => Stream.Stream<Delivery, TransportError>
  /** Deletes messages from the topic, whatever their state; returns how many there were. */
  readonly remove: (topic: string, ids: Arr.NonEmptyReadonlyArray<string>) => Effect.Effect<number, TransportError>
  readonly health: Effect.Effect<Health>
}>()("@millrace/core/Transport") {}
