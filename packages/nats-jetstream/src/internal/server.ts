/** Whether a server's version is at least the given one. */
export const atLeast = (version: string | undefined, major: number, minor: number): boolean => {
  const [a = 0, b = 0] = (version ?? "").split(".").map(Number)
  return a > major || (a === major && b >= minor)
}
