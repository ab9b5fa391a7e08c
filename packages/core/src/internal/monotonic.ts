import * as Clock from "effect/Clock"
import * as Context from "effect/Context"

/**
 * Reads a monotonic clock in milliseconds, without the `bigint` of `Clock` where time is the machine's own: handlers are
 * measured with it, twice for each message.
 */
export const monotonicMillis = (clock: Clock.Clock): () => number =>
  clock === machine ? () => performance.now() : () => Number(clock.monotonicTimeNanosUnsafe()) / 1e6

const machine = Context.get(Context.empty(), Clock.Clock)
