import * as DeadLetter from "@millrace/core/DeadLetter"
import type { Transport } from "@millrace/core/Transport"
import type { TransportError } from "@millrace/core/TransportError"
import * as Argument from "effect/cli/Argument"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { Broker } from "../Broker.ts"
import { Failure, json as print, lines, Output } from "../Output.ts"
import { isDeadLetterTopic, overview } from "../overview.ts"
import { connected } from "../target.ts"
import { clean, count, duration, paint, table, wrap } from "../text.ts"
import { asJson, renderMessage, renderRecord } from "./messages.ts"
import * as shared from "./shared.ts"

const topic = Argument.String("topic").pipe(
  Argument.withDescription("A dead-letter topic, such as orders.dead")
)

const filters = {
  tag: Flag.String("tag").pipe(Flag.withDescription("With this error tag"), Flag.optional),
  text: Flag.String("text").pipe(Flag.withDescription("With this text in the error"), Flag.optional),
  reason: Flag.Literals("reason", DeadLetter.DeadLetterReason.literals).pipe(
    Flag.withDescription("Given up for this reason"),
    Flag.optional
  ),
  failedGroup: Flag.String("of-group").pipe(Flag.withDescription("Failed in this group"), Flag.optional),
  from: Flag.String("from").pipe(Flag.withDescription("Failed in this topic"), Flag.optional),
  olderThan: shared.duration("older-than").pipe(Flag.withDescription("Failed longer ago than this"), Flag.optional),
  newerThan: shared.duration("newer-than").pipe(Flag.withDescription("Failed not longer ago than this"), Flag.optional)
}

interface Filters {
  readonly tag: Option.Option<string>
  readonly text: Option.Option<string>
  readonly reason: Option.Option<DeadLetter.DeadLetterReason>
  readonly failedGroup: Option.Option<string>
  readonly from: Option.Option<string>
  readonly olderThan: Option.Option<number>
  readonly newerThan: Option.Option<number>
}

const criteria = (given: Filters, now: number): DeadLetter.Criteria => ({
  tag: Option.getOrUndefined(given.tag),
  text: Option.getOrUndefined(given.text),
  reason: Option.getOrUndefined(given.reason),
  group: Option.getOrUndefined(given.failedGroup),
  topic: Option.getOrUndefined(given.from),
  failedUntil: Option.isSome(given.olderThan) ? now - given.olderThan.value : undefined,
  failedFrom: Option.isSome(given.newerThan) ? now - given.newerThan.value : undefined
})

const filterOf = (given: Filters, more: DeadLetter.Criteria = {}) =>
  Effect.map(Clock.currentTimeMillis, (now) => DeadLetter.matching({ ...criteria(given, now), ...more }))

/** A dead letter as `--json` has it. */
export const letterJson = ({ earlier, id, incomplete, message, record }: DeadLetter.DeadLetter) => ({
  ...asJson(message),
  id,
  record,
  earlier,
  incomplete
})

interface ListOptions extends Filters {
  readonly id: ReadonlyArray<string>
  readonly topic: Option.Option<string>
  readonly limit: number
  readonly oldest: boolean
  readonly json: boolean
}

const listTopics = Effect.fnUntraced(function*(json: boolean) {
  const { topics } = yield* Broker
  const all = yield* overview((yield* topics).filter(isDeadLetterTopic))
  if (json) return yield* print({ topics: all.map(({ last, messages, topic }) => ({ topic, messages, last })) })
  const now = yield* Clock.currentTimeMillis
  yield* lines(
    all.length === 0
      ? ["There are no dead-letter topics (their names end in dead)."]
      : table(
        [{ title: "TOPIC", grows: true }, { title: "LETTERS", align: "right" }, { title: "NEWEST", align: "right" }],
        all.map(({ last, messages, topic }) => [
          topic,
          count(messages),
          last === undefined ? "-" : `${duration(now - last)} ago`
        ])
      )
  )
})

const listLetters = Effect.fnUntraced(
  function*(topic: string, { id: ids, json, limit, oldest, ...given }: ListOptions) {
    const { stored } = yield* Broker
    const { hasColor } = yield* Output
    const now = yield* Clock.currentTimeMillis
    const letters = yield* Stream.runCollect(
      DeadLetter.list(topic, {
        reverse: !oldest,
        limit,
        filter: yield* filterOf(given, ids.length === 0 ? {} : { ids })
      })
    )
    if (json) return yield* print({ topic, letters: letters.map(letterJson) })
    const color = paint(hasColor)
    const total = (yield* stored(topic))?.messages
    if (total === undefined) return yield* Effect.fail(new Failure(`there is no topic ${clean(topic)}`, 1))
    yield* lines([
      ...(letters.length === 0 ? [] : table(
        [
          { title: "LETTER" },
          { title: "FAILED", align: "right" },
          { title: "GROUP", grows: true },
          { title: "REASON" },
          { title: "TRIES", align: "right" },
          { title: "ERROR", grows: true }
        ],
        letters.map(({ id, record }) => [
          id,
          `${duration(now - record.failedAt)} ago`,
          record.group,
          record.reason,
          `${record.attempts}${record.history.length === 0 ? "" : `+${record.history.length}`}`,
          `${record.error.tag}: ${record.error.message}`
        ]),
        (row, _, text) => row < 0 ? color("dim", text) : text
      )),
      `${letters.length === 0 ? "" : "\n"}${count(letters.length)} shown, ${count(total)} stored in ${clean(topic)}`
    ])
  }
)

