/**
 * What can be said to the JetStream transport, and what it tells: types only.
 *
 * @since 0.1.0
 */
import type * as Concurrency from "@millrace/core/Concurrency"
import type * as Message from "@millrace/core/Message"
import type * as Publisher from "@millrace/core/Publisher"
import type { DurationHint, SecretHint } from "@millrace/core/TransportAuthor"
import type { StreamConfig } from "@nats-io/jetstream"
import type { TlsOptions } from "@nats-io/nats-core"
import type * as Arr from "effect/Array"
import type * as DateTime from "effect/DateTime"
import type * as Duration from "effect/Duration"
import type * as Redacted from "effect/Redacted"

/**
 * What a layer does with the streams and consumers that its pipelines need.
 *
 * - `"create"`: those that are absent are created; those that exist are verified. A stream that Millrace created, or that
 *   `stream` declares, is given further subjects when a pipeline needs them. Nothing else is ever changed (default)
 * - `"verify"`: all must exist as they are needed
 * - `"none"`: as `"verify"`, and no bucket for attempts is looked for: a message that is released counts an attempt
 *
 * @category models
 * @since 0.1.0
 */
export type Manage = "create" | "verify" | "none"

/**
 * How a stream is created.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamBounds {
  /** Default `"file"`; `replicas`: default 1. */
  readonly storage?: "file" | "memory" | undefined
  /** On how many servers. Default 1. */
  readonly replicas?: number | undefined
  /** Beyond them the oldest messages are removed; default none. */
  readonly maxAge?: Duration.Input | DurationHint | undefined
  /** Beyond them the oldest messages are removed; default none. */
  readonly maxMessages?: number | undefined
  /** Beyond them the oldest messages are removed; default none. */
  readonly maxBytes?: number | undefined
  /** How long the server remembers message ids; default 2 minutes. */
  readonly duplicateWindow?: Duration.Input | DurationHint | undefined
  /** Further options under the server's own names. */
  readonly config?: Partial<StreamConfig> | undefined
}

/**
 * How the streams of sources and outputs are created; options that are given are verified on streams that exist.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamOptions extends StreamBounds {
  /** The name of that stream; default the topic's, with `.` as `_`. */
  readonly name?: string | undefined
  /**
   * A family of subjects that one stream takes, such as `["orders", "orders.>"]`. Every topic and filter in it is
   * found there, whichever program starts first. Other topics have streams of their own.
   */
  readonly subjects?: Arr.NonEmptyReadonlyArray<string> | undefined
}

/**
 * Options that do not concern the connection itself.
 *
 * @category models
 * @since 0.1.0
 */
export interface CommonOptions {
  /**
   * Handlers that run at once, of all pipelines on this layer together: a number, or a `Concurrency.Limit` that may
   * be resized or shared with other layers; default unbounded.
   */
  readonly concurrency?: number | Concurrency.Limit | undefined
  /** What is done with streams and consumers that are absent. Default `"create"`. */
  readonly manage?: Manage | undefined
  /**
   * `"until-acked"` makes work queues: a message is gone when its group has settled it. Default: streams keep what
   * they take, within the bounds of `stream`.
   */
  readonly retention?: "limits" | "until-acked" | undefined
  /** Of streams that are created for sources and outputs. */
  readonly stream?: StreamOptions | undefined
  /**
   * Of streams that are created for dead letters; the bounds of `stream` do not apply to them. Default: storage and
   * replicas as in `stream`, no bound.
   */
  readonly deadLetterStream?: StreamBounds | undefined
  /**
   * How long the server waits for a sign of life, and so how soon a peer gets the messages of a process that died; of
   * consumers that are created, default 30 seconds. Long handlers are kept alive.
   */
  readonly ackWait?: Duration.Input | DurationHint | undefined
  /** How long a confirmation may take; default 5 seconds. */
  readonly publishTimeout?: Duration.Input | DurationHint | undefined
  /** The JetStream domain. */
  readonly domain?: string | undefined
  /** Instead of `domain`, where an account imports the API under another name. */
  readonly apiPrefix?: string | undefined
  /** For users that may only subscribe below it, default `_INBOX`; a connection made elsewhere needs it too. */
  readonly inboxPrefix?: string | undefined
}

