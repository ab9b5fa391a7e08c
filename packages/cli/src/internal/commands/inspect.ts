import type { GroupInfo } from "@millrace/core/Transport"
import * as Argument from "effect/cli/Argument"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { Broker, type Held } from "../Broker.ts"
import { Failure, json as print, lines, Output } from "../Output.ts"
import { chosen, deniedLines, isDeadLetterTopic, type Overview, type Seen } from "../overview.ts"
import { connected } from "../target.ts"
import { bytes, clean, type Column, count, duration, many, paint, quote, table, time } from "../text.ts"
import * as shared from "./shared.ts"

const maxHeld = 20

interface Detail extends Overview {
  readonly held: ReadonlyArray<{ readonly group: string; readonly messages: ReadonlyArray<Held> | undefined }>
}

const columns: ReadonlyArray<Column> = [
  { title: "TOPIC", grows: true },
  { title: "MESSAGES", align: "right" },
  { title: "GROUP", grows: true },
  { title: "LAG", align: "right" },
  { title: "PENDING", align: "right" },
  { title: "OLDEST", align: "right" },
  { title: "CONSUMERS", align: "right" }
]

const groupCells = ({ consumers, lag, oldest, pending }: GroupInfo, now: number): ReadonlyArray<string> => [
  count(lag),
  count(pending),
  oldest === undefined ? "-" : duration(now - oldest),
  consumers === undefined ? "unknown" : String(consumers.length)
]

const rowsOf = (all: ReadonlyArray<Overview>, now: number) =>
  all.flatMap(({ groups, messages, topic }): ReadonlyArray<ReadonlyArray<string>> =>
    groups.length === 0
      ? [[topic, count(messages), "-", "-", "-", "-", "-"]]
      : groups.map((group, i) => [
        i === 0 ? topic : "",
        i === 0 ? count(messages) : "",
        group.group,
        ...groupCells(group, now)
      ])
  )

const renderAll = Effect.fnUntraced(function*({ denied, topics: all }: Seen) {
  const { server, transport } = yield* Broker
  const { hasColor } = yield* Output
  const now = yield* Clock.currentTimeMillis
  const color = paint(hasColor)
  const rows = rowsOf(all, now)
  const letters = all.filter(({ messages, topic }) => isDeadLetterTopic(topic) && messages > 0)
  return [
    `${color("bold", transport.address)}  ${server}`,
    "",
    ...(all.length === 0
      ? denied === 0 ? ["There are no topics yet."] : []
      : table(
        columns,
        rows,
        (row, column, text) =>
          row < 0 ? color("dim", text) : column === 3 && rows[row]![3] === "unknown" ? color("yellow", text) : text
      )),
    ...(letters.length === 0 ? [] : [
      "",
      color("yellow", many(letters.reduce((sum, { messages }) => sum + messages, 0), "dead letter")) +
      `: look with  millrace dead list ${letters.length === 1 ? quote(letters[0]!.topic) : "<topic>"}`
    ]),
    ...deniedLines(denied)
  ]
})

const renderGroup = (
  group: GroupInfo,
  held: ReadonlyArray<Held> | undefined,
  now: number,
  color: ReturnType<typeof paint>
): ReadonlyArray<string> => {
  const [lag, pending, oldest] = groupCells(group, now)
  const consumers = (group.consumers ?? []).toSorted((a, b) => b.pending - a.pending)
  return [
    "",
    `group ${color("bold", clean(group.group))}   lag ${lag}, pending ${pending}, oldest ${oldest}`,
    ...(group.consumers === undefined
      ? ["  This server does not name the processes behind a consumer."]
      : consumers.length === 0
      ? [color("yellow", "  No consumer: nothing is handled.")]
      : table(
        [{ title: "  CONSUMER", grows: true }, { title: "HOLDS", align: "right" }, { title: "IDLE", align: "right" }],
        consumers.map(({ idle, name, pending }) => [`  ${name}`, count(pending), duration(idle)])
      )),
    ...(held === undefined || held.length === 0 ? [] : [
      "",
      ...table(
        [
          { title: "  HELD" },
          { title: "BY", grows: true },
          { title: "FOR", align: "right" },
          { title: "ATTEMPT", align: "right" }
        ],
        held.map(({ attempts, consumer, id, since }) => [
          `  ${id}`,
          consumer ?? "nobody: released",
          since === undefined ? "-" : duration(now - since),
          String(attempts)
        ])
      )
    ])
  ]
}

const renderOne = Effect.fnUntraced(function*(detail: Detail) {
  const { hasColor } = yield* Output
  const now = yield* Clock.currentTimeMillis
  const color = paint(hasColor)
  const { bounds, first, groups, held, last, messages, topic } = detail
  return [
    `${color("bold", clean(topic))}   ${many(messages, "message")}` +
    (detail.bytes === undefined ? "" : `, ${bytes(detail.bytes)}`) +
    (first === undefined || last === undefined ? "" : `, ${time(first)} to ${time(last)}`),
    bounds.length === 0 ? "no bound at the server" : bounds.join(", "),
    ...(groups.length === 0 ? ["", "no groups"] : []),
    ...groups.flatMap((group) => renderGroup(group, held.find((of) => of.group === group.group)?.messages, now, color))
  ]
})

/** As `--json` has it: `denied` only where something is left out. */
const shown = ({ denied, topics }: Seen) => denied === 0 ? { topics } : { topics, denied }

