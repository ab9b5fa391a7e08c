/**
 * What can be said to the Redis transport, and what it tells: types only.
 *
 * @stability unstable
 * @since 0.1.0
 */
import type * as Concurrency from "@millrace/core/Concurrency"
import type { ConsumerInfo } from "@millrace/core/Transport"
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
  readonly maxLength?: number | undefined
  readonly maxAge?: Duration.Input | undefined
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
  readonly password: Redacted.Redacted<string>
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
 * - `url`: `redis://user:password@host:port/database`, `rediss://` for TLS (`valkey://` and `valkeys://` mean the same),
 *   or `unix:///path/of/the.sock`. In a cluster any of its nodes; with Sentinel one of the Sentinels, while user, password
 *   and database are the master's
 * - `username`, `password`: instead of those in the URL
 * - `credentials`: asked for each connection that is made, for tokens that expire; instead of `username` and `password`
 * - `database`: instead of the one in the URL
 * - `tls`: options of `node:tls`, such as `ca`, `cert`, `key`, `servername`
 * - `cluster`: `true`, or more nodes (`host:port`) to find the cluster by
 * - `sentinel`: the name of the master, more Sentinels, their password
 * - `connectTimeout`: how long the Layer tries to connect before it fails; default 10 seconds
 * - `answerTimeout`: a connection that does not answer for so long is given up and made again; default 10 seconds. After
 *   a fifth of it, at least a second, it is found out whether the server answers on others, and then given up
 * - `consumer`: default `<host>-<pid>-<random>`. Two processes must never share one
 * - `keyPrefix`: put before each topic's name
 * - `concurrency`: handlers that all pipelines on this Layer may run at once; default unbounded
 * - `block`: how long one read may wait at the server; default 2 seconds. Nothing waits for its end
 * - `claim.minIdle`: what nobody has kept for so long is taken over; default 30 seconds. Running handlers keep theirs
 * - `retention`: `"until-acked"` deletes an entry once every group has acknowledged it; `"acknowledged"` trims now and
 *   then what every group has acknowledged; a {@link Bound} trims whatever is older. Default: nothing is deleted
 * - `forgetConsumersAfter`: consumers of dead processes are deleted when they have been idle for so long and own
 *   nothing; default 1 hour
 * - `deduplicateFor`: how long a published id is recognised; default 2 minutes
 * - `offline`: while there is no connection, a publish waits for `wait` (default 5 seconds), at most `max` (default
 *   10,000) of them at a time
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  readonly url: string | Redacted.Redacted<string>
  readonly username?: string | undefined
  readonly password?: Redacted.Redacted<string> | undefined
  readonly credentials?: CredentialsSource | undefined
  readonly database?: number | undefined
  readonly tls?: ConnectionOptions | undefined
  readonly cluster?: boolean | { readonly nodes: ReadonlyArray<string> } | undefined
  readonly sentinel?: {
    readonly master: string
    readonly nodes?: ReadonlyArray<string> | undefined
    readonly password?: Redacted.Redacted<string> | undefined
  } | undefined
  readonly connectTimeout?: Duration.Input | undefined
  readonly answerTimeout?: Duration.Input | undefined
  readonly consumer?: string | undefined
  readonly keyPrefix?: string | undefined
  readonly concurrency?: number | Concurrency.Limit | undefined
  readonly block?: Duration.Input | undefined
  readonly claim?: { readonly minIdle?: Duration.Input | undefined } | undefined
  readonly retention?: "until-acked" | "acknowledged" | Bound | undefined
  readonly forgetConsumersAfter?: Duration.Input | undefined
  readonly deduplicateFor?: Duration.Input | undefined
  readonly offline?: { readonly wait?: Duration.Input | undefined; readonly max?: number | undefined } | undefined
}

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
  readonly from?: string | undefined
  readonly to?: string | undefined
  readonly reverse?: boolean | undefined
  readonly limit?: number | undefined
}
