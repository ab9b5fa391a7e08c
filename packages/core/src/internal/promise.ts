/** Whether something is to be waited for as a promise is. */
export const isThenable = (u: unknown): u is PromiseLike<unknown> =>
  typeof u === "object" && u !== null && "then" in u && typeof u.then === "function"

/** What the types refuse can still be passed by a cast. */
export const mapReturnedPromise = () =>
  new TypeError("a function given to Pipeline.map returned a Promise: use Pipeline.mapPromise")
