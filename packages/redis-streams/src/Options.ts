/**
 * What can be said to the Redis transport, and what it tells: types only.
 *
 * @since 0.1.0
 */
import type * as Concurrency from "@millrace/core/Concurrency"
import type { ConsumerInfo } from "@millrace/core/Transport"
import type { Hints } from "@millrace/core/TransportAuthor"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import type { ConnectionOptions } from "node:tls"

/**
 * A bound on what streams keep, applied with each publish: the newest `maxLength` entries, or those of the last
 * `maxAge`. Redis trims whole blocks of entries unless `exact` is asked for, which costs more.
 *
 * **Gotchas**
 *
 * A bound takes entries away whether or not they have been read or acknowledged.
 *
 * @category models
 * @since 0.1.0
 */
export interface Bound {
  /** Keeps the newest entries, this many. */
  readonly maxLength?: number | undefined
  /** Keeps the entries of this time. */
  readonly maxAge?: Duration.Input | Hints["duration"] | undefined
  /** Whether Redis trims to the entry rather than to the block; costs more. Default `false`. */
  readonly exact?: boolean | undefined
}

/**
 * What a server asks for before it answers.
 *
 * @category models
 * @since 0.1.0
 */
export interface Credentials {
  readonly username?: string | undefined
  readonly password: Redacted.Redacted<string> | Hints["secret"]
}

/**
 * Gives the credentials of this moment: an Effect, or a function that returns them or a promise of them.
 *
 * @category models
 * @since 0.1.0
 */
export type CredentialsSource = Effect.Effect<Credentials, unknown> | (() => Credentials | PromiseLike<Credentials>)

/**
 * Options for `RedisStreams.layer`.
 *
 * - `claim.minIdle`: what nobody has kept for so long is taken over; default 30 seconds. Running handlers keep theirs
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /**
   * `redis://user:password@host:port/database`, `rediss://` for TLS (`valkey://` and `valkeys://` mean the same), or
   * `unix:///path/of/the.sock`. In a cluster any of its nodes; with Sentinel one of the Sentinels, while user,
   * password and database are the master's.
   */
  readonly url: string | Redacted.Redacted<string>
  /** Instead of those in the URL. */
  readonly username?: string | undefined
  /** Instead of those in the URL. */
  readonly password?: Redacted.Redacted<string> | Hints["secret"] | undefined
  /** Asked for each connection that is made, for tokens that expire; instead of `username` and `password`. */
  readonly credentials?: CredentialsSource | undefined
  /** Instead of the one in the URL. */
  readonly database?: number | undefined
  /** Options of `node:tls`, such as `ca`, `cert`, `key`, `servername`. */
  readonly tls?: ConnectionOptions | undefined
  /** `true`, or more nodes (`host:port`) to find the cluster by. */
  readonly cluster?: boolean | { readonly nodes: ReadonlyArray<string> } | undefined
  /** The name of the master, more Sentinels, their password. */
  readonly sentinel?: {
    readonly master: string
    readonly nodes?: ReadonlyArray<string> | undefined
    readonly password?: Redacted.Redacted<string> | Hints["secret"] | undefined
  } | undefined
  /**
   * How long the Layer waits for a server that loads, fails over or does not answer; default 10 seconds. Where nothing
   * listens, and for what waiting cannot mend (a password, a certificate, a database), it fails at once.
   */
  readonly connectTimeout?: Duration.Input | Hints["duration"] | undefined
  /**
   * A connection that does not answer for so long is given up and made again; default 10 seconds. After a fifth of
   * it, at least a second, it is found out whether the server answers on others, and then given up.
   */
  readonly answerTimeout?: Duration.Input | Hints["duration"] | undefined
  /** Default `<host>-<pid>-<random>`. Two processes must never share one. */
  readonly consumer?: string | undefined
  /** Put before each topic's name. */
  readonly keyPrefix?: string | undefined
  /** Handlers that all pipelines on this Layer may run at once; default unbounded. */
  readonly concurrency?: number | Concurrency.Limit | undefined
  /** How long one read may wait at the server; default 2 seconds. Nothing waits for its end. */
  readonly block?: Duration.Input | Hints["duration"] | undefined
  /** How long an owner must be silent before its messages are claimed. Default 30 seconds. */
  readonly claim?: { readonly minIdle?: Duration.Input | Hints["duration"] | undefined } | undefined
  /**
   * `"until-acked"` deletes an entry once every group has acknowledged it; `"acknowledged"` trims now and then what
   * every group has acknowledged; a {@link Bound} trims whatever is older. Default: nothing is deleted.
   */
  readonly retention?: "until-acked" | "acknowledged" | Bound | undefined
  /** Consumers of dead processes are deleted when they have been idle for so long and own nothing; default 1 hour. */
  readonly forgetConsumersAfter?: Duration.Input | Hints["duration"] | undefined
  /** How long a published id is recognised; default 2 minutes. */
  readonly deduplicateFor?: Duration.Input | Hints["duration"] | undefined
  /**
   * While there is no connection, a publish waits for `wait` (default 5 seconds), at most `max` (default 10,000) of
   * them at a time.
   */
  readonly offline?:
    | { readonly wait?: Duration.Input | Hints["duration"] | undefined; readonly max?: number | undefined }
    | undefined
}

/**
 * A client for one server, as `createClient` of npm `redis` makes it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Client {
  readonly options?: object | undefined
  duplicate(overrides?: never): unknown
}

/**
 * Options for `RedisStreams.layerFromClient`: the client says where the server is and how to log in.
 *
 * @category models
 * @since 0.1.0
 */
export interface ClientOptions extends
  Omit<
    Options,
    "url" | "username" | "password" | "credentials" | "database" | "tls" | "cluster" | "sentinel"
  >
{}

/**
 * What became of an entry that was to be removed: it is gone; it stays until the other groups have acknowledged it, or
 * because another consumer has it; there was none.
 *
 * @category models
 * @since 0.1.0
 */
export type Removal = "removed" | "kept" | "absent"

/**
 * Options for `RedisStreams.remove`: `force` deletes at once, whichever group has not acknowledged it.
 *
 * @category models
 * @since 0.1.0
 */
export interface RemoveOptions {
  /** Whether to delete at once, whichever group has not acknowledged it. Default `false`. */
  readonly force?: boolean | undefined
}

/**
 * What the server knows about a group. `oldestPendingAge`: milliseconds since the oldest pending entry was published;
 * `lag`: `null` where the server cannot know, as after entries were deleted.
 *
 * @category models
 * @since 0.1.0
 */
export interface GroupInfo {
  /** Delivered to some consumer and not acknowledged. */
  readonly pending: number
  readonly oldestPendingAge: number | undefined
  readonly lag: number | null
  readonly lastDeliveredId: string
  readonly consumers: ReadonlyArray<ConsumerInfo>
}

/**
 * Which stored entries `RedisStreams.read` gives: from one id to another, both included, oldest first; newest first with
 * `reverse`; `limit` at most. An id may be only its milliseconds, which makes times of the server's clock bounds too.
 *
 * @category models
 * @since 0.1.0
 */
export interface ReadOptions {
  /** The first id, or instant, that is read. Default: the beginning. */
  readonly from?: string | undefined
  /** The last id, or instant, that is read. Default: the end. */
  readonly to?: string | undefined
  /** Whether the newest comes first. Default `false`. */
  readonly reverse?: boolean | undefined
  /** At most so many. Default: all. */
  readonly limit?: number | undefined
}
