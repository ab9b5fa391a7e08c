/**
 * A pipeline as plain data, for the command line, AsyncAPI and documentation, and for `console.log` and
 * `JSON.stringify` give.
 *
 * The data has no functions, no secrets and no cycles; two descriptions of one pipeline are equal. Fields are only ever
 * added. Durations are milliseconds; a number that has no bound is `"unbounded"`.
 *
 * @since 0.1.0
 */

/**
 * A pipeline: source, steps from first to last, policies.
 *
 * @category models
 * @since 0.1.0
 */
export interface Description {
  readonly name: string
  readonly source: Source
  readonly steps: ReadonlyArray<Step>
  readonly policies: Policies
}

/**
 * A topic by its name.
 *
 * @category models
 * @since 0.1.0
 */
export interface Topic {
  readonly topic: string
  readonly contentType: string
  /** The topic has a schema for its headers. */
  readonly headers: boolean
  /** The topic has a key. */
  readonly key: boolean
}

/**
 * Where a pipeline reads.
 *
 * @category models
 * @since 0.1.0
 */
export interface Source extends Topic {
  readonly group: string
  readonly startFrom: "new" | "beginning"
  /** `"automatic"` is about 200 ms of work. */
  readonly prefetch: number | "automatic"
  readonly waiting: number | "unbounded"
  readonly drainTimeout: number | "unbounded"
  /** Options of one broker, by their names, as far as they are plain data. */
  readonly settings: { readonly [name: string]: unknown }
}

/**
 * One step. `step` is the name of the function in `Pipeline` that made it, `function` the name of the function given to
 * it, absent where that has none.
 *
 * - `to`: `value` tells whether a function makes the messages from the value
 * - `branch`: the steps of each case, by the name of the case
 * - `middleware`: the steps that it wraps
 *
 * @category models
 * @since 0.1.0
 */
export type Step = { readonly function?: string } & StepKind

/**
 * The kinds of {@link Step}.
 *
 * @category models
 * @since 0.1.0
 */
export type StepKind =
  | { readonly step: "map" | "mapEffect" | "mapPromise" | "tap" | "filter" | "filterMap" }
  | { readonly step: "to"; readonly value: boolean } & Topic
  | { readonly step: "timeout"; readonly duration: number | "unbounded" }
  | { readonly step: "catchTag"; readonly tags: ReadonlyArray<string> }
  | { readonly step: "batch" | "batchEach"; readonly size: number; readonly within: number | "unbounded" }
  | { readonly step: "branch"; readonly cases: { readonly [name: string]: ReadonlyArray<Step> } }
  | { readonly step: "middleware"; readonly steps: ReadonlyArray<Step> }

/**
 * The policies, defaults included.
 *
 * - `retry.schedule`: `"default"` grows from 1 second to 5 minutes, jittered; a schedule has no data to show
 * - `retry.while`: failures are asked whether they may be tried again
 * - `concurrency.limit`: `"shared"` with other pipelines, or moved by an algorithm
 *
 * @category models
 * @since 0.1.0
 */
export interface Policies {
  readonly ackPolicy: "on-success" | "on-receive" | "manual"
  /** With `manual` only. */
  readonly settleWithin?: number | "unbounded"
  readonly retry: {
    readonly times: number | "unbounded"
    readonly schedule: "default" | "custom"
    readonly while: boolean
  }
  /** The topic, or `false` where messages are discarded. */
  readonly deadLetter: string | false
  readonly concurrency: {
    readonly max: number | "unbounded"
    readonly limit: "own" | "shared"
    readonly key: boolean
  }
}
