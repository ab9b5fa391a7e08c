/**
 * Several processes on one topic and in one group: how the total rate grows.
 */
import * as Effect from "effect/Effect"
import * as Child from "./child.ts"
import type { Fleet } from "./fleet.ts"
import type { Spec } from "./spec.ts"
import { median } from "./statistics.ts"
import { markdown, nameOf, thousands } from "./table.ts"

/** The total rate of so many processes. */
export interface Shared {
  readonly broker: "redis" | "jetstream"
  readonly arm: string
  readonly processes: number
  readonly round: number
  /** Messages a second. */
  readonly rate: number
}

export const counts = [1, 2, 4] as const

let groups = 0

const pass = (
  fleet: Fleet,
  spec: Spec & { readonly broker: "redis" | "jetstream" },
  processes: number,
  round: number
) =>
  Effect.gen(function*() {
    const server = yield* fleet.server(spec.broker)
    const topic = yield* fleet.topic(server, spec, spec.count)
    const members = yield* Effect.forEach(
      Array.from({ length: processes }, (_, n) => n),
      (n) => fleet.member(spec, n),
      { concurrency: 2 }
    )
    const group = `shared${groups++}`
    for (const member of members) yield* member.send({ _tag: "Join", topic, group, spec })
    for (const member of members) yield* member.next
    const since = performance.now()
    for (const member of members) yield* member.send({ _tag: "Begin" })
    const isSettled = () => server.isSettled(topic, group).catch(() => false)
    while (!(yield* Effect.promise(isSettled))) {
      if (performance.now() - since > 60_000) return yield* new Child.ChildFailed({ detail: "some are pending" })
      yield* Effect.sleep(1)
    }
    const took = performance.now() - since
    for (const member of members) yield* member.send({ _tag: "Stop" })
    let received = 0
    for (const member of members) {
      const message = yield* member.next
      if (message._tag === "Stopped") received += message.received + message.twice
    }
    if (received !== spec.count) {
      return yield* new Child.ChildFailed({ detail: `${processes} processes got ${received} of ${spec.count}` })
    }
    return { broker: spec.broker, arm: spec.arm, processes, round, rate: spec.count / took * 1000 } satisfies Shared
  })

/** The total rates of the raw loop and of a pipeline, in turn. The first round warms up. */
export const measure = Effect.fnUntraced(function*(
  fleet: Fleet,
  broker: "redis" | "jetstream",
  count: number,
  rounds: number,
  onResult: (shared: Shared) => void
): Effect.fn.Return<ReadonlyArray<Shared>, Child.ChildFailed> {
  const results: Array<Shared> = []
  for (let round = 0; round <= rounds; round++) {
    for (const processes of round === 0 ? [4] : counts) {
      for (const arm of round % 2 === 0 ? ["tuned", "plain"] : ["plain", "tuned"]) {
        const spec = { broker, arm, concurrency: 64, size: 100, delay: 0, count } as const
        const shared = yield* pass(fleet, spec, processes, round)
        if (round === 0) continue
        results.push(shared)
        onResult(shared)
      }
    }
  }
  return results
})

export const text = (measured: ReadonlyArray<ReadonlyArray<Shared>>): string =>
  markdown(
    ["broker", "arm", ...counts.map((processes) => `${processes} ${processes === 1 ? "process" : "processes"}`)],
    measured.flatMap((results) =>
      ["tuned", "plain"].map((arm) => [
        results[0]!.broker,
        nameOf(arm),
        ...counts.map((processes) =>
          thousands(
            median(results.filter((one) => one.arm === arm && one.processes === processes).map(({ rate }) => rate))
          )
        )
      ])
    )
  )
