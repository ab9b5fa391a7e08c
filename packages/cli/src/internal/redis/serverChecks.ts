import { bad, type Finding, ok, unknown } from "../findings.ts"
import { bytes, count, duration } from "../text.ts"
import { commands, type ServerFacts } from "./facts.ts"

type Check = (facts: ServerFacts) => Finding | ReadonlyArray<Finding>

const allowConfig = "allow it for this check: ACL SETUSER <user> +config|get +info"

const number = (text: string | undefined): number | undefined => {
  const n = Number(text)
  return text === undefined || text === "" || !Number.isFinite(n) ? undefined : n
}

/** A parameter, from `CONFIG GET` or, where `INFO` has it too, from there. */
const parameter = ({ config, info }: ServerFacts, name: string): string | undefined =>
  config?.get(name) ?? info?.get(name.replaceAll("-", "_"))

const versionOf = (
  { info }: ServerFacts
): readonly [product: "Redis" | "Valkey", major: number, minor: number] | undefined => {
  const valkey = info?.get("valkey_version")
  const [major, minor] = (valkey ?? info?.get("redis_version") ?? "").split(".").map(Number)
  if (major === undefined || minor === undefined || Number.isNaN(major)) return undefined
  return [valkey === undefined ? "Redis" : "Valkey", major, minor]
}

const version: Check = (facts) => {
  const id = "redis/version"
  const found = versionOf(facts)
  if (found === undefined) {
    return unknown(id, "this user may not run INFO", "an old server lacks what pipelines need", allowConfig)
  }
  const [product, major, minor] = found
  if (product === "Redis" && major < 7) {
    return bad("error", id, `${product} ${major}.${minor}`, "pipelines need Redis 7.0 or newer", "upgrade the server")
  }
  return ok(id, `${product} ${major}.${minor}`)
}

const knownFaults: Check = (facts) => {
  const id = "redis/known-faults"
  const found = versionOf(facts)
  if (found === undefined) return []
  const [product, major, minor] = found
  return product === "Redis" && major === 8 && minor >= 2 && minor <= 4
    ? bad(
      "warning",
      id,
      `Redis ${major}.${minor}`,
      "trimming with MAXLEN ~ ... ACKED may delete nothing (redis/redis#14656): streams grow",
      "upgrade to 8.6, or trim without ACKED"
    )
    : ok(id, `none that concerns streams is known of ${product} ${major}.${minor}`)
}

const evictionPolicy: Check = (facts) => {
  const id = "redis/maxmemory-policy"
  const policy = parameter(facts, "maxmemory-policy")
  if (policy === undefined) {
    return unknown(id, "not visible to this user", "allkeys-* deletes whole streams when memory is full", allowConfig)
  }
  if (policy.startsWith("allkeys-")) {
    return bad(
      "error",
      id,
      policy,
      "when memory is full the server deletes whole streams, with everything that was not handled",
      "CONFIG SET maxmemory-policy noeviction"
    )
  }
  if (policy.startsWith("volatile-")) {
    return bad(
      "warning",
      id,
      policy,
      "when memory is full the server deletes the ids that recognise duplicates and the due times of retries",
      "CONFIG SET maxmemory-policy noeviction"
    )
  }
  return ok(id, policy)
}

const memory: Check = (facts) => {
  const id = "redis/memory"
  const used = number(facts.info?.get("used_memory"))
  const most = number(parameter(facts, "maxmemory"))
  if (used === undefined || most === undefined) {
    return unknown(id, "not visible to this user", "a full server refuses every publish", allowConfig)
  }
  const limit = most > 0 ? most : number(facts.info?.get("total_system_memory")) ?? 0
  const seen = `${bytes(used)} used, ${
    most > 0 ? `maxmemory ${bytes(most)}` : `no maxmemory, the machine has ${bytes(limit)}`
  }`
  const share = limit === 0 ? 0 : used / limit
  if (share < 0.75) return ok(id, seen)
  return bad(
    share >= 0.9 ? "error" : "warning",
    id,
    seen,
    most > 0
      ? "a full server refuses every publish and dead letter until there is room again"
      : "the operating system kills a server that takes all memory",
    "bound or trim streams (retention of the layer), find the longest with: millrace inspect; or raise maxmemory"
  )
}

