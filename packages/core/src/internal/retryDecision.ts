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
import { answered } from "./promise.ts"

/** 1 s, 6.7 s, 45 s, 5 min: five attempts over about six minutes. */
export const defaultSchedule = Schedule.exponential(Duration.seconds(1), Math.cbrt(300)).pipe(Schedule.jittered)

export const defaultRetry: Retry = { times: 4, schedule: defaultSchedule, while: undefined, uncounted: 100 }

/** How many attempts a policy allows. */
export const allowedAttempts = (policy: Retry): number => policy.times + 1

/** Another attempt after a delay, or the end. */
export type RetryDecision =
  | { readonly _tag: "Retry"; readonly delay: Duration.Duration }
  | { readonly _tag: "End"; readonly reason: DeadLetter.DeadLetterReason }

/** The settlement that a handler requested, also where throwing it made it a defect (in `Effect.sync`, in a batch). */
export const requestedBy = (cause: Cause.Cause<unknown>): Settlement.Retry | Settlement.Terminate | undefined => {
  for (const reason of cause.reasons) {
    const error = Cause.isFailReason(reason) ? reason.error : Cause.isDieReason(reason) ? reason.defect : undefined
    const requested = Settlement.isRequested(error) ? readable(error) : undefined
    if (requested !== undefined) return requested
  }
  return undefined
}

/** A handler may throw an object that only looks like a request: that is a failure like any other. */
const readable = (error: Settlement.SettlementRequested): Settlement.Retry | Settlement.Terminate | undefined => {
  const settlement = Settlement.read(error)
  return settlement?._tag === "Retry" || settlement?._tag === "Terminate" ? settlement : undefined
}

/**
 * Decides about a failed attempt. A settlement that the handler requested comes first, then the limit, then `while`; a
 * defect is retried without asking `while`.
 */
export const decideRetry = (
  policy: Retry,
  cause: Cause.Cause<unknown>,
  attempt: number,
  message: Message.Any | undefined
): Effect.Effect<RetryDecision> => {
  const error = Option.getOrUndefined(Cause.findErrorOption(cause))
  const requested = requestedBy(cause)
  if (requested?._tag === "Terminate") return end("terminated")
  if (attempt > policy.times) return end("exhausted")
  if (requested?._tag === "Retry") {
    return requested.after === undefined
      ? delayed(policy, attempt, error)
      : Effect.succeed({ _tag: "Retry", delay: requested.after })
  }
  if (error !== undefined && message !== undefined && policy.while !== undefined) {
    if (!answered("retry.while", policy.while(error as never, message as never))) return end("rejected")
  }
  return delayed(policy, attempt, error)
}

const end = (reason: DeadLetter.DeadLetterReason): Effect.Effect<RetryDecision> =>
  Effect.succeed({ _tag: "End", reason })

/**
 * The schedule is stepped anew each time, so the delay is the same whichever process asks. The earlier steps are taken
 * as if they had been waited for, so that the last one, which decides, is taken now: a schedule may go by the calendar.
 */
const delayed = (policy: Retry, attempt: number, error: unknown): Effect.Effect<RetryDecision> =>
  Effect.gen(function*() {
    const now = yield* Clock.currentTimeMillis
    const earlier = attempt === 1 ? 0 : sum(yield* delays(policy, attempt - 1, 0, error))
    const [delay] = (yield* delays(policy, attempt, now - earlier, error)).slice(-1)
    return { _tag: "Retry", delay: Duration.max(Duration.zero, delay!) } as RetryDecision
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