/**
 * Options of `JetStream.layer`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options extends CommonOptions {
  /** `nats://host:port` or `tls://host:port`, several separated by commas; with `user:password@` or `token@`. */
  readonly url: string | Redacted.Redacted<string>
  /** The name of the connection, as the server shows it. */
  readonly name?: string | undefined
  /** A token, instead of a user and a password. */
  readonly token?: Redacted.Redacted<string> | SecretHint | undefined
  /** The text of a credentials file. */
  readonly credentials?: Redacted.Redacted<string> | SecretHint | undefined
  /** The seed of a user without a credentials file. */
  readonly nkey?: Redacted.Redacted<string> | SecretHint | undefined
  /** Certificates, as texts or files; a `tls://` URL needs none of its own where a known authority vouches. */
  readonly tls?: TlsOptions | undefined
  /** Until the first connection; default 10 seconds. */
  readonly connectTimeout?: Duration.Input | DurationHint | undefined
}

/**
 * Where a consumer that does not exist yet begins.
 *
 * @category models
 * @since 0.1.0
 */
export type StartFrom = "new" | "beginning" | { readonly sequence: number } | { readonly time: DateTime.DateTime }

/**
 * Options of {@link publish}.
 *
 * - `id`: default a random one, so that a publish whose outcome is unknown can be repeated
 *
 * @category models
 * @since 0.1.0
 */
export interface PublishOptions extends Publisher.PublishOptions {
  /** Where to, if not the topic's own: one that a stream takes. */
  readonly subject?: string | undefined
  /** How long the server keeps the message, in whole seconds (2.11). */
  readonly ttl?: Duration.Input | DurationHint | undefined
  /** The publish is refused if the stream is not in this state. */
  readonly expect?: {
    readonly stream?: string | undefined
    readonly lastSequence?: number | undefined
    readonly lastSubjectSequence?: number | undefined
    /** The `id` under which the stream's last message was published to the same subject. */
    readonly lastMessageId?: string | undefined
  } | undefined
  /**
   * How long to repeat a publish that was not confirmed; default 30 seconds, and never longer than the stream's
   * duplicate window (two minutes unless given).
   */
  readonly retryFor?: Duration.Input | DurationHint | undefined
}

/**
 * The stream's answer to a published message. `id` is what consumers see as the message's id.
 *
 * @category models
 * @since 0.1.0
 */
export interface Published {
  readonly id: string
  readonly duplicate: boolean
  readonly stream: string
  readonly sequence: number
}

/**
 * A message that was read without a group.
 *
 * @category models
 * @since 0.1.0
 */
export interface Read<out A> {
  readonly value: A
  readonly id: string
  readonly topic: string
  readonly headers: Message.Headers
  readonly publishedAt: DateTime.Utc
}

/**
 * How far a group has come.
 *
 * @category models
 * @since 0.1.0
 */
export interface ConsumerInfo {
  readonly stream: string
  readonly consumer: string
  /** Not yet delivered. */
  readonly pending: number
  /** Delivered and not settled, waiting retries included. */
  readonly ackPending: number
  /** Both together: what is left to do. */
  readonly lag: number
  /** Of `ackPending`, those that were delivered more than once. */
  readonly redelivered: number
  /** Open requests for messages, of all processes. */
  readonly openPulls: number
  readonly lastDelivered: { readonly sequence: number; readonly at: DateTime.Utc | undefined }
  readonly ackFloor: { readonly sequence: number; readonly at: DateTime.Utc | undefined }
}

/**
 * What a stream holds.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamInfo {
  readonly stream: string
  readonly subjects: ReadonlyArray<string>
  readonly messages: number
  readonly bytes: number
  readonly firstSequence: number
  readonly lastSequence: number
  readonly consumers: number
  readonly replicas: number
  readonly leader: string | undefined
}

/**
 * Options of `JetStream.read`.
 *
 * @category models
 * @since 0.1.0
 */
export interface ReadOptions {
  /** Default `"beginning"`. */
  readonly startFrom?: StartFrom | undefined
  /** What to read, where that is not the topic's own name: parts may be `*`, the last one `>`. */
  readonly subject?: string | undefined
  /** The stream to read, by its name; without `subject`, all that it holds. */
  readonly stream?: string | undefined
}
