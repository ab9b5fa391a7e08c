import { bad, type Finding, type Given, ok, unknown } from "../findings.ts"
import { bytes, count, duration } from "../text.ts"
import type { Facts } from "./facts.ts"

export const atLeast = (version: string, major: number, minor: number): boolean => {
  const [a = 0, b = 0] = version.split(".").map(Number)
  return a > major || (a === major && b >= minor)
}

/** Older ones than 2.9 are refused before. */
const version = ({ version }: Facts): Finding => {
  const id = "nats/version"
  if (!atLeast(version, 2, 10)) {
    return bad(
      "warning",
      id,
      `nats-server ${version}`,
      "term() leaves messages in work queues, and redelivery counts differ",
      "upgrade to 2.10 or newer, best 2.12"
    )
  }
  return atLeast(version, 2, 12)
    ? ok(id, `nats-server ${version}`)
    : bad(
      "warning",
      id,
      `nats-server ${version}`,
      "delayed publishing is refused, and a long retry delay holds a place in max_ack_pending",
      "upgrade to 2.12 or newer"
    )
}

const sync = ({ clustered, syncInterval }: Facts): Finding => {
  const id = "nats/sync-interval"
  if (syncInterval === undefined || syncInterval === "silent") {
    return unknown(
      id,
      syncInterval === "silent"
        ? "the monitoring does not answer with it: no server there, or one without JetStream"
        : "only the server's monitoring tells it; the default is 2 minutes",
      "with the default, a power failure of every node loses what was confirmed since the last sync (Jepsen, 2.12.1: 14 % of confirmed messages)",
      "give --monitor http://<server>:8222, or set jetstream { sync_interval: always } in the server's configuration"
    )
  }
  const seen = syncInterval === 0 ? "always" : duration(syncInterval)
  return syncInterval === 0 ? ok(id, seen) : bad(
    "warning",
    id,
    seen,
    `a power failure of ${clustered ? "every node" : "the server"} loses what was confirmed in that time`,
    "in the server's configuration: jetstream { sync_interval: always }"
  )
}

const account = ({ account }: Facts): ReadonlyArray<Finding> => {
  const id = "nats/account-limits"
  if (account === undefined) {
    return [
      unknown(
        id,
        "this user may not ask for the account",
        "a full account refuses every publish",
        "allow $JS.API.INFO to this user"
      )
    ]
  }
  const { consumers, limits, memory, storage, streams } = account
  const shares = [
    ["storage", storage, limits.max_storage, bytes],
    ["memory", memory, limits.max_memory, bytes],
    ["streams", streams, limits.max_streams, count],
    ["consumers", consumers, limits.max_consumers, count]
  ] as const
  const near = shares.filter(([, used, most]) => most > 0 && used >= 0.8 * most)
  return near.length === 0
    ? [ok(id, `${count(streams)} streams, ${count(consumers)} consumers, ${bytes(storage)} stored`)]
    : near.map(([name, used, most, show]) =>
      bad(
        used >= 0.95 * most ? "error" : "warning",
        id,
        `${show(used)} of ${show(most)} ${name}`,
        name === "storage" || name === "memory"
          ? "a full account refuses every publish and dead letter"
          : `further ${name} cannot be created`,
        "bound or purge streams, or have the limit of the account raised"
      )
    )
}

const ackPending = ({ account }: Facts, { owned }: Given): ReadonlyArray<Finding> => {
  const id = "nats/account-max-ack-pending"
  const most = account?.limits.max_ack_pending ?? 0
  if (most <= 0 || owned === undefined) return []
  return [
    owned > most
      ? bad(
        "error",
        id,
        `the account allows max_ack_pending ${count(most)}, processes want ${count(owned)}`,
        "processes starve: the server sends nothing more until others have settled",
        "have the limit of the account raised, or lower the concurrency"
      )
      : ok(id, `the account allows max_ack_pending ${count(most)}`)
  ]
}

const payload = ({ maxPayload }: Facts, { largest }: Given): ReadonlyArray<Finding> => {
  const id = "nats/max-payload"
  if (maxPayload === undefined || largest === undefined) return []
  const seen = `max_payload ${bytes(maxPayload)}, largest message ${bytes(largest)}`
  return [
    largest > maxPayload
      ? bad(
        "error",
        id,
        seen,
        "it cannot be published",
        "raise max_payload in the server's configuration (at most 8 MB is advised), or store large bodies elsewhere"
      )
      : largest + 32_768 > maxPayload
      ? bad(
        "warning",
        id,
        seen,
        "its dead letter does not fit with the record beside it, and is stored in two pieces",
        "raise max_payload by 64 kB"
      )
      : ok(id, seen)
  ]
}

const clock = ({ skew }: Facts): ReadonlyArray<Finding> => {
  const id = "nats/clock"
  if (skew === undefined) return []
  return [
    Math.abs(skew) <= 2000 ? ok(id, "the server's clock agrees with this machine's") : bad(
      "warning",
      id,
      `the server's clock is ${duration(Math.abs(skew))} ${skew < 0 ? "behind" : "ahead"}`,
      "delays, ages and lag are off by as much",
      "run a time service (chrony) on both machines"
    )
  ]
}

const bucket = ({ bucket, clustered, streams }: Facts): ReadonlyArray<Finding> => {
  const id = "nats/attempt-records"
  const at = "KV_millrace"
  if (bucket === "denied") {
    return [
      unknown(
        id,
        "this user may not look at the bucket of attempt records",
        "without it a message that is released when a process stops counts an attempt",
        "allow $JS.API.STREAM.INFO.KV_millrace to this user",
        at
      )
    ]
  }
  if (bucket === undefined) {
    return streams.some(({ consumers }) => consumers.length > 0)
      ? [bad(
        "warning",
        id,
        "there is no bucket for attempt records",
        "a message that is released when a process stops counts an attempt",
        "let a pipeline create it (manage: \"create\"), or: nats kv add millrace --history 1 --ttl 168h",
        at
      )]
      : []
  }
  const { num_replicas, storage } = bucket.config
  const fileStreams = streams.some(({ info }) => info.config.storage === "file")
  return [
    clustered && num_replicas < 2
      ? bad(
        "error",
        id,
        "one replica in a cluster",
        "while its node is down, shutdowns burn attempts and suspects wait",
        "nats stream edit KV_millrace --replicas 3",
        at
      )
      : storage === "memory" && fileStreams
      ? bad(
        "warning",
        id,
        "in memory, while streams are on disk",
        "a restart forgets which attempts do not count",
        "nats kv del millrace, then let a pipeline create it again",
        at
      )
      : ok(id, `${num_replicas} replicas, ${storage}`, at)
  ]
}

const rights = ({ mayList }: Facts): ReadonlyArray<Finding> =>
  mayList ? [] : [
    unknown(
      "nats/streams",
      "this user may not list and examine streams",
      "streams that lose messages and groups that stand still are not seen",
      "allow $JS.API.STREAM.* and $JS.API.CONSUMER.* to this user, or run doctor as another one"
    )
  ]

/** Every check of the server and the account. */
export const serverChecks = (facts: Facts, given: Given): ReadonlyArray<Finding> => [
  version(facts),
  ...rights(facts),
  sync(facts),
  ...account(facts),
  ...ackPending(facts, given),
  ...payload(facts, given),
  ...clock(facts),
  ...bucket(facts)
]
