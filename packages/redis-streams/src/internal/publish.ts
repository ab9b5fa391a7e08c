import {
  NotSent,
  OutcomeUnknown,
  PublishError,
  type PublishErrorReason,
  Refused,
  TooLarge
} from "@millrace/core/Publisher"
import type { Outgoing, Published } from "@millrace/core/Transport"
import { Unauthorized } from "@millrace/core/TransportError"
import type * as Arr from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Result from "effect/Result"
import { ErrorReply } from "redis"
import { leastLimit } from "./bulkLimit.ts"
import type { Command } from "./command.ts"
import { Lost } from "./connection.ts"
import { fieldCount, largestField } from "./entry.ts"
import { isClock, PublishCommands } from "./publishCommands.ts"
import { PublishQueue } from "./publishQueue.ts"
import {
  asError,
  codeOf,
  isBulkRefusal,
  isFull,
  isPassing,
  isRedirect,
  isRefusal,
  list,
  millisOfTime,
  text
} from "./reply.ts"
import type { Server } from "./server.ts"

type Outcome = Result.Result<Published, PublishError>

export type Publish = (messages: Arr.NonEmptyReadonlyArray<Outgoing>) => Effect.Effect<ReadonlyArray<Outcome>>

/** Lua takes so many arguments in one call, and not many more. */
const maxScriptArguments = 7_000

const operation = "publishing"

