/** The kinds of servers that can be had. */
export type Kind = "redis" | "valkey" | "nats"

/** The kinds, in the order in which they are listed. */
export const kinds: ReadonlyArray<Kind> = ["redis", "valkey", "nats"]

/**
 * The release lines that Millrace is tested against, newest first. Process providers offer whatever they find;
 * containers, of which every version ever made could be asked for, offer these.
 */
export const lines: Readonly<Record<Kind, readonly [string, ...Array<string>]>> = {
  redis: ["8.6", "8.0", "7.0"],
  valkey: ["9.1", "8.1"],
  nats: ["2.15", "2.10", "2.9"]
}

const numbers = (version: string): ReadonlyArray<number> => version.split(".").map(Number)

/** Orders versions, oldest first. Only the parts that both have are compared, so that `8.6` equals `8.6.3`. */
export const compare = (a: string, b: string): number => {
  const left = numbers(a)
  const right = numbers(b)
  for (let i = 0; i < Math.min(left.length, right.length); i++) {
    const difference = (left[i] ?? 0) - (right[i] ?? 0)
    if (difference !== 0) return difference
  }
  return 0
}

/** Whether text is a version or the beginning of one: `8`, `8.6`, `8.6.3`. */
export const isVersion = (text: string): boolean => /^\d+(\.\d+){0,2}$/.test(text)

/**
 * The version wanted among those offered: the newest, the oldest, or the newest that begins with the parts given.
 * Of equal ones the first offered is taken.
 */
export const select = <A extends { readonly version: string }>(
  wanted: string,
  offered: ReadonlyArray<A>
): A | undefined => {
  const fitting = isVersion(wanted)
    ? offered.filter(({ version }) =>
      numbers(version).length >= numbers(wanted).length && compare(version, wanted) === 0
    )
    : offered
  const sign = wanted === "oldest" ? 1 : -1
  return fitting.toSorted((a, b) => sign * compare(a.version, b.version))[0]
}
