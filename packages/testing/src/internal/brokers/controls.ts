import * as Effect from "effect/Effect"
import { BrokersError } from "./BrokersError.ts"
import type { Answer } from "./probe.ts"

/** A server that runs, whatever runs it. */
export interface Controls {
  readonly host: string
  readonly port: number
  readonly version: string | undefined
  readonly kill: Effect.Effect<void>
  readonly stop: Effect.Effect<void>
  readonly start: Effect.Effect<void, BrokersError>
  readonly pause: Effect.Effect<void>
  readonly resume: Effect.Effect<void>
}

/** How long a server may take to answer. */
const deadline = "15 seconds"

/** Asks until the server answers, has ended, or the deadline has passed. */
export const awaitReady = Effect.fnUntraced(function*(options: {
  readonly title: string
  readonly probe: Effect.Effect<Answer | undefined>
  /** How it ended, if it did. */
  readonly gone: Effect.Effect<string | undefined>
  /** The end of what it wrote. */
  readonly output: Effect.Effect<string>
}): Effect.fn.Return<Answer, BrokersError> {
  const failed = (what: string) =>
    Effect.flatMap(options.output, (output) =>
      Effect.fail(
        new BrokersError({
          reason: "start",
          message: `${options.title} ${what}. ${output === "" ? "It wrote nothing." : `It wrote:\n${output}`}`
        })
      ))
  const ask = Effect.gen(function*() {
    for (;;) {
      const answer = yield* options.probe
      if (answer !== undefined) return answer
      const end = yield* options.gone
      if (end !== undefined) return yield* failed(end)
      yield* Effect.sleep("10 millis")
    }
  })
  return yield* Effect.timeoutOrElse(ask, {
    duration: deadline,
    orElse: () => failed(`did not answer within ${deadline}`)
  })
})