/** `unbounded`: topics that hold dead letters, which no bound trims. */
export const make = (server: Server, unbounded: ReadonlySet<string>): Publish => {
  const { bulkLimit, settings } = server
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

  const commands = new PublishCommands(settings, server.clock, unbounded)
  const queue = new PublishQueue({
    send,
    isUp: (key) => server.write.isUpFor(key),
    commands,
    // In a cluster each key may turn out to live somewhere else.
    placeOf: settings.topology === "cluster" ? (key) => key : () => ""
  })

  const sendOne = (key: string, command: Command) => Effect.map(send(key, [command]), ([reply]) => reply)

  /** The publisher's clock is wrong by a period or more, and the reply tells the time: made again, the command is right. */
  const again = (key: string, command: () => Command, reply: unknown): Effect.Effect<unknown> => {
    if (!isClock(reply)) return Effect.succeed(reply)
    server.clock.set(Number(text(list(reply)[1])))
    return sendOne(key, command())
  }

  /** More fields than a script can pass on, which would know the time. */
  const addWide = (key: string, message: Outgoing): Effect.Effect<unknown> =>
    commands.isTrimmedByAge(message)
      ? Effect.flatMap(sendOne(key, ["TIME"]), (reply) =>
        reply instanceof Error
          ? Effect.succeed(reply)
          : sendOne(key, commands.add(key, message, millisOfTime(reply))))
      : sendOne(key, commands.add(key, message))

  /** More fields than a script can pass on: looked for, added and noted, one after the other. */
  const sendWide = (key: string, message: Outgoing, id: string): Effect.Effect<unknown> => {
    const find = () => commands.find(key, id)
    return Effect.flatMap(
      Effect.flatMap(sendOne(key, find()), (reply) => again(key, find, reply)),
      (found) => {
        if (!Array.isArray(found) || found[1] === 1) return Effect.succeed(found)
        return Effect.tap(
          addWide(key, message),
          (entry) => entry instanceof Error ? Effect.void : sendOne(key, commands.note(key, id, text(entry)))
        )
      }
    )
  }

  const wideOutcome = (key: string, message: Outgoing): Effect.Effect<Outcome> =>
    message.delay !== undefined
      ? Effect.succeed(refused(
        message.topic,
        new Refused({
          detail: `a message of ${fieldCount(message)} fields cannot be delayed, ${maxScriptArguments / 2} can`
        })
      ))
      : Effect.map(
        message.id === undefined ? addWide(key, message) : sendWide(key, message, message.id),
        (reply) => outcomeOf(key, message, reply)
      )

  const tooLarge = (message: Outgoing, size: number, limit: number): Outcome =>
    refused(message.topic, new TooLarge({ size, limit }))

  /** One message that may be more than the server takes. */
  const largeOutcome = (key: string, message: Outgoing, size: number): Effect.Effect<Outcome> =>
    Effect.flatMap(bulkLimit.over(size), (limit) => {
      if (limit !== undefined) return Effect.succeed(tooLarge(message, size, limit))
      const sent = isWide(message) ? wideOutcome(key, message) : Effect.flatMap(
        sendOne(key, commands.of(key, message)),
        (reply) =>
          Effect.map(again(key, () => commands.of(key, message), reply), (reply) => outcomeOf(key, message, reply))
      )
      return Effect.flatMap(sent, (outcome) => {
        if (Result.isSuccess(outcome)) return Effect.succeed(outcome)
        const { reason } = outcome.failure
        const limit = reason._tag === "Refused" && reason.detail.includes(bulkRefusal)
          ? bulkLimit.over(size, true)
          : reason._tag === "OutcomeUnknown"
          ? bulkLimit.after(size)
          : Effect.succeed(undefined)
        return Effect.map(limit, (limit) => limit === undefined ? outcome : tooLarge(message, size, limit))
      })
    })

  /** More fields than the script can pass on that this message would need. */
  const isWide = (message: Outgoing): boolean =>
    (message.id !== undefined || message.delay !== undefined || commands.isTrimmedByAge(message)) &&
    2 * fieldCount(message) > maxScriptArguments

  const needsCare = (message: Outgoing): boolean =>
    isWide(message) ||
    (message.fields === undefined ? message.body.byteLength : largestField(message)) > leastLimit

  /** The messages of one topic; most go together, and those that need care one by one, in their places. */
  const sendAll = (key: string, messages: ReadonlyArray<Outgoing>): Effect.Effect<ReadonlyArray<Outcome>> => {
    const first = messages.findIndex(needsCare)
    if (first < 0) return sendPlain(key, messages)
    const before = first === 0 ? Effect.succeed([]) : sendPlain(key, messages.slice(0, first))
    const message = messages[first]!
    const size = largestField(message)
    return Effect.gen(function*() {
      const outcomes = [...yield* before]
      const outcome = yield* size > leastLimit ? largeOutcome(key, message, size) : wideOutcome(key, message)
      outcomes.push(...yield* report([outcome]))
      return first + 1 === messages.length ? outcomes : outcomes.concat(yield* sendAll(key, messages.slice(first + 1)))
    })
  }

  const sendPlain = (key: string, messages: ReadonlyArray<Outgoing>): Effect.Effect<ReadonlyArray<Outcome>> =>
    Effect.flatMap(queue.publish(key, messages), (replies) => {
      const outcomes = new Array<Outcome>(messages.length)
      let late: Array<number> | undefined
      for (let i = 0; i < messages.length; i++) {
        if (isClock(replies[i])) (late ??= []).push(i)
        else outcomes[i] = outcomeOf(key, messages[i]!, replies[i])
      }
      if (late === undefined) return report(outcomes)
      return Effect.flatMap(
        Effect.forEach(
          late,
          (i) =>
            Effect.map(again(key, () => commands.of(key, messages[i]!), replies[i]), (reply) => {
              outcomes[i] = outcomeOf(key, messages[i]!, reply)
            })
        ),
        () => report(outcomes)
      )
    })

  const outcomeOf = (key: string, message: Outgoing, reply: unknown): Outcome => {
    if (reply instanceof Error) return refused(message.topic, reasonOf(server, reply))
    // Nothing waits for a message that is delayed for less than the next look: its publisher moves it.
    if (message.delay !== undefined) server.delayedMoves.expect(key, Duration.toMillis(message.delay))
    if (Buffer.isBuffer(reply)) return Result.succeed({ id: reply.toString("latin1"), duplicate: false })
    const [id, duplicate] = list(reply)
    return Result.succeed({ id: text(id), duplicate: duplicate === 1 })
  }

  /** Shows in the health until a message is taken again; pipelines log their health, publishers have the error. */
  const report = (outcomes: ReadonlyArray<Outcome>): Effect.Effect<ReadonlyArray<Outcome>> => {
    let isTaken = false
    for (const outcome of outcomes) {
      if (Result.isSuccess(outcome)) isTaken = true
      else if (isLasting(outcome.failure.reason)) {
        const { message } = outcome.failure.reason
        return server.refusals.add(operation, `publishing: ${message}`)
          ? Effect.as(
            Effect.logDebug(`redis: publishing is refused (${message}); said once, until a message is taken again`),
            outcomes
          )
          : Exit.succeed(outcomes)
      }
    }
    return isTaken && server.refusals.clear(operation)
      ? Effect.as(Effect.logDebug("redis: messages are taken again"), outcomes)
      : Exit.succeed(outcomes)
  }

  return (messages) => {
    const { topic } = messages[0]
    if (messages.every((message) => message.topic === topic)) return sendAll(settings.keyPrefix + topic, messages)
    const byTopic = Map.groupBy(messages, (message) => message.topic)
    return Effect.map(
      Effect.forEach(byTopic, ([topic, some]) => sendAll(settings.keyPrefix + topic, some), {
        concurrency: "unbounded"
      }),
      (all) => {
        const outcomes = new Map([...byTopic.keys()].map((topic, i) => [topic, all[i]!.values()]))
        return messages.map(({ topic }) => outcomes.get(topic)!.next().value!)
      }
    )
  }
}

const refused = (topic: string, reason: PublishErrorReason): Outcome => Result.fail(new PublishError({ topic, reason }))

/** Concerns the server and not one message. */
const isLasting = (reason: PublishErrorReason): boolean =>
  reason._tag === "Unauthorized" || reason._tag === "Refused" && reason.detail.includes(full)

const full = "the server has no memory left"

const bulkRefusal = "more bytes than it takes"

const reasonOf = (server: Server, error: Error): PublishErrorReason => {
  if (error instanceof Lost) {
    return error.sent ? new OutcomeUnknown({ detail: error.message }) : new NotSent({ detail: error.message })
  }
  if (isRefusal(error)) {
    return new Unauthorized({ address: server.settings.label, operation: "publishing", detail: error.message })
  }
  if (isPassing(error)) return new NotSent({ detail: error.message })
  return new Refused({
    detail: isRedirect(error)
      ? `this server is a node of a cluster and names another one, give cluster: true (${codeOf(error)})`
      : isFull(error)
      ? `${full}: let consumers catch up, delete entries, or raise maxmemory (${error.message})`
      : isBulkRefusal(error)
      ? `${bulkRefusal} (${error.message})`
      : error instanceof ErrorReply
      ? error.message
      : asError(error).message
  })
}
