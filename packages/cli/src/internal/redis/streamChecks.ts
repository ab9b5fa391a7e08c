import { bad, type Finding, type Given, ok, unknown } from "../findings.ts"
import { isDeadLetterTopic } from "../overview.ts"
import { bytes, count, duration, many, quote } from "../text.ts"
import type { GroupFacts, StreamFacts } from "./facts.ts"

/** Fewer entries do no harm yet. */
const manyEntries = 10_000

/** A message that was left alone for so many claim times is not taken over by anybody. */
export const stuckAfter = (given: Given): number => 10 * given.minIdle

const compare = (a: string, b: string): number => {
  const [aTime = "0", aSequence = "0"] = a.split("-")
  const [bTime = "0", bSequence = "0"] = b.split("-")
  return Number(aTime) - Number(bTime) || Number(aSequence) - Number(bSequence)
}

/** A shorter history says nothing about the rate. */
const leastSpan = 60_000

const hour = 3_600_000

/** Milliseconds until a stream that goes on growing as it did has taken all memory. */
const fullIn = ({ bytes, span }: StreamFacts, room: number | undefined): number | undefined =>
  bytes === undefined || room === undefined || span < leastSpan ? undefined : room / (bytes / span)

const bound = (stream: StreamFacts, room: number | undefined): Finding => {
  const id = "redis/unbounded"
  const { added, length, maxDeleted, topic } = stream
  const isBounded = added === undefined || added !== length || maxDeleted !== "0-0" || isDeadLetterTopic(topic)
  const left = isBounded ? undefined : fullIn(stream, room)
  const isSoon = left !== undefined && left < 24 * hour
  if (isBounded || (length < manyEntries && !isSoon)) {
    return ok(
      id,
      `${many(length, "entry", "entries")}${added === undefined ? "" : ` of ${count(added)} ever added`}`,
      topic
    )
  }
  const size = stream.bytes === undefined ? "" : `, ${bytes(stream.bytes)}`
  return bad(
    isSoon && left < hour ? "error" : "warning",
    id,
    `${count(length)} entries${size}, and none was ever deleted`,
    isSoon
      ? `the stream grows until memory is full: at its rate so far in about ${duration(left)}`
      : "the stream grows until memory is full",
    "give the layer a retention: \"until-acked\", \"acknowledged\", or { maxLength } or { maxAge }",
    topic
  )
}

/** Each block holds at least one entry, or is left empty by exact trimming beside the deletion of single entries. */
const blocks = ({ blocks, key, length, topic }: StreamFacts): ReadonlyArray<Finding> => {
  const id = "redis/empty-blocks"
  return blocks > length
    ? [
      bad(
        "error",
        id,
        `${many(blocks, "block")} for ${many(length, "entry", "entries")}: at least one is empty`,
        "servers with a stricter check do not load such a snapshot, and do not replicate from this one (redis/redis#15808)",
        `trim with ~ instead of exactly; once nothing is pending: DEL ${quote(key)}, its pipelines create it again`,
        topic
      )
    ]
    : []
}

const unreadable = ({ topic, unreadable }: StreamFacts): ReadonlyArray<Finding> =>
  unreadable.map((name) =>
    unknown(
      "redis/group-name",
      "the group cannot be looked at: it was deleted meanwhile, or its name is no text",
      "whether it stands still is not seen",
      "run doctor again; look with: XINFO GROUPS",
      `${topic}/${name}`
    )
  )

const consumers = ({ key }: StreamFacts, group: GroupFacts, at: string): ReadonlyArray<Finding> => {
  const { lag, pending } = group
  const id = "redis/no-consumers"
  if (group.consumers.length > 0) return [ok(id, many(group.consumers.length, "consumer"), at)]
  return [
    pending > 0 || lag === undefined || lag > 0
      ? bad(
        "warning",
        id,
        `no consumer; ${count(pending)} pending, lag ${count(lag)}`,
        "nothing of this group is handled; with retention \"until-acked\" nothing is deleted either",
        `start its pipeline, or, if the group is given up: XGROUP DESTROY ${quote(key)} ${quote(group.name)}`,
        at
      )
      : ok(id, "no consumer, and nothing to do", at)
  ]
}

