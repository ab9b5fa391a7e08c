import type { Delivery } from "@millrace/core/Transport"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { Broker } from "../Broker.ts"
import { asJson, renderLine } from "../message.ts"
import { Output } from "../Output.ts"
import { existing } from "../overview.ts"
import { connected } from "../target.ts"
import * as shared from "./shared.ts"

const maxBack = 10_000

interface TailOptions {
  readonly topic: string
  readonly group: string | undefined
  readonly since: number | undefined
  readonly lines: number
  readonly follow: boolean
  readonly json: boolean
}

const tail = Effect.fnUntraced(function*(options: TailOptions) {
  const { follow, group, json, since, topic } = options
  const { transport } = yield* Broker
  const { out } = yield* Output
  if (!follow) yield* existing(topic)
  const isFor = ({ headers }: Delivery) => {
    const of = headers["millrace-group"]
    return group === undefined || of === undefined || of === group
  }
  const write = (message: Delivery) => out(json ? JSON.stringify(asJson(message)) : renderLine(message))
  const from = since === undefined ? -Infinity : (yield* Clock.currentTimeMillis) - since
  const most = since === undefined ? options.lines : maxBack
  const newest = yield* Stream.runCollect(transport.browse(topic, { reverse: true, limit: 1 }))
  const first = most === 0 ? [] : yield* Stream.runCollect(
    transport.browse(topic, { reverse: true, limit: group === undefined ? most : maxBack }).pipe(
      Stream.takeWhile(({ publishedAt }) => publishedAt >= from),
      Stream.filter(isFor),
      Stream.take(most)
    )
  )
  yield* Effect.forEach(first.toReversed(), write, { discard: true })
  if (!follow) return
  // Messages that arrived between the two looks are among the first ones, or are read next.
  let last = first[0]?.id ?? newest[0]?.id
  return yield* shared.every(500)(Effect.suspend(() =>
    Stream.runForEach(
      transport.browse(topic, last === undefined ? {} : { after: last }),
      (message) => Effect.andThen(isFor(message) ? write(message) : Effect.void, Effect.sync(() => last = message.id))
    )
  ))
})

export const command = Command.make(
  "tail",
  {
    topic: shared.topic,
    group: Flag.String("group").pipe(
      Flag.withDescription("Leave out messages that were redriven for another group"),
      Flag.optional
    ),
    since: shared.duration("since").pipe(
      Flag.withDescription(`Begin so long ago, at most ${maxBack} messages back`),
      Flag.optional
    ),
    lines: shared.whole("lines", 0).pipe(
      Flag.withAlias("n"),
      Flag.withDescription("Begin so many messages back; default 10"),
      Flag.withDefault(10)
    ),
    follow: Flag.Boolean("follow").pipe(
      Flag.withDefault(false),
      Flag.withAlias("f"),
      Flag.withDescription("Go on until interrupted")
    ),
    json: Flag.Boolean("json").pipe(Flag.withDefault(false), Flag.withDescription("Print one JSON document a line"))
  },
  ({ group, since, ...options }) =>
    connected(tail({ ...options, group: Option.getOrUndefined(group), since: Option.getOrUndefined(since) }))
).pipe(
  Command.withDescription("Show the newest messages of a topic; takes nothing from any group"),
  Command.withExamples([
    { command: "millrace tail orders --follow", description: "The last ten, then every new one" },
    { command: "millrace tail orders --since 5m --json", description: "As JSON, one a line" }
  ])
)
