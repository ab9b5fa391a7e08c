import * as DeadLetter from "@millrace/core/DeadLetter"
import type { Transport } from "@millrace/core/Transport"
import type { TransportError } from "@millrace/core/TransportError"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { Broker } from "../Broker.ts"
import { Failure, json as print, lines, Output } from "../Output.ts"
import { existing } from "../overview.ts"
import { connected } from "../target.ts"
import { clean, count, many, wrap } from "../text.ts"
import { filterOf, type Filters, filters, topic } from "./deadFilters.ts"
import * as shared from "./shared.ts"

const acting = {
  ids: Flag.String("id").pipe(
    Flag.withDescription("The letter with this id, as dead list shows it; may be given many times"),
    Flag.atLeast(0)
  ),
  dryRun: Flag.Boolean("dry-run").pipe(
    Flag.withDefault(false),
    Flag.withDescription("Say what would be done; the default without --yes")
  ),
  yes: Flag.Boolean("yes").pipe(Flag.withDefault(false), Flag.withAlias("y"), Flag.withDescription("Do it")),
  limit: shared.whole("limit", 0).pipe(Flag.withDescription("At most so many, oldest first"), Flag.optional)
}

/** A line that fills up while it goes on; nothing off a terminal. */
const progress = (total: number, startedAt: number) => (done: number) =>
  Effect.flatMap(Effect.all([Output, Clock.currentTimeMillis]), ([{ transient }, now]) => {
    const share = total === 0 ? 1 : Math.min(1, done / total)
    const rate = done / Math.max(0.001, (now - startedAt) / 1000)
    const bar = "█".repeat(Math.round(share * 30)).padEnd(30, "░")
    return transient(`${bar} ${count(done)} of ${count(total)}  ${count(Math.round(rate))}/s`)
  })

/** Fails when ids were given that are no letters, or do not pass the filter. */
const found = ({ ids, limit, topic }: Pick<RedriveOptions, "ids" | "limit" | "topic">, n: number) => {
  const missing = Math.min(new Set(ids).size, Option.getOrElse(limit, () => Infinity)) - n
  return missing <= 0 ? Effect.void : Effect.fail(
    new Failure(`${count(missing)} of ${many(ids.length, "id")}: no such dead letter in ${clean(topic)}`, 1)
  )
}

interface RedriveOptions extends Filters {
  readonly ids: ReadonlyArray<string>
  readonly topic: string
  readonly group: Option.Option<string>
  readonly to: ReadonlyArray<string>
  readonly rate: Option.Option<number>
  readonly cap: number
  readonly limit: Option.Option<number>
  readonly dryRun: boolean
  readonly yes: boolean
  readonly json: boolean
}

const describe = (
  { capped, redriven, refused }: DeadLetter.Redriven,
  done: boolean,
  cap: number
): ReadonlyArray<string> => [
  done ? `${count(redriven)} redriven` : `${count(redriven)} would be redriven`,
  ...(capped === 0 ? [] : [`${count(capped)} stay: redriven ${cap} times already (--cap)`]),
  ...(refused === undefined ? [] : [
    `${count(refused.count)} stay, because they cannot be redriven:`,
    ...refused.first.slice(0, 5).flatMap(({ detail, id }) => wrap(`${clean(id)}: ${clean(detail)}`, 2)),
    ...(refused.count > 5 ? [`  and ${count(refused.count - 5)} more`] : [])
  ])
]

