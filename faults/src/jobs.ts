/** What is published, and what the processes that work on it are told. */
import * as Topic from "@millrace/core/Topic"
import * as Schema from "effect/Schema"
import type { Kind } from "./target.ts"

/** Says what its handler does. */
export const Job = Schema.Struct({
  n: Schema.Int,
  key: Schema.String,
  /** Milliseconds. */
  work: Schema.Number,
  /** How many attempts fail. */
  failures: Schema.Int,
  /** Ends its process. */
  kills: Schema.Boolean
})
export type Job = typeof Job.Type

export interface WorkerOptions {
  readonly kind: Kind
  readonly url: string
  readonly journal: string
  readonly topic: string
  readonly concurrency: number
  readonly keyed: boolean
  readonly retries: number
  /** Milliseconds. */
  readonly drainTimeout: number
  /** Acknowledges before the work: what the oracle must find out. */
  readonly earlyAck: boolean
}

export const group = "workers"

export const exitCodeOfKiller = 9

export const jobs = (topic: string) => Topic.make(topic, { schema: Job, key: (job) => job.key })

/** One for each job that was handled. */
export const done = (topic: string) => Topic.make(`${topic}.done`, { schema: Schema.Int })
