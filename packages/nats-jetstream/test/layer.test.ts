import { assert, describe, it } from "@effect/vitest"
import * as Concurrency from "@millrace/core/Concurrency"
import * as Pipeline from "@millrace/core/Pipeline"
import * as Publisher from "@millrace/core/Publisher"
import * as Topic from "@millrace/core/Topic"
import { Transport } from "@millrace/core/Transport"
import type { TransportError } from "@millrace/core/TransportError"
import * as Brokers from "@millrace/testing/Brokers"
import * as MemoryTransport from "@millrace/testing/MemoryTransport"
import * as TestHarness from "@millrace/testing/TestHarness"
import { jetstreamManager } from "@nats-io/jetstream"
import { connect, type NatsConnection } from "@nats-io/transport-node"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { createServer as createHttpServer } from "node:http"
import { createServer, type Server } from "node:net"
import * as JetStream from "../src/JetStream.ts"
import { before, demand, logged, onNats, outgoing, proxied, publish, subscribe, take, until, versions } from "./nats.ts"

const failing = (options: JetStream.Options) =>
  Effect.flip(Effect.scoped(Layer.build(JetStream.layer(options)))) as Effect.Effect<TransportError>

/** Listens on a free port, which is given. */
const listening = (server: Server) =>
  Effect.map(
    Effect.acquireRelease(
      Effect.callback<Server>((resume) => {
        server.listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
      }),
      (server) => Effect.sync(() => server.close())
    ),
    (server) => {
      const address = server.address()
      return typeof address === "object" ? address?.port : 0
    }
  )

const Orders = Topic.make("orders", { schema: Schema.Struct({ id: Schema.String }) })

