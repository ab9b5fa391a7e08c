import type { ConsumerConfig, ConsumerInfo } from "@nats-io/jetstream"
import { bad, type Finding, type Given, ok } from "../findings.ts"
import { count, duration } from "../text.ts"
import { isFull } from "./facts.ts"

const millis = (nanos: number | undefined): number => (nanos ?? 0) / 1e6

/** What a consumer reads; without a filter all subjects of its stream. */
export const filtersOf = (config: ConsumerConfig, subjects: ReadonlyArray<string>): ReadonlyArray<string> =>
  config.filter_subjects !== undefined && config.filter_subjects.length > 0
    ? config.filter_subjects
    : config.filter_subject !== undefined && config.filter_subject !== ""
    ? [config.filter_subject]
    : subjects

/** Whether everything on `subject` matches `filter`. */
export const covers = (filter: string, subject: string): boolean => {
  const wanted = filter.split(".")
  const given = subject.split(".")
  for (let i = 0; i < wanted.length; i++) {
    if (wanted[i] === ">") return given.length > i
    if (given[i] === undefined || given[i] === ">" || (wanted[i] !== "*" && wanted[i] !== given[i])) return false
  }
  return wanted.length === given.length
}

/** Whether a subject may match both filters. */
export const overlap = (one: string, other: string): boolean => {
  const a = one.split(".")
  const b = other.split(".")
  for (let i = 0; i < Math.max(a.length, b.length); i++) {
    const [x, y] = [a[i], b[i]]
    if (x === undefined || y === undefined) return false
    if (x === ">" || y === ">") return true
    if (x !== "*" && y !== "*" && x !== y) return false
  }
  return true
}

const command = (verb: string, at: string, option = ""): string => {
  const [stream, consumer] = at.split("/")
  return `nats consumer ${verb} ${stream} ${consumer} ${option}`.trim()
}

const edit = (at: string, option: string): string => command("edit", at, option)

const deliveries = ({ config }: ConsumerInfo, at: string): ReadonlyArray<Finding> => {
  const findings: Array<Finding> = []
  if ((config.max_deliver ?? -1) > 0) {
    findings.push(
      bad(
        "error",
        "nats/max-deliver",
        `max_deliver ${config.max_deliver}`,
        "the server drops a message after so many deliveries, without a dead letter",
        edit(at, "--max-deliver=-1"),
        at
      )
    )
  } else findings.push(ok("nats/max-deliver", "max_deliver -1", at))
  if ((config.backoff ?? []).length > 0) {
    findings.push(
      bad(
        "error",
        "nats/backoff",
        `backoff ${config.backoff!.map((nanos) => duration(nanos / 1e6)).join(", ")}`,
        "the server redelivers by its own schedule, while handlers run: they run twice",
        edit(at, "--backoff=none"),
        at
      )
    )
  }
  if (config.ack_policy !== "explicit") {
    findings.push(
      bad(
        "error",
        "nats/ack-policy",
        `ack_policy ${config.ack_policy}`,
        "a pipeline refuses it: messages would count as handled before they are",
        "delete the consumer and let the pipeline create it",
        at
      )
    )
  }
  if (config.deliver_subject !== undefined) {
    findings.push(
      bad(
        "error",
        "nats/push-consumer",
        "a push consumer",
        "a pipeline refuses it: nothing bounds what is sent",
        "delete the consumer and let the pipeline create it",
        at
      )
    )
  }
  if (config.headers_only === true) {
    findings.push(
      bad(
        "error",
        "nats/headers-only",
        "headers_only",
        "handlers get messages without their bodies",
        edit(at, "--no-headers-only"),
        at
      )
    )
  }
  return findings
}

/** Limits and habits that a pipeline does not reckon with. */
const requests = ({ config }: ConsumerInfo, at: string): ReadonlyArray<Finding> => {
  const findings: Array<Finding> = []
  const limits = ([
    ["max_batch", "--max-pull-batch=0", config.max_batch],
    ["max_expires", "--max-pull-expire=0s", config.max_expires]
  ] as const).filter(([, , value]) => (value ?? 0) > 0)
  if (limits.length > 0) {
    findings.push(
      bad(
        "warning",
        "nats/pull-limits",
        limits.map(([name, , value]) => `${name} ${name === "max_expires" ? duration(millis(value)) : count(value)}`)
          .join(", "),
        "a pipeline keeps to it, and asks the server more often",
        edit(at, limits.map(([, option]) => option).join(" ")),
        at
      )
    )
  }
  if (config.replay_policy === "original") {
    findings.push(
      bad(
        "warning",
        "nats/replay-policy",
        "replay_policy original",
        "messages are sent at the pace of their publishing: a backlog never gets shorter",
        "delete the consumer and let the pipeline create it; it cannot be edited",
        at
      )
    )
  }
  return findings
}

