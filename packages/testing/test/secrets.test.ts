import { assert, describe, it } from "@effect/vitest"
import * as Core from "@millrace/core"
import { Health, Millrace, Pipeline, Publisher, Telemetry, Topic, Transport, TransportAuthor } from "@millrace/core"
import * as Nats from "@millrace/nats-jetstream"
import { JetStream } from "@millrace/nats-jetstream"
import * as Redis from "@millrace/redis-streams"
import { RedisStreams } from "@millrace/redis-streams"
import { Brokers } from "@millrace/testing"
import { Cause, Context, Effect, Exit, Formatter, Layer, Logger, Option, Redacted, Schema } from "effect"
import { inspect } from "node:util"

const secret = "s3cr3t-p4ss"

const Boxed = Context.Service<unknown>("test/Boxed")

/** Every way in which a value is shown. */
const shown = (value: unknown): Effect.Effect<ReadonlyArray<readonly [how: string, text: string]>> =>
  Effect.gen(function*() {
    const texts: Array<readonly [string, string]> = []
    for (const depth of [0, 2, 4, 8, Infinity]) texts.push([`inspect depth ${depth}`, inspect(value, { depth })])
    texts.push(["inspect hidden", inspect(value, { depth: Infinity, showHidden: true, getters: true })])
    texts.push(["JSON", attempt(() => JSON.stringify(value) ?? "")])
    texts.push(["template", attempt(() => String(value))])
    const boxes = {
      exit: Exit.succeed(value),
      failure: Exit.fail(value),
      defect: Cause.die(value),
      some: Option.some(value)
    }
    for (const [name, box] of Object.entries({ ...boxes, array: [value], context: Context.make(Boxed, value) })) {
      texts.push([`template ${name}`, attempt(() => String(box))], [`JSON ${name}`, attempt(() => JSON.stringify(box))])
      texts.push([`inspect ${name}`, inspect(box, { depth: Infinity })])
    }
    texts.push(["format", Formatter.format(value)], ["formatJson", attempt(() => Formatter.formatJson(value))])
    texts.push(["format of fields", Formatter.format(value, { ignoreToString: true, space: 2 })])
    const loggers: Record<string, Logger.Logger<unknown, unknown>> = {
      simple: Logger.formatSimple,
      logFmt: Logger.formatLogFmt,
      json: Logger.formatJson,
      structured: Logger.formatStructured
    }
    for (const [name, logger] of Object.entries(loggers)) {
      const capture = Logger.map(logger, (out) => {
        texts.push([`Logger ${name}`, typeof out === "string" ? out : inspect(out, { depth: Infinity })])
      })
      yield* Effect.logInfo("seen", value).pipe(
        Effect.annotateLogs({ value }),
        Effect.provide(Logger.layer([capture]))
      )
      yield* Effect.logError(Cause.fail(value)).pipe(Effect.provide(Logger.layer([capture])))
    }
    return texts
  })

/** A value with cycles is no JSON, one without prototype no text: then nothing is shown. */
const attempt = (show: () => string): string => {
  try {
    return show()
  } catch (error) {
    assert.instanceOf(error, TypeError)
    return ""
  }
}

/** What a pipeline hands to its user, and the services, with a broker whose address has a password. */
const walk = (
  layer: Layer.Layer<any, unknown>,
  broken: Layer.Layer<any, unknown>,
  modules: ReadonlyArray<object>
) =>
  Effect.gen(function*() {
    const Orders = Topic.make("orders", { schema: Schema.Number })
    const values: Array<readonly [string, unknown]> = [["layer", layer], ["topic", Orders]]
    const pipeline = Pipeline.from(Orders, { group: "g" }).pipe(
      Pipeline.mapEffect((n, message) =>
        Effect.sync(() => values.push([`message ${n}`, message], [`received ${n}`, TransportAuthor.received(message)]))
          .pipe(
            Effect.andThen(n === 2 ? Effect.fail("no") : Effect.void)
          )
      ),
      Pipeline.retry({ times: 0 })
    )
    values.push(["pipeline", pipeline], ["description", Pipeline.describe(pipeline)])
    yield* Effect.scoped(Effect.gen(function*() {
      const context = yield* Layer.build(layer)
      for (const [key, service] of context.mapUnsafe) values.push([`service ${key}`, service])
      const running = yield* Pipeline.start(pipeline).pipe(
        Effect.provideService(Telemetry.Observer, (outcome) => values.push([`outcome ${outcome._tag}`, outcome])),
        Effect.provideContext(context)
      )
      values.push(["running", running], ["health", yield* Health.report([running])])
      const transport = Context.get(context as Context.Context<Transport.Transport>, Transport.Transport)
      const subscription = yield* transport.subscribe({
        topic: "others",
        group: "g",
        startFrom: "new",
        maxOwned: 1,
        isolateFrom: Infinity,
        ordered: false,
        timeout: undefined,
        settings: Context.empty()
      })
      values.push(["subscription", subscription])
      yield* Publisher.publishAll(Orders, [1, 2]).pipe(
        Effect.tap((published) => Effect.sync(() => values.push(["published", published]))),
        Effect.provideService(Transport.Transport, transport)
      )
      const ended = ({ deadLettered, handled }: Pipeline.Counts) => deadLettered + handled
      while (ended(yield* running.counts) < 2) yield* Effect.sleep("5 millis")
    }))
    const millrace = yield* Effect.promise(() => Millrace.run(pipeline, { broker: layer, signals: false }))
    values.push(["millrace", millrace])
    yield* Effect.promise(() => millrace.stop())
    const unreachable = yield* Effect.scoped(Layer.build(broken)).pipe(Effect.flip)
    values.push(["error", unreachable], ["cause", Cause.fail(unreachable)])
    for (const module of modules) for (const [name, value] of Object.entries(module)) values.push([name, value])
    return values
  }).pipe(Effect.provideService(Telemetry.Logs, false))

