/**
 * Two commits in turn: this one, and another with its own child programs.
 */
import * as Effect from "effect/Effect"
import type * as Child from "./child.ts"
import { type Cell, Fleet, specOf, type Urls } from "./fleet.ts"
import * as plan from "./plan.ts"
import { cpuRatio, rateRatio, type Result, type Results } from "./results.ts"
import type { Revision } from "./revision.ts"
import type { Measured, Spec } from "./spec.ts"
import type { Estimate } from "./statistics.ts"
import { interval, markdown, nameOf } from "./table.ts"

const servers = ["redis", "jetstream"] as const

const cellsOf: Record<string, (effort: plan.Effort) => ReadonlyArray<Cell>> = {
  consume: (effort) => (["memory", ...servers] as const).map((broker) => plan.consume(broker, effort)),
  features: (effort) => (["memory", ...servers] as const).map((broker) => plan.features(broker, effort)),
  wait: (effort) => servers.map((broker) => plan.wait(broker, effort)),
  publish: (effort) => servers.map((broker) => plan.publish(broker, effort)),
  to: (effort) => servers.flatMap((broker) => [64, 256].map((limit) => plan.to(broker, limit, effort))),
  size: (effort) => servers.flatMap((broker) => [16_384, 262_144].map((bytes) => plan.size(broker, bytes, effort)))
}

/** The chapters that are compared unless one is named. */
export const usualChapters: ReadonlyArray<string> = ["consume", "wait", "publish", "to"]

/** The arms that a plain comparison runs: one raw loop shows how steady the machine is. */
const usual = new Set(["tuned", "plain", "effect", "promise", "metered", "failing", "publishAll", "publishEach", "to"])

/** Arms of one cell at both commits; those of the other commit are named `<arm>@`. */
export interface Compared {
  readonly arm: string
  readonly spec: Spec
  /** `undefined`: the other commit does not have the arm. */
  readonly results: Results | undefined
}

const other = (arm: string) => `${arm}@`

/** One pass of each commit, each in a process of its own; whose turn is first changes from round to round. */
const pairOf = (urls: Urls, revision: Revision, spec: Spec, round: number) =>
  Effect.scoped(Effect.gen(function*() {
    const ours = yield* Fleet.make(urls, { ownTopics: true })
    const theirs = yield* Fleet.make(urls, { ownTopics: true, folder: revision.folder })
    const has = yield* Effect.all([ours.member(spec), Effect.option(theirs.member(spec))], { concurrency: 2 })
    if (has[1]._tag === "None") return undefined
    const inTurn = round % 2 === 0 ? [ours, theirs] : [theirs, ours]
    const measured = new Map<Fleet, Measured>()
    for (const fleet of inTurn) measured.set(fleet, yield* fleet.valid(spec))
    return [
      { spec, round, measured: measured.get(ours)! },
      { spec: { ...spec, arm: other(spec.arm) }, round, measured: measured.get(theirs)! }
    ] satisfies Results
  }))

export const run = Effect.fnUntraced(function*(
  urls: Urls,
  revision: Revision,
  effort: plan.Effort,
  options: {
    readonly chapters: ReadonlyArray<string>
    readonly brokers: ReadonlyArray<string>
    /** Without: the usual ones. */
    readonly arms: ReadonlyArray<string> | undefined
  },
  onResult: (result: Result) => void
): Effect.fn.Return<ReadonlyArray<Compared>, Child.ChildFailed> {
  const compared: Array<Compared> = []
  const isWanted = (arm: string) => options.arms === undefined ? usual.has(arm) : options.arms.includes(arm)
  const cells = options.chapters.flatMap((name) => cellsOf[name]?.(effort) ?? [])
  for (const cell of cells.filter(({ broker }) => options.brokers.includes(broker))) {
    for (const arm of cell.arms.filter(isWanted)) {
      const spec = specOf(cell, arm)
      const results: Array<Result> = []
      for (let round = 0; round < cell.passes; round++) {
        const pair = yield* pairOf(urls, revision, spec, round)
        if (pair === undefined) break
        results.push(...pair)
        pair.forEach(onResult)
      }
      compared.push({ arm, spec, results: results.length === 0 ? undefined : results })
    }
  }
  return compared
})

const judged = ({ high, low }: Estimate): string => low > 1 ? "faster" : high < 1 ? "slower" : "no difference seen"

export const text = (compared: ReadonlyArray<Compared>, { commit }: Revision): string =>
  markdown(
    ["broker", "limit", "size", "handler", "arm", `rate of ${commit} (95 %)`, `CPU of ${commit} (95 %)`, ""],
    compared.map(({ arm, results, spec }) => {
      const rate = results === undefined ? undefined : rateRatio(results, arm, other(arm))!
      const cpu = results === undefined ? undefined : cpuRatio(results, arm, other(arm))!
      return [
        spec.broker,
        String(spec.concurrency),
        spec.size < 1024 ? `${spec.size} B` : `${spec.size / 1024} KB`,
        spec.delay === 0 ? "nothing" : `${spec.delay} ms`,
        nameOf(arm),
        rate === undefined ? "" : interval(rate),
        cpu === undefined ? "" : interval(cpu),
        rate === undefined ? `not in ${commit}` : judged(rate)
      ]
    })
  )
