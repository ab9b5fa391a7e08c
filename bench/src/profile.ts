import * as fs from "node:fs"
import type { BrokerName } from "./spec.ts"
import { markdown } from "./table.ts"

interface Profile {
  readonly nodes: ReadonlyArray<{
    readonly id: number
    readonly children?: ReadonlyArray<number>
    readonly callFrame: { readonly functionName: string; readonly url: string; readonly lineNumber: number }
  }>
  readonly samples: ReadonlyArray<number>
  readonly timeDeltas: ReadonlyArray<number>
}

/** An arm to look into. */
export interface Profiled {
  readonly broker: BrokerName
  readonly arm: string
  readonly concurrency: number
  /** Milliseconds that the handler waits. */
  readonly delay?: number
}

/** The arms whose profiles stand in the docs. */
export const usual: ReadonlyArray<Profiled> = [
  { broker: "memory", arm: "plain", concurrency: 64 },
  { broker: "memory", arm: "effect", concurrency: 64 },
  { broker: "redis", arm: "plain", concurrency: 64 },
  { broker: "redis", arm: "plain", concurrency: 256, delay: 1 },
  { broker: "redis", arm: "publishAll", concurrency: 64 },
  { broker: "redis", arm: "to", concurrency: 64 },
  { broker: "jetstream", arm: "plain", concurrency: 64 },
  { broker: "jetstream", arm: "publishAll", concurrency: 64 },
  { broker: "jetstream", arm: "to", concurrency: 64 }
]

const maxFunctions = 16

/** Whose code it is. */
const ownerOf = ({ functionName, url }: { readonly functionName: string; readonly url: string }): string => {
  if (url === "") return functionName.startsWith("(") ? functionName : "native functions"
  if (url.startsWith("node:")) return "Node"
  return /\/packages\/([^/]+)\//.exec(url)?.[1] ?? /.*\/node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(url)?.[1] ?? "bench"
}

/**
 * Where a CPU profile spent its time, in microseconds a message: functions by their own share, each with those that
 * called it most.
 */
export const summarize = (file: string, count: number): string => {
  const { nodes, samples, timeDeltas }: Profile = JSON.parse(fs.readFileSync(file, "utf8"))
  const names = new Map(nodes.map(({ callFrame: { functionName, lineNumber, url }, id }) => [
    id,
    url === ""
      ? functionName || "(native)"
      : `${functionName || "(anonymous)"} ${url.replace(/^.*\/(packages|node_modules|bench)\//, "")}:${lineNumber + 1}`
  ]))
  const profiler = new Set(nodes.flatMap(({ callFrame, id }) => callFrame.url === "node:inspector" ? [id] : []))
  const owners = new Map(nodes.map(({ callFrame, id }) => [id, ownerOf(callFrame)]))
  const byOwner = new Map<string, number>()
  const parents = new Map(nodes.flatMap(({ children = [], id }) => children.map((child) => [child, id] as const)))
  const own = new Map<string, { total: number; readonly callers: Map<string, number> }>()
  samples.forEach((id, i) => {
    const micros = timeDeltas[i]! / count
    // The profiler itself.
    if (profiler.has(id)) return
    const owner = owners.get(id)!
    byOwner.set(owner, (byOwner.get(owner) ?? 0) + micros)
    const name = names.get(id)!
    const entry = own.get(name) ?? { total: 0, callers: new Map<string, number>() }
    own.set(name, entry)
    entry.total += micros
    const caller = names.get(parents.get(id) ?? -1) ?? ""
    entry.callers.set(caller, (entry.callers.get(caller) ?? 0) + micros)
  })
  const shares = [...byOwner].sort(([, a], [, b]) => b - a)
    .map(([owner, micros]) => `${owner} ${micros.toFixed(2)}`)
  const functions = [...own].sort(([, a], [, b]) => b.total - a.total).slice(0, maxFunctions).map(
    ([name, { callers, total }]) => {
      const [caller] = [...callers].sort(([, a], [, b]) => b - a)
      return [total.toFixed(3), name, caller?.[0] ?? ""]
    }
  )
  return `µs a message by whose code it is: ${shares.join(", ")}\n\n` +
    markdown(["own µs a message", "function", "called most by"], functions)
}
