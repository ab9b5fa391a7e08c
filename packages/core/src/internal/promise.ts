import * as Cause from "effect/Cause"
import * as Settlement from "../Settlement.ts"

/** Whether something is to be waited for as a promise is. */
export const isThenable = (u: unknown): u is PromiseLike<unknown> =>
  typeof u === "object" && u !== null && "then" in u && typeof u.then === "function"

/** What the types refuse can still be passed by a cast. */
export const mapReturnedPromise = () =>
  new TypeError("a function given to Pipeline.map returned a Promise: use Pipeline.mapPromise")

/** What a rejection means: a settlement that was asked for, or what the user's \`catch\` makes of it. */
export const rejection = (onRejected: (cause: unknown) => unknown, error: unknown): Cause.Cause<unknown> => {
  if (Settlement.isRequested(error)) return Cause.fail(error)
  try {
    return Cause.fail(onRejected(error))
  } catch (defect) {
    return Cause.die(defect)
  }
}