/** Topics, groups and consumers; of one topic also who holds what. */
export const inspect = Effect.fnUntraced(function*(topics: ReadonlyArray<string>, json: boolean) {
  const broker = yield* Broker
  const all = yield* chosen(topics)
  if (topics.length === 0) {
    return yield* json
      ? print({ broker: broker.transport.address, server: broker.server, ...shown(all) })
      : Effect.flatMap(renderAll(all), lines)
  }
  const details = yield* Effect.forEach(all.topics, (one) =>
    Effect.map(
      Effect.forEach(one.groups, ({ group }) =>
        Effect.map(broker.held(one.topic, group, maxHeld), (messages) => ({ group, messages }))),
      (held): Detail => ({ ...one, held })
    ))
  if (json) return yield* print({ broker: broker.transport.address, server: broker.server, topics: details })
  for (const [i, detail] of details.entries()) yield* lines([...(i > 0 ? [""] : []), ...(yield* renderOne(detail))])
})

export const command = Command.make(
  "inspect",
  {
    topics: Argument.String("topic").pipe(
      Argument.withDescription("Show these topics in full; default: all topics, one line a group"),
      Argument.variadic()
    ),
    json: shared.json
  },
  ({ json, topics }) => connected(inspect(topics, json))
).pipe(
  Command.withDescription("Show topics, groups and consumers; of one topic also who holds which message, since when"),
  Command.withExamples([
    { command: "millrace inspect --redis redis://localhost:6379", description: "All topics" },
    { command: "millrace inspect orders", description: "One topic, with its consumers and what they hold" }
  ])
)

const failAt = {
  maxLag: shared.whole("max-lag", 0).pipe(
    Flag.withDescription("Exit with 1 when a group's lag is above this"),
    Flag.optional
  ),
  maxAge: shared.duration("max-age").pipe(
    Flag.withDescription("Exit with 1 when a group's oldest unsettled message is older than this"),
    Flag.optional
  )
}

const lag = Effect.fnUntraced(
  function*(topics: ReadonlyArray<string>, json: boolean, maxLag: number, maxAge: number) {
    const now = yield* Clock.currentTimeMillis
    const { denied, topics: all } = yield* chosen(topics)
    const groups = all.flatMap(({ groups, topic }) => groups.map((group) => ({ topic, ...group })))
    const isUnknown = ({ lag }: GroupInfo) => lag === undefined && maxLag < Infinity
    const isBehind = (group: GroupInfo) =>
      isUnknown(group) || (group.lag !== undefined && group.lag > maxLag) ||
      (group.oldest !== undefined && now - group.oldest > maxAge)
    if (json) yield* print({ at: now, groups, ...(denied === 0 ? {} : { denied }) })
    else {
      const { hasColor } = yield* Output
      const color = paint(hasColor)
      yield* lines([
        ...(groups.length === 0 ? ["There are no groups yet."] : table(
          columns.filter((_, i) => i !== 1),
          groups.map((group) => [group.topic, group.group, ...groupCells(group, now)]),
          (row, _, text) => row < 0 ? color("dim", text) : isBehind(groups[row]!) ? color("red", text) : text
        )),
        ...deniedLines(denied)
      ])
    }
    const behind = groups.filter(isBehind)
    if (behind.length === 0) return undefined
    const named = behind.slice(0, 3).map(({ group, topic }) => `${clean(topic)}/${clean(group)}`).join(", ") +
      (behind.length > 3 ? ", …" : "")
    return new Failure(
      behind.every(isUnknown)
        ? `the server does not know the lag of ${named}: use --max-age`
        : `${behind.length} of ${many(groups.length, "group")} ${behind.length === 1 ? "is" : "are"} behind: ${named}`,
      1
    )
  }
)

export const lagCommand = Command.make(
  "lag",
  {
    topics: Argument.String("topic").pipe(
      Argument.withDescription("Only these topics; default: all"),
      Argument.variadic()
    ),
    watch: Flag.Boolean("watch").pipe(
      Flag.withDefault(false),
      Flag.withAlias("w"),
      Flag.withDescription("Repeat until interrupted")
    ),
    interval: shared.duration("interval").pipe(
      Flag.filter((millis) => millis >= 10, () => "a duration of at least 10ms"),
      Flag.withDescription("Between two looks of --watch; default 2s"),
      Flag.withDefault(2000)
    ),
    json: shared.json,
    ...failAt
  },
  ({ interval, json, maxAge, maxLag, topics, watch }) =>
    connected(Effect.gen(function*() {
      const look = lag(
        topics,
        json,
        maxLag._tag === "Some" ? maxLag.value : Infinity,
        maxAge._tag === "Some" ? maxAge.value : Infinity
      )
      if (!watch) {
        const failure = yield* look
        return failure === undefined ? undefined : yield* Effect.fail(failure)
      }
      const { isTerminal, out } = yield* Output
      return yield* shared.every(interval)(
        Effect.andThen(isTerminal && !json ? out("\u001b[2J\u001b[H") : Effect.void, look)
      )
    }))
).pipe(
  Command.withDescription("Show how far each group is behind"),
  Command.withExamples([
    { command: "millrace lag --watch", description: "Look every two seconds" },
    { command: "millrace lag orders --max-lag 1000 --max-age 5m", description: "As a check: exit code 1 when behind" }
  ])
)
