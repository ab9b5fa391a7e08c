/**
 * Showing how far a pipeline is: redrawn in place on a terminal, a plain line now and then in a pipe.
 */
import type { Pipeline, TransportError } from "@millrace/core"
import { Effect, Schedule } from "effect"
import { TerminalCapabilities } from "effect/cli"

/** Messages that need nothing more from this pipeline. */
export const settled = (counts: Pipeline.Counts): number =>
  counts.handled + counts.filtered + counts.deadLettered + counts.discarded

/** Waits until a pipeline has settled `total` messages, and looks at its counts meanwhile. */
export const untilSettled = (
  running: Pipeline.Running,
  total: number,
  look: (counts: Pipeline.Counts) => Effect.Effect<void> = () => Effect.void
): Effect.Effect<Pipeline.Counts, TransportError.TransportError> =>
  Effect.raceFirst(
    running.counts.pipe(
      Effect.tap(look),
      Effect.repeat({ until: (counts) => settled(counts) >= total, schedule: Schedule.spaced("50 millis") })
    ),
    running.await
  )

export interface View {
  /** For a terminal: takes the place of what was drawn before. */
  readonly lines: ReadonlyArray<string>
  /** For a pipe: one line, printed at each tenth of the way. */
  readonly plain: string
}

/** Makes the function that draws. */
export const makeDraw: Effect.Effect<(fraction: number, view: View) => Effect.Effect<void>> = Effect.gen(function*() {
  const { canAnimate } = yield* TerminalCapabilities.TerminalCapabilities
  let drawn = 0
  let tenths = 0
  return (fraction, { lines, plain }) =>
    Effect.sync(() => {
      if (canAnimate) {
        const back = drawn === 0 ? "" : `\x1b[${drawn}A\x1b[J`
        drawn = lines.length
        process.stdout.write(`${back}${lines.join("\n")}\n`)
      } else if (Math.floor(fraction * 10) > tenths) {
        tenths = Math.floor(fraction * 10)
        process.stdout.write(`${percent(fraction)}  ${plain}\n`)
      }
    })
})

export const percent = (fraction: number): string => `${Math.floor(fraction * 100)} %`.padStart(5)

export const bar = (fraction: number, width = 40): string => {
  const filled = Math.round(Math.min(1, fraction) * width)
  return "█".repeat(filled) + "░".repeat(width - filled)
}