describe("connecting", () => {
  it.live("a URL of another scheme is refused by name, without its password", () =>
    Effect.gen(function*() {
      for (const url of ["http://user:secret@localhost:4222", "nats//localhost", "", "nats://"]) {
        const error = yield* failing({ url: Redacted.make(url) })
        assert.strictEqual(error.reason._tag, "InvalidOption", url)
        assert.match(error.message, /url is .*nats:\/\/host:port/)
        assert.notInclude(JSON.stringify(error) + error.message, "secret")
      }
      assert.match((yield* failing({ url: "ws://localhost" })).message, /wsconnect/)
    }))

  it.live("a port that refuses is a typed error at once, not a wait", () =>
    Effect.gen(function*() {
      const error = yield* failing({ url: "nats://user:secret@127.0.0.1:1", connectTimeout: "1 hour" })
      assert.match(error.message, /^nats: cannot connect to nats:\/\/127\.0\.0\.1:1/)
      assert.notInclude(JSON.stringify(error), "secret")
    }))

  it.live("a server that accepts and never speaks is given connectTimeout", () =>
    Effect.gen(function*() {
      const port = yield* listening(createServer())
      const error = yield* failing({ url: `nats://127.0.0.1:${port}`, connectTimeout: "500 millis" })
      assert.strictEqual(error.reason._tag, "Unreachable")
    }))

  it.live("a server of another protocol is named at once", () =>
    Effect.gen(function*() {
      const redis = yield* Brokers.redis()
      const http = yield* listening(createHttpServer())
      const mail = yield* listening(createServer((socket) => socket.end("220 mail.example.com ESMTP\r\n")))
      for (
        const [url, reason] of [
          [redis.url.replace("redis:", "nats:"), /is not a NATS server: it answers as Redis does/],
          [`nats://127.0.0.1:${http}`, /is not a NATS server: it answers as an HTTP server does/],
          [`nats://127.0.0.1:${mail}`, /is not a NATS server: its first line is not INFO/]
        ] as const
      ) {
        const error = yield* failing({ url, connectTimeout: "1 hour" })
        assert.strictEqual(error.reason._tag, "Unreachable")
        assert.match(error.message, reason)
      }
    }).pipe(Effect.scoped))

  it.live("a JetStream domain that does not answer is said at once, and the server's own with it", () =>
    logged((lines) =>
      Effect.gen(function*() {
        yield* Effect.forkScoped(subscribe("orders"))
        yield* until(
          Effect.sync(() => lines.join("\n")),
          (text) => /domain hbu does not answer: this server has no domain; .*trying for 10 seconds/.test(text)
        )
      }).pipe((self) => onNats(() => self, { layer: { domain: "hbu" } }))
    ))

  it.live("a wrong password is Unauthorized and appears nowhere", () =>
    Effect.gen(function*() {
      const broker = yield* Brokers.nats({ config: `authorization { user: app, password: "right" }` })
      const url = `nats://app:wr0ng@${broker.host}:${broker.port}`
      const error = yield* failing({ url })
      assert.strictEqual(error.reason._tag, "Unauthorized")
      assert.match(error.message, /Authorization Violation/)
      assert.notInclude(JSON.stringify(error) + String(error) + String(error.stack), "wr0ng")
      yield* Effect.scoped(Layer.build(JetStream.layer({ url: `nats://app:right@${broker.host}:${broker.port}` })))
    }))

  it.live("a token, in the URL or beside it", () =>
    Effect.gen(function*() {
      const broker = yield* Brokers.nats({ config: `authorization { token: "t0ken" }` })
      const address = `${broker.host}:${broker.port}`
      yield* Effect.scoped(Layer.build(JetStream.layer({ url: `nats://t0ken@${address}` })))
      yield* Effect.scoped(Layer.build(JetStream.layer({ url: `nats://${address}`, token: Redacted.make("t0ken") })))
      assert.strictEqual((yield* failing({ url: `nats://${address}` })).reason._tag, "Unauthorized")
    }))

  it.live("impossible options name the option, the value and the remedy", () =>
    Effect.gen(function*() {
      const broker = yield* Brokers.nats({})
      for (const concurrency of [0, NaN, 1.5, -1]) {
        assert.match(
          (yield* failing({ url: broker.url, concurrency })).message,
          /concurrency is .*: give a whole number/
        )
      }
      assert.match(
        (yield* failing({ url: broker.url, connectTimeout: 0 })).message,
        /connectTimeout is 0: .*10 seconds/
      )
      const bad: ReadonlyArray<readonly [unknown, RegExp]> = [
        [{}, /^nats: url is undefined: give nats:/],
        [{ url: broker.url, tokn: "secret" }, /^nats: layer.tokn is given: there is no such option/],
        [{ url: broker.url, stream: { maxAeg: 1 } }, /^nats: stream.maxAeg is 1: /],
        [{ url: ["nats://app:secret@host"] }, /^nats: url is of another type: give nats:/],
        [
          { url: broker.url, retention: "workqueue" },
          /^nats: retention is "workqueue": write "limits" or "until-acked"/
        ],
        [{ url: broker.url, manage: "crate" }, /^nats: manage is "crate": write "create" or "verify" or "none"/],
        [{ url: broker.url, concurrency: "5" }, /^nats: concurrency is "5": give a whole number/],
        [{ url: broker.url, stream: { replicas: "3" } }, /^nats: stream.replicas is "3": give a whole number/],
        [
          { url: broker.url, deadLetterStream: { storage: "disk" } },
          /^nats: deadLetterStream.storage is "disk": write/
        ],
        [{ url: broker.url, stream: { subjects: "a.>" } }, /^nats: stream.subjects is "a.>": give an array/],
        [{ url: broker.url, stream: { maxAge: "5s" } }, /^nats: stream.maxAge is "5s": write a duration as/],
        [{ url: broker.url, ackWait: "5s" }, /^nats: ackWait is "5s": /],
        [{ url: "nats://secret/hunter@127.0.0.1" }, /^nats: url is "<redacted>": percent-encode/]
      ]
      for (const [options, expected] of bad) assert.match((yield* failing(options as never)).message, expected)
    }))

  it.live("pipelines on one layer share its limit", () =>
    Effect.gen(function*() {
      const broker = yield* Brokers.nats({})
      let handling = 0
      let most = 0
      const work = (name: string) =>
        Effect.gen(function*() {
          const topic = Topic.make(name, { schema: Schema.Struct({ id: Schema.String }) })
          yield* Publisher.publishAll(topic, Array.from({ length: 20 }, (_, i) => ({ id: String(i) })))
          return yield* Pipeline.start(
            Pipeline.from(topic, { group: "g", startFrom: "beginning" }).pipe(
              Pipeline.tap(() =>
                Effect.sync(() => most = Math.max(most, ++handling)).pipe(
                  Effect.andThen(Effect.sleep("20 millis")),
                  Effect.tap(() => Effect.sync(() => handling--))
                )
              ),
              Pipeline.concurrency(10)
            )
          )
        })
      yield* Effect.gen(function*() {
        for (const running of yield* Effect.all([work("orders"), work("jobs")])) {
          yield* until(running.counts, ({ handled }) => handled === 20)
        }
      }).pipe(
        Effect.scoped,
        Effect.provide(JetStream.layer({ url: broker.url, concurrency: Concurrency.make(3) }))
      )
      assert.strictEqual(most, 3)
    }))

  it.effect.each<readonly [string, unknown, RegExp]>([
    ["no options", undefined, /^memory: from is undefined: give an object with the options group, .*ackWait/],
    [
      "an option that there is not",
      { group: "g", concurrency: 5 },
      /^memory: from.concurrency is 5: there is no such option/
    ],
    ["a text that is no duration", { group: "g", ackWait: "5s" }, /^memory: ackWait is "5s": write a duration as/],
    ["a subject that is no text", { group: "g", subject: 5 }, /^memory: subject is 5: give a text/],
    [
      "subjects that are no array",
      { group: "g", subjects: "a.>" },
      /^memory: subjects is "a.>": give an array of texts/
    ],
    ["a misspelt start", { group: "g", startFrom: "begining" }, /^memory: startFrom is "begining": write "new"/],
    ["a sequence before the first", { group: "g", startFrom: { sequence: 0 } }, /^memory: startFrom is an object/],
    ["a sequence below 0", { group: "g", startFrom: { sequence: -1 } }, /^memory: startFrom is an object/]
  ])("from refuses %s", ([, options, expected]) =>
    Effect.gen(function*() {
      const pipeline = JetStream.from(
        Topic.make("jobs", { schema: Schema.String }),
        options as JetStream.FromOptions & {
          readonly subject?: undefined
        }
      )
      assert.match((yield* Effect.flip(Effect.scoped(Pipeline.start(pipeline)))).message, expected)
    }).pipe(Effect.provide(JetStream.layerTest.pipe(Layer.provideMerge(MemoryTransport.layer())))))

  it.effect("publish refuses what the server would take for nothing, or in its own words", () =>
    Effect.gen(function*() {
      const cases: ReadonlyArray<readonly [object, string]> = [
        ...[NaN, 0, -1, Infinity, "5", null].map((ttl) => [{ ttl }, "ttl"] as const),
        ...[NaN, -1, "5 sec", true].map((retryFor) => [{ retryFor }, "retryFor"] as const),
        ...[NaN, -1, 0.5, [], "5", 5n, Symbol("5")].map((lastSequence) =>
          [{ expect: { lastSequence } }, "expect.lastSequence"] as const
        ),
        [{ expect: { lastSubjectSequence: [] } }, "expect.lastSubjectSequence"],
        [{ expect: { lastMessageId: 5 } }, "expect.lastMessageId"],
        [{ expect: { stream: {} } }, "expect.stream"],
        [{ expect: { lastSeq: 5 } }, "expect.lastSeq"],
        [{ dealy: 5 }, "publish.dealy"]
      ]
      for (const [options, option] of cases) {
        const { reason } = yield* Effect.flip(JetStream.publish(Orders, { id: "1" }, options))
        assert.deepInclude(reason, { _tag: "InvalidOption", option })
      }
    }).pipe(Effect.provide(JetStream.layerTest.pipe(Layer.provideMerge(MemoryTransport.layer())))))

  it.effect("a confirmation that nothing could come in time for is an error, and no wait without end", () =>
    Effect.gen(function*() {
      for (const timeout of [0, NaN, -1, "5 sec" as never]) {
        const topic = Topic.make("orders", { schema: Schema.String })
        const pipeline = JetStream.from(topic, { group: "g" }).pipe(
          Pipeline.tap((_, message) => JetStream.ackSync(message, { timeout })),
          Pipeline.retry({ times: 0 })
        )
        const report = yield* TestHarness.run(topic, pipeline, ["a"])
        assert.include(report.deadLettered[0]!.record.error.causes[0], "timeout of ackSync is ")
      }
    }).pipe(Effect.provide(JetStream.layerTest.pipe(Layer.provideMerge(TestHarness.layer)))))

  it.effect("durations that a timer or the server cannot hold are refused by name", () =>
    Effect.gen(function*() {
      const url = "nats://127.0.0.1:1"
      const cases: ReadonlyArray<readonly [string, Partial<JetStream.Options>]> = [
        ...[0, Infinity, 2 ** 31].flatMap((duration) => [
          ["connectTimeout", { connectTimeout: duration }] as const,
          ["publishTimeout", { publishTimeout: duration }] as const
        ]),
        ...[1, Infinity, 1e20].flatMap((duration) => [
          ["stream.maxAge", { stream: { maxAge: duration } }] as const,
          ["stream.duplicateWindow", { stream: { duplicateWindow: duration } }] as const,
          ["deadLetterStream.maxAge", { deadLetterStream: { maxAge: duration } }] as const
        ]),
        ["stream.duplicateWindow", { stream: { duplicateWindow: 0 } }]
      ]
      for (const [option, options] of cases) {
        const { reason } = yield* failing({ url, ...options })
        assert.deepInclude(reason, { _tag: "InvalidOption", option })
      }
    }))

  it.effect.each<readonly [string, object, Array<string>]>([
    ["a pattern", { subject: "orders.{region}.created" }, ["orders.eu.created", "none"]],
    ["subjects", { subjects: ["orders.us.>", "orders.eu"] }, ["orders.us.deleted", "none"]],
    ["the topic's own subject", {}, ["orders", "none"]],
    ["a stream by its name", { stream: "ALL" }, [
      "orders.eu.created",
      "orders.us.deleted",
      "foo.bar",
      "orders.eu.created.late",
      "orders",
      "none"
    ]]
  ])(
    "layerTest gives the messages on %s, and those without a subject",
    ([, options, expected]) =>
      Effect.gen(function*() {
        const topic = Topic.make("orders", { schema: Schema.String })
        const harness = yield* TestHarness.make(topic, JetStream.from(topic, { group: "g", ...options }))
        const subjects = ["orders.eu.created", "orders.us.deleted", "foo.bar", "orders.eu.created.late", "orders"]
        yield* Effect.forEach(subjects, (subject) => harness.publish(subject, { subject }))
        yield* harness.publish("none")
        const report = yield* harness.runUntilIdle()
        assert.deepStrictEqual(report.handled.map(({ value }) => value), expected)
        assert.strictEqual(report.deadLettered.length, 0)
      }).pipe(Effect.scoped, Effect.provide(JetStream.layerTest.pipe(Layer.provideMerge(TestHarness.layer))))
  )

  it.live("a server without JetStream is reported when it is needed, with the remedy", () =>
    Effect.gen(function*() {
      const broker = yield* Brokers.nats({ config: "accounts { A: { users: [{ user: a, password: a }] } }" })
      const error = yield* Transport.use((transport) => transport.declare("orders", "output")).pipe(
        Effect.provide(JetStream.layer({ url: `nats://a:a@${broker.host}:${broker.port}` })),
        Effect.flip
      )
      assert.match(error.message, /JetStream .*(enable|-js)/)
    }))

  it.live("options come from configuration", () =>
    Effect.gen(function*() {
      const broker = yield* Brokers.nats({})
      yield* publish("orders", ["a"]).pipe(
        Effect.provide(
          JetStream.layerConfig({ url: Config.Redacted("NATS_URL"), concurrency: Config.Int("WORKERS") }).pipe(
            Layer.provide(
              ConfigProvider.layer(ConfigProvider.fromEnv({ env: { NATS_URL: broker.url, WORKERS: "3" } }))
            )
          )
        )
      )
    }))

  it.live("a connection made elsewhere is used, and stays open", () =>
    Effect.gen(function*() {
      const broker = yield* Brokers.nats({})
      const client = yield* Effect.acquireRelease(
        Effect.promise(() => connect({ servers: `${broker.host}:${broker.port}` })),
        (client) => Effect.promise(() => client.close())
      )
      yield* publish("orders", ["a"]).pipe(Effect.provide(JetStream.layerFromConnection(client)))
      assert.isFalse(client.isClosed())
      yield* Effect.promise(() => client.flush())
    }))

  it.live("a connection made elsewhere is given up as it was before, once the layer is closed", () =>
    Effect.gen(function*() {
      const broker = yield* Brokers.nats({})
      const client = yield* Effect.acquireRelease(
        Effect.promise(() => connect({ servers: `${broker.host}:${broker.port}`, pingInterval: 300, maxPingOut: 2 })),
        (client) => Effect.promise(() => client.close())
      )
      yield* publish("orders", ["a"]).pipe(Effect.provide(Layer.fresh(JetStream.layerFromConnection(client))))
      yield* Effect.acquireRelease(broker.pause, () => broker.resume)
      const pings = yield* Effect.promise(async () => {
        let count = 0
        for await (const { type } of client.status()) {
          if (type === "ping") count++
          if (type === "staleConnection") break
        }
        return count
      })
      // Two that are not answered, and one that is not sent any more.
      assert.isAtMost(pings, 4)
    }))

  it.live("a bound of a listing that is no id is refused by name", () =>
    onNats(() =>
      Effect.gen(function*() {
        const { browse } = yield* Transport
        for (const bound of [{ before: "nonsense" }, { after: "0" }]) {
          const { message } = yield* Effect.flip(Stream.runCollect(browse("orders", bound)))
          assert.match(message, /^nats: (before is "nonsense"|after is "0"): give the id of a message/)
        }
      })
    ))

  it.live("a message that is long on its way is waited for: its bytes are a sign of life", () =>
    onNats((broker) =>
      Effect.gen(function*() {
        yield* publish("orders", ["x".repeat(250_000)])
        let isUnderWay = false
        let ended = 0
        const proxy = yield* proxied(broker, (piece, to) => {
          if (isUnderWay && to === "broker" && piece.includes("UNSUB")) ended++
          return piece
        })
        const client = yield* Effect.acquireRelease(
          // Answers to pings come behind the message, too.
          Effect.promise(() => connect({ servers: `${proxy.host}:${proxy.port}`, pingInterval: 300, maxPingOut: 2 })),
          (client) => Effect.promise(() => client.close())
        )
        yield* Effect.gen(function*() {
          const subscription = yield* subscribe("orders")
          yield* proxy.shape({ latency: 0, bandwidth: 100_000 })
          isUnderWay = true
          const [delivery] = yield* take(subscription, 1)
          isUnderWay = false
          assert.deepStrictEqual([delivery!.attempt, delivery!.body.length, ended], [1, 250_000, 0])
        }).pipe(Effect.scoped, Effect.provide(Layer.fresh(JetStream.layerFromConnection(client))))
      })
    ))

  it.effect.each<readonly [string, unknown]>([
    ["no connection", undefined],
    ["an address", "nats://host"],
    ["a promise of a connection", Promise.resolve()]
  ])("layerFromConnection refuses %s", ([, connection]) =>
    Effect.gen(function*() {
      const layer = JetStream.layerFromConnection(connection as NatsConnection)
      const error = yield* Effect.flip(Effect.scoped(Layer.build(layer)))
      assert.strictEqual(error.reason._tag, "InvalidOption")
      assert.match(error.message, /^nats: connection is .*: give a connection: await connect/)
    }))
})

