import { bad, ok, unknown } from "../findings.ts"
import { bytes, many } from "../text.ts"
import type { ServerFacts } from "./facts.ts"
import { allowConfig, type Check, number, parameter } from "./parameters.ts"

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

/** Bytes: what is used, what may be, and what the configuration says. */
const sizesOf = (facts: ServerFacts) => {
  const used = number(facts.info?.get("used_memory"))
  const most = number(parameter(facts, "maxmemory"))
  if (used === undefined || most === undefined) return undefined
  return { used, most, limit: most > 0 ? most : number(facts.info?.get("total_system_memory")) ?? 0 }
}

/** Bytes until the server is full. */
export const roomOf = (facts: ServerFacts): number | undefined => {
  const sizes = sizesOf(facts)
  return sizes === undefined || sizes.limit === 0 ? undefined : Math.max(0, sizes.limit - sizes.used)
}

const memory: Check = (facts) => {
  const id = "redis/memory"
  const sizes = sizesOf(facts)
  if (sizes === undefined) {
    return unknown(id, "not visible to this user", "a full server refuses every publish", allowConfig)
  }
  const { limit, most, used } = sizes
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
    `${many(evicted, "key")} ${evicted === 1 ? "was" : "were"} evicted since the server started`,
    "streams, ids or due times among them are gone",
    "CONFIG SET maxmemory-policy noeviction, and make room"
  )
}

/** What a server does when its memory is full, and how full it is. */
export const memoryChecks: ReadonlyArray<Check> = [evictionPolicy, memory, evictions]
