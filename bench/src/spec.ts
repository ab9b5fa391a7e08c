/** What one pass measures. A child program of another commit reads it too: fields are added, never changed. */
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
  /** The rate rises from step to step; `rate` is that of the first. */
  readonly ramp?: Ramp
}

/** Each step is as long as the others and `factor` times as fast as the one before. */
export interface Ramp {
  readonly factor: number
  readonly steps: number
  readonly millis: number
}

export type BrokerName = "redis" | "jetstream" | "memory"

/** Messages of each step of a ramp. */
export const stepsOf = (rate: number, { factor, millis, steps }: Ramp): ReadonlyArray<number> =>
  Array.from({ length: steps }, (_, step) => Math.round(rate * factor ** step * millis / 1000))

/** The work of an arm: consume stored messages, publish, or publish and consume in one process. */
export type Work = "consume" | "publish" | "both"

const works: Record<string, Work> = {
  publish: "publish",
  publishAll: "publish",
  publishEach: "publish",
  roundTrip: "both",
  bullmqRoundTrip: "both"
}

export const workOf = (arm: string): Work => works[arm] ?? "consume"

/** The outcome of one pass. */
export interface Measured {
  /** Handled and confirmed, or published and confirmed, messages a second. */
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
  /** Ramp: the median latency of each step, milliseconds. */
  readonly steps?: ReadonlyArray<number> | undefined
  /** Why the pass does not count. */
  readonly void?: string | undefined
}

export interface Latency {
  readonly p50: number
  readonly p99: number
  readonly p999: number
  readonly max: number
}

/** Messages of the process of a pass. */
export type FromRound =
  | { readonly _tag: "Ready" }
  /** Open loop: it consumes, sending may begin. */
  | { readonly _tag: "Consuming" }
  | { readonly _tag: "Measured"; readonly measured: Measured }
  /** One of several processes: it has connected. */
  | { readonly _tag: "Joined" }
  | { readonly _tag: "Stopped"; readonly received: number; readonly twice: number }

/** Messages to the process of a pass. */
export type ToRound =
  | {
    readonly _tag: "Go"
    readonly topic: string
    readonly warmUp: string
    /** 0: the process is warm. */
    readonly warmUpCount: number
    /** Another spec than the one that the process was started with. */
    readonly spec?: Spec
    readonly group?: string
    /** The result comes before the process stops consuming, which takes its time. */
    readonly saysEarly?: boolean
  }
  /** Consume the topic together with other processes: `Begin` starts, `Stop` ends. */
  | { readonly _tag: "Join"; readonly topic: string; readonly group: string; readonly spec: Spec }
  | { readonly _tag: "Begin" }
  | { readonly _tag: "Stop" }

/** The group where a process is told of no other. */
export const group = "bench"

/** Where a pipeline with `to` publishes. */
export const outputOf = (topic: string, group: string): string => `${topic}_${group}_out`