describe.each(versions)("declaring on nats-server %s", (version) => {
  const on = (f: Parameters<typeof onNats>[0], layer: JetStream.CommonOptions = {}) => onNats(f, { version, layer })
  const manager = Effect.flatMap(JetStream.JetStream, ({ client }) => Effect.promise(() => jetstreamManager(client)))

  it.live("stream and consumer are named after topic and group", () =>
    on(() =>
      Effect.gen(function*() {
        yield* subscribe("orders.created", { group: "billing" })
        const info = yield* JetStream.consumerInfo("orders.created", "billing")
        assert.deepStrictEqual([info.stream, info.consumer], ["orders_created", "billing"])
      })
    ))

  it.live("where the stream holds more than the topic, the consumer says which it reads", () =>
    on(() =>
      Effect.gen(function*() {
        const jsm = yield* manager
        yield* Effect.promise(() => jsm.streams.add({ name: "EVERYTHING", subjects: ["orders.>"] }))
        yield* publish("orders.created", ["a"])
        yield* publish("orders.paid", ["b"])
        const [delivery] = yield* take(yield* subscribe("orders.paid", { group: "billing" }), 1)
        assert.strictEqual(delivery!.topic, "orders.paid")
        const info = yield* JetStream.consumerInfo("orders.paid", "billing")
        assert.deepStrictEqual([info.stream, info.consumer], ["EVERYTHING", "billing_orders_paid"])
      })
    ))

  it.live("a consumer is created so that the server neither gives up nor holds back", () =>
    on(() =>
      Effect.gen(function*() {
        yield* subscribe("orders", { ackWait: "7 seconds" })
        const jsm = yield* manager
        const { config } = yield* Effect.promise(() => jsm.consumers.info("orders", "group"))
        assert.strictEqual(config.max_deliver, -1)
        assert.strictEqual(config.max_ack_pending, -1)
        assert.strictEqual(config.ack_wait, 7e9)
        assert.strictEqual(config.filter_subject, "orders")
      })
    ))

  const made = (consumer: object) =>
    Effect.gen(function*() {
      const jsm = yield* manager
      yield* Effect.promise(() => jsm.streams.add({ name: "orders", subjects: ["orders", "orders.*"] }))
      yield* Effect.promise(() =>
        jsm.consumers.add("orders", {
          durable_name: "group_orders",
          ack_policy: "explicit",
          filter_subject: "orders",
          max_ack_pending: -1,
          ...consumer
        })
      )
      return yield* Effect.flip(subscribe("orders", { maxOwned: 500, ackWait: "30 seconds" }))
    })

  it.live.each(
    [
      [
        "max_deliver",
        { max_deliver: 3 },
        /max_deliver of consumer group_orders of stream orders is 3, expected -1, because Millrace counts/
      ],
      ["backoff", { max_deliver: 5, backoff: [1e9] }, /(max_deliver|backoff) of consumer group_orders/],
      [
        "ack_wait",
        { ack_wait: 20e9 },
        /ack_wait of consumer group_orders of stream orders is "20000 ms", expected 30000 ms/
      ],
      [
        "max_ack_pending",
        { max_ack_pending: 100 },
        /max_ack_pending of consumer group_orders of stream orders is 100, expected -1, or at least 500/
      ],
      [
        "filter_subject",
        { filter_subject: "orders.*" },
        /filter_subject of consumer group_orders of stream orders is \["orders\.\*"\], expected orders/
      ],
      [
        "ack_policy",
        { ack_policy: "all" },
        /ack_policy of consumer group_orders of stream orders is "all", expected "explicit"/
      ]
    ] as const
  )(
    "a consumer made by hand with another %s is refused by name",
    ([, consumer, message]) =>
      on(() =>
        Effect.gen(function*() {
          const error = yield* made(consumer)
          assert.strictEqual(error.reason._tag, "Mismatch")
          assert.match(error.message, message)
        })
      )
  )

  it.live("a consumer without a filter reads what a filter would give it", () =>
    on(() =>
      Effect.gen(function*() {
        const jsm = yield* manager
        yield* publish("orders", ["a"])
        yield* Effect.promise(() =>
          jsm.consumers.add("orders", { durable_name: "group", ack_policy: "explicit", max_ack_pending: -1 })
        )
        if (before(version, 12)) yield* take(yield* subscribe("orders"), 1)
        // Where delayed messages wait in the stream as well, it would read those.
        else assert.match((yield* Effect.flip(subscribe("orders"))).message, /filter_subject of consumer group/)
      })
    ))

  it.live("options of a stream that exists are verified, not overwritten", () =>
    on(() =>
      Effect.gen(function*() {
        const jsm = yield* manager
        yield* Effect.promise(() => jsm.streams.add({ name: "orders", subjects: ["orders"], max_msgs: 5 }))
        const error = yield* Effect.flip(Transport.use((transport) => transport.declare("orders", "output")))
        assert.strictEqual(error.message, "nats: max_msgs of stream orders is 5, expected 10")
        assert.strictEqual((yield* Effect.promise(() => jsm.streams.info("orders"))).config.max_msgs, 5)
      }), { stream: { maxMessages: 10 } }))

  it.live("retention that differs is reported", () =>
    on(() =>
      Effect.gen(function*() {
        const jsm = yield* manager
        yield* Effect.promise(() => jsm.streams.add({ name: "orders", subjects: ["orders"] }))
        const error = yield* Effect.flip(subscribe("orders"))
        assert.match(error.message, /retention of stream orders is "limits", expected "workqueue"/)
      }), { retention: "until-acked" }))

  it.live("a work queue serves one group; a second is told so", () =>
    on(() =>
      Effect.gen(function*() {
        yield* subscribe("orders", { group: "one" })
        const error = yield* Effect.flip(subscribe("orders", { group: "two" }))
        assert.match(error.message, /stream orders is a work queue, which gives each message to one group only/)
      }), { retention: "until-acked" }))

  it.live("verify and none create nothing", () =>
    Effect.forEach(["verify", "none"] as const, (manage) =>
      on(() =>
        Effect.gen(function*() {
          const error = yield* Effect.flip(subscribe("orders"))
          assert.match(error.message, /the stream of orders is absent, expected there/)
          const results = yield* Transport.use((transport) => transport.publish([outgoing("orders", "a")]))
          assert.match(
            String(Result.isFailure(results[0]!) && results[0].failure.message),
            /refused it: .*stream of orders is absent/
          )
          const jsm = yield* manager
          yield* Effect.promise(() => jsm.streams.add({ name: "orders", subjects: ["orders"] }))
          assert.match((yield* Effect.flip(subscribe("orders"))).message, /consumer group of stream orders is absent/)
        }), { manage })))

  it.live("a publisher needs no consumer to have been there before", () =>
    on(() =>
      Effect.gen(function*() {
        yield* Publisher.publish(Orders, { id: "1" })
        assert.strictEqual((yield* JetStream.streamInfo(Orders)).messages, 1)
      })
    ))

  it.live("a topic that begins with another's name has a stream of its own", () =>
    on(() => Effect.forEach(["jobs", "jobs.dead", "jobs.dead.late"], (topic) => publish(topic, ["a"]))))

  it.live("names that NATS cannot have are typed errors", () =>
    on(() =>
      Effect.gen(function*() {
        for (const topic of ["two words", "", "a..b", ".a", "a.", "orders.*"]) {
          assert.strictEqual((yield* Effect.flip(subscribe(topic))).reason._tag, "InvalidOption", topic)
        }
        for (const group of ["", "a.b", "two words", "a>"]) {
          assert.strictEqual((yield* Effect.flip(subscribe("orders", { group }))).reason._tag, "InvalidOption", group)
        }
        // As JavaScript may give them.
        for (
          const option of [`"subject": 5`, `"subject": ""`, `"subjects": "a"`, `"subjects": [null]`, `"stream": {}`]
        ) {
          const made = JetStream.from(Orders, JSON.parse(`{ "group": "g", ${option} }`))
          const { message, reason } = yield* Effect.flip(Effect.scoped(Pipeline.start(made)))
          assert.strictEqual(reason._tag, "InvalidOption", option)
          assert.include(message, option.split(`"`)[1], option)
        }
        const dotted = JetStream.from(Orders, { group: "g", stream: "a.b" })
        assert.match((yield* Effect.flip(Effect.scoped(Pipeline.start(dotted)))).message, /stream is "a.b"/)
        const bad = JetStream.from(Orders, { group: "g", subject: "orders.{region" })
        assert.match((yield* Effect.flip(Effect.scoped(Pipeline.start(bad)))).message, /subject is "orders.{region"/)
        const soon = JetStream.from(Orders, { group: "g", ackWait: "10 millis" })
        assert.match((yield* Effect.flip(Effect.scoped(Pipeline.start(soon)))).message, /ackWait is "10 ms"/)
      })
    ))

  it.live("a source that would catch its own dead letters is refused, and leaves nothing behind", () =>
    on(() =>
      Effect.gen(function*() {
        const source = JetStream.from(Orders, { group: "g", subject: "orders.{region}" })
        const error = yield* Effect.flip(Effect.scoped(Pipeline.start(source)))
        assert.match(error.message, /deadLetter is "orders.dead": the pipeline reads orders\.\* and would consume/)
        const jsm = yield* manager
        assert.deepStrictEqual(yield* Effect.promise(() => jsm.streams.names().next()), [])
        yield* Effect.scoped(Pipeline.start(source.pipe(Pipeline.deadLetter("dead.orders"))))
        yield* Effect.scoped(Pipeline.start(source.pipe(Pipeline.discard)))
      })
    ))

  it.live("peers that start at the same time agree", () =>
    on((broker) =>
      Effect.gen(function*() {
        yield* Effect.forEach(
          Array.from({ length: 8 }),
          () =>
            Effect.scoped(subscribe("orders")).pipe(Effect.provide(Layer.fresh(JetStream.layer({ url: broker.url })))),
          {
            concurrency: "unbounded"
          }
        )
        yield* until(JetStream.streamInfo("orders"), (info) => info.consumers === 1)
      })
    ))

  it.live("a user who may not create is told what is missing", () =>
    Effect.gen(function*() {
      const broker = yield* Brokers.nats({
        version,
        config: `authorization { users: [
          { user: admin, password: a },
          { user: app, password: b, permissions: { publish: { deny: "$JS.API.STREAM.CREATE.>" } } },
          { user: mute, password: c, permissions: { publish: { deny: "$JS.ACK.>" } } }
        ] }`
      })
      const as = (user: string) => JetStream.layer({ url: `nats://${user}@${broker.host}:${broker.port}` })
      const error = yield* Effect.flip(Effect.scoped(subscribe("orders"))).pipe(Effect.provide(as("app:b")))
      assert.strictEqual(error.reason._tag, "Unauthorized")
      assert.match(error.message, /\$JS\.API\.STREAM\.CREATE\.orders/)
      yield* publish("orders", ["a"]).pipe(Effect.provide(as("admin:a")))
      // One who may read and not acknowledge would be given everything again and again.
      const silenced = yield* Effect.scoped(Effect.gen(function*() {
        const subscription = yield* subscribe("orders")
        const taken = yield* take(subscription, 1)
        yield* subscription.settle([{ delivery: taken[0]!, settlement: { _tag: "Ack" } }])
        return yield* Effect.flip(subscription.pull(demand(1)))
      })).pipe(Effect.provide(as("mute:c")))
      assert.strictEqual(silenced.reason._tag, "Unauthorized")
    }))

  it.live("the permissions that the documentation lists are enough, to create and to run", () =>
    Effect.gen(function*() {
      const run = `"orders.>", "orders", "$JS.ACK.>", "$KV.millrace.>", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.INFO.*",
        "$JS.API.STREAM.MSG.GET.*", "$JS.API.CONSUMER.INFO.>", "$JS.API.CONSUMER.MSG.NEXT.>"`
      const create = `"$JS.API.STREAM.CREATE.*", "$JS.API.CONSUMER.CREATE.>"`
      const broker = yield* Brokers.nats({
        version,
        config: `authorization { users: [
          { user: creates, password: c, permissions: { publish: [${run}, ${create}], subscribe: "_INBOX.>" } },
          { user: runs, password: r, permissions: { publish: [${run}], subscribe: "_INBOX.>" } }
        ] }`
      })
      const as = (user: string, options: JetStream.CommonOptions) =>
        Effect.provide(
          Layer.fresh(JetStream.layer({ url: `nats://${user}@${broker.host}:${broker.port}`, ...options }))
        )
      const work = Effect.gen(function*() {
        let failures = 1
        const running = yield* Pipeline.start(
          Pipeline.from(Orders, { group: "group", startFrom: "beginning" }).pipe(
            Pipeline.mapEffect((order) =>
              order.id === "bad" ? Effect.fail("bad") : failures-- > 0 ? Effect.fail("once") : Effect.void
            ),
            Pipeline.retry({ times: 1, schedule: Schedule.spaced("10 millis") })
          )
        )
        yield* Publisher.publishAll(Orders, [{ id: "good" }, { id: "bad" }])
        yield* until(running.counts, (counts) => counts.handled === 1 && counts.deadLettered === 1)
      }).pipe(Effect.scoped)
      yield* work.pipe(as("creates:c", {}))
      yield* work.pipe(as("runs:r", { manage: "verify" }))
    }))

  it.live.skipIf(!before(version, 11))(
    "options of a stream that an old server would drop without a word are refused, and leave nothing behind",
    () =>
      on((broker) =>
        Effect.gen(function*() {
          const declaring = (config: object) =>
            Transport.use((transport) => transport.declare("orders", "output")).pipe(
              Effect.provide(Layer.fresh(JetStream.layer({ url: broker.url, stream: { config } })))
            )
          const known = yield* Effect.flip(declaring({ persist_mode: "async" }))
          assert.match(known.message, /persist_mode of stream orders.*nats-server 2\.12, this is 2\./)
          const info = yield* Effect.flip(JetStream.streamInfo("orders"))
          assert.match(info.message, /stream of orders is absent/)
          // One that came after this was written.
          const unknown = yield* Effect.flip(declaring({ allow_more: true }))
          assert.match(unknown.message, /allow_more true of stream orders.*the server kept absent/)
        })
      )
  )

  it.live("options of a stream that Millrace has no word for are given to the server", () =>
    on((broker) =>
      Effect.gen(function*() {
        const layer = JetStream.layer({ url: broker.url, stream: { config: { max_msgs_per_subject: 5 } } })
        yield* Transport.use((transport) => transport.declare("orders", "output")).pipe(
          Effect.provide(Layer.fresh(layer))
        )
        const { client } = yield* JetStream.JetStream
        const { config } = yield* Effect.promise(() =>
          jetstreamManager(client).then((jsm) => jsm.streams.info("orders"))
        )
        assert.strictEqual(config.max_msgs_per_subject, 5)
      })
    ))

  it.live("a difference between versions is refused by the version that has it", () =>
    onNats(() =>
      Effect.gen(function*() {
        const several = JetStream.from(Orders, { group: "g", subjects: ["orders.eu", "orders.us"] })
        const error = yield* Effect.flip(Effect.scoped(Pipeline.start(several)))
        assert.match(error.message, /reading 2 subjects.*nats-server 2\.10/)
        const ttl = yield* Effect.flip(JetStream.publish(Orders, { id: "1" }, { ttl: "1 minute" }))
        assert.match(ttl.message, /ttl is 60 s: .*nats-server 2\.11/)
      }), { version: "2.9" }))
})