const evictions: Check = (facts) => {
  const id = "redis/evicted"
  const evicted = number(facts.info?.get("evicted_keys"))
  if (evicted === undefined) return []
  return evicted === 0 ? ok(id, "no key was evicted since the server started") : bad(
    "error",
    id,
    `${count(evicted)} keys were evicted since the server started`,
    "streams, ids or due times among them are gone",
    "CONFIG SET maxmemory-policy noeviction, and make room"
  )
}

const persistence: Check = (facts) => {
  const id = "redis/persistence"
  const { config, info } = facts
  const failing = info?.get("aof_last_write_status") === "err" || info?.get("rdb_last_bgsave_status") === "err"
  const aof = config?.get("appendonly") ??
    (info?.get("aof_enabled") === "1" ? "yes" : info === undefined ? undefined : "no")
  const fsync = config?.get("appendfsync")
  const save = config?.get("save")
  const findings: Array<Finding> = []
  if (failing) {
    findings.push(bad(
      "error",
      "redis/persistence-failing",
      "the last write to disk failed",
      "a restart loses what was confirmed since, and writes may be refused (MISCONF)",
      "look for room and rights of the data folder, see the server's log"
    ))
  }
  if (aof === undefined) {
    return [
      ...findings,
      unknown(id, "not visible to this user", "without persistence a restart forgets every message", allowConfig)
    ]
  }
  if (aof !== "yes") {
    if (save === undefined) {
      return [
        ...findings,
        unknown(
          id,
          "appendonly is no; snapshots are not visible to this user",
          "without snapshots a restart forgets every message",
          allowConfig
        )
      ]
    }
    return [
      ...findings,
      save === ""
        ? bad(
          "error",
          id,
          "appendonly no, no snapshots",
          "a restart forgets every message and group",
          "CONFIG SET appendonly yes, and in the configuration file"
        )
        : bad(
          "warning",
          id,
          `appendonly no, snapshots at ${save}`,
          "a crash loses everything confirmed since the last snapshot",
          "CONFIG SET appendonly yes, and in the configuration file"
        )
    ]
  }
  if (fsync === "no") {
    return [
      ...findings,
      bad(
        "warning",
        id,
        "appendonly yes, appendfsync no",
        "a power failure loses what the operating system has not written: half a minute is usual",
        "CONFIG SET appendfsync everysec"
      )
    ]
  }
  return [
    ...findings,
    ok(
      id,
      `appendonly yes, appendfsync ${fsync ?? "unknown"}${
        fsync === "everysec" ? ": a power failure loses about a second" : ""
      }`
    )
  ]
}

const replication: Check = (facts) => {
  const id = "redis/replication"
  const role = facts.info?.get("role")
  if (role === undefined) {
    return unknown(id, "not visible to this user", "a failover may lose what was confirmed", allowConfig)
  }
  if (role !== "master") {
    return bad(
      "error",
      id,
      "this server is a replica",
      "it refuses every publish and settlement (READONLY)",
      "give the master's address, or --sentinel"
    )
  }
  const replicas = Number(facts.info?.get("connected_slaves") ?? 0)
  if (replicas === 0) return ok(id, "no replica")
  const needed = facts.config?.get("min-replicas-to-write")
  const seen = `${replicas} replicas, min-replicas-to-write ${needed ?? "not visible"}`
  if (needed === undefined) {
    return unknown(
      id,
      seen,
      "with 0, a master that is cut off confirms messages that the failover discards",
      allowConfig
    )
  }
  return needed === "0"
    ? bad(
      "warning",
      id,
      seen,
      "a master that is cut off goes on confirming messages, which the failover discards",
      "CONFIG SET min-replicas-to-write 1 (publishing then stops while no replica is connected)"
    )
    : ok(id, seen)
}