const redriveLetters = Effect.fnUntraced(function*(options: RedriveOptions): Effect.fn.Return<
  void,
  TransportError | Failure,
  Broker | Transport
> {
  const { cap, json, topic } = options
  const dryRun = options.dryRun || !options.yes
  const { error, transient } = yield* Output
  const { messages: total } = yield* existing(topic)
  const limit = Option.getOrUndefined(options.limit)
  const show = progress(Math.min(total, limit ?? total), yield* Clock.currentTimeMillis)
  let sofar = 0
  const answer = yield* DeadLetter.redrive(topic, {
    ids: options.ids.length === 0 ? undefined : options.ids,
    filter: yield* filterOf(options),
    cap,
    limit,
    dryRun,
    rate: Option.getOrUndefined(options.rate),
    group: Option.getOrUndefined(options.group),
    to: options.to.length === 0 ? undefined : options.to,
    onProgress: ({ redriven }) => {
      sofar = redriven
      return show(redriven)
    }
  }).pipe(
    Effect.ensuring(transient("")),
    Effect.onInterrupt(() => error(`millrace: interrupted after ${count(sofar)} redriven; run again to go on`))
  )
  yield* json
    ? print({ dryRun, ...answer })
    : lines([...describe(answer, !dryRun, cap), ...(dryRun ? ["This was a dry run: give --yes to redrive."] : [])])
  const { capped, redriven, refused } = answer
  yield* found(options, redriven + capped + (refused?.count ?? 0))
  if (refused !== undefined && !dryRun) {
    return yield* Effect.fail(
      new Failure(`${many(refused.count, "dead letter")} ${refused.count === 1 ? "was" : "were"} not redriven`, 1)
    )
  }
})

export const redrive = Command.make(
  "redrive",
  {
    topic,
    ...filters,
    ...acting,
    group: Flag.String("group").pipe(
      Flag.withDescription("For this group, instead of the one that each message failed in"),
      Flag.optional
    ),
    to: Flag.String("to").pipe(
      Flag.withDescription("Allow this topic as a target; may be given many times. Default: those the name tells"),
      Flag.atLeast(0)
    ),
    rate: Flag.Finite("rate").pipe(
      Flag.filter((n) => n > 0, () => "messages a second, more than 0"),
      Flag.withDescription("Messages a second; default: full speed"),
      Flag.optional
    ),
    cap: shared.whole("cap", 0).pipe(
      Flag.withDescription("How often one message may be redriven; default 3"),
      Flag.withDefault(3)
    ),
    json: shared.json
  },
  (options) => connected(redriveLetters(options))
).pipe(
  Command.withDescription("Send dead letters back to where they failed. A dry run, unless --yes is given"),
  Command.withExamples([
    { command: "millrace dead redrive orders.dead --tag Declined", description: "What would be redriven" },
    {
      command: "millrace dead redrive orders.dead --tag Declined --rate 50 --yes",
      description: "50 a second; may be interrupted and repeated"
    }
  ])
)

interface DiscardOptions extends Filters {
  readonly ids: ReadonlyArray<string>
  readonly topic: string
  readonly limit: Option.Option<number>
  readonly dryRun: boolean
  readonly yes: boolean
  readonly json: boolean
}

const discardLetters = Effect.fnUntraced(function*(options: DiscardOptions) {
  const dryRun = options.dryRun || !options.yes
  const { error, transient } = yield* Output
  const { messages: total } = yield* existing(options.topic)
  const limit = Option.getOrUndefined(options.limit)
  const show = progress(Math.min(total, limit ?? total), yield* Clock.currentTimeMillis)
  let sofar = 0
  const discarded = yield* DeadLetter.discard(options.topic, {
    ids: options.ids.length === 0 ? undefined : options.ids,
    filter: yield* filterOf(options),
    limit,
    dryRun,
    onProgress: (discarded) => {
      sofar = discarded
      return show(discarded)
    }
  }).pipe(
    Effect.ensuring(transient("")),
    Effect.onInterrupt(() => error(`millrace: interrupted after ${count(sofar)} deleted; run again to go on`))
  )
  yield* options.json
    ? print({ dryRun, discarded })
    : lines(
      dryRun
        ? [`${count(discarded)} would be deleted for good`, "This was a dry run: give --yes to delete."]
        : [`${count(discarded)} deleted`]
    )
  yield* found(options, discarded)
})

export const discard = Command.make(
  "discard",
  { topic, ...filters, ...acting, json: shared.json },
  (options) => connected(discardLetters(options))
).pipe(
  Command.withDescription("Delete dead letters for good. A dry run, unless --yes is given"),
  Command.withExamples([
    { command: "millrace dead discard orders.dead --older-than 30d --yes", description: "Those of last month" }
  ])
)
