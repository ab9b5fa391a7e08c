import { bad, type Finding, ok, unknown } from "../findings.ts"
import { many } from "../text.ts"
import { allowConfig, type Check } from "./parameters.ts"

const persistence: Check = (facts) => {
  const id = "redis/persistence"
  const { config, info } = facts
  const failing = info?.get("aof_last_write_status") === "err" || info?.get("rdb_last_bgsave_status") === "err" ||
    info?.get("aof_last_bgrewrite_status") === "err"
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
  const needed = facts.config?.get("min-replicas-to-write")
  // The server counts replicas that answered lately, and says so only where it needs some.
  const good = Number(facts.info?.get("min_slaves_good_slaves") ?? replicas)
  if (Number(needed ?? 0) > good) {
    return bad(
      "error",
      id,
      `min-replicas-to-write ${needed}, ${many(good, "replica")} in time`,
      "the server refuses every publish and settlement (NOREPLICAS)",
      "start the replicas, or CONFIG SET min-replicas-to-write 0"
    )
  }
  if (replicas === 0) return ok(id, "no replica")
  const seen = `${many(replicas, "replica")}, min-replicas-to-write ${needed ?? "not visible"}`
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

/** What a confirmed message survives. */
export const durabilityChecks: ReadonlyArray<Check> = [persistence, replication]