const timeouts: Check = (facts) => {
  const id = "redis/timeout"
  const timeout = number(facts.config?.get("timeout"))
  const keepalive = number(facts.config?.get("tcp-keepalive"))
  if (timeout === undefined || keepalive === undefined) {
    return unknown(id, "not visible to this user", "a short timeout cuts idle connections again and again", allowConfig)
  }
  return [
    timeout > 0 && timeout < 60
      ? bad(
        "warning",
        id,
        `timeout ${timeout} s`,
        "the server closes connections that wait for work; each has to be made again, which delays settlements",
        "CONFIG SET timeout 0"
      )
      : ok(id, `timeout ${timeout} s`),
    keepalive === 0 || keepalive > 300
      ? bad(
        "warning",
        "redis/tcp-keepalive",
        `tcp-keepalive ${keepalive} s`,
        "connections of machines that vanished stay for hours and count against maxclients",
        "CONFIG SET tcp-keepalive 60"
      )
      : ok("redis/tcp-keepalive", `tcp-keepalive ${keepalive} s`)
  ]
}

const clients: Check = (facts) => {
  const id = "redis/clients"
  const connected = number(facts.info?.get("connected_clients"))
  const most = number(parameter(facts, "maxclients"))
  if (connected === undefined || most === undefined) return []
  const seen = `${count(connected)} of ${count(most)} connections`
  return connected < most * 0.8
    ? ok(id, seen)
    : bad("error", id, seen, "further processes cannot connect", "find idle ones with CLIENT LIST, or raise maxclients")
}

const available: Check = ({ absent }) => {
  const id = "redis/commands"
  if (absent === undefined) {
    return unknown(
      id,
      "this user may not run COMMAND INFO",
      "a missing command shows when a pipeline needs it",
      "ACL SETUSER <user> +command|info"
    )
  }
  if (absent.length === 0) return ok(id, `all ${commands.length} commands are there`)
  const seen = `the server lacks ${absent.join(", ")} (renamed, or the service leaves them out)`
  const remedy = "remove the rename-command lines, or use another service"
  if (absent.every((name) => name === "CLIENT|UNBLOCK")) {
    return bad("warning", id, seen, "a read cannot be ended early: reads are short, so there are more of them", remedy)
  }
  return bad(
    "error",
    id,
    seen,
    absent.some((name) => name.startsWith("EVAL"))
      ? "without scripts there are no retries, no takeovers and no duplicates recognised"
      : "pipelines fail where they need it",
    remedy
  )
}

const clock: Check = ({ skew }) => {
  const id = "redis/clock"
  if (skew === undefined) return []
  const seen = `the server's clock is ${duration(Math.abs(skew))} ${skew < 0 ? "behind" : "ahead"}`
  return Math.abs(skew) <= 2000
    ? ok(id, "the server's clock agrees with this machine's")
    : bad(
      "warning",
      id,
      seen,
      "delays, ages and lag are off by as much; ids are recognised for a shorter time",
      "run a time service (chrony) on both machines"
    )
}

const cluster = ({ info }: ServerFacts, asCluster: boolean, keyPrefix: string): ReadonlyArray<Finding> => {
  const id = "redis/cluster"
  const enabled = info?.get("cluster_enabled")
  if (enabled === undefined) return []
  if (enabled !== "1") return [ok(id, "no cluster")]
  if (!asCluster) {
    return [
      bad(
        "error",
        id,
        "the server is a node of a cluster",
        "commands for keys of other nodes fail with MOVED or CROSSSLOT",
        "give cluster: true to the layer, and --cluster here"
      )
    ]
  }
  return [
    /\{[^}]+\}/.test(keyPrefix)
      ? bad(
        "warning",
        id,
        `the prefix ${keyPrefix} has braces`,
        "every topic is in one slot, so on one node",
        "leave the braces out"
      )
      : ok(id, "a cluster, used as one")
  ]
}

/** Every check of a server. */
export const serverChecks = (
  facts: ServerFacts,
  options: { readonly cluster: boolean; readonly keyPrefix: string; readonly several: boolean }
): ReadonlyArray<Finding> => {
  const checks = [
    version,
    knownFaults,
    evictionPolicy,
    memory,
    evictions,
    persistence,
    replication,
    timeouts,
    clients,
    available,
    clock
  ]
  const findings = [...checks.flatMap((check) => check(facts)), ...cluster(facts, options.cluster, options.keyPrefix)]
  return options.several ? findings.map((finding) => ({ ...finding, at: facts.name })) : findings
}
