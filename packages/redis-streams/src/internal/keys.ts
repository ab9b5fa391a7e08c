import type { Beside } from "./reply.ts"

/** The keys that belong to a stream: in Cluster in the same slot. Those of \`a\` and of \`{a}\` differ by a colon. */
const beside = (stream: string, name: string) =>
  stream.includes("{") ? `${stream}::millrace:${name}` : `{${stream}}:millrace:${name}`

/** Hash: id of a waiting retry to its due time. */
export const dues = (stream: string, group: string): string => beside(stream, `due:${group}`)

/** Sorted set: delayed entries by due time. */
export const delayed = (stream: string): string => beside(stream, "delayed")

/** Hash: ids published in one period. */
export const published = (stream: string, period: number): string => beside(stream, `ids:${period}`)

/** Says that a process is deleting consumers at the moment. */
export const maintenance = (stream: string, group: string): string => beside(stream, `maintenance:${group}`)

/** What the hash of due times should be. */
export const besideDues = (key: string): Beside => ({ key, expected: "a hash of due times, or no key" })

/** What the set of delayed entries should be. */
export const besideDelayed = (stream: string): Beside => ({
  key: delayed(stream),
  expected: "a sorted set of delayed messages, or no key"
})
