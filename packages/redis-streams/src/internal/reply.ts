import {
  InvalidOption,
  Mismatch,
  OperationFailed,
  TransportError,
  type TransportErrorReason,
  Unauthorized,
  Unsupported
} from "@millrace/core/TransportError"
import { ErrorReply } from "redis"

export const asError = (u: unknown): Error => u instanceof Error ? u : new Error(String(u))

/** The first word of what a server says is its code. */
export const codeOf = (u: unknown): string => {
  if (!(u instanceof Error)) return ""
  const end = u.message.indexOf(" ")
  return end < 0 ? u.message : u.message.slice(0, end)
}

const passing = new Set([
  "LOADING",
  "READONLY",
  "MASTERDOWN",
  "CLUSTERDOWN",
  "TRYAGAIN",
  "BUSY",
  "NOREPLICAS",
  "UNBLOCKED",
  "NOSCRIPT",
  "MISCONF",
  "UNKILLABLE"
])

/** Refused for now, by a server that starts, follows another or is not the one: nothing was done. */
export const isPassing = (u: unknown): boolean => u instanceof ErrorReply && passing.has(codeOf(u))

/** A refusal that neither the connection nor the group can heal. */
export const isLasting = (u: unknown): u is ErrorReply =>
  u instanceof ErrorReply && !isPassing(u) && codeOf(u) !== "NOGROUP"

/**
 * This user may not: nothing was done, nor will be before that changes. Inside a script each server has words of its own.
 */
export const isRefusal = (u: unknown): boolean =>
  u instanceof Error && (
    ["NOPERM", "NOAUTH", "WRONGPASS", "DENIED"].includes(codeOf(u)) ||
    u instanceof ErrorReply &&
      /ACL failure in script|user executing the script can't|no permissions to (run|access)|invalid (username-)?password|AUTH .*called|-NOPERM/i
        .test(u.message)
  )

/** Names another node: followed where a cluster was asked for, and nowhere else. */
export const isRedirect = (u: unknown): boolean => u instanceof ErrorReply && ["MOVED", "ASK"].includes(codeOf(u))

/** An error that a script has told in words. */
export const refusal = (words: string): Error => new ErrorReply(words)

/** The server has no room: `OOM`, also inside a script. */
export const isFull = (u: unknown): boolean =>
  u instanceof ErrorReply && (codeOf(u) === "OOM" || /\bOOM\b|used memory > 'maxmemory'/.test(u.message))

/** An argument is larger than the server takes: it ends the connection after these words. */
export const isBulkRefusal = (u: unknown): boolean =>
  u instanceof ErrorReply && /Protocol error: (invalid bulk|too big)|query buffer/i.test(u.message)

/** This server knows no such command or option, also inside a script. */
export const isUnknown = (u: unknown): boolean =>
  u instanceof ErrorReply &&
  /unknown (redis )?(sub)?command|syntax error|wrong number of arguments|not supported|disabled|not allowed from script/i
    .test(
      u.message
    )

export const text = (u: unknown): string => Buffer.isBuffer(u) ? u.toString() : String(u)

export const list = (u: unknown): ReadonlyArray<unknown> => Array.isArray(u) ? u : []

/** The reply of `TIME` in milliseconds. */
export const millisOfTime = (reply: unknown): number => {
  const [seconds, micros] = list(reply).map((part) => Number(text(part)))
  return seconds! * 1_000 + Math.floor(micros! / 1_000)
}

export const entriesOf = (u: unknown): Map<string, unknown> => {
  const flat = list(u)
  const map = new Map<string, unknown>()
  for (let i = 0; i + 1 < flat.length; i += 2) map.set(text(flat[i]), flat[i + 1])
  return map
}

/** A key beside a stream that may have another type than it should: what a server refuses does not name the key. */
export interface Beside {
  readonly key: string
  readonly expected: string
}

/** `beside`: the key that is to blame where the stream is a stream. */
export const transportError = (operation: string, address: string, error: Error, beside?: Beside): TransportError => {
  const code = codeOf(error)
  const reason = isRedirect(error)
    ? new InvalidOption({
      option: "cluster",
      value: "not given",
      remedy: `this server is a node of a cluster and names another one (${code}), give cluster: true`
    })
    : isRefusal(error)
    ? new Unauthorized({
      address,
      operation,
      detail: `${error.message} (allow it to this user, docs/redis-streams.md has all that is needed)`
    })
    : code === "WRONGTYPE"
    ? new Mismatch({
      name: beside?.key ?? `${operation}: the key`,
      expected: beside?.expected ?? "a stream",
      found: "of another type"
    })
    : isUnknown(error)
    ? new Unsupported({ operation, remedy: remedyOf(error) })
    : new OperationFailed({ operation, cause: advised(error, isFull(error) ? advice["OOM"] : advice[code]) })
  return failure(reason)
}

export const failure = (reason: TransportErrorReason): TransportError =>
  new TransportError({ transport: "redis", reason })

/** What to do about refusals that may last. */
const advice: { readonly [code: string]: string | undefined } = {
  OOM: "the server has no memory left: let consumers catch up, delete entries, or raise maxmemory",
  READONLY: "give the address of the master, or the option sentinel",
  MISCONF: "the server cannot save its data, its log says why",
  NOREPLICAS: "fewer replicas answer than min-replicas-to-write asks for"
}

const advised = (error: Error, remedy: string | undefined): Error =>
  remedy === undefined ? error : new ErrorReply(`${error.message.split(/ script: |\. Commands/)[0]} (${remedy})`)

const remedyOf = ({ message }: Error): string => {
  const [, command] = /unknown command '?`?"?(\w+)/i.exec(message) ?? []
  if (command === "EVAL" || command === "EVALSHA") {
    return "it runs no scripts (EVAL, EVALSHA), and settling, retries and ids need them: allow scripts, or use a server that has them"
  }
  return command === undefined
    ? `the server says "${message}"; Redis 7.0 or Valkey 8.0 is the oldest that will do`
    : `it has no command ${command}: it was renamed or disabled, or the server is older than Redis 7.0 and Valkey 8.0`
}
