/** What one round measures. */
export interface Spec {
  readonly broker: BrokerName
  readonly arm: string
  readonly concurrency: number
  /** Bytes of the body, about. */
  readonly size: number
  /** Milliseconds that the handler waits; 0: it does nothing. */
  readonly delay: number
  readonly count: number
  /** Messages a second that come while it consumes. Without: all are there when it begins. */
  readonly rate?: number
}

export type BrokerName = "redis" | "jetstream" | "memory"

/** What came of it. */
export interface Measured {
  /** Handled and confirmed, messages a second. */
  readonly rate: number
  /** Client CPU, microseconds a message. */
  readonly cpu: number
  /** Redis: commands a message, as the server counts them. */
  readonly commands?: number | undefined
  /** Writes to sockets a message. */
  readonly writes: number
  /** Resident memory at the end, bytes. */
  readonly rss: number
  /** Open loop: milliseconds from the intended sending to the handler. */
  readonly latency?: Latency | undefined
  /** Why the round does not count. */
  readonly void?: string | undefined
}

export interface Latency {
  readonly p50: number
  readonly p99: number
  readonly p999: number
  readonly max: number
}

/** What the process of a round and its parent say to each other. */
export type FromRound =
  | { readonly _tag: "Ready" }
  /** Open loop: it consumes, sending may begin. */
  | { readonly _tag: "Consuming" }
  | { readonly _tag: "Measured"; readonly measured: Measured }

export type ToRound = {
  readonly _tag: "Go"
  readonly topic: string
  readonly warmUp: string
  readonly warmUpCount: number
}

export const group = "bench"
