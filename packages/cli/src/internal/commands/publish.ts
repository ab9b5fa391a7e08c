import * as Argument from "effect/cli/Argument"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import process from "node:process"
import { text as readAll } from "node:stream/consumers"
import { Broker } from "../Broker.ts"
import { Failure, json as print, lines } from "../Output.ts"
import { connected } from "../target.ts"
import { clean, time } from "../text.ts"
import * as shared from "./shared.ts"

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

/** Ten years: a longer delay is a mistake. */
const maxDelay = 3650 * 86_400_000

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
    : lines([
      `${clean(topic)} ${published.id}` +
      (published.duplicate ? "   was there already, under this id" : "") +
      (options.delay === undefined ? "" : `   not before ${time((yield* Clock.currentTimeMillis) + options.delay)}`)
    ])
})

export const command = Command.make(
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
    delay: shared.duration("delay").pipe(
      Flag.filter((millis) => millis <= maxDelay, () => "a duration of at most 3650d"),
      Flag.withDescription("Delivered not before this has passed"),
      Flag.optional
    ),
    raw: Flag.Boolean("raw").pipe(Flag.withDefault(false), Flag.withDescription("The message is text, not JSON")),
    create: Flag.Boolean("create").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Create the topic when it does not exist")
    ),
    json: shared.json
  },
  ({ delay, id, key, ...options }) =>
    connected(
      publish({
        ...options,
        key: Option.getOrUndefined(key),
        id: Option.getOrUndefined(id),
        delay: Option.getOrUndefined(delay)
      }),
      { mayCreate: options.create }
    )
).pipe(
  Command.withDescription("Publish one message"),
  Command.withExamples([
    { command: "millrace publish orders '{\"id\":\"o1\",\"total\":5}' --key o1", description: "One order" },
    { command: "cat order.json | millrace publish orders - -H source=shell", description: "From standard input" }
  ])
)
