import { bad, type Finding, type Given, ok } from "../findings.ts"
import { isDeadLetterTopic } from "../overview.ts"
import { bytes, count, duration } from "../text.ts"
import type { Facts, StreamFacts } from "./facts.ts"
import { retentionChecks } from "./retentionChecks.ts"
import { atLeast } from "./serverChecks.ts"

const millis = (nanos: number | undefined): number => (nanos ?? 0) / 1e6

const replicas = ({ info }: StreamFacts, clustered: boolean, at: string): ReadonlyArray<Finding> => {
  const id = "nats/replicas"
  const { num_replicas } = info.config
  const behind = (info.cluster?.replicas ?? []).filter(({ current, offline }) => offline === true || !current)
  return [
    clustered && num_replicas < 2
      ? bad(
        "error",
        id,
        "one replica in a cluster",
        "while its node is down nothing is published or handled; if its disk is lost, so are the messages",
        `nats stream edit ${at} --replicas 3`,
        at
      )
      : ok(id, `${num_replicas} replicas`, at),
    ...(behind.length === 0 ? [] : [
      bad(
        "warning",
        "nats/replica-behind",
        `${behind.map(({ name }) => name).join(", ")} is offline or behind`,
        "another failure stops the stream",
        "look at that node: nats server report jetstream",
        at
      )
    ])
  ]
}

const storage = ({ info: { config } }: StreamFacts, at: string): Finding =>
  config.storage === "memory"
    ? bad(
      "warning",
      "nats/storage",
      "storage memory",
      "a restart of the server (with replicas: of all of them) forgets every message",
      "create the stream anew with storage file; it cannot be edited",
      at
    )
    : ok("nats/storage", "storage file", at)

const isAsync = (config: object): boolean => "persist_mode" in config && config.persist_mode === "async"

const persistMode = ({ info: { config } }: StreamFacts, at: string): ReadonlyArray<Finding> =>
  isAsync(config)
    ? [
      bad(
        "error",
        "nats/persist-mode",
        "persist_mode async",
        "messages are confirmed before they are written: a crash of the server loses them",
        `create the stream ${at} anew without persist_mode`,
        at
      )
    ]
    : []

/** The bound that is filled most, and how far. */
const fullest = (
  { config, state }: StreamFacts["info"]
): { readonly share: number; readonly seen: string } | undefined => {
  const shares = [
    ...(config.max_msgs > 0
      ? [{
        share: state.messages / config.max_msgs,
        seen: `${count(state.messages)} of max_msgs ${count(config.max_msgs)}`
      }]
      : []),
    ...(config.max_bytes > 0
      ? [{
        share: state.bytes / config.max_bytes,
        seen: `${bytes(state.bytes)} of max_bytes ${bytes(config.max_bytes)}`
      }]
      : [])
  ]
  return shares.toSorted((a, b) => b.share - a.share)[0]
}

const discard = ({ consumers, info }: StreamFacts, at: string): ReadonlyArray<Finding> => {
  const { config, state } = info
  const findings: Array<Finding> = []
  const bound = fullest(info)
  const backlog = Math.max(0, ...consumers.map(({ num_ack_pending, num_pending }) => num_pending + num_ack_pending))
  if (config.discard === "new") {
    const id = "nats/discard-new"
    findings.push(
      bound !== undefined && bound.share >= 0.8
        ? bad(
          bound.share >= 1 ? "error" : "warning",
          id,
          `${bound.seen}, discard new`,
          "a full stream refuses every publish; a dead letter that is refused holds up its message",
          `raise the bound, or purge what is done: nats stream purge ${at} --keep 1000`,
          at
        )
        : ok(id, bound === undefined ? "discard new without a bound" : `${bound.seen}, discard new`, at)
    )
  } else if (bound !== undefined) {
    const id = "nats/discard-old"
    const share = state.messages === 0 ? 0 : backlog / state.messages
    findings.push(
      bound.share >= 0.8 && share >= 0.5
        ? bad(
          "error",
          id,
          `${bound.seen}, discard old; ${count(backlog)} of them are not handled yet`,
          "the next messages to be dropped are unread ones",
          "add processes, raise the bound, or use discard new so that publishers are told",
          at
        )
        : ok(id, `${bound.seen}, discard old, backlog ${count(backlog)}`, at)
    )
  }
  if (config.max_msgs_per_subject > 0 && config.max_msgs_per_subject < 1000) {
    const dead = (config.subjects ?? []).some(isDeadLetterTopic)
    findings.push(bad(
      dead ? "error" : "warning",
      "nats/max-msgs-per-subject",
      `max_msgs_per_subject ${count(config.max_msgs_per_subject)}`,
      dead ? "each dead letter drops an older one" : "a topic keeps so many messages, read or not",
      `nats stream edit ${at} --max-msgs-per-subject=-1`,
      at
    ))
  }
  return findings
}

const age = ({ consumers, info: { config, state } }: StreamFacts, given: Given, at: string): ReadonlyArray<Finding> => {
  const id = "nats/max-age"
  const most = millis(config.max_age)
  if (most === 0) return []
  const seen = `max_age ${duration(most)}`
  const oldest = Date.now() - Date.parse(String(state.first_ts))
  const isUnread = state.messages > 0 &&
    consumers.some(({ ack_floor, num_ack_pending, num_pending }) =>
      num_pending + num_ack_pending > 0 && ack_floor.stream_seq < state.first_seq
    )
  if (given.longestDelay !== undefined && given.longestDelay >= most) {
    return [
      bad(
        "error",
        id,
        `${seen}, delays up to ${duration(given.longestDelay)}`,
        "a message that waits longer than that is dropped without a word",
        `nats stream edit ${at} --max-age=${Math.ceil(given.longestDelay * 2 / 3_600_000)}h`,
        at
      )
    ]
  }
  if (isUnread && oldest >= 0.8 * most) {
    return [
      bad(
        "error",
        id,
        `${seen}; the oldest message that is not handled is ${duration(oldest)} old`,
        "it is about to be dropped unread",
        "add processes, or raise max_age",
        at
      )
    ]
  }
  return [ok(id, seen, at)]
}

