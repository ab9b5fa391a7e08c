import type { TransportError } from "@millrace/core/TransportError"
import { invalidOption } from "./connection.ts"

/** The stream of a topic that no stream captures yet. A stream's name cannot hold a dot. */
export const streamOf = (topic: string): string => topic.replaceAll(".", "_")

/**
 * The name of a durable consumer that is created for a group: the group alone where the stream holds nothing but this
 * topic. One that exists is found under either name: subjects are added to streams.
 */
export const durableOf = (topic: string, group: string, subjects: ReadonlyArray<string>): string =>
  subjects.every((subject) => subject === topic || isDelayed(subject)) ? group : longDurableOf(topic, group)

export const longDurableOf = (topic: string, group: string): string => `${group}_${streamOf(topic)}`

/**
 * Where messages wait that are to be delivered later, each on a subject of its own. Two streams may not take the same
 * subject, so it holds the stream's name rather than the topic, of which another may be the beginning.
 */
export const delayedSubject = (topic: string, id: string): string => `millrace-delayed.${streamOf(topic)}.${id}`

const isDelayed = (subject: string) => subject.startsWith("millrace-delayed.")

/** Says how to mend a name that NATS cannot take; `undefined` when the name is fine. */
export const remedy = (kind: "topic" | "group", name: string): string | undefined => {
  if (kind === "group") {
    return /^[A-Za-z0-9_-]+$/.test(name) ? undefined : "a group name is made of letters, digits and the signs _ -"
  }
  if (!/^[A-Za-z0-9_.-]+$/.test(name)) return "a topic name is made of letters, digits and the signs _ . -"
  return name.split(".").includes("")
    ? "a NATS subject has no empty part: no dot at either end, no two in a row"
    : undefined
}

const validate = (kind: "topic" | "group", name: string): TransportError | undefined => {
  const mended = remedy(kind, name)
  return mended === undefined ? undefined : invalidOption(kind, name, mended)
}

/** A topic is a subject without wildcards: no empty token, none of the server's own. */
export const validateTopic = (topic: string) => validate("topic", topic)

export const validateGroup = (group: string) => validate("group", group)

export const validateStream = (name: string, option = "stream.name"): TransportError | undefined =>
  /^[^\s.*>/\\]+$/.test(name)
    ? undefined
    : invalidOption(option, name, "a stream's name has no space and none of . * > / \\")

/** A subject with wildcards. */
export const validateFilter = (subject: string): TransportError | undefined =>
  /^([A-Za-z0-9_-]+|\*)(\.([A-Za-z0-9_-]+|\*))*(\.>)?$/.test(subject)
    ? undefined
    : invalidOption(
      "subject",
      subject,
      "parts between dots are letters, digits and _ -, or {name} or *; the last may be >"
    )

/** Whether everything published on `subject` would match `filter`. */
export const covers = (filter: string, subject: string): boolean => {
  const wanted = filter.split(".")
  const given = subject.split(".")
  for (let i = 0; i < wanted.length; i++) {
    if (wanted[i] === ">") return given.length > i
    if (given[i] === undefined || given[i] === ">" || (wanted[i] !== "*" && wanted[i] !== given[i])) return false
  }
  return wanted.length === given.length
}

/** The group of a durable consumer. */
export const groupOf = (topic: string, durable: string): string => {
  const suffix = `_${streamOf(topic)}`
  return durable.endsWith(suffix) && durable.length > suffix.length ? durable.slice(0, -suffix.length) : durable
}

/** The fewest subjects that take what two lists take: the server refuses a subject that another one covers. */
export const union = (one: ReadonlyArray<string>, other: ReadonlyArray<string>): ReadonlyArray<string> => {
  const all = [...new Set([...one, ...other])]
  return all.filter((subject) => !all.some((wider) => wider !== subject && covers(wider, subject)))
}
