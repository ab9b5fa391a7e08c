/**
 * The chapters of a run: the budgets of each, and the tables behind them.
 */
import type { Brokers } from "@millrace/testing"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as budget from "./budget.ts"
import type * as Child from "./child.ts"
import { type Cell, type Fleet, runCell, runFresh, type Urls } from "./fleet.ts"
import * as plan from "./plan.ts"
import * as processes from "./processes.ts"
import { baseOf, type Results } from "./results.ts"
import type { Row } from "./row.ts"
import * as rss from "./rss.ts"
import * as subscriptions from "./subscriptions.ts"
import * as table from "./table.ts"

/** How a run measures. */
export interface Context {
  readonly urls: Urls
  readonly effort: plan.Effort
  /** Processes that the chapters share. Without: each generation of a cell has its own. */
  readonly fleet: Fleet
  readonly isQuick: boolean
  /** Messages over which the resident memory is watched. */
  readonly messages: number
  readonly onResult: (result: unknown) => void
}

export interface Section {
  readonly rows: ReadonlyArray<Row>
  readonly text: string
}

type Measuring = Effect.Effect<Section, Child.ChildFailed | Brokers.BrokersError, Scope.Scope>

/** Passes that one process makes before another takes its place. */
const passesOfProcess = 2

const run = (context: Context, cell: Cell): Effect.Effect<Results, Child.ChildFailed> =>
  context.isQuick
    ? Effect.ensuring(runCell(context.fleet, cell, context.onResult), context.fleet.forgetTopics)
    : runFresh(
      context.urls,
      { ...cell, passes: passesOfProcess },
      Math.ceil(cell.passes / passesOfProcess),
      context.onResult
    )

const runAll = (context: Context, cells: ReadonlyArray<Cell>) => Effect.forEach(cells, (cell) => run(context, cell))

const servers = ["redis", "jetstream"] as const
const all = [...servers, "memory"] as const

const rated = (
  cellsOf: (context: Context) => ReadonlyArray<Cell>,
  rowsOf: (results: Results) => ReadonlyArray<Row>,
  baseFor: (results: Results) => string = baseOf
) =>
(context: Context): Measuring =>
  Effect.map(runAll(context, cellsOf(context)), (cells) => ({
    rows: cells.flatMap(rowsOf),
    text: table.rates(cells, baseFor)
  }))

/** What producer, broker and raw loop sustain together: the last step of the ramp before messages queue. */
const sustained = (context: Context, broker: "redis" | "jetstream") =>
  Effect.map(runCell(context.fleet, plan.ramp(broker, context.effort), context.onResult), ([result]) => {
    const { spec: { ramp, rate }, measured } = result!
    const overrun = measured.steps!.findIndex((median) => median > queued)
    return rate! * ramp!.factor ** (Math.max(1, overrun === -1 ? ramp!.steps : overrun) - 1)
  })

/** A step of the ramp is too fast when the median latency of its messages is above this. Milliseconds. */
const queued = 15

const latency = (context: Context): Measuring =>
  Effect.gen(function*() {
    const rows: Array<Row> = []
    const cells: Array<Results> = []
    for (const broker of servers) {
      const rate = Math.round(0.5 * (yield* sustained(context, broker)))
      const half = yield* run(context, plan.openLoop(broker, rate, context.effort))
      const lone = yield* run(context, plan.lone(broker, context.effort))
      rows.push(...budget.latency(half, lone))
      cells.push(half, lone)
    }
    return { rows, text: table.latencies(cells) }
  })

const bullmq = (context: Context): Measuring =>
  Effect.gen(function*() {
    const consumed = yield* run(context, plan.bullmq(context.effort))
    const roundTrips = yield* run(context, plan.roundTrip(context.effort))
    return {
      rows: budget.bullmq(consumed, roundTrips),
      text: table.rates(
        [consumed, roundTrips],
        (results) => results === consumed ? "bullmq" : "bullmqRoundTrip",
        "BullMQ"
      )
    }
  })

const several = (context: Context): Measuring =>
  Effect.gen(function*() {
    const measured: Array<ReadonlyArray<processes.Shared>> = []
    for (const broker of servers) {
      const rounds = Math.ceil(context.effort.passes * 0.6)
      measured.push(
        yield* Effect.ensuring(
          processes.measure(
            context.fleet,
            broker,
            plan.processes(broker, context.effort),
            rounds,
            context.onResult
          ),
          context.fleet.forgetTopics
        )
      )
    }
    return { rows: measured.flatMap(budget.processes), text: processes.text(measured) }
  })

const idle = (context: Context): Measuring =>
  Effect.gen(function*() {
    const { idleSeconds, starts } = context.effort
    const measured = yield* subscriptions.measure(1000, starts, idleSeconds)
    for (const one of measured) context.onResult(one)
    return { rows: measured.flatMap(budget.idle), text: subscriptions.text(measured) }
  })

/** Ten million messages take minutes: a quick run leaves them out. */
const memory = (context: Context): Measuring =>
  Effect.gen(function*() {
    const total = context.messages
    if (context.isQuick) return { rows: all.map((broker) => budget.memory(broker, total)), text: "" }
    const curves = yield* Effect.forEach(
      all,
      (broker) => rss.measure(broker, total, (sample) => context.onResult({ broker, ...sample })),
      // Nothing of it is a matter of speed.
      { concurrency: 2 }
    )
    rss.draw(curves)
    return {
      rows: curves.map((curve) => budget.memory(curve.broker, total, curve)),
      text: "![Resident memory over the messages](benchmarks-rss.svg)"
    }
  })

/** The chapters that have budgets, in the order of the table. */
export const chapters: Readonly<Record<string, (context: Context) => Measuring>> = {
  consume: rated(({ effort }) => all.map((broker) => plan.consume(broker, effort)), budget.consume),
  wait: rated(({ effort }) => servers.map((broker) => plan.wait(broker, effort)), budget.wait),
  publish: rated(({ effort }) => servers.map((broker) => plan.publish(broker, effort)), budget.publish),
  to: rated(
    ({ effort }) => servers.flatMap((broker) => [64, 256].map((limit) => plan.to(broker, limit, effort))),
    budget.to,
    () => "rawTo"
  ),
  size: rated(
    ({ effort }) => servers.flatMap((broker) => [16_384, 262_144].map((bytes) => plan.size(broker, bytes, effort))),
    budget.size
  ),
  latency,
  bullmq,
  processes: several,
  subscriptions: idle,
  memory,
  source: () => Effect.succeed({ rows: budget.source(), text: "" })
}

/** Tables without budgets. */
export const tables: Readonly<Record<string, (context: Context) => Measuring>> = {
  features: rated(({ effort }) => all.map((broker) => plan.features(broker, effort)), () => []),
  limits: rated(
    ({ effort }) =>
      all.flatMap((broker) =>
        [0, 10].flatMap((delay) => [1, 8, 256].map((limit) => plan.limits(broker, limit, delay, effort)))
      ),
    () => []
  )
}
