import type * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as References from "effect/References"
import * as Tracer from "effect/Tracer"
import { ShownError } from "./errorDetail.ts"

/** Whether spans are collected at all: Effect's own tracer keeps them for no one. */
export const isTraced = (context: Context.Context<never>): boolean =>
  Context.get(context, Tracer.Tracer) !== Tracer.nativeTracer && Context.get(context, References.TracerEnabled)

/**
 * Runs `evaluate` in a span. `failure` tells what of its exit is an error of the span: its type and its cause. The exit
 * itself passes through unchanged.
 */
export const inSpan = <A, E, R>(
  name: string,
  options: Tracer.SpanOptionsNoTrace,
  evaluate: (span: Tracer.Span) => Effect.Effect<A, E, R>,
  failure: (exit: Exit.Exit<A, E>) => { readonly type: string; readonly cause: Cause.Cause<unknown> } | undefined
): Effect.Effect<A, E, R> =>
  Effect.suspend(() => {
    let exit: Exit.Exit<A, E> | undefined
    const spanned = Effect.useSpan(name, options, (span) =>
      Effect.flatMap(Effect.exit(evaluate(span)), (given) => {
        exit = given
        const failed = failure(given)
        if (failed === undefined) return Exit.void
        span.attribute("error.type", failed.type)
        return Exit.fail(new ShownError(failed.cause))
      }))
    return Effect.matchCauseEffect(spanned, {
      onFailure: (cause): Effect.Effect<A, E> => exit ?? Exit.failCause(cause as Cause.Cause<never>),
      onSuccess: (): Effect.Effect<A, E> => exit!
    })
  })
