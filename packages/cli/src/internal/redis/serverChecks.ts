import { bad, type Finding, ok, unknown } from "../findings.ts"
import { count, duration } from "../text.ts"
import { durabilityChecks } from "./durabilityChecks.ts"
import { commands, type ServerFacts } from "./facts.ts"
import { memoryChecks } from "./memoryChecks.ts"
import { allowConfig, type Check, number, parameter } from "./parameters.ts"

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

const path: Check = ({ path }) => {
  const id = "redis/proxy"
  if (path === undefined) return []
  const { dialled, isSame, server } = path
  return isSame
    ? ok(id, "nothing stands between this machine and the server")
    : unknown(
      id,
      `dialled ${dialled}, the server has the connection at ${server}: a proxy, a load balancer or a port mapping`,
      "if it closes connections that wait for work, reads and settlements are delayed each time",
      "see that its idle timeout is above 60 s; a mapped port of a container has none"
    )
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
  if (absent.every((name) => name.startsWith("CLIENT|"))) {
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
    ...memoryChecks,
    ...durabilityChecks,
    timeouts,
    path,
    clients,
    available,
    clock
  ]
  const findings = [...checks.flatMap((check) => check(facts)), ...cluster(facts, options.cluster, options.keyPrefix)]
  return options.several ? findings.map((finding) => ({ ...finding, at: facts.name })) : findings
}
