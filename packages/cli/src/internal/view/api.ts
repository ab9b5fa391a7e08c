import * as DeadLetter from "@millrace/core/DeadLetter"
import type { Transport } from "@millrace/core/Transport"
import type { TransportError } from "@millrace/core/TransportError"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Broker } from "../Broker.ts"
import { asJson, letterJson } from "../message.ts"
import * as overview from "../overview.ts"
import type { Snapshot } from "./snapshot.ts"

const page = 50

/** One answer looks through so many letters; the next page goes on behind them. */
const maxLooked = 10_000

/** As many of the newest letters are counted by reason. */
const counted = 1_000

const maxTopics = 2_000

type Answer = Effect.Effect<unknown, TransportError, Broker | Transport>

/** A question that cannot be answered: status and sentence. */
export class Refusal {
  readonly _tag = "Refusal"
  readonly status: number
  readonly message: string
  constructor(status: number, message: string) {
    this.status = status
    this.message = message
  }
}

const topicDetail = Effect.fnUntraced(function*(topic: string) {
  const broker = yield* Broker
  const found = yield* overview.one(topic)
  if (found === undefined) return new Refusal(404, `there is no topic ${topic}`)
  const newest = yield* Stream.runCollect(broker.transport.browse(topic, { reverse: true, limit: 20 }))
  const held = yield* Effect.forEach(
    found.groups,
    ({ group }) => Effect.map(broker.held(topic, group, 20), (messages) => ({ group, messages }))
  )
  return { ...found, held, newest: newest.map(asJson) }
})

const message = Effect.fnUntraced(function*(topic: string, id: string) {
  const broker = yield* Broker
  const found = yield* broker.transport.get(topic, id)
  if (Option.isNone(found)) return undefined
  const letter = Exit.isSuccess(DeadLetter.fromHeaders(found.value.headers))
    ? Option.getOrUndefined(yield* DeadLetter.inspect(topic, id))
    : undefined
  return letter === undefined ? asJson(found.value) : { ...letterJson(letter), topic }
})

/** By id in one topic, or in all: a request each. */
const find = Effect.fnUntraced(function*(id: string, topic: string | undefined) {
  const topics = topic === undefined ? (yield* (yield* Broker).topics).slice(0, maxTopics) : [topic]
  const found = yield* Effect.forEach(
    topics,
    (topic) => Effect.catch(message(topic, id), () => Effect.succeed(undefined)),
    { concurrency: 16 }
  )
  return { found: found.filter((one) => one !== undefined) }
})

interface DeadQuery {
  readonly topic: string
  readonly before: string | undefined
  readonly text: string | undefined
  readonly reason: DeadLetter.DeadLetterReason | undefined
}

const isReason = Schema.is(DeadLetter.DeadLetterReason)

const dead = Effect.fnUntraced(function*({ before, reason, text, topic }: DeadQuery) {
  let looked = 0
  let last: string | undefined
  const letters = yield* DeadLetter.list(topic, { reverse: true, before, limit: maxLooked }).pipe(
    Stream.tap(({ id }) =>
      Effect.sync(() => {
        looked++
        last = id
      })
    ),
    Stream.filter(DeadLetter.matching({ text, reason })),
    Stream.take(page),
    Stream.runCollect
  )
  const next = letters.length === page ? letters.at(-1)!.id : looked === maxLooked ? last : undefined
  return { letters: letters.map(letterJson), looked, next }
})

const reasons = (topic: string) =>
  Stream.runFold(
    DeadLetter.list(topic, { reverse: true, limit: counted }),
    () => ({ counted: 0, reasons: {} as Record<string, number>, tags: {} as Record<string, number> }),
    (sum, { record }) => {
      sum.counted++
      sum.reasons[record.reason] = (sum.reasons[record.reason] ?? 0) + 1
      sum.tags[record.error.tag] = (sum.tags[record.error.tag] ?? 0) + 1
      return sum
    }
  )

/** What the page reads. `undefined`: there is no such address. */
export const read = (
  path: string,
  query: URLSearchParams,
  about: object,
  snapshot: Effect.Effect<Snapshot, TransportError, Broker>
): Answer | undefined => {
  const given = (name: string) => query.get(name) ?? undefined
  const topic = given("topic")
  if (path === "/api/overview") return Effect.map(snapshot, (taken) => ({ ...about, ...taken }))
  if (path === "/api/find" && given("id") !== undefined) return find(given("id")!, topic)
  if (topic === undefined) return undefined
  const reason = given("reason")
  if (path === "/api/topic") return topicDetail(topic)
  if (path === "/api/reasons") return reasons(topic)
  if (path === "/api/dead") {
    return reason !== undefined && !isReason(reason)
      ? Effect.succeed(new Refusal(400, `reason: give one of ${DeadLetter.DeadLetterReason.literals.join(", ")}`))
      : dead({ topic, before: given("before"), text: given("text"), reason })
  }
  return undefined
}

const RedriveRequest = Schema.fromJsonString(Schema.Struct({
  topic: Schema.String,
  ids: Schema.Array(Schema.String).check(Schema.isMinLength(1), Schema.isMaxLength(page))
}))

const decodeRedrive = Schema.decodeUnknownExit(RedriveRequest)

/** Redrives the letters of one page, by their ids. */
export const redrive = (body: string): Answer =>
  Effect.suspend((): Answer => {
    const request = decodeRedrive(body)
    if (Exit.isFailure(request)) return Effect.succeed(new Refusal(400, "give topic and ids"))
    const { ids, topic } = request.value
    return DeadLetter.redrive(topic, { ids })
  })
