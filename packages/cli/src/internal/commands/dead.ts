import * as DeadLetter from "@millrace/core/DeadLetter"
import * as Argument from "effect/cli/Argument"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { Broker } from "../Broker.ts"
import { letterJson, renderMessage, renderRecord } from "../message.ts"
import { json as print, lines, Output } from "../Output.ts"
import { deniedLines, existing, isDeadLetterTopic, noMessage, overview } from "../overview.ts"
import { connected } from "../target.ts"
import { clean, count, duration, paint, table } from "../text.ts"
import * as actions from "./deadActions.ts"
import { filterOf, type Filters, filters, topic } from "./deadFilters.ts"
import * as shared from "./shared.ts"

interface ListOptions extends Filters {
  readonly id: ReadonlyArray<string>
  readonly topic: Option.Option<string>
  readonly limit: number
  readonly oldest: boolean
  readonly json: boolean
}

const listTopics = Effect.fnUntraced(function*(json: boolean) {
  const { denied, topics: all } = yield* overview(isDeadLetterTopic)
  if (json) {
    return yield* print({
      topics: all.map(({ last, messages, topic }) => ({ topic, messages, last })),
      ...(denied === 0 ? {} : { denied })
    })
  }
  const now = yield* Clock.currentTimeMillis
  yield* lines([
    ...(all.length === 0
      ? denied === 0 ? ["There are no dead-letter topics (their names end in dead)."] : []
      : table(
        [{ title: "TOPIC", grows: true }, { title: "LETTERS", align: "right" }, { title: "NEWEST", align: "right" }],
        all.map(({ last, messages, topic }) => [
          topic,
          count(messages),
          last === undefined ? "-" : `${duration(now - last)} ago`
        ])
      )),
    ...deniedLines(denied)
  ])
})

const listLetters = Effect.fnUntraced(
  function*(topic: string, { id: ids, json, limit, oldest, ...given }: ListOptions) {
    const { hasColor } = yield* Output
    const now = yield* Clock.currentTimeMillis
    const { messages } = yield* existing(topic)
    const letters = yield* Stream.runCollect(
      DeadLetter.list(topic, {
        reverse: !oldest,
        limit,
        filter: yield* filterOf(given, ids.length === 0 ? {} : { ids })
      })
    )
    if (json) return yield* print({ topic, letters: letters.map(letterJson) })
    const color = paint(hasColor)
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
      `${letters.length === 0 ? "" : "\n"}${count(letters.length)} shown, ${count(messages)} stored in ${clean(topic)}`
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
    yield* existing(topic)
    return yield* Effect.fail(noMessage((yield* Broker).name, "dead letter", id, topic))
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

export const command = Command.make("dead").pipe(
  Command.withDescription("List, show, redrive and discard dead letters"),
  Command.withSubcommands([list, show, actions.redrive, actions.discard])
)
