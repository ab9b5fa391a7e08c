/** How bad a finding is. `unknown`: this connection may not look. */
export type Level = "error" | "warning" | "unknown" | "ok"

/** What a check of `doctor` found. */
export interface Finding {
  /** Stable, for scripts: `redis/maxmemory-policy`. */
  readonly id: string
  readonly level: Level
  /** The topic, group, stream or consumer concerned; absent: the server. */
  readonly at?: string | undefined
  /** What was seen. */
  readonly seen: string
  /** What that costs, when it is not `ok`. */
  readonly costs?: string | undefined
  /** What to type or to change. */
  readonly remedy?: string | undefined
}

/** What the operator says about the programs, for checks that compare. Milliseconds. */
export interface Given {
  readonly topic: string | undefined
  /** NATS: the address of the server's monitoring, `http://host:8222`. */
  readonly monitor: string | undefined
  readonly handlerTimeout: number | undefined
  readonly drainTimeout: number
  readonly gracePeriod: number | undefined
  /** Redis: `claim.minIdle` of the layer. */
  readonly minIdle: number
  /** JetStream: processes times what each may own. */
  readonly owned: number | undefined
  readonly retryHorizon: number | undefined
  /** Bytes of the largest message. */
  readonly largest: number | undefined
  /** The longest delay that publishers or retries use. */
  readonly longestDelay: number | undefined
}

export const ok = (id: string, seen: string, at?: string): Finding => ({ id, level: "ok", seen, at })

export const unknown = (id: string, seen: string, costs: string, remedy: string, at?: string): Finding => ({
  id,
  level: "unknown",
  seen,
  costs,
  remedy,
  at
})

export const bad = (
  level: "error" | "warning",
  id: string,
  seen: string,
  costs: string,
  remedy: string,
  at?: string
): Finding => ({ id, level, seen, costs, remedy, at })