const deadOwners = (
  { topic }: StreamFacts,
  group: GroupFacts,
  at: string,
  minIdle: number
): ReadonlyArray<Finding> => {
  const id = "redis/dead-owner"
  const dead = group.consumers.filter(({ idle, pending }) => pending > 0 && idle > 3 * minIdle)
  if (dead.length === 0) return [ok(id, "every consumer that holds messages has been heard of", at)]
  const [worst] = dead.toSorted((a, b) => b.idle - a.idle)
  return [bad(
    group.stuck === undefined ? "warning" : "error",
    id,
    `${many(dead.length, "silent consumer")} hold${dead.length === 1 ? "s" : ""} ${
      many(dead.reduce((sum, { pending }) => sum + pending, 0), "message")
    }: ${worst!.name}, silent for ${duration(worst!.idle)}${dead.length === 1 ? "" : ", and others"}`,
    "their messages wait for a process of this group to take them over, and none does",
    `start a process of this group; look with: millrace inspect ${quote(topic)}`,
    at
  )]
}

const stuck = ({ topic }: StreamFacts, { stuck }: GroupFacts, at: string): Finding => {
  const id = "redis/stuck"
  return stuck === undefined ? ok(id, "no message is left alone", at) : bad(
    "error",
    id,
    `message ${stuck.id} is with ${stuck.consumer} and was left alone for ${duration(stuck.idle)}`,
    "no process extends its lease or takes it over: it is not being handled",
    `millrace show ${quote(topic)} ${stuck.id}, and see whether a process of the group runs`,
    at
  )
}

const lag = ({ lag }: GroupFacts, at: string): Finding => {
  const id = "redis/lag-unknown"
  return lag === undefined
    ? bad(
      "warning",
      id,
      "the server does not know the lag: entries were deleted out of order",
      "an alert or autoscaler that reads lag sees nothing",
      "watch pending and the length of the stream instead; the lag is known again once the group has read on",
      at
    )
    : ok(id, `lag ${count(lag)}`, at)
}

/** Messages that were deleted before the group saw them, as far as the server can tell. */
const lost = ({ added, first, length, maxDeleted }: StreamFacts, { entriesRead, lastDelivered }: GroupFacts) => {
  if (added !== undefined && entriesRead !== undefined && added - length > entriesRead) {
    return added - length - entriesRead
  }
  // A bound deletes from the front; a deletion in the middle was asked for by id.
  const isBound = first === undefined || compare(maxDeleted, first) < 0
  return isBound && compare(maxDeleted, lastDelivered) > 0 ? 1 : 0
}

const unread = (stream: StreamFacts, group: GroupFacts, at: string): Finding => {
  const id = "redis/unread-trimmed"
  const { added, first, length } = stream
  const gone = lost(stream, group)
  if (gone > 0) {
    return bad(
      "error",
      id,
      `at least ${many(gone, "message")} ${
        gone === 1 ? "was" : "were"
      } deleted unread: the group has read to ${group.lastDelivered}, the stream begins at ${first ?? "nothing"}`,
      "this group never handles them",
      "raise the bound of the layer, or use retention \"until-acked\"; add processes",
      at
    )
  }
  const isTrimmed = added !== undefined && added > length
  if (isTrimmed && length >= 100 && (group.lag ?? 0) >= 0.8 * length) {
    return bad(
      "warning",
      id,
      `${count(group.lag)} of the ${count(length)} entries that the stream keeps are unread`,
      "the next ones to be trimmed are messages that this group never saw",
      "add processes or concurrency, or raise the bound",
      at
    )
  }
  return ok(id, "nothing unread is about to be trimmed", at)
}

/** Every check of a stream and its groups. */
export const streamChecks = (
  facts: StreamFacts,
  given: Given,
  /** Bytes until the server is full. */
  room: number | undefined
): ReadonlyArray<Finding> => [
  bound(facts, room),
  ...blocks(facts),
  ...unreadable(facts),
  ...facts.groups.flatMap((group) => {
    const at = `${facts.topic}/${group.name}`
    return [
      ...consumers(facts, group, at),
      ...deadOwners(facts, group, at, given.minIdle),
      stuck(facts, group, at),
      lag(group, at),
      unread(facts, group, at)
    ]
  })
]