const duplicateWindow = ({ info: { config } }: StreamFacts, given: Given, at: string): Finding => {
  const id = "nats/duplicate-window"
  const window = millis(config.duplicate_window)
  const needed = given.retryHorizon ?? 120_000
  const seen = `duplicate_window ${duration(window)}`
  return window < needed
    ? bad(
      "warning",
      id,
      `${seen}, publishers repeat for ${duration(needed)}`,
      "a publish that is repeated later is stored twice",
      `nats stream edit ${at} --dupe-window=${Math.ceil(needed / 1000)}s`,
      at
    )
    : ok(id, seen, at)
}

const mayDelete = ({ info: { config } }: StreamFacts, at: string): ReadonlyArray<Finding> => {
  const id = "nats/deny-delete"
  if (config.sealed) {
    return [
      bad(
        "error",
        id,
        "the stream is sealed",
        "nothing can be published to it or deleted from it",
        "use another stream",
        at
      )
    ]
  }
  return config.deny_delete
    ? [
      bad(
        "warning",
        id,
        "deny_delete",
        "a redrive cannot delete the letters that it has published again: each redrive repeats them",
        "create the stream anew without deny_delete; it cannot be edited",
        at
      )
    ]
    : []
}

const size = ({ info: { config } }: StreamFacts, { largest }: Given, at: string): ReadonlyArray<Finding> => {
  const id = "nats/max-msg-size"
  const most = config.max_msg_size
  if (most === undefined || most <= 0) return []
  const seen = `max_msg_size ${bytes(most)}`
  if (largest !== undefined && largest + 32_768 > most) {
    return [
      bad(
        largest > most ? "error" : "warning",
        id,
        `${seen}, largest message ${bytes(largest)}`,
        "with headers, or with the record of a dead letter, it is refused",
        `nats stream edit ${at} --max-msg-size=-1`,
        at
      )
    ]
  }
  return [
    most < 65_536
      ? bad(
        "warning",
        id,
        seen,
        "a dead letter needs up to 32 kB for its record beside the message",
        `nats stream edit ${at} --max-msg-size=-1`,
        at
      )
      : ok(id, seen, at)
  ]
}

const features = ({ info: { config } }: StreamFacts, version: string, at: string): Finding => {
  const id = "nats/stream-features"
  if (config.mirror !== undefined || config.sealed) return ok(id, "nothing is published to it", at)
  // The server allows no schedules with discard new, and no atomic batches with persist_mode async.
  const missing = [
    ...(atLeast(version, 2, 11) && !config.allow_msg_ttl ? ["allow_msg_ttl"] : []),
    ...(atLeast(version, 2, 12) && !config.allow_msg_schedules && config.discard !== "new"
      ? ["allow_msg_schedules"]
      : []),
    ...(atLeast(version, 2, 12) && !config.allow_atomic && !isAsync(config) ? ["allow_atomic"] : []),
    ...(config.allow_direct ? [] : ["allow_direct"])
  ]
  return missing.length === 0 ? ok(id, "all that this server offers", at) : bad(
    "warning",
    id,
    `without ${missing.join(", ")}, as streams of an older server have it`,
    missing.includes("allow_msg_schedules")
      ? "delayed publishing is refused, and a long retry delay holds a place in max_ack_pending"
      : "reading dead letters takes more requests",
    `nats stream edit ${at} ${missing.map((name) => `--${name.replaceAll("_", "-")}`).join(" ")}`,
    at
  )
}

const unbounded = ({ info: { config, state } }: StreamFacts, at: string): ReadonlyArray<Finding> =>
  config.retention === "limits" && !(config.max_age > 0) && !(config.max_bytes > 0) && !(config.max_msgs > 0) &&
    !(config.max_msgs_per_subject > 0) && !(config.subjects ?? []).every(isDeadLetterTopic) && state.messages >= 10_000
    ? [
      bad(
        "warning",
        "nats/unbounded",
        `${count(state.messages)} messages, ${bytes(state.bytes)}, no bound`,
        "the stream grows until the disk or the account is full",
        "give the layer retention: \"until-acked\", or a bound in stream",
        at
      )
    ]
    : []

const groups = ({ consumers, info: { config } }: StreamFacts, at: string): ReadonlyArray<Finding> => {
  const id = "nats/max-consumers"
  const most = config.max_consumers
  if (!(most > 0)) return []
  const seen = `${count(consumers.length)} of max_consumers ${count(most)}`
  return [
    consumers.length < most ? ok(id, seen, at) : bad(
      "warning",
      id,
      seen,
      "a new group, or one that was deleted, cannot be created: its pipeline does not start",
      "create the stream anew without max_consumers, or delete consumers that are given up",
      at
    )
  ]
}

/** Every check of a stream. */
export const streamChecks = (stream: StreamFacts, facts: Facts, given: Given): ReadonlyArray<Finding> => {
  const at = stream.info.config.name
  return [
    ...replicas(stream, facts.clustered, at),
    storage(stream, at),
    ...persistMode(stream, at),
    ...discard(stream, at),
    ...age(stream, given, at),
    duplicateWindow(stream, given, at),
    ...mayDelete(stream, at),
    ...retentionChecks(stream, at),
    ...size(stream, given, at),
    features(stream, facts.version, at),
    ...unbounded(stream, at),
    ...groups(stream, at)
  ]
}