const list = Command.make(
  "list",
  {
    topic: Argument.optional(topic),
    ...filters,
    id: Flag.String("id").pipe(
      Flag.withDescription("With this id, the letter's or the message's; may be given many times"),
      Flag.atLeast(0)
    ),
    limit: shared.whole("limit", 1).pipe(Flag.withDescription("At most so many; default 50"), Flag.withDefault(50)),
    oldest: Flag.Boolean("oldest-first").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Begin with the oldest; default: with the newest")
    ),
    json: shared.json
  },
  (options) =>
    connected(
      Option.isSome(options.topic) ? listLetters(options.topic.value, options) : listTopics(options.json)
    )
).pipe(
  Command.withDescription("List dead letters, newest first; without a topic, list dead-letter topics"),
  Command.withExamples([
    { command: "millrace dead list orders.dead --newer-than 1h", description: "The last hour's" },
    { command: "millrace dead list orders.dead --tag Declined --text funds", description: "By error" }
  ])
)

const showLetter = Effect.fnUntraced(function*(topic: string, id: string, json: boolean) {
  const found = yield* DeadLetter.inspect(topic, id)
  if (Option.isNone(found)) {
    return yield* Effect.fail(new Failure(`there is no dead letter ${clean(id)} in ${clean(topic)}`, 1))
  }
  const letter = found.value
  if (json) return yield* print(letterJson(letter))
  const { hasColor } = yield* Output
  const now = yield* Clock.currentTimeMillis
  yield* lines([
    ...renderRecord(letter.record, now, hasColor),
    ...letter.earlier.flatMap((
      record
    ) => ["", "The message was a dead letter before:", ...renderRecord(record, now, hasColor)]),
    "",
    ...renderMessage(letter.message, now, hasColor),
    ...(letter.incomplete ? ["", "The second half of this letter is not stored any more."] : [])
  ])
})

const show = Command.make(
  "show",
  {
    topic,
    id: Argument.String("id").pipe(Argument.withDescription("The letter's id, as dead list shows it")),
    json: shared.json
  },
  ({ id, json, topic }) => connected(showLetter(topic, id, json))
).pipe(
  Command.withDescription("Show one dead letter: why, how often, the message as it was"),
  Command.withExamples([{ command: "millrace dead show orders.dead 1700000000000-0", description: "In one request" }])
)

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
  const { stored } = yield* Broker
  const { transient } = yield* Output
  const total = (yield* stored(topic))?.messages
  if (total === undefined) return yield* Effect.fail(new Failure(`there is no topic ${clean(topic)}`, 1))
  const limit = Option.getOrUndefined(options.limit)
  const show = progress(Math.min(total, limit ?? total), yield* Clock.currentTimeMillis)
  const answer = yield* DeadLetter.redrive(topic, {
    ids: options.ids.length === 0 ? undefined : options.ids,
    filter: yield* filterOf(options),
    cap,
    limit,
    dryRun,
    rate: Option.getOrUndefined(options.rate),
    group: Option.getOrUndefined(options.group),
    to: options.to.length === 0 ? undefined : options.to,
    onProgress: ({ redriven }) => show(redriven)
  }).pipe(Effect.ensuring(transient("")))
  yield* json
    ? print({ dryRun, ...answer })
    : lines([...describe(answer, !dryRun, cap), ...(dryRun ? ["This was a dry run: give --yes to redrive."] : [])])
  if (answer.refused !== undefined && !dryRun) {
    return yield* Effect.fail(new Failure(`${count(answer.refused.count)} dead letters were not redriven`, 1))
  }
})

const redrive = Command.make(
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
    rate: Flag.Finite("rate").pipe(Flag.withDescription("Messages a second; default: full speed"), Flag.optional),
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
  const discarded = yield* DeadLetter.discard(options.topic, {
    ids: options.ids.length === 0 ? undefined : options.ids,
    filter: yield* filterOf(options),
    limit: Option.getOrUndefined(options.limit),
    dryRun
  })
  yield* options.json
    ? print({ dryRun, discarded })
    : lines(
      dryRun
        ? [`${count(discarded)} would be deleted for good`, "This was a dry run: give --yes to delete."]
        : [`${count(discarded)} deleted`]
    )
})

const discard = Command.make(
  "discard",
  { topic, ...filters, ...acting, json: shared.json },
  (options) => connected(discardLetters(options))
).pipe(
  Command.withDescription("Delete dead letters for good. A dry run, unless --yes is given"),
  Command.withExamples([
    { command: "millrace dead discard orders.dead --older-than 30d --yes", description: "Those of last month" }
  ])
)

export const command = Command.make("dead").pipe(
  Command.withDescription("List, show, redrive and discard dead letters"),
  Command.withSubcommands([list, show, redrive, discard])
)
