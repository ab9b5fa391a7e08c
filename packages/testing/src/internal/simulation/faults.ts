/**
 * The faults of one simulated run, by name: each is decided by the seed, and on record.
 *
 * A decision draws the same random numbers whether or not its fault may happen, so that a run with fewer faults stays
 * close to the run with all of them: a failing run can be made smaller, fault by fault.
 */
export class Faults {
  /** Those that have happened, with what they were. */
  readonly happened = new Map<string, string>()
  private readonly only: ReadonlySet<string> | undefined

  /** `only`: the names of those that may happen; `undefined`: all. */
  constructor(only: Iterable<string> | undefined) {
    this.only = only === undefined ? undefined : new Set(only)
  }

  /** `name` tells this decision from all others of the run, and `text` says what the fault was: both only of one that is chosen. */
  happens(isChosen: boolean, name: () => string, text: () => string): boolean {
    if (!isChosen) return false
    const known = name()
    if (this.only?.has(known) === false) return false
    this.happened.set(known, text())
    return true
  }
}

/**
 * Makes an error, without a stack, for all faults of its kind: it would cost more than the rest of the fault, and its place is
 * always here.
 */
export const madeOnce = <A>(make: () => A): A => {
  const { stackTraceLimit } = Error
  Error.stackTraceLimit = 0
  try {
    return make()
  } finally {
    Error.stackTraceLimit = stackTraceLimit
  }
}

/**
 * Makes a set smaller for as long as `fails` says that the rest still fails: halves, quarters, and so on down to single
 * elements (delta debugging). `fails` is called at most `most` times.
 */
export const minimize = async <A>(
  all: ReadonlyArray<A>,
  fails: (left: ReadonlyArray<A>) => Promise<boolean>,
  most: number
): Promise<ReadonlyArray<A>> => {
  let left = all
  let calls = 0
  for (let parts = 2; left.length > 0;) {
    const size = Math.max(1, Math.ceil(left.length / parts))
    let hasShrunk = false
    for (let from = 0; from < left.length && calls < most; from += size) {
      const rest = [...left.slice(0, from), ...left.slice(from + size)]
      calls++
      if (!(await fails(rest))) continue
      left = rest
      hasShrunk = true
      from -= size
    }
    if (calls >= most || (size === 1 && !hasShrunk)) break
    if (size > 1) parts *= 2
  }
  return left
}
