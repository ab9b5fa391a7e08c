import * as Effect from "effect/Effect"
import * as Process from "node:process"

const said = new Set<string>()

/** Tells the person who runs the tests, once, what they run against. */
export const say = (line: string): Effect.Effect<void> =>
  Effect.sync(() => {
    if (said.has(line)) return
    said.add(line)
    Process.stderr.write(`[brokers] ${line}\n`)
  })
