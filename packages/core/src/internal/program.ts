import type * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type * as Result from "effect/Result"
import type * as Schedule from "effect/Schedule"
import type * as Concurrency from "../Concurrency.ts"
import type * as Message from "../Message.ts"
import type * as Topic from "../Topic.ts"
import type * as Transport from "../Transport.ts"
import type { Invalid } from "./invalid.ts"

/**
 * What a pipeline holds, without its types: those are `Pipeline.ts`'s promise to its users and end here.
 */
export interface Program {
  readonly name: string
  readonly source: Source
  readonly steps: ReadonlyArray<Step>
  readonly policies: Policies
  /** Input that cannot work: starting fails with it. */
  readonly invalid?: Invalid | undefined
}

export interface Source {
  readonly topic: Topic.Topic<unknown>
  readonly group: string
  readonly startFrom: "new" | "beginning"
  readonly prefetch: number | undefined
  readonly prefetchBytes: number
  /** Bounds the retries of this process that wait. */
  readonly waiting: number
  /** Bounds the messages behind another one of their key. */
  readonly maxBlocked: number
  readonly drainTimeout: Duration.Duration
  readonly transport: Effect.Effect<Transport.Transport["Service"]>
  /** Adds what a transport's own `from` promises of its messages. */
  readonly extend: ((message: Message.Any, delivery: Transport.Delivery) => Message.Any) | undefined
}

type Handler<A> = (value: unknown, message: Message.Any) => A

/** Steps are positional: `Timeout`, `Catch` and `Middleware` concern what stands above them. */
export type Step =
  | { readonly _tag: "Map"; readonly f: Handler<unknown> }
  | { readonly _tag: "Filter"; readonly f: Handler<boolean> }
  | { readonly _tag: "FilterMap"; readonly f: Handler<Result.Result<unknown, unknown>> }
  | { readonly _tag: "Promise"; readonly f: Handler<PromiseLike<unknown>>; readonly catch: (cause: unknown) => unknown }
  /** `keep`: the value goes on unchanged. */
  | { readonly _tag: "Effect"; readonly f: Handler<Effect.Effect<unknown, unknown>>; readonly keep: boolean }
  /** Without `f` the value itself is published; with it, an array is several messages. */
  | {
    readonly _tag: "To"
    readonly topic: Topic.Topic<unknown>
    readonly f: Handler<unknown> | undefined
    /** Another broker than the source's. */
    readonly transport: Effect.Effect<Transport.Transport["Service"]> | undefined
  }
  | { readonly _tag: "Timeout"; readonly duration: Duration.Duration }
  | {
    readonly _tag: "Catch"
    readonly tags: ReadonlyArray<string>
    readonly matches: (error: unknown) => boolean
    readonly f: (error: never, message: Message.Any) => Effect.Effect<unknown, unknown>
  }
  | {
    readonly _tag: "Batch"
    readonly size: number
    readonly within: Duration.Duration
    /** One result for each message, or one for all. */
    readonly each: boolean
    readonly f: (
      values: Arr.NonEmptyReadonlyArray<unknown>,
      messages: Arr.NonEmptyReadonlyArray<Message.Any>
    ) => Effect.Effect<unknown, unknown>
  }
  | { readonly _tag: "Branch"; readonly by: Handler<string>; readonly cases: ReadonlyMap<string, ReadonlyArray<Step>> }
  /** Always the first step: it holds those above it. */
  | {
    readonly _tag: "Middleware"
    readonly steps: ReadonlyArray<Step>
    readonly f: (handler: Effect.Effect<unknown, unknown>, message: Message.Any) => Effect.Effect<unknown, unknown>
  }

/** All steps, those in branches and under a middleware as well. */
export function* allSteps(steps: ReadonlyArray<Step>): Iterable<Step> {
  for (const step of steps) {
    yield step
    if (step._tag === "Middleware") yield* allSteps(step.steps)
    if (step._tag === "Branch") { for (const steps of step.cases.values()) yield* allSteps(steps) }
  }
}

export interface Retry {
  readonly times: number
  readonly schedule: Schedule.Schedule<unknown, unknown, never, never>
  readonly while: ((error: never, message: never) => boolean) | undefined
  /** How many retries with `countsAttempt: false` a message may ask for before they count. */
  readonly uncounted: number
}

export interface Policies {
  readonly retry: Retry | undefined
  /** `undefined`: `<topic>.dead`; `false`: discard, as written down by the user. */
  readonly deadLetter: string | false | undefined
  readonly concurrency: number | Concurrency.Limit
  readonly key: ((message: Message.Any) => string | undefined) | undefined
  readonly ackPolicy: "on-success" | "on-receive" | "manual"
  /** With `manual`: how long after its handler has ended a message may stay unsettled. */
  readonly settleWithin: Duration.Duration
  readonly settings: Context.Context<never>
}

export const noPolicies: Policies = {
  retry: undefined,
  deadLetter: undefined,
  concurrency: 1,
  key: undefined,
  ackPolicy: "on-success",
  settleWithin: Duration.seconds(30),
  settings: Context.empty()
}
