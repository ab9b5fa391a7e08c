import * as DeadLetter from "@millrace/core/DeadLetter"
import type { Delivery } from "@millrace/core/Transport"
import * as Argument from "effect/cli/Argument"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Stream from "effect/Stream"
import process from "node:process"
import { text as readAll } from "node:stream/consumers"
import { Broker } from "../Broker.ts"
import { Failure, json as print, lines, Output } from "../Output.ts"
import { connected } from "../target.ts"
import { clean, cleanLines, count, cut, duration, paint, time, width } from "../text.ts"
import * as shared from "./shared.ts"

const utf8 = new TextDecoder("utf-8", { fatal: true })

/** The body as text, or `undefined` for bytes that are none. */
export const bodyText = (body: Uint8Array): string | undefined => {
  try {
    const text = utf8.decode(body)
    // oxlint-disable-next-line no-control-regex
    return /[\u0000-\u0008\u000e-\u001f]/.test(text) ? undefined : text
  } catch {
    return undefined
  }
}

/** A message as `--json` has it: `body` is JSON or text, else `base64` has the bytes. */
export const asJson = ({ body, headers, id, key, publishedAt, topic }: Delivery) => {
  const text = bodyText(body)
  const content = text === undefined ? { base64: Buffer.from(body).toString("base64") } : { body: parsed(text) }
  return { topic, id, publishedAt, key, headers: readable(headers), ...content }
}

const parsed = (text: string): unknown => {
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}

/** Headers without the record of a dead letter, which is shown on its own. */
const readable = (headers: Delivery["headers"]) =>
  Object.fromEntries(Object.entries(headers).filter(([name]) => !name.startsWith(DeadLetter.header)))

const indented = (text: string) => {
  const value = parsed(text)
  return cleanLines(typeof value === "string" ? text : JSON.stringify(value, undefined, 2))
}

export const renderMessage = (message: Delivery, now: number, hasColor: boolean): ReadonlyArray<string> => {
  const color = paint(hasColor)
  const { body, headers, id, key, publishedAt, topic } = message
  const text = bodyText(body)
  return [
    `${color("bold", clean(topic))} ${clean(id)}   published ${time(publishedAt)} (${duration(now - publishedAt)} ago)`,
    ...(key === undefined ? [] : [`key ${clean(key)}`]),
    ...Object.entries(readable(headers)).map(([name, value]) =>
      cut(`${color("dim", clean(name))}: ${clean(value)}`, width)
    ),
    "",
    ...(text === undefined
      ? [`${count(body.byteLength)} bytes, not text:`, cut(Buffer.from(body.subarray(0, 400)).toString("base64"), 400)]
      : indented(text).map((line) => `  ${line}`))
  ]
}

/** How a dead letter came to be, and how it failed before. */
export const renderRecord = (record: DeadLetter.Record, now: number, hasColor: boolean): ReadonlyArray<string> => {
  const color = paint(hasColor)
  const { attempts, error, failedAt, firstFailedAt, group, history, id, pipeline, reason, topic } = record
  return [
    `${color("red", `${clean(error.tag)}: ${clean(error.message)}`)}`,
    ...error.causes.map((cause) => `  because of ${clean(cause)}`),
    `${reason} after ${attempts} ${attempts === 1 ? "attempt" : "attempts"}, ${time(failedAt)} (${
      duration(now - failedAt)
    } ago)` + (firstFailedAt === undefined ? "" : `, failed first ${time(firstFailedAt)}`),
    `message ${clean(id)} of ${clean(topic)}, group ${clean(group)}, pipeline ${clean(pipeline)}`,
    ...(history.length === 0 ? [] : ["before:"]),
    ...history.map(({ attempts, error, failedAt, id }) =>
      cut(`  ${time(failedAt)}  ${clean(id)}  ${attempts} attempts  ${clean(error)}`, width)
    ),
    ...(error.stack === undefined
      ? []
      : ["", ...cleanLines(error.stack).map((line) => color("dim", `  ${line.trim()}`))])
  ]
}

const show = Effect.fnUntraced(function*(topic: string, id: string, json: boolean) {
  const broker = yield* Broker
  const found = yield* broker.transport.get(topic, id)
  if (Option.isNone(found)) {
    return yield* Effect.fail(new Failure(`there is no message ${clean(id)} in topic ${clean(topic)}`, 1))
  }
  const record = DeadLetter.fromHeaders(found.value.headers)
  const groups = yield* broker.transport.groups(topic)
  const holders = yield* Effect.forEach(
    groups,
    ({ group }) =>
      Effect.map(
        broker.held(topic, group, 1000),
        (held) => (held ?? []).filter((one) => one.id === id).map((one) => ({ group, ...one }))
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
      `\nheld by ${clean(consumer)} of group ${clean(group)} for ${duration(now - since)}, attempt ${attempts}`
    ),
    ...(Exit.isSuccess(record) ? ["", ...renderRecord(record.value, now, hasColor)] : [])
  ])
})

const id = Argument.String("id").pipe(Argument.withDescription("The broker's id: 1700000000000-0 on Redis, 42 on NATS"))