const life = ({ config }: ConsumerInfo, at: string): ReadonlyArray<Finding> => {
  const inactive = millis(config.inactive_threshold)
  const memory = config.mem_storage === true
    ? [
      bad(
        "warning",
        "nats/consumer-storage",
        "mem_storage",
        "a restart of the server forgets the group's position and its attempts",
        "delete the consumer and let the pipeline create it; it cannot be edited",
        at
      )
    ]
    : []
  return inactive > 0
    ? [
      ...memory,
      bad(
        "error",
        "nats/inactive-threshold",
        `inactive_threshold ${duration(inactive)} on a durable consumer`,
        "when no process runs for that long the group is deleted, with its position and its retries",
        edit(at, "--inactive-threshold=0s"),
        at
      )
    ]
    : memory
}

const waits = ({ config }: ConsumerInfo, { handlerTimeout, owned }: Given, at: string): ReadonlyArray<Finding> => {
  const id = "nats/ack-wait"
  const ackWait = millis(config.ack_wait)
  const seen = `ack_wait ${duration(ackWait)}`
  const most = config.max_ack_pending ?? 0
  const findings: Array<Finding> = [
    ackWait < 2000
      ? bad(
        "warning",
        id,
        seen,
        "a pause of the process (garbage collection, a blocked event loop) of that length makes handlers run twice",
        edit(at, "--wait=30s"),
        at
      )
      : handlerTimeout !== undefined && handlerTimeout > ackWait
      ? bad(
        "warning",
        id,
        `${seen}, handlers up to ${duration(handlerTimeout)}`,
        "running handlers are kept alive, unless one blocks the event loop that long: then its message is delivered again",
        edit(at, `--wait=${Math.ceil(handlerTimeout / 1000)}s`),
        at
      )
      : ok(id, seen, at)
  ]
  if (most > 0 && owned !== undefined && owned > most) {
    findings.push(
      bad(
        "error",
        "nats/max-ack-pending",
        `max_ack_pending ${count(most)}, processes want ${count(owned)}`,
        "processes starve: the server sends nothing more until others have settled",
        edit(at, `--max-pending=${owned}`),
        at
      )
    )
  }
  return findings
}

const progress = (info: ConsumerInfo, at: string, now: number, isMoving: boolean): ReadonlyArray<Finding> => {
  const { config, num_ack_pending, num_pending, num_redelivered, num_waiting } = info
  const findings: Array<Finding> = []
  if (info.paused === true) {
    findings.push(
      bad(
        "warning",
        "nats/paused",
        "the consumer is paused",
        "nothing of this group is handled until then",
        command("resume", at),
        at
      )
    )
  }
  const most = config.max_ack_pending ?? 0
  const taken = `${count(num_ack_pending)} of max_ack_pending ${count(most)} are taken`
  if (isFull(info) && isMoving) {
    findings.push(ok("nats/max-ack-pending", `${taken}, and others take their place within two seconds`, at))
  } else if (isFull(info)) {
    findings.push(
      bad(
        "error",
        "nats/max-ack-pending",
        `${taken}, and none was settled in two seconds`,
        "the server sends this group nothing more until some are settled",
        `look for handlers that hang and for long retry delays; ${edit(at, `--max-pending=${most * 2}`)}`,
        at
      )
    )
  }
  const last = Math.max(
    ...[info.delivered, info.ack_floor].map(({ last_active }) => Date.parse(String(last_active ?? ""))).filter((at) =>
      !Number.isNaN(at)
    ),
    Date.parse(String(info.created))
  )
  if (num_waiting === 0 && num_pending + num_ack_pending > 0) {
    findings.push(bad(
      "warning",
      "nats/no-consumers",
      `no process asks for messages; ${count(num_pending)} unread, ${count(num_ack_pending)} not settled, last sign ${
        duration(now - last)
      } ago`,
      "nothing of this group is handled",
      `start its pipeline, or, if the group is given up: ${command("rm", at)}`,
      at
    ))
  } else findings.push(ok("nats/no-consumers", num_waiting > 0 ? `${num_waiting} open requests` : "nothing to do", at))
  if (num_ack_pending > 0 && num_redelivered >= num_ack_pending && num_redelivered >= 10) {
    findings.push(
      bad(
        "warning",
        "nats/redelivered",
        `all of ${count(num_ack_pending)} unsettled messages have been delivered more than once`,
        "handlers fail or are killed again and again",
        "look at the handlers' errors, and at: millrace dead list",
        at
      )
    )
  }
  return findings
}

/**
 * Every check of a consumer that a group may use: a durable one. Others belong to tools, and vanish by themselves.
 * `isMoving`: it was seen to settle.
 */
export const consumerChecks = (
  info: ConsumerInfo,
  given: Given,
  now: number,
  isMoving: boolean
): ReadonlyArray<Finding> => {
  if (info.config.durable_name === undefined) return []
  const at = `${info.stream_name}/${info.name}`
  return [
    ...deliveries(info, at),
    ...life(info, at),
    ...requests(info, at),
    ...waits(info, given, at),
    ...progress(info, at, now, isMoving)
  ]
}
