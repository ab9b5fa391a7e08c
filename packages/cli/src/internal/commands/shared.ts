import * as Argument from "effect/cli/Argument"
import * as Flag from "effect/cli/Flag"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { Output } from "../Output.ts"
import { clean } from "../text.ts"

export const json = Flag.Boolean("json").pipe(
  Flag.withDefault(false),
  Flag.withDescription("Print JSON instead of text; documented and stable")
)

export const topic = Argument.String("topic").pipe(Argument.withDescription("A topic: Redis stream, JetStream subject"))

const units: ReadonlyArray<readonly [RegExp, number]> = [
  [/^(ms|millis|milliseconds?)$/, 1],
  [/^(s|sec|seconds?)$/, 1000],
  [/^(m|min|minutes?)$/, 60_000],
  [/^(h|hours?)$/, 3_600_000],
  [/^(d|days?)$/, 86_400_000],
  [/^(w|weeks?)$/, 604_800_000]
]

/** `250ms`, `30s`, `5m`, `2 hours`: milliseconds. */
export const parseDuration = (text: string): number | undefined => {
  const [, amount, unit] = /^(\d+(?:\.\d+)?)\s*([a-z]+)$/.exec(text.trim()) ?? []
  const scale = units.find(([names]) => names.test(unit ?? ""))?.[1]
  return scale === undefined ? undefined : Number(amount) * scale
}

export const duration = (name: string): Flag.Flag<number> =>
  Flag.String(name).pipe(
    Flag.withMetavar("DURATION"),
    Flag.filterMap(
      (text) => Option.fromUndefinedOr(parseDuration(text)),
      () => "a duration such as 30s, 5m, 2h or 3d"
    )
  )

export const whole = (name: string, least: number): Flag.Flag<number> =>
  Flag.Int(name).pipe(
    Flag.filter((n) => n >= least, () => `a whole number of at least ${least}`)
  )

/** Repeats until interrupted. Fails when the first time fails; a later failure is a line, and the next time comes. */
export const every = (millis: number) =>
<A, E extends Error, R>(
  effect: Effect.Effect<A, E, R>
): Effect.Effect<never, E, R> => {
  const pause = Effect.sleep(Duration.millis(millis))
  const again = Effect.catch(
    effect,
    ({ message }) => Effect.flatMap(Output, (output) => output.error(`millrace: ${clean(message)}`))
  )
  return Effect.andThen(effect, Effect.forever(Effect.andThen(pause, again)))
}
