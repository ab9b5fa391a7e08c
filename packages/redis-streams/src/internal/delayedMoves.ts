import * as Effect from "effect/Effect"
import type { Command } from "./command.ts"
import * as keys from "./keys.ts"
import { list, refusal, text } from "./reply.ts"
import { move } from "./scripts/move.ts"
import { soon } from "./scripts/peek.ts"
import { evalsha } from "./scripts/script.ts"

interface Expected {
  readonly at: number
  readonly timer: ReturnType<typeof setTimeout>
}

/**
 * Moves delayed entries into their streams when they are due. Whoever knows of one that is due soon says so: its
 * publisher, and the look of each subscription. One that nobody knows of is found by the next look.
 */
export class DelayedMoves {
  private readonly expected = new Map<string, Expected>()
  private readonly run: (key: string, command: Command) => Effect.Effect<unknown, Error>

  constructor(run: (key: string, command: Command) => Effect.Effect<unknown, Error>) {
    this.run = run
  }

  /** An entry of the stream is due in `millis`. One that is not due soon is left to a later look. */
  expect(key: string, millis: number): void {
    if (!(millis < soon)) return
    const at = performance.now() + Math.max(0, millis)
    const known = this.expected.get(key)
    if (known !== undefined && known.at <= at) return
    clearTimeout(known?.timer)
    const timer = setTimeout(() => {
      this.expected.delete(key)
      // Its refusal is told by the look of a subscription.
      Effect.runFork(Effect.ignore(this.move(key)))
    }, Math.ceil(Math.max(0, millis)))
    timer.unref()
    this.expected.set(key, { at, timer })
  }

  /** Moves what is due now. Fails with what the server says about an entry that it does not take. */
  move(key: string): Effect.Effect<void, Error> {
    return Effect.flatMap(this.run(key, evalsha(move, [key, keys.delayed(key)], [])), (reply) => {
      const [moved, left, failed, next] = list(reply)
      if (Number(next) >= 0) this.expect(key, Number(next))
      if (text(failed) !== "") return Effect.fail(refusal(text(failed)))
      return Number(moved) > 0 && Number(left) > 0 ? this.move(key) : Effect.void
    })
  }

  close(): void {
    for (const { timer } of this.expected.values()) clearTimeout(timer)
    this.expected.clear()
  }
}
