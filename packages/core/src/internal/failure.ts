/**
 * The life of a failing message.
 *
 * 1. Its handler fails, with an error, a defect, or a settlement it asks for (`Settlement.retry`, `.terminate`).
 * 2. If it had been settled by hand before, nothing more is said about it; it is counted as `failedAfterSettle`.
 * 3. `Settlement.terminate`, a failure that the policy's `while` rejects, and the failure of the last allowed attempt
 *    end it: see 6. A defect is treated like a failure, without asking `while`.
 * 4. Otherwise the schedule is stepped once for each attempt there was: the last delay is how long it waits.
 *    `Settlement.retry(after)` names its own.
 * 5. `retry(delay)` is settled: the transport records attempt and due time at the broker, the slot is free, and the
 *    message is delivered again when it is due, here or in another process.
 * 6. A dead letter is written, and only when the broker has confirmed it, `terminate` is settled. A crash between the
 *    two writes the same dead letter again, under the same id.
 * 7. A dead letter that cannot be written leaves the message unsettled: the broker delivers it again.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Pull from "effect/Pull"
import * as Schedule from "effect/Schedule"
import type * as DeadLetter from "../DeadLetter.ts"
import type * as Message from "../Message.ts"
import * as Settlement from "../Settlement.ts"
import type { Retry } from "./program.ts"

/** 1 s, 6.7 s, 45 s, 5 min: five attempts over about six minutes. */
export const defaultSchedule = Schedule.exponential(Duration.seconds(1), Math.cbrt(300)).pipe(Schedule.jittered)

export const defaultRetry: Retry = { times: 4, schedule: defaultSchedule, while: undefined, uncounted: 100 }

/** What is to become of it: a delay, or the end. */
export type Verdict =
  | { readonly _tag: "Retry"; readonly delay: Duration.Duration }
  | { readonly _tag: "End"; readonly reason: DeadLetter.Reason }

export const judge = (
  policy: Retry,
  cause: Cause.Cause<unknown>,
  attempt: number,
  message: Message.Any | undefined
): Effect.Effect<Verdict> => {
  const error = Option.getOrUndefined(Cause.findErrorOption(cause))
  const requested = Settlement.isRequested(error) ? error.settlement : undefined
  if (requested?._tag === "Terminate") return end("terminated")
  if (attempt > policy.times) return end("exhausted")
  if (requested?._tag === "Retry") {
    return requested.after === undefined ? delayed(policy, attempt, error) : retryAfter(requested.after)
  }
  if (error !== undefined && message !== undefined && policy.while !== undefined) {
    if (!policy.while(error as never, message as never)) return end("rejected")
  }
  return delayed(policy, attempt, error)
}

const end = (reason: DeadLetter.Reason): Effect.Effect<Verdict> => Effect.succeed({ _tag: "End", reason })

const retryAfter = (delay: Duration.Duration): Effect.Effect<Verdict> => Effect.succeed({ _tag: "Retry", delay })

/**
 * The schedule is stepped anew each time, so the delay is the same whichever process asks. The earlier steps are taken
 * as if they had been waited for, so that the last one, which decides, is taken now: a schedule may go by the calendar.
 */
const delayed = (policy: Retry, attempt: number, error: unknown): Effect.Effect<Verdict> =>
  Effect.gen(function*() {
    const now = yield* Clock.currentTimeMillis
    const earlier = yield* delays(policy, attempt - 1, 0, error)
    const [delay] = (yield* delays(policy, attempt, now - sum(earlier), error)).slice(-1)
    return { _tag: "Retry", delay: delay! } as Verdict
  }).pipe(Pull.catchDone(() => end("exhausted")))

const delays = Effect.fnUntraced(function*(policy: Retry, times: number, from: number, error: unknown) {
  const step = yield* Schedule.toStep(policy.schedule)
  const taken: Array<Duration.Duration> = []
  for (let i = 0; i < times; i++) {
    const [, delay] = yield* step(from + sum(taken), error)
    taken.push(delay)
  }
  return taken
})

const sum = (durations: ReadonlyArray<Duration.Duration>): number =>
  durations.reduce((millis, duration) => millis + Duration.toMillis(duration), 0)
