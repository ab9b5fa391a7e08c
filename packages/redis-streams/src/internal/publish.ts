import { NotSent, OutcomeUnknown, PublishError, type PublishErrorReason, Refused } from "@millrace/core/Publisher"
import type { Outgoing, Published } from "@millrace/core/Transport"
import { Unauthorized } from "@millrace/core/TransportError"
import type * as Arr from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import { ErrorReply } from "redis"
import type { Argument, Command } from "./command.ts"
import { fieldsOf } from "./entry.ts"
import * as keys from "./keys.ts"
import { Lost } from "./link.ts"
import { asError, codeOf, isFull, isPassing, isRedirect, isRefusal, list, text } from "./reply.ts"
import * as adds from "./scripts/add.ts"
import { evalsha } from "./scripts/script.ts"
import type { Server } from "./server.ts"

type Outcome = Result.Result<Published, PublishError>

export type Publish = (messages: Arr.NonEmptyReadonlyArray<Outgoing>) => Effect.Effect<ReadonlyArray<Outcome>>

/** Lua takes so many arguments in one call, and not many more. */
const maxScriptArguments = 7_000

const longestDelay = 100 * 365 * 86_400_000

/** `unbounded`: topics that hold dead letters, which no bound trims. */
export const make = (server: Server, unbounded: ReadonlySet<string>): Publish => {
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

  const sendOne = (key: string, command: Command) => Effect.map(send(key, [command]), ([reply]) => reply)

  /** A reply that tells the time: the publisher's clock is wrong by a period or more. */
  const isClock = (reply: unknown): boolean => Array.isArray(reply) && reply.length === 2 && text(reply[0]) === "clock"

  const again = (key: string, command: () => Command, reply: unknown): Effect.Effect<unknown> => {
    if (!isClock(reply)) return Effect.succeed(reply)
    server.clock.set(Number(text(list(reply)[1])))
    return sendOne(key, command())
  }

  /** More fields than a script can pass on: looked for, added and noted, one after the other. */
  const sendWide = (key: string, message: Outgoing, add: ReadonlyArray<Argument>): Effect.Effect<unknown> => {
    const find = () => evalsha(adds.findOnce, [key, ...idsOf(key)], onceArgs(message.id!))
    return Effect.flatMap(
      Effect.flatMap(sendOne(key, find()), (reply) => again(key, find, reply)),
      (found) => {
        if (!Array.isArray(found) || found[1] === 1) return Effect.succeed(found)
        return Effect.tap(sendOne(key, ["XADD", key, ...add]), (id) =>
          id instanceof Error
            ? Effect.void
            : sendOne(key, evalsha(adds.noteOnce, [key, ...idsOf(key)], [...onceArgs(message.id!), text(id)])))
      }
    )
  }

  const period = () => Math.floor(server.clock.now() / settings.deduplication)

  const idsOf = (key: string): ReadonlyArray<string> => {
    const now = period()
    return [now - 2, now - 1, now, now + 1].map((period) => keys.published(key, period))
  }

  const onceArgs = (id: string): ReadonlyArray<string> => [
    id,
    String(settings.deduplication * 3),
    String(period()),
    String(settings.deduplication)
  ]

  const boundOf = (topic: string) => unbounded.has(topic) ? undefined : settings.bound

  const commandOf = (key: string, message: Outgoing, fields: ReadonlyArray<Argument>): Command => {
    const bound = boundOf(message.topic)
    const how = bound?.exact === true ? "=" : "~"
    const add = [...bound?.by === "length" ? ["MAXLEN", how, String(bound.length)] : [], "*", ...fields]
    const age = bound?.by === "age" ? String(bound.age) : ""
    if (message.delay !== undefined) {
      return evalsha(adds.delay, [keys.delayed(key), ...idsOf(key)], [
        ...onceArgs(message.id ?? ""),
        String(Math.min(longestDelay, Math.max(0, Math.ceil(Duration.toMillis(message.delay))))),
        `delayed-${crypto.randomUUID()}`,
        ...add
      ])
    }
    if (message.id !== undefined) {
      return evalsha(adds.addOnce, [key, ...idsOf(key)], [...onceArgs(message.id), age === "" ? "" : how, age, ...add])
    }
    return age === "" ? ["XADD", key, ...add] : evalsha(adds.add, [key], [how, age, ...fields])
  }

  const sendAll = (key: string, messages: ReadonlyArray<Outgoing>): Effect.Effect<ReadonlyArray<Outcome>> =>
    Effect.suspend(() => {
      const fields = messages.map(fieldsOf)
      const isWide = (i: number) =>
        fields[i]!.length > maxScriptArguments && (messages[i]!.id !== undefined || messages[i]!.delay !== undefined)
      const narrow = messages.flatMap((_, i) => isWide(i) ? [] : [i])
      const command = (i: number) => commandOf(key, messages[i]!, fields[i]!)
      return Effect.gen(function*() {
        const outcomes: Array<Outcome> = []
        const replies = narrow.length === 0 ? [] : yield* send(key, narrow.map(command))
        for (let n = 0; n < narrow.length; n++) {
          const i = narrow[n]!
          const reply = isClock(replies[n]) ? yield* again(key, () => command(i), replies[n]) : replies[n]
          outcomes[i] = outcomeOf(messages[i]!, reply)
        }
        for (let i = 0; narrow.length < messages.length && i < messages.length; i++) {
          if (isWide(i)) outcomes[i] = yield* wideOutcome(key, messages[i]!, fields[i]!)
        }
        yield* report(outcomes)
        return outcomes
      })
    })

  const wideOutcome = (key: string, message: Outgoing, fields: ReadonlyArray<Argument>): Effect.Effect<Outcome> =>
    message.delay !== undefined
      ? Effect.succeed(refused(
        message.topic,
        new Refused({
          detail: `a message of ${fields.length / 2} fields cannot be delayed, ${maxScriptArguments / 2} can`
        })
      ))
      : Effect.map(sendWide(key, message, ["*", ...fields]), (reply) => outcomeOf(message, reply))

  const refused = (topic: string, reason: PublishErrorReason): Outcome =>
    Result.fail(new PublishError({ topic, reason }))

  const outcomeOf = (message: Outgoing, reply: unknown): Outcome => {
    if (reply instanceof Error) return refused(message.topic, reasonOf(server, reply))
    const [id, duplicate] = Array.isArray(reply) ? list(reply) : [reply, 0]
    return Result.succeed({ id: text(id), duplicate: duplicate === 1 })
  }

  /** Said once, until a message is taken again; shows in the health meanwhile. */
  const report = (outcomes: ReadonlyArray<Outcome>): Effect.Effect<void> => {
    const operation = "publishing"
    let isTaken = false
    for (const outcome of outcomes) {
      if (Result.isSuccess(outcome)) isTaken = true
      else if (isLasting(outcome.failure.reason)) {
        const { message } = outcome.failure.reason
        return server.refusals.add(operation, `publishing: ${message}`)
          ? Effect.logError(`redis: publishing is refused (${message}); said once, until a message is taken again`)
          : Effect.void
      }
    }
    return isTaken && server.refusals.clear(operation)
      ? Effect.logInfo("redis: messages are taken again")
      : Effect.void
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

/** Concerns the server and not one message. */
const isLasting = (reason: PublishErrorReason): boolean =>
  reason._tag === "Unauthorized" || reason._tag === "Refused" && reason.detail.includes(full)

const full = "the server has no memory left"

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
      : error instanceof ErrorReply
      ? error.message
      : asError(error).message
  })
}
