/**
 * What can be said to the JetStream transport, and what it tells: types only.
 *
 * @since 0.1.0
 */
import type * as Concurrency from "@millrace/core/Concurrency"
import type * as Message from "@millrace/core/Message"
import type * as Publisher from "@millrace/core/Publisher"
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
 * - `storage`: default `"file"`; `replicas`: default 1
 * - `maxAge`, `maxMessages`, `maxBytes`: beyond them the oldest messages are removed; default none
 * - `duplicateWindow`: how long the server remembers message ids; default 2 minutes
 * - `config`: further options under the server's own names
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamBounds {
  readonly storage?: "file" | "memory" | undefined
  readonly replicas?: number | undefined
  readonly maxAge?: Duration.Input | undefined
  readonly maxMessages?: number | undefined
  readonly maxBytes?: number | undefined
  readonly duplicateWindow?: Duration.Input | undefined
  readonly config?: Partial<StreamConfig> | undefined
}

/**
 * How the streams of sources and outputs are created; options that are given are verified on streams that exist.
 *
 * - `subjects`: a family of subjects that one stream takes, such as `["orders", "orders.>"]`. Every topic and filter in it
 *   is found there, whichever program starts first. Other topics have streams of their own
 * - `name`: the name of that stream; default the topic's, with `.` as `_`
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamOptions extends StreamBounds {
  readonly name?: string | undefined
  readonly subjects?: Arr.NonEmptyReadonlyArray<string> | undefined
}

/**
 * Options that do not concern the connection itself.
 *
 * - `concurrency`: handlers that run at once, of all pipelines on this layer together: a number, or a
 *   `Concurrency.Limit` that may be resized or shared with other layers; default unbounded
 * - `retention`: `"until-acked"` makes work queues: a message is gone when its group has settled it. Default: streams
 *   keep what they take, within the bounds of `stream`
 * - `stream`: of streams that are created for sources and outputs
 * - `deadLetterStream`: of streams that are created for dead letters; the bounds of `stream` do not apply to them.
 *   Default: storage and replicas as in `stream`, no bound
 * - `ackWait`: how long the server waits for a sign of life, and so how soon a peer gets the messages of a process that
 *   died; of consumers that are created, default 30 seconds. Long handlers are kept alive
 * - `publishTimeout`: how long a confirmation may take; default 5 seconds
 * - `domain`: the JetStream domain; `apiPrefix`: instead of it, where an account imports the API under another name
 * - `inboxPrefix`: for users that may only subscribe below it, default `_INBOX`; a connection made elsewhere needs it too
 *
 * @category models
 * @since 0.1.0
 */
export interface CommonOptions {
  readonly concurrency?: number | Concurrency.Limit | undefined
  readonly manage?: Manage | undefined
  readonly retention?: "limits" | "until-acked" | undefined
  readonly stream?: StreamOptions | undefined
  readonly deadLetterStream?: StreamBounds | undefined
  readonly ackWait?: Duration.Input | undefined
  readonly publishTimeout?: Duration.Input | undefined
  readonly domain?: string | undefined
  readonly apiPrefix?: string | undefined
  readonly inboxPrefix?: string | undefined
}

/**
 * Options of `JetStream.layer`.
 *
 * - `url`: `nats://host:port` or `tls://host:port`, several separated by commas; with `user:password@` or `token@`
 * - `credentials`: the text of a credentials file; `nkey`: the seed of a user without one
 * - `tls`: certificates, as texts or files; a `tls://` URL needs none of its own where a known authority vouches
 * - `connectTimeout`: until the first connection; default 10 seconds
 *
 * @category models
 * @since 0.1.0
 */
export interface Options extends CommonOptions {
  readonly url: string | Redacted.Redacted<string>
  readonly name?: string | undefined
  readonly token?: Redacted.Redacted<string> | undefined
  readonly credentials?: Redacted.Redacted<string> | undefined
  readonly nkey?: Redacted.Redacted<string> | undefined
  readonly tls?: TlsOptions | undefined
  readonly connectTimeout?: Duration.Input | undefined
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
 * - `subject`: where to, if not the topic's own: one that a stream takes
 * - `ttl`: how long the server keeps the message, in whole seconds (2.11)
 * - `expect`: the publish is refused if the stream is not in this state
 * - `retryFor`: how long to repeat a publish that was not confirmed; default 30 seconds, and never longer than the
 *   stream's duplicate window (two minutes unless given)
 *
 * @category models
 * @since 0.1.0
 */
export interface PublishOptions extends Publisher.PublishOptions {
  readonly subject?: string | undefined
  readonly ttl?: Duration.Input | undefined
  readonly expect?: {
    readonly stream?: string | undefined
    readonly lastSequence?: number | undefined
    readonly lastSubjectSequence?: number | undefined
    readonly lastMessageId?: string | undefined
  } | undefined
  readonly retryFor?: Duration.Input | undefined
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
 * - `pending`: not yet delivered
 * - `ackPending`: delivered and not settled, waiting retries included
 * - `lag`: both together: what is left to do
 * - `redelivered`: of `ackPending`, those that were delivered more than once
 * - `openPulls`: open requests for messages, of all processes
 *
 * @category models
 * @since 0.1.0
 */
export interface ConsumerInfo {
  readonly stream: string
  readonly consumer: string
  readonly pending: number
  readonly ackPending: number
  readonly lag: number
  readonly redelivered: number
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
 * - `startFrom`: default `"beginning"`
 * - `subject`: what to read, where that is not the topic's own name: parts may be `*`, the last one `>`
 * - `stream`: the stream to read, by its name; without `subject`, all that it holds
 *
 * @category models
 * @since 0.1.0
 */
export interface ReadOptions {
  readonly startFrom?: StartFrom | undefined
  readonly subject?: string | undefined
  readonly stream?: string | undefined
}