const unsafe = (values: ReadonlyArray<readonly [string, unknown]>) =>
  Effect.gen(function*() {
    const found: Array<string> = []
    for (const [what, value] of values) {
      for (const [how, text] of yield* shown(value)) if (text.includes(secret)) found.push(`${what}: ${how}`)
    }
    return found
  })

const isSeen = (values: ReadonlyArray<readonly [string, unknown]>, names: ReadonlyArray<string>) => {
  const seen = values.map(([name]) => name)
  for (const name of names) assert.include(seen, name)
}

/** Addresses that hold the secret, also where it does not belong. */
const addresses = (scheme: string) =>
  [
    "a:S@H",
    ":S@H",
    "S@H",
    "a:S%zz@H",
    "a:x@S@H",
    "a:S/x@H",
    "a:1/S@H",
    "a:S#x@H",
    "a:S?x@H",
    "H/S",
    "H?token=S",
    "H#S",
    "a:S@",
    "a:S@h:99999",
    "a:S@[::1",
    "a:S@H,a:S@H"
  ].map((rest) => `${scheme}://${rest.replaceAll("S", secret).replaceAll("H", "127.0.0.1:1")}`).concat(
    `${scheme}:${secret}`,
    secret,
    `http://a:${secret}@127.0.0.1:1`
  )

const failing = (layer: Layer.Layer<any, unknown>) => Effect.flip(Effect.scoped(Layer.build(layer)))

describe("a password", () => {
  it.live("in an address of any shape is in no error and no layer", () =>
    Effect.gen(function*() {
      const values: Array<readonly [string, unknown]> = []
      for (const url of addresses("redis")) {
        const layer = RedisStreams.layer({ url, connectTimeout: "2 seconds" })
        values.push([url, layer], [url, yield* failing(layer)])
      }
      for (const url of addresses("nats")) {
        const layer = JetStream.layer({ url, connectTimeout: "2 seconds" })
        values.push([url, layer], [url, yield* failing(layer)])
      }
      const others: Array<Layer.Layer<any, unknown>> = [
        RedisStreams.layer({ url: "redis://127.0.0.1:1", username: "u", password: Redacted.make(secret) }),
        RedisStreams.layer({
          url: "redis://127.0.0.1:1",
          credentials: () => Promise.resolve({ username: "u", password: Redacted.make(secret) })
        }),
        RedisStreams.layer({
          url: "redis://127.0.0.1:1",
          connectTimeout: "1 second",
          credentials: () => Promise.reject(new Error(`no token ${secret}`))
        }),
        RedisStreams.layer({ url: "redis://127.0.0.1:1", sentinel: { master: "m", password: Redacted.make(secret) } }),
        JetStream.layer({ url: "nats://127.0.0.1:1", token: Redacted.make(secret) }),
        JetStream.layer({ url: "nats://127.0.0.1:1", credentials: Redacted.make(secret) }),
        JetStream.layer({ url: "nats://127.0.0.1:1", nkey: Redacted.make(`SU${secret}`) })
      ]
      // What JavaScript and casts let through.
      const wrong: ReadonlyArray<any> = [
        new URL(`redis://a:${secret}@127.0.0.1:1`),
        [`redis://a:${secret}@127.0.0.1:1`],
        Buffer.from(secret),
        { url: secret },
        Redacted.make({ url: secret }),
        () => secret
      ]
      for (const url of wrong) others.push(RedisStreams.layer({ url }), JetStream.layer({ url }))
      for (const credentials of wrong.slice(3, 5)) {
        others.push(JetStream.layer({ url: "nats://127.0.0.1:1", credentials }))
      }
      for (const concurrency of wrong.slice(0, 3)) {
        others.push(RedisStreams.layer({ url: "redis://127.0.0.1:1", concurrency }))
      }
      for (const [i, layer] of others.entries()) {
        values.push([`layer ${i}`, layer], [`error ${i}`, yield* failing(layer)])
      }
      assert.deepStrictEqual(yield* unsafe(values), [])
    }))

  it.live("of Redis is in nothing that is shown", () =>
    Effect.scoped(Effect.gen(function*() {
      const broker = yield* Brokers.redis({ password: secret })
      const url = Redacted.make(`redis://default:${secret}@${broker.host}:${broker.port}`)
      const broken = Redacted.make(`redis://default:${secret}@127.0.0.1:1`)
      const values = yield* walk(
        RedisStreams.layer({ url }),
        RedisStreams.layer({ url: broken, connectTimeout: "1 second" }),
        [
          Core,
          Redis
        ]
      )
      isSeen(values, ["message 1", "outcome Handled", "outcome DeadLettered", "error", "subscription"])
      assert.deepStrictEqual(yield* unsafe(values), [])
    })))

  it.live("of NATS is in nothing that is shown", () =>
    Effect.scoped(Effect.gen(function*() {
      const broker = yield* Brokers.nats({ config: `authorization { user: app, password: "${secret}" }` })
      const url = Redacted.make(`nats://app:${secret}@${broker.host}:${broker.port}`)
      const broken = Redacted.make(`nats://app:${secret}@127.0.0.1:1`)
      const values = yield* walk(
        JetStream.layer({ url }),
        JetStream.layer({ url: broken, connectTimeout: "1 second" }),
        [
          Core,
          Nats
        ]
      )
      isSeen(values, ["message 1", "outcome Handled", "outcome DeadLettered", "error", "subscription"])
      assert.deepStrictEqual(yield* unsafe(values), [])
    })))
})
