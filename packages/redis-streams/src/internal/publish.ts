import { NotSent, OutcomeUnknown, PublishError, type Reason, Refused } from "@millrace/core/Publisher"
import type { Outgoing, Published } from "@millrace/core/Transport"
import { Unauthorized } from "@millrace/core/TransportError"
import type * as Arr from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import { fieldsOf } from "./entry.ts"
import * as keys from "./keys.ts"
import { type Argument, type Command, Lost } from "./link.ts"
import { asError, codeOf, isPassing, list, text } from "./reply.ts"
import { addOnce } from "./scripts/addOnce.ts"
import { delay as delayScript } from "./scripts/delay.ts"
import { evalsha } from "./scripts/script.ts"
import type { Server } from "./server.ts"

type Outcome = Result.Result<Published, PublishError>

export type Publish = (messages: Arr.NonEmptyReadonlyArray<Outgoing>) => Effect.Effect<ReadonlyArray<Outcome>>

export const make = (server: Server): Publish => {
  const { settings } = server
  const { offline } = settings
  // Messages that wait for a connection: more than `max` of them would only hide that nothing gets through.
  let waiting = 0

  const send = (key: string, commands: ReadonlyArray<Command>): Effect.Effect<ReadonlyArray<unknown>> =>
    Effect.suspend(() => {
      if (server.write.isUpFor(key)) return server.write.send(key, commands, 0)
      if (waiting + commands.length > offline.max) {
        const lost = new Lost(
          false,
          new Error(`${waiting} messages wait for a connection already, offline.max is ${offline.max}`)
        )
        return Effect.succeed(commands.map(() => lost))
      }
      waiting += commands.length
      return Effect.ensuring(
        server.write.send(key, commands, offline.wait),
        Effect.sync(() => waiting -= commands.length)
      )
    })

  const sendAll = (key: string, messages: ReadonlyArray<Outgoing>, now: number) =>
    Effect.map(
      send(key, messages.map((message) => commandOf(settings, key, message, now))),
      (replies) => replies.map((reply, i) => outcomeOf(server, messages[i]!, reply))
    )

  return (messages) =>
    Effect.clockWith((clock) => {
      const now = clock.currentTimeMillisUnsafe()
      const { topic } = messages[0]
      if (messages.every((message) => message.topic === topic)) {
        return sendAll(settings.keyPrefix + topic, messages, now)
      }
      const byTopic = Map.groupBy(messages, (message) => message.topic)
      return Effect.map(
        Effect.forEach(byTopic, ([topic, some]) => sendAll(settings.keyPrefix + topic, some, now), {
          concurrency: "unbounded"
        }),
        (all) => {
          const outcomes = new Map([...byTopic.keys()].map((topic, i) => [topic, all[i]!.values()]))
          return messages.map(({ topic }) => outcomes.get(topic)!.next().value!)
        }
      )
    })
}

const trimOf = ({ bound }: Server["settings"], now: number): ReadonlyArray<string> => {
  if (bound === undefined) return []
  const how = bound.exact === true ? "=" : "~"
  return bound.maxLength !== undefined
    ? ["MAXLEN", how, String(bound.maxLength)]
    : ["MINID", how, String(now - Duration.toMillis(Duration.fromInputUnsafe(bound.maxAge!)))]
}

const commandOf = (settings: Server["settings"], key: string, message: Outgoing, now: number): Command => {
  const add: Array<Argument> = [...trimOf(settings, now), "*", ...fieldsOf(message)]
  if (message.id === undefined && message.delay === undefined) return ["XADD", key, ...add]
  const period = Math.floor(now / settings.deduplication)
  const ids = [keys.published(key, period), keys.published(key, period - 1)]
  const keep = String(settings.deduplication * 2)
  return message.delay === undefined
    ? evalsha(addOnce, [key, ...ids], [message.id!, keep, ...add])
    : evalsha(delayScript, [keys.delayed(key), ...ids], [
      String(Math.ceil(Duration.toMillis(message.delay))),
      `delayed-${crypto.randomUUID()}`,
      message.id ?? "",
      keep,
      ...add
    ])
}

const outcomeOf = (server: Server, message: Outgoing, reply: unknown): Outcome => {
  if (!(reply instanceof Error)) {
    const [id, duplicate] = Array.isArray(reply) ? list(reply) : [reply, 0]
    return Result.succeed({ id: text(id), duplicate: duplicate === 1 })
  }
  return Result.fail(new PublishError({ topic: message.topic, reason: reasonOf(server, reply) }))
}

const reasonOf = (server: Server, error: Error): Reason => {
  if (error instanceof Lost) {
    return error.sent ? new OutcomeUnknown({ detail: error.message }) : new NotSent({ detail: error.message })
  }
  const code = codeOf(error)
  return code === "NOPERM" || code === "NOAUTH"
    ? new Unauthorized({ address: server.settings.label, operation: "publishing", detail: error.message })
    : isPassing(error)
    ? new NotSent({ detail: error.message })
    : new Refused({ detail: asError(error).message })
}
