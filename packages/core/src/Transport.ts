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
import type * as Option from "effect/Option"
import type * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import type * as Codec from "./Codec.ts"
import type * as Concurrency from "./Concurrency.ts"
import type { Headers } from "./internal/headers.ts"
import type { PublishError } from "./internal/publishError.ts"
import type * as Settlement from "./Settlement.ts"
import type { TransportError } from "./TransportError.ts"

/**
 * One delivery of one message: raw, not yet decoded. Fields may be lazy getters.
 *
 * @category models
 * @since 0.1.0
 */
export interface Delivery extends Codec.Wire {
  /** The broker's id: unique within the topic, also when the topic is deleted and created again; equal on redelivery. */
  readonly id: string
  /**
   * Names the place where the message is stored, and its life: the server (or key prefix, account), the stream, and which
   * creation of it. `origin` and `id` together stay unique; ids of outputs and dead letters derive from them.
   */
  readonly origin: string
  /** The concrete topic: for a subscription with wildcards, the subject it was published on. */
  readonly topic: string
  readonly key: string | undefined
  readonly headers: Headers
  /** 1-based: attempts that began, this one included. Releases do not count. */
  readonly attempt: number
  readonly redelivered: boolean
  /** An earlier delivery was never settled: its process may have crashed because of it. A release keeps this flag. */
  readonly suspect: boolean
  /** Milliseconds since the epoch. */
  readonly publishedAt: number
  /**
   * When this retry may run, in milliseconds since the epoch, if that is not now: only where the subscription is
   * `ordered`. The engine waits; a release before that instant keeps it.
   */
  readonly due?: number | undefined
  /** When its first retry was requested, in whatever process: kept with the retry. Absent where that is not known. */
  readonly firstFailedAt?: number | undefined
  /**
   * The broker stores the message no longer: a bound, an operator or eviction deleted it, and nobody else has it. Becomes
   * `true` while the engine has the delivery. Its handler goes on; a retry or release comes to nothing.
   */
  readonly vanished?: boolean | undefined
  /**
   * Read when the delivery is lost. `true`: its lease has ended, and no peer is known to own the message, so that it may be
   * delivered to this process again. Its key waits for it as for a retry.
   */
  readonly mayReturn?: boolean | undefined
  /** Called once by the engine when the delivery was lost before its handler began: its attempt need not count. */
  readonly neverBegan?: (() => void) | undefined
  /**
   * The broker does not deliver it again, and why: an operator's limit, say. It is dead-lettered without another attempt;
   * `attempt` is the one that it would have been.
   */
  readonly givenUp?: string | undefined
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
 * The purpose and the limits of a subscription. A transport's own options travel in `settings` (see `TransportAuthor.fromTransport`).
 *
 * @category models
 * @since 0.1.0
 */
export interface SubscribeOptions {
  /** The topic; a transport whose topics have wildcards finds its filters in `settings`. */
  readonly topic: string
  /** The consumer group; created when absent. */
  readonly group: string
  /** Applies when the group is created; an existing group keeps its position. */
  readonly startFrom: "new" | "beginning"
  /**
   * For how many deliveries at once a limit of the broker, such as `max_ack_pending`, must have room. The engine may ask for
   * more where the prefetch is not fixed.
   */
  readonly maxOwned: number
  /** A suspect whose attempt is this or higher counts against `Demand.suspects`; `Infinity`: none does. */
  readonly isolateFrom: number
  /**
   * The pipeline keeps the order of keys. A retry that waits and whose consumer is gone is delivered at once, before
   * unread messages, with `Delivery.due`: its key has to wait for it.
   */
  readonly ordered?: boolean | undefined
  /** The pipeline's handler timeout, where it has one. */
  readonly timeout: Duration.Duration | undefined
  /** The dead-letter topic: a source with wildcards must refuse to catch it. */
  readonly deadLetter?: string | undefined
  /**
   * To be called with the ids of messages of this group that the broker deleted before they were settled, where the engine
   * has no delivery of them: retries that wait, entries of dead consumers.
   */
  readonly onVanished?: ((ids: ReadonlyArray<string>) => void) | undefined
  /** The transport's own options. */
  readonly settings: Context.Context<never>
}

/**
 * The deliveries that the engine accepts on top of the deliveries that it owns.
 *
 * @category models
 * @since 0.1.0
 */
export interface Demand {
  /** The most deliveries of any kind. Retries that are due come first. */
  readonly total: number
  /**
   * The most deliveries, within `total`, that are not retries of this process. With 0 only a due retry is wanted. A
   * broker that chooses the messages by itself is asked for as many messages as there are due retries.
   */
  readonly fresh: number
  /**
   * The most suspects, within `total`, from `isolateFrom` on. A transport that receives more keeps them, extended and
   * not begun, or releases them after a delay.
   */
  readonly suspects: number
  /** About how many bytes of bodies; a transport that cannot bound bytes ignores it. At least one message is given. */
  readonly bytes: number
}

/**
 * Where messages are, by their ids. A message that is in neither list may come, or be with a peer.
 *
 * @category models
 * @since 0.1.0
 */
export interface Located {
  /** Settled for certain, by a peer. */
  readonly settled: ReadonlyArray<string>
  /** Delivered to this process, and kept by the transport until a pull takes it. */
  readonly held: ReadonlyArray<string>
}

/**
 * A ready subscription. Its scope closes it, after the last `settle`: fetched deliveries that were never pulled are
 * released then. It heals by itself (reconnects with backoff, re-creates its declarations, logs once per episode) for as
 * long as its scope is open; an Effect below fails only with errors that cannot heal, or, for `settle`, `extend` and `begin`,
 * with "send it again".
 *
 * @category models
 * @since 0.1.0
 */
export interface Subscription {
  /**
   * Suspends until a delivery is there, then returns at most as many as the demand allows, new and reclaimed ones alike. Each
   * pull replaces the demand of the last one; between two pulls a transport may leave the rest requested, never more.
   * Interrupting a pull stops waiting and cancels nothing at the broker: see `withdraw`. Never called concurrently.
   *
   * Order: a released or reclaimed message is returned before unread ones of the same stream, so that the order of a
   * key survives a planned restart of the only consumer. A due retry comes back to the process that requested it where
   * the broker allows.
   *
   * A delivery that is neither settled nor extended is delivered again when its lease ends, also to this consumer.
   */
  readonly pull: (demand: Demand) => Effect.Effect<Arr.NonEmptyReadonlyArray<Delivery>, TransportError>
  /**
   * Cancels the open request at the broker. After it, nothing new arrives until the next `pull`; deliveries that have
   * arrived are returned by the next `pull`, or released when the subscription closes.
   */
  readonly withdraw: Effect.Effect<void>
  /**
   * Tells the broker, in order, and returns the deliveries that this consumer no longer owned (nothing was done to
   * them, except that an `Ack` by a former owner stands), and those whose retry or release came to nothing because they
   * have `vanished`. A settlement belongs to one delivery, not to a message: once
   * the message has been delivered again, in any process, an earlier delivery's settlement changes nothing.
   *
   * A failure says that some may not have arrived: the engine calls `settle` again with the same batch, so that must be
   * safe, and a settlement that had arrived is not lost. A settlement that the broker refuses for its content is logged and must not fail its neighbours. The next
   * batch may be given before this one is confirmed.
   */
  readonly settle: (
    batch: Arr.NonEmptyReadonlyArray<Settling>
  ) => Effect.Effect<ReadonlyArray<Delivery>, TransportError>
  /**
   * What the group has still to do, where the topic alone does not tell `Transport.groups` which it is: a source with
   * filters of its own. `undefined`: the group is gone.
   */
  readonly group?: Effect.Effect<GroupInfo | undefined, TransportError> | undefined
  /** Renews the lease of deliveries; returns those that this consumer no longer owns. Fenced like `settle`. */
  readonly extend: (
    deliveries: Arr.NonEmptyReadonlyArray<Delivery>
  ) => Effect.Effect<ReadonlyArray<Delivery>, TransportError>
  /**
   * Records at the broker that the attempt of a suspect from `isolateFrom` on begins now; until then a crash of this
   * process must not count it. The engine calls it before the handler. Returns `false` when this consumer no longer owns
   * the delivery.
   */
  readonly begin: (delivery: Delivery) => Effect.Effect<boolean, TransportError>
  /**
   * Finds messages that could have come again and have not: asked every few seconds while there are any. A key waits no
   * longer for one that is settled, and as long as it takes for one that is held. Absent where a broker cannot know.
   */
  readonly locate?: ((ids: Arr.NonEmptyReadonlyArray<string>) => Effect.Effect<Located, TransportError>) | undefined
  /** How long ownership lasts without an extension; `undefined` where ownership does not end. */
  readonly lease: Duration.Duration | undefined
  /** Whether messages can be consumed now, not merely whether a socket answers. */
  readonly health: Effect.Effect<Health>
  /** The name of this consumer at the broker: `messaging.client.id` of spans. Absent where it has none. */
  readonly clientId?: string | undefined
}

/**
 * Whether messages can be consumed now.
 *
 * - `consuming`: yes
 * - `reconnecting`: no connection, or the declared things are being created again
 * - `impaired`: connected, and the broker refuses something: it is full, a permission is missing, settlements are not
 *   confirmed, a consumer was edited
 *
 * `since` is in milliseconds since the epoch. `reason` is one sentence without secrets, absent while `consuming`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Health {
  readonly state: "consuming" | "reconnecting" | "impaired"
  readonly since: number
  readonly reason?: string | undefined
}

/**
 * A message to publish. `id` deduplicates where the broker can, for as long as it can; `delay` postpones delivery.
 *
 * @category models
 * @since 0.1.0
 */
export interface Outgoing extends Codec.Wire {
  readonly topic: string
  readonly headers: Headers
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
 * The abilities of a broker; conformance tests of the others are skipped with this as the printed reason.
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
  /**
   * Released messages keep the order of the stream, however often the only consumer is restarted while they wait: where
   * the subscription is `ordered`, at least.
   */
  readonly orderedRelease: boolean
  /** `settle` and `extend` know whether this consumer still owns a delivery. */
  readonly ownership: boolean
  /** The largest body in bytes; `undefined` where only the server's own limit counts. */
  readonly maxBody: number | undefined
}

/**
 * Which stored messages of a topic to read. Bounds are ids and exclusive; by default all, oldest first.
 *
 * @category models
 * @since 0.1.0
 */
export interface BrowseOptions {
  /** Only messages stored after, or before, the message of this id, which need not exist any more. */
  readonly after?: string | undefined
  /** Only messages stored after, or before, the message of this id, which need not exist any more. */
  readonly before?: string | undefined
  /** Newest first. */
  readonly reverse?: boolean | undefined
  /** At most so many; a page costs requests in proportion to it, not to the topic. */
  readonly limit?: number | undefined
}

/**
 * The work that a group of a topic has left. A number that the server cannot know is absent, never 0.
 *
 * @category models
 * @since 0.1.0
 */
export interface GroupInfo {
  readonly group: string
  /** Stored and never delivered to this group. */
  readonly lag?: number | undefined
  /** Delivered and not settled, retries that wait included. */
  readonly pending?: number | undefined
  /** When the oldest message that is unsettled or undelivered was published, in milliseconds since the epoch. */
  readonly oldest?: number | undefined
  /** Those that the broker knows; JetStream does not name them. */
  readonly consumers?: ReadonlyArray<ConsumerInfo> | undefined
}

/**
 * A consumer of a group. `idle`: milliseconds since it was last heard of.
 *
 * @category models
 * @since 0.1.0
 */
export interface ConsumerInfo {
  readonly name: string
  readonly pending: number
  readonly idle: number
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
  /** Where the broker is, without user and password, as in logs and spans: `localhost:6379`. */
  readonly address: string
  readonly capabilities: Capabilities
  /** The pool that all pipelines on this broker share. */
  readonly limit: Concurrency.Limit
  /** Says how to mend a name that this broker cannot take; `undefined` when the name is fine. */
  readonly nameRemedy: (kind: "topic" | "group", name: string) => string | undefined
  /** Returns once messages flow, however empty the topic and however long a read may block. */
  readonly subscribe: (options: SubscribeOptions) => Effect.Effect<Subscription, TransportError, Scope.Scope>
  /** Creates the topic, or verifies that the existing one keeps messages. Bounds of sources do not apply to dead letters. */
  readonly declare: (topic: string, purpose: "output" | "deadLetter") => Effect.Effect<void, TransportError>
  /**
   * One result per message, in order. Never retries by itself: only the caller knows whether a repeat is safe. `id`
   * belongs to a topic: the same id in two topics is two messages.
   */
  readonly publish: (
    messages: Arr.NonEmptyReadonlyArray<Outgoing>
  ) => Effect.Effect<ReadonlyArray<Result.Result<Published, PublishError>>>
  /** Streams stored messages, consumed or not. Ends at the message that was last when the stream started. */
  readonly browse: (topic: string, options?: BrowseOptions) => Stream.Stream<Delivery, TransportError>
  /** Reads one stored message by its id, in one request. */
  readonly get: (topic: string, id: string) => Effect.Effect<Option.Option<Delivery>, TransportError>
  /** The groups of a topic; empty when the topic does not exist. */
  readonly groups: (topic: string) => Effect.Effect<ReadonlyArray<GroupInfo>, TransportError>
  /** Deletes messages from the topic, whatever their state; returns how many there were. */
  readonly remove: (topic: string, ids: Arr.NonEmptyReadonlyArray<string>) => Effect.Effect<number, TransportError>
  readonly health: Effect.Effect<Health>
}>()("@millrace/core/Transport") {}
