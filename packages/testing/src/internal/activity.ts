import type * as Pipeline from "@millrace/core/Pipeline"
import type * as Telemetry from "@millrace/core/Telemetry"
import type * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as TestClock from "effect/testing/TestClock"
import type { MemoryTransport } from "../MemoryTransport.ts"

/** A pipeline under test, with all that shows whether something happens in it. */
export interface Watched {
  readonly memory: MemoryTransport["Service"]
  readonly running: Pipeline.Running
  readonly clock: Sleepers
  readonly outcomes: ReadonlyArray<Telemetry.Outcome>
}

/** Who sleeps on a clock, and until when. */
export class Sleepers {
  readonly watching: Clock.Clock
  /** `watching`, as the pipeline under test gets it. */
  readonly watched: Clock.Clock
  /** Whether only the test moves the clock. */
  readonly isTestClock: boolean
  /** How many sleeps have begun. */
  begun = 0
  private readonly sleeping = new Set<{ readonly due: number }>()

  constructor(clock: Clock.Clock) {
    this.watching = clock
    this.isTestClock = isTestClock(clock)
    this.watched = Object.assign(Object.create(clock) as Clock.Clock, {
      sleep: (duration: Duration.Duration) =>
        Effect.suspend(() => {
          const sleeper = { due: this.now + Duration.toMillis(duration) }
          this.begun++
          this.sleeping.add(sleeper)
          return Effect.ensuring(clock.sleep(duration), Effect.sync(() => this.sleeping.delete(sleeper)))
        })
    })
  }

  get now(): number {
    return this.watching.currentTimeMillisUnsafe()
  }

  /** When the first sleeper is due; infinite where nobody sleeps. */
  get due(): number {
    let first = Infinity
    for (const { due } of this.sleeping) first = Math.min(first, due)
    return first
  }

  /** To the instant itself: a difference would be rounded, to nothing where it is less than a nanosecond. */
  readonly moveToDue: Effect.Effect<void> = Effect.suspend(() => TestClock.setTime(Math.max(this.now, this.due)))
}

export const isTestClock = (clock: Clock.Clock): boolean => "adjust" in clock

/** Differs whenever something has happened, also what no broker hears: a handler ended, an attempt is postponed. */
const activityOf = ({ clock, memory, outcomes, running }: Watched): Effect.Effect<string> =>
  Effect.zipWith(
    memory.activity,
    running.owned,
    (activity, held) => [activity, held.running, held.waiting, outcomes.length, clock.begun].join()
  )

/**
 * Lets everything run that needs no time: a settlement waits for up to 32 turns of the loop, also that of a handler which
 * ends meanwhile. `false` when something still happens after a second of real time.
 */
export const rest = (watched: Watched): Effect.Effect<boolean> =>
  Effect.gen(function*() {
    const until = performance.now() + 1000
    let activity = yield* activityOf(watched)
    for (let turns = 0; turns < 100; turns++) {
      yield* turn
      const now = yield* activityOf(watched)
      if (now === activity) continue
      if (performance.now() > until) return false
      turns = 0
      activity = now
    }
    return true
  })

const turn = Effect.callback<void>((resume) => {
  const immediate = setImmediate(() => resume(Effect.void))
  return Effect.sync(() => clearImmediate(immediate))
})

/** Waits in real time, at most `millis`, until something happens. */
export const liveActivity = (watched: Watched, millis: number): Effect.Effect<boolean> =>
  Effect.gen(function*() {
    const before = yield* activityOf(watched)
    const until = performance.now() + millis
    while (performance.now() < until) {
      yield* Effect.callback<void>((resume) => {
        const timer = setTimeout(() => resume(Effect.void), 5)
        return Effect.sync(() => clearTimeout(timer))
      })
      if ((yield* activityOf(watched)) !== before) return true
    }
    return false
  })
