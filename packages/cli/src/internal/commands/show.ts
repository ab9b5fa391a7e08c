import * as DeadLetter from "@millrace/core/DeadLetter"
import * as Argument from "effect/cli/Argument"
import * as Command from "effect/cli/Command"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import { Broker } from "../Broker.ts"
import { asJson, renderMessage, renderRecord } from "../message.ts"
import { json as print, lines, Output } from "../Output.ts"
import { existing, noMessage } from "../overview.ts"
import { connected } from "../target.ts"
import { clean, duration } from "../text.ts"
import * as shared from "./shared.ts"

const show = Effect.fnUntraced(function*(topic: string, id: string, json: boolean) {
  const broker = yield* Broker
  const found = yield* broker.transport.get(topic, id)
  if (Option.isNone(found)) {
    yield* existing(topic)
    return yield* Effect.fail(noMessage(broker.name, "message", id, topic))
  }
  const record = DeadLetter.fromHeaders(found.value.headers)
  const groups = yield* broker.transport.groups(topic)
  const holders = yield* Effect.forEach(
    groups,
    ({ group }) =>
      Effect.map(
        broker.held(topic, group, 1, found.value.id),
        (held) => (held ?? []).map((one) => ({ group, ...one }))
      )
  )
  const held = holders.flat()
  if (json) {
    return yield* print({
      ...asJson(found.value),
      held,
      ...(Exit.isSuccess(record) ? { deadLetter: record.value } : {})
    })
  }
  const { hasColor } = yield* Output
  const now = yield* Clock.currentTimeMillis
  yield* lines([
    ...renderMessage(found.value, now, hasColor),
    ...held.map(({ attempts, consumer, group, since }) =>
      consumer === undefined || since === undefined
        ? `\nreleased by its process, waits for another one of group ${clean(group)}`
        : `\nheld by ${clean(consumer)} of group ${clean(group)} for ${duration(now - since)}, attempt ${attempts}`
    ),
    ...(Exit.isSuccess(record) ? ["", ...renderRecord(record.value, now, hasColor)] : [])
  ])
})

const id = Argument.String("id").pipe(Argument.withDescription("The broker's id: 1700000000000-0 on Redis, 42 on NATS"))

export const command = Command.make(
  "show",
  { topic: shared.topic, id, json: shared.json },
  ({ id, json, topic }) => connected(show(topic, id, json))
).pipe(
  Command.withDescription("Show one message by its id: headers, body, who holds it, how it failed"),
  Command.withExamples([{
    command: "millrace show orders 1700000000000-0",
    description: "In one request, however long the topic is"
  }])
)