export const showCommand = Command.make(
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

const maxBack = 10_000

/** Messages since then, oldest first. */
const since = (topic: string, from: number, limit: number) =>
  Effect.flatMap(Broker, ({ transport }) =>
    Effect.map(
      Stream.runCollect(
        transport.browse(topic, { reverse: true, limit }).pipe(
          Stream.takeWhile(({ publishedAt }) => publishedAt >= from)
        )
      ),
      (all) => all.toReversed()
    ))

const oneLine = (message: Delivery): string => {
  const text = bodyText(message.body)
  const body = text === undefined ? `${count(message.body.byteLength)} bytes` : clean(text.replaceAll(/\s+/g, " "))
  return cut(
    `${time(message.publishedAt)}  ${clean(message.id)}  ${
      message.key === undefined ? "" : `${clean(message.key)}  `
    }${body}`,
    width
  )
}

interface TailOptions {
  readonly topic: string
  readonly group: string | undefined
  readonly since: number | undefined
  readonly lines: number
  readonly follow: boolean
  readonly json: boolean
}

const tail = Effect.fnUntraced(function*({ follow, group, json, since: age, topic, ...options }: TailOptions) {
  const { stored, transport } = yield* Broker
  const { out } = yield* Output
  if ((yield* stored(topic)) === undefined && !follow) {
    return yield* Effect.fail(new Failure(`there is no topic ${clean(topic)}`, 1))
  }
  const isFor = ({ headers }: Delivery) => {
    const of = headers["millrace-group"]
    return group === undefined || of === undefined || of === group
  }
  const write = (message: Delivery) =>
    isFor(message) ? out(json ? JSON.stringify(asJson(message)) : oneLine(message)) : Effect.void
  const now = yield* Clock.currentTimeMillis
  const first = age === undefined
    ? yield* since(topic, -Infinity, options.lines)
    : yield* since(topic, now - age, maxBack)
  yield* Effect.forEach(first, write, { discard: true })
  if (!follow) return
  let last = first.at(-1)?.id
  return yield* shared.every(500)(Effect.suspend(() =>
    Stream.runForEach(
      transport.browse(topic, last === undefined ? {} : { after: last }),
      (message) => Effect.andThen(write(message), Effect.sync(() => last = message.id))
    )
  ))
})

export const tailCommand = Command.make(
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

interface PublishOptions {
  readonly topic: string
  readonly content: string
  readonly key: string | undefined
  readonly id: string | undefined
  readonly headers: Record<string, string>
  readonly delay: number | undefined
  readonly raw: boolean
  readonly create: boolean
  readonly json: boolean
}

const isReserved = (name: string) => name === "body" || name === "content-type" || name.startsWith("millrace-")

const publish = Effect.fnUntraced(function*(options: PublishOptions) {
  const { stored, transport } = yield* Broker
  const { topic } = options
  const refused = Object.keys(options.headers).find((name) =>
    isReserved(name.toLowerCase()) || !/^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/.test(name)
  )
  if (refused !== undefined) {
    return yield* Effect.fail(new Failure(`header ${clean(refused)} is reserved or no token: choose another name`))
  }
  const content = options.content === "-"
    ? yield* Effect.tryPromise({
      try: () => readAll(process.stdin),
      catch: () => new Failure("cannot read standard input")
    })
    : options.content
  if (!options.raw) {
    try {
      JSON.parse(content)
    } catch (error) {
      const said = error instanceof Error ? error.message : String(error)
      return yield* Effect.fail(new Failure(`the message is no JSON (${clean(said)}): quote it, or give --raw`))
    }
  }
  const remedy = transport.nameRemedy("topic", topic)
  if (remedy !== undefined) {
    return yield* Effect.fail(new Failure(`${JSON.stringify(topic)} cannot be a topic: ${remedy}`))
  }
  if (!options.create && (yield* stored(topic)) === undefined) {
    return yield* Effect.fail(new Failure(`there is no topic ${clean(topic)}: give --create to begin one`, 1))
  }
  if (options.create) yield* transport.declare(topic, "output")
  const [result] = yield* transport.publish([{
    topic,
    body: new TextEncoder().encode(content),
    fields: undefined,
    key: options.key,
    id: options.id,
    delay: options.delay === undefined ? undefined : Duration.millis(options.delay),
    headers: {
      "content-type": options.raw ? "text/plain" : "application/json",
      ...(options.key === undefined ? {} : { "millrace-key": encodeURIComponent(options.key) }),
      ...Object.fromEntries(Object.entries(options.headers).map(([name, value]) => [name.toLowerCase(), value]))
    }
  }])
  const published = yield* Result.isSuccess(result!)
    ? Effect.succeed(result.success)
    : Effect.fail(new Failure(result!.failure.message, 1))
  yield* options.json
    ? print(published)
    : lines([`${clean(topic)} ${published.id}${published.duplicate ? "   was there already, under this id" : ""}`])
})

export const publishCommand = Command.make(
  "publish",
  {
    topic: shared.topic,
    content: Argument.String("json").pipe(Argument.withDescription("The message, as JSON; - reads standard input")),
    key: Flag.String("key").pipe(Flag.withDescription("The key, where order matters"), Flag.optional),
    id: Flag.String("id").pipe(Flag.withDescription("Recognised as a duplicate when given again soon"), Flag.optional),
    headers: Flag.KeyValuePair("header").pipe(
      Flag.withAlias("H"),
      Flag.withDescription("name=value; may be given many times"),
      Flag.withDefault({})
    ),
    delay: shared.duration("delay").pipe(Flag.withDescription("Delivered not before this has passed"), Flag.optional),
    raw: Flag.Boolean("raw").pipe(Flag.withDefault(false), Flag.withDescription("The message is text, not JSON")),
    create: Flag.Boolean("create").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Create the topic when it does not exist")
    ),
    json: shared.json
  },
  ({ delay, id, key, ...options }) =>
    connected(publish({
      ...options,
      key: Option.getOrUndefined(key),
      id: Option.getOrUndefined(id),
      delay: Option.getOrUndefined(delay)
    }))
).pipe(
  Command.withDescription("Publish one message"),
  Command.withExamples([
    { command: "millrace publish orders '{\"id\":\"o1\",\"total\":5}' --key o1", description: "One order" },
    { command: "cat order.json | millrace publish orders - -H source=shell", description: "From standard input" }
  ])
)
