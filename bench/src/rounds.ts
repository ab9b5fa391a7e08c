import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Child from "./child.ts"
import { connectServer } from "./server.ts"
import type { FromRound, Measured, Spec, ToRound } from "./spec.ts"

/** The brokers of a run. */
export interface Urls {
  readonly redis: string
  readonly jetstream: string
}

/** Arms that are compared with each other: everything else is the same. */
export interface Cell extends Omit<Spec, "arm"> {
  readonly arms: ReadonlyArray<string>
  readonly rounds: number
}

export interface Result {
  readonly spec: Spec
  readonly round: number
  readonly measured: Measured
}

let topics = 0

/** They take ten times as long, or more: fewer messages do. */
const isSlow = (arm: string) => arm === "bullmq" || arm === "naive"

/** Enough for everything to be compiled. */
const mostWarmUp = (arm: string) => isSlow(arm) ? 5_000 : 100_000

/** One round, in a process of its own, on topics of its own. */
export const run = Effect.fnUntraced(function*(
  urls: Urls,
  spec: Spec,
  profileTo?: string
): Effect.fn.Return<Measured, Child.ChildFailed, Scope.Scope> {
  const url = spec.broker === "memory" ? "" : urls[spec.broker]
  const name = `bench${topics++}`
  const go: ToRound = {
    _tag: "Go",
    topic: `${name}_measured`,
    warmUp: `${name}_warm`,
    warmUpCount: Math.min(
      mostWarmUp(spec.arm),
      Math.max(spec.concurrency, Math.floor(spec.count / (spec.delay === 0 ? 1 : 5)))
    )
  }
  const args = [JSON.stringify(spec), url]
  const child = yield* Child.start<ToRound, FromRound>(
    "round.main.ts",
    profileTo === undefined ? args : [...args, profileTo]
  )
  const server = spec.broker === "memory" ? undefined : yield* Effect.acquireRelease(
    Effect.promise(() => connectServer(spec.broker as "redis" | "jetstream", url, spec.arm)),
    (server) => Effect.promise(() => server.remove(name).then(server.close))
  )
  // While the process starts.
  yield* Effect.promise(async () => {
    await server?.fill(go.warmUp, spec, go.warmUpCount)
    await server?.fill(go.topic, spec, spec.rate === undefined ? spec.count : 0)
  })
  yield* child.next
  const producer = spec.rate === undefined
    ? undefined
    : yield* Child.start<"go", "ready">("producer.main.ts", [...args, go.topic])
  if (producer !== undefined) yield* producer.next
  yield* child.send(go)
  let said = yield* child.next
  if (said._tag === "Consuming") {
    yield* producer!.send("go")
    said = yield* child.next
  }
  yield* child.exited
  return (said as Extract<FromRound, { _tag: "Measured" }>).measured
})

const mostVoid = 3

/** A round that counts; a void one is reported and run again. */
const runValid = (urls: Urls, spec: Spec): Effect.Effect<Measured, Child.ChildFailed> =>
  Effect.gen(function*() {
    let measured: Measured | undefined
    for (let attempt = 0; attempt < mostVoid; attempt++) {
      measured = yield* Effect.scoped(run(urls, spec))
      if (measured.void === undefined) return measured
      console.error(`void: ${JSON.stringify(spec)}: ${measured.void}`)
    }
    return yield* new Child.ChildFailed({
      detail: `${mostVoid} void rounds: ${JSON.stringify(spec)}: ${measured?.void}`
    })
  })

/** Runs the arms of a cell in turn, in reversed order every other round. */
export const runCell = Effect.fnUntraced(function*(
  urls: Urls,
  cell: Cell,
  onResult: (result: Result) => void
): Effect.fn.Return<ReadonlyArray<Result>, Child.ChildFailed> {
  const { arms, rounds, ...common } = cell
  const results: Array<Result> = []
  for (let round = 0; round < rounds; round++) {
    for (const arm of round % 2 === 0 ? arms : [...arms].reverse()) {
      const spec: Spec = { ...common, arm, ...(isSlow(arm) ? { count: Math.ceil(common.count / 10) } : {}) }
      const result = { spec, round, measured: yield* runValid(urls, spec) }
      results.push(result)
      onResult(result)
    }
  }
  return results
})
