/**
 * Measures how many seeds a minute the simulation runs on two cores: `pnpm seeds`, `pnpm seeds 5000` for that many seeds in
 * each of two processes. `seeds.main.ts traces 1 2` prints what those seeds of every kind give in a process whose clocks
 * and random numbers are nonsense.
 */
import { Effect } from "effect"
import { execFile } from "node:child_process"
import * as crypto from "node:crypto"
import * as process from "node:process"
import { promisify } from "node:util"
import { runs } from "./simulated.ts"

const [mode, ...rest] = process.argv.slice(2)
const kinds = Object.keys(runs) as Array<keyof typeof runs>

/** The CPU time of one kind, in milliseconds a seed. */
const measure = async (kind: keyof typeof runs, seeds: number, first: number): Promise<number> => {
  const before = process.cpuUsage()
  for (let seed = first; seed < first + seeds; seed++) {
    const { violations } = await Effect.runPromise(runs[kind](seed))
    if (violations.length > 0) throw new Error(`seed ${seed} of ${kind}: ${violations[0]!.text}`)
  }
  const { system, user } = process.cpuUsage(before)
  return (user + system) / 1000 / seeds
}

const traces = async (seeds: ReadonlyArray<number>) => {
  let reads = 0
  const nonsense = () => 1e6 * (reads++ * 7919 % 104_729)
  Date.now = nonsense
  performance.now = nonsense
  Math.random = () => reads++ * 7919 % 104_729 / 104_729
  process.hrtime.bigint = () => BigInt(nonsense())
  for (const kind of kinds) {
    for (const seed of seeds) {
      const { trace, violations } = await Effect.runPromise(runs[kind](seed))
      const hash = crypto.createHash("sha256").update([...trace, ...violations.map(({ text }) => text)].join("\n"))
      console.log(`${kind} ${seed} ${hash.digest("hex")}`)
    }
  }
}

if (mode === "traces") await traces(rest.map(Number))
else if (mode === "measure") {
  const [kind, seeds, first] = rest
  console.log(await measure(kind as keyof typeof runs, Number(seeds), Number(first)))
} else {
  const seeds = Number(mode ?? 2000)
  for (const kind of kinds) {
    const since = performance.now()
    const costs = await Promise.all([1, 1 + seeds].map(async (first) => {
      const args = [import.meta.filename, "measure", kind, String(seeds), String(first)]
      return Number((await promisify(execFile)(process.execPath, args)).stdout)
    }))
    const millis = performance.now() - since
    const cost = costs.reduce((sum, each) => sum + each, 0) / costs.length
    console.log(
      `${kind}: ${Math.round(2 * seeds / millis * 60_000)} seeds a minute by the clock; ` +
        `${cost.toFixed(1)} ms of CPU a seed, ${Math.round(2 * 60_000 / cost)} a minute of two whole cores`
    )
  }
}
