import { assert, it, layer } from "@effect/vitest"
import { Pipeline, Topic } from "@millrace/core"
import { Transport } from "@millrace/core/Transport"
import type { TransportError } from "@millrace/core/TransportError"
import { RedisStreams } from "@millrace/redis-streams"
import { Brokers, MemoryTransport, Wait } from "@millrace/testing"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Fs from "node:fs"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import * as Path from "node:path"
import { createServer as createTlsServer } from "node:tls"
import { createClient, createCluster } from "redis"
import { Source } from "../src/internal/source.ts"
import {
  admin,
  demand,
  fresh,
  noting,
  outgoing,
  Server,
  serving,
  skipsInContainers,
  subscribing,
  textOf,
  transport
} from "./redis.ts"

const failure = (options: RedisStreams.Options): Effect.Effect<TransportError> =>
  Effect.scoped(Effect.orDie(Effect.flip(RedisStreams.make(options))))

const silent = Effect.acquireRelease(
  Effect.callback<{ readonly port: number; readonly close: () => void }>((resume) => {
    const server = createServer((socket) => socket.on("error", () => {}))
    server.listen(0, "127.0.0.1", () => {
      const address = server.address()
      resume(Effect.succeed({ port: typeof address === "object" ? address!.port : 0, close: () => server.close() }))
    })
  }),
  ({ close }) => Effect.sync(close)
)

it.live.each<readonly [string, RedisStreams.Options, RegExp]>([
  ["another scheme", { url: "http://user:secret@host:1" }, /^redis: url is "http:\/\/host:1": give redis:\/\//],
  ["no URL at all", { url: "localhost" }, /^redis: url is .*not a URL/],
  ["a path that is no database", { url: "redis://:secret@host/orders" }, /number of a database/],
  ["a block of nothing", { url: "redis://host", block: 0 }, /^redis: block is "0 ms"/],
  ["a claim time of nothing", { url: "redis://host", claim: { minIdle: 0 } }, /^redis: claim.minIdle is/],
  ["a concurrency of 0", { url: "redis://host", concurrency: 0 }, /^redis: concurrency is 0/],
  ["a concurrency of NaN", { url: "redis://host", concurrency: NaN }, /^redis: concurrency is NaN/],
  ["an empty bound", { url: "redis://host", retention: {} }, /give maxLength or maxAge/],
  ["two bounds", { url: "redis://host", retention: { maxLength: 1, maxAge: 1 } }, /give one/],
  ["a negative bound", { url: "redis://host", retention: { maxLength: -1 } }, /whole number of entries/],
  ["TLS options without TLS", { url: "redis://host", tls: {} }, /write rediss/],
  ["cluster and sentinel", { url: "redis://host", cluster: true, sentinel: { master: "m" } }, /give one/],
  ["a bound of nothing", { url: "redis://host", retention: { maxLength: 0 } }, /at least 1/],
  ["an age of nothing", { url: "redis://host", retention: { maxAge: -5 } }, /^redis: retention.maxAge is/],
  ["an age without end", { url: "redis://host", retention: { maxAge: "Infinity" } }, /^redis: retention.maxAge is/],
  ["a claim time without end", { url: "redis://host", claim: { minIdle: "Infinity" } }, /^redis: claim.minIdle is/],
  ["a database as a parameter", { url: "redis://host?db=3" }, /option database/],
  ["a database in a cluster", { url: "redis://host/3", cluster: true }, /only database 0/],
  ["a bare percent sign", { url: "redis://app:50%off@host" }, /write %25/],
  [
    "braces around nothing",
    { url: "redis://host", cluster: true, keyPrefix: "a}b:{" },
    /^redis: keyPrefix is .*braces/
  ],
  ["credentials beside a password", {
    url: "redis://host",
    password: Redacted.make("secret"),
    credentials: () => ({ password: Redacted.make("secret") })
  }, /give one/],
  ["a cluster on a unix socket", { url: "unix:///tmp/a.sock", cluster: true }, /give the host/],
  ["a consumer name of Millrace's own", { url: "redis://host", consumer: "millrace:x" }, /belong to Millrace/],
  [
    "an option that there is not",
    { url: "redis://host", paswrd: "secret" } as never,
    /^redis: layer.paswrd is given: /
  ],
  [
    "an option within an option",
    { url: "redis://host", claim: { minIdel: 1 } } as never,
    /^redis: claim.minIdel is 1: /
  ],
  ["a retention that there is not", { url: "redis://host", retention: "until-ack" } as never, /give "until-acked" or/],
  ["a claim that is no object", { url: "redis://host", claim: 30 } as never, /^redis: claim is 30: give { minIdle }/],
  ["a text instead of options", "redis://app:secret@host" as never, /^redis: layer is a text: give an object/],
  [
    "an object as the URL",
    { url: new URL("redis://app:secret@host") } as never,
    /^redis: url is of another type: give redis:/
  ],
  [
    "a bound that is a text",
    { url: "redis://host", offline: { max: "5" } } as never,
    /^redis: offline.max is of another/
  ],
  ["no options at all", undefined as never, /^redis: layer is undefined: give an object/],
  ["no URL", {} as never, /^redis: url is undefined: give redis:/],
  [
    "a text that is no duration",
    { url: "redis://host", connectTimeout: "5s" } as never,
    /^redis: connectTimeout is "5s": /
  ],
  [
    "a password that ends the host",
    { url: "redis://secret/hunter@host" },
    /^redis: url is "<redacted>": percent-encode/
  ],
  ["a consumer without a name", { url: "redis://host", consumer: "" }, /give it a name/],
  ["a consumer that is no text", { url: "redis://host", consumer: 5 } as never, /^redis: consumer is 5: give a text/],
  [
    "a list for a password",
    { url: "redis://host", password: ["secret"] } as never,
    /^redis: password is of another type/
  ],
  ["a text for a number", { url: "redis://host", concurrency: "5" } as never, /^redis: concurrency is "5"/],
  [
    "a word that is no retention",
    { url: "redis://host", retention: "forever" } as never,
    /^redis: retention is "forever"/
  ],
  [
    "a number for a group of options",
    { url: "redis://host", claim: 5000 } as never,
    /^redis: claim is 5000: give \{ minIdle \}/
  ],
  [
    "a Sentinel without a master",
    { url: "redis://host", sentinel: { master: "" } },
    /^redis: sentinel.master is empty/
  ],
  ["an age that is no number", { url: "redis://host", retention: { maxAge: NaN } }, /^redis: retention.maxAge is NaN/],
  ["a database in other digits", { url: "redis://host/0x1" }, /number of a database/],
  ["a fragment", { url: "redis://host/#3" }, /take the # .*out of the URL/],
  ["a port of 0", { url: "redis://host:0" }, /give redis:\/\/host:port/],
  ["a number beyond all databases", { url: "redis://host/99999999999" }, /number of a database/],
  ["a unix URL without slashes", { url: "unix:/tmp/a.sock" }, /or unix:\/\/\/path/],
  ["a host in a unix URL", { url: "unix://tmp/a.sock" }, /or unix:\/\/\/path/],
  ["a socket whose name cannot be decoded", { url: "unix:///tmp/50%.sock" }, /or unix:\/\/\/path/],
  ["TLS on a unix socket", { url: "unix:///tmp/a.sock", tls: {} }, /a unix socket has none/],
  [
    "a node with a password",
    { url: "redis://host", cluster: { nodes: ["redis://app:secret@other:1"] } },
    /^redis: cluster.nodes is "redis:\/\/other:1": give each node as host:port/
  ],
  ["a node with TLS of its own", { url: "redis://host", cluster: { nodes: ["rediss://other:1"] } }, /as host:port/],
  [
    "a node with a database",
    { url: "redis://host", sentinel: { master: "m", nodes: ["other:1/3"] } },
    /^redis: sentinel.nodes is/
  ],
  ["a node that is no text", { url: "redis://host", cluster: { nodes: [5] } } as never, /^redis: cluster.nodes is/],
  ["credentials beside a password in the URL", {
    url: "redis://app:secret@host",
    credentials: () => ({ password: Redacted.make("secret") })
  }, /^redis: credentials is .*give one/],
  ["half of a character in a name", { url: "redis://host", keyPrefix: "\ud83d" }, /^redis: keyPrefix is .*UTF-8/],
  [
    "an object that is no duration",
    { url: "redis://host", offline: { wait: {} } },
    /^redis: offline.wait is an object/
  ],
  [
    "a unit of time that there is not",
    { url: "redis://host", block: { second: 5 } } as never,
    /^redis: block is an object: write a duration/
  ],
  [
    "a date for a duration",
    { url: "redis://host", block: new Date(0) } as never,
    /^redis: block is an instance of Date/
  ]
])("refuses %s", ([, options, expected]) =>
  Effect.gen(function*() {
    const error = yield* failure(options)
    assert.strictEqual(error.reason._tag, "InvalidOption")
    assert.match(error.message, expected)
    assert.notInclude(error.message, "secret")
  }))

it.effect.each<readonly [string, unknown, RegExp]>([
  ["no options", undefined, /^memory: from is undefined: give an object with the options group, .*block, claim/],
  [
    "an option that there is not",
    { group: "g", concurrency: 5 },
    /^memory: from.concurrency is 5: there is no such option/
  ],
  ["a text that is no duration", { group: "g", block: "5s" }, /^memory: block is "5s": write a duration as/]
])("from refuses %s", ([, options, expected]) =>
  Effect.gen(function*() {
    const pipeline = RedisStreams.from(
      Topic.make("jobs", { schema: Schema.String }),
      options as RedisStreams.FromOptions
    )
    assert.match((yield* Effect.flip(Effect.scoped(Pipeline.start(pipeline)))).message, expected)
  }).pipe(Effect.provide(RedisStreams.layerTest.pipe(Layer.provideMerge(MemoryTransport.layer())))))

it.live("a stream that grows without end is told once for each layer", () =>
  Effect.gen(function*() {
    const { url } = yield* Brokers.redis()
    const logs: Array<string> = []
    const start = (options: Partial<RedisStreams.Options>) =>
      Effect.gen(function*() {
        const redis = Context.get(yield* Effect.orDie(RedisStreams.make({ url, ...options })), Transport)
        for (const group of ["a", "b"]) yield* redis.subscribe(subscribing("growing", { group }))
        return logs.splice(0).filter((text) => text.includes("never removes")).length
      }).pipe(Effect.provide(noting(logs)))
    assert.strictEqual(yield* start({}), 1)
    assert.strictEqual(yield* start({ retention: { maxLength: 1000 } }), 0)
    assert.strictEqual(yield* start({ retention: "acknowledged" }), 0)
    assert.strictEqual(yield* start({ retention: "until-acked" }), 0)
  }).pipe(Effect.scoped))

it.live("durations that are no whole number of milliseconds work like others", () =>
  Effect.gen(function*() {
    const broker = yield* Brokers.redis()
    const context = yield* Effect.orDie(RedisStreams.make({
      url: broker.url,
      block: 1000 / 3,
      claim: { minIdle: 2000 / 3 },
      deduplicateFor: 1000 / 3,
      retention: { maxAge: 3_600_000.5 }
    }))
    const redis = Context.get(context, Transport)
    const run = yield* admin(broker.url)
    const topic = fresh("fractions")
    const subscription = yield* redis.subscribe(subscribing(topic))
    const [outcome] = yield* redis.publish([outgoing(topic, "a", { id: "i", delay: Duration.millis(1 / 3) })])
    assert.strictEqual(outcome!._tag, "Success")
    assert.strictEqual(textOf((yield* subscription.pull(demand(1)))[0]), "a")
    yield* redis.publish([outgoing(topic, "left")])
    yield* run("XREADGROUP", "GROUP", "g", "gone", "STREAMS", topic, ">")
    assert.strictEqual(textOf((yield* subscription.pull(demand(1)))[0]), "left")
  }).pipe(Effect.scoped))

it.live("credentials are asked for at each connection, and a failure of theirs shows nothing", () =>
  Effect.gen(function*() {
    const broker = yield* Brokers.redis()
    const run = yield* admin(broker.url)
    yield* run("ACL", "SETUSER", "app", "on", ">token-1", "~*", "+@all")
    let token = "token-1"
    let asked = 0
    const redis = Context.get(
      yield* Effect.orDie(RedisStreams.make({
        url: broker.url,
        credentials: async () => ({ username: "app", password: Redacted.make((asked++, token)) })
      })),
      Transport
    )
    const topic = fresh("token")
    const subscription = yield* redis.subscribe(subscribing(topic))
    const pulling = yield* Effect.forkChild(subscription.pull(demand(1)))
    yield* run("ACL", "SETUSER", "app", "resetpass", ">token-2")
    token = "token-2"
    const before = asked
    yield* run("CLIENT", "KILL", "USER", "app")
    yield* Wait.until(
      "published",
      Effect.map(redis.publish([outgoing(topic, "a")]), ([outcome]) => outcome!._tag === "Success")
    )
    yield* Wait.until("given", Effect.sync(() => pulling.pollUnsafe() !== undefined))
    assert.isAbove(asked, before)

    const error = yield* failure({
      url: broker.url,
      credentials: Effect.fail("secret-of-the-vault"),
      connectTimeout: "300 millis"
    })
    assert.match(error.message, /credentials could not be had/)
    assert.notInclude(error.message + JSON.stringify(error), "secret-of-the-vault")
  }).pipe(Effect.scoped))

it.live.skipIf(await skipsInContainers("unix sockets"))("connects over a unix socket", () =>
  Effect.gen(function*() {
    const at = yield* Effect.acquireRelease(
      Effect.sync(() => Fs.mkdtempSync(Path.join(tmpdir(), "millrace-"))),
      (at) => Effect.sync(() => Fs.rmSync(at, { recursive: true, force: true }))
    )
    const socket = Path.join(at, "redis.sock")
    const broker = yield* Brokers.redis({ args: ["--unixsocket", socket] })
    const run = yield* admin(`${broker.url}/2`)
    const redis = Context.get(
      yield* Effect.orDie(RedisStreams.make({ url: `unix://${socket}`, database: 2 })),
      Transport
    )
    const topic = fresh("socket")
    yield* redis.publish([outgoing(topic, "a")])
    assert.strictEqual(yield* run("XLEN", topic), 1)
    assert.include(redis.address, socket)
  }).pipe(Effect.scoped))

it.live("a client made elsewhere says where the server is and how to log in, and stays as it is", () =>
  Effect.gen(function*() {
    const broker = yield* Brokers.redis()
    const run = yield* admin(broker.url)
    yield* run("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all")
    const client = createClient({
      url: `redis://127.0.0.1:${broker.port}/3`,
      RESP: 3,
      name: "orders-service",
      credentialsProvider: {
        type: "async-credentials-provider",
        credentials: async () => ({ username: "app", password: "secret" })
      }
    })
    const topic = fresh("client")
    yield* Effect.scoped(Effect.gen(function*() {
      const context = yield* Layer.build(RedisStreams.layerFromClient(client, { block: "1 second" }))
      const redis = Context.get(context, Transport)
      assert.strictEqual(redis.address, `127.0.0.1:${broker.port}`)
      yield* redis.publish([outgoing(topic, Uint8Array.of(255, 0))])
      const [delivery] = yield* (yield* redis.subscribe(subscribing(topic))).pull(demand(1))
      assert.deepStrictEqual([...delivery.body], [255, 0])
      const list = String(yield* run("CLIENT", "LIST"))
      assert.match(list, /name=orders-service[^\n]* db=3[^\n]*user=app/)
    }))
    assert.isFalse(client.isOpen)
    yield* Effect.promise(() => client.connect())
    assert.strictEqual(yield* Effect.promise(() => client.xLen(topic)), 1)
    client.destroy()
  }).pipe(Effect.scoped))

it.effect.each<readonly [string, unknown, RegExp]>([
  ["no client", undefined, /^redis: client is undefined: give what createClient of npm redis returns/],
  ["an address", "redis://app:secret@host", /^redis: client is "redis:\/\/<redacted>@host"/],
  ["a client of a cluster", createCluster({ rootNodes: [{ url: "redis://host" }] }), /for a cluster .* use layer/],
  ["a client of another library", { duplicate: () => {}, options: { host: "host", port: 6379 } }, /npm redis/]
])("layerFromClient refuses %s", ([, client, expected]) =>
  Effect.gen(function*() {
    const error = yield* Effect.flip(
      Effect.scoped(Layer.build(RedisStreams.layerFromClient(client as RedisStreams.Client)))
    )
    assert.strictEqual(error.reason._tag, "InvalidOption")
    assert.match(error.message, expected)
  }))

it.live("sends the host as server name, and none for an address", () =>
  Effect.gen(function*() {
    const names: Array<unknown> = []
    const server = yield* Effect.acquireRelease(
      Effect.callback<ReturnType<typeof createTlsServer>>((resume) => {
        const server = createTlsServer({
          SNICallback: (name, done) => {
            names.push(name)
            done(null)
          }
        })
        server.on("tlsClientError", () => {})
        server.listen(0, () => resume(Effect.succeed(server)))
      }),
      (server) => Effect.sync(() => server.close())
    )
    const address = server.address()
    const port = typeof address === "object" && address !== null ? address.port : 0
    yield* failure({ url: `rediss://127.0.0.1:${port}`, connectTimeout: "300 millis" })
    assert.deepStrictEqual(names, [])
    yield* failure({ url: `rediss://localhost:${port}`, connectTimeout: "300 millis" })
    assert.include(names, "localhost")
  }).pipe(Effect.scoped))

it.live("says at once why there is no connection, where waiting cannot mend that", () =>
  Effect.gen(function*() {
    const { close, port } = yield* silent
    close()
    const broker = yield* Brokers.redis()
    const other = yield* Brokers.nats()
    const url = `redis://127.0.0.1:${broker.port}`
    const cases = [
      [
        { url: `redis://:secret@127.0.0.1:${port}` },
        /cannot connect to redis:\/\/127\.0\.0\.1:\d+: connection refused/
      ],
      [{ url: "redis://app:secret@nowhere.invalid:6379" }, /unknown host/],
      [{ url: "unix:///nowhere/redis.sock" }, /no such socket file/],
      [{ url: `${url}/99` }, /no such database/],
      [{ url, cluster: true }, /is no cluster; connect without `cluster`/],
      [{ url: `redis://127.0.0.1:${port}`, cluster: { nodes: [`127.0.0.1:${port}`] } }, /connection refused/],
      [{ url: `redis://127.0.0.1:${port}`, sentinel: { master: "m" } }, /connection refused/],
      [{ url, sentinel: { master: "m" } }, /is no Sentinel/],
      [{ url: `redis://127.0.0.1:${other.port}` }, /does not speak the Redis protocol/],
      [{ url: `rediss://:secret@127.0.0.1:${broker.port}` }, /TLS: the server does not speak it here/]
    ] as const
    for (const [options, text] of cases) {
      // Without an end of its own: that it fails says that nothing is waited for.
      const error = yield* failure({ ...options, connectTimeout: "1 hour" })
      assert.strictEqual(error.reason._tag, "Unreachable")
      assert.match(error.message, text)
      assert.notInclude(JSON.stringify(error) + error.message, "secret")
    }
  }).pipe(Effect.scoped))

it.live("says that a server accepts and never answers", () =>
  Effect.gen(function*() {
    const { port } = yield* silent
    const error = yield* failure({ url: `redis://127.0.0.1:${port}`, connectTimeout: "300 millis" })
    assert.strictEqual(error.reason._tag, "Unreachable")
    assert.match(error.message, /no answer within/)
  }))

it.live("says that the server has as many connections as it allows", () =>
  Effect.gen(function*() {
    const { url } = yield* Brokers.redis()
    const run = yield* admin(url)
    yield* run("CONFIG", "SET", "maxclients", "1")
    const error = yield* failure({ url, connectTimeout: "1 second" })
    assert.strictEqual(error.reason._tag, "Unreachable")
    assert.match(error.message, /as many connections as it allows/)
  }).pipe(Effect.scoped))

it.live("says that a port does not speak TLS", () =>
  Effect.gen(function*() {
    const broker = yield* Brokers.redis()
    const error = yield* failure({ url: `rediss://127.0.0.1:${broker.port}`, connectTimeout: "1 second" })
    assert.strictEqual(error.reason._tag, "Unreachable")
    assert.match(error.message, /does not begin TLS: write redis:\/\/ if this port has none, or give the TLS port/)
  }).pipe(Effect.scoped))

layer(serving("redis", { password: "right" }), { excludeTestServices: true })("with a password", (it) => {
  it.effect("says at once that the password is wrong or missing, and shows neither", () =>
    Effect.gen(function*() {
      const { broker } = yield* Server
      const url = `redis://127.0.0.1:${broker.port}`
      for (
        const options of [
          { url: `redis://:wrong@127.0.0.1:${broker.port}` },
          { url },
          { url, username: "nobody", password: Redacted.make("wrong") }
        ]
      ) {
        const error = yield* failure({ ...options, connectTimeout: "1 minute" })
        assert.strictEqual(error.reason._tag, "Unauthorized")
        assert.notInclude(error.message, "wrong@")
        assert.notInclude(JSON.stringify(error), ":wrong")
      }
    }))

  it.effect("reads its options from Config", () =>
    Effect.gen(function*() {
      const { broker } = yield* Server
      const provided = RedisStreams.layerConfig({
        url: Config.String("REDIS_URL"),
        password: Config.Redacted("REDIS_PASSWORD"),
        concurrency: Config.Int("REDIS_CONCURRENCY")
      })
      const env = { REDIS_URL: `redis://127.0.0.1:${broker.port}`, REDIS_PASSWORD: "right", REDIS_CONCURRENCY: "7" }
      const max = yield* Transport.use(({ limit }) => Effect.succeed(limit.max)).pipe(
        Effect.provide(Layer.provide(provided, ConfigProvider.layer(ConfigProvider.fromEnv({ env }))))
      )
      assert.strictEqual(max, 7)
    }))
})

layer(serving("redis"), { excludeTestServices: true })("without a password", (it) => {
  it.effect("refuses names and start ids that cannot be, and keys of another type", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const redis = yield* transport()
      const reason = (options: Parameters<typeof subscribing>) =>
        Effect.map(Effect.scoped(Effect.flip(redis.subscribe(subscribing(...options)))), ({ message, reason }) => {
          assert.isAbove(message.length, 20)
          return reason._tag
        })
      assert.strictEqual(yield* reason([""]), "InvalidOption")
      assert.strictEqual(yield* reason(["a", { group: "" }]), "InvalidOption")
      assert.strictEqual(yield* reason(["a", { group: "half \ud83d" }]), "InvalidOption")
      const text = fresh("text")
      yield* run("SET", text, "x")
      assert.strictEqual(yield* reason([text]), "Mismatch")
      assert.strictEqual((yield* Effect.flip(redis.declare(text, "output"))).reason._tag, "Mismatch")
      yield* redis.declare(fresh("none"), "output")
      const settings = Context.make(Source, { startFrom: "yesterday" }) as Context.Context<never>
      assert.strictEqual(yield* reason([fresh("id"), { settings }]), "InvalidOption")
    }))

  it.effect("says which topic it cannot read any more when the key becomes something else", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const redis = yield* transport()
      const [good, bad] = [fresh("good"), fresh("bad")]
      const one = yield* redis.subscribe(subscribing(good))
      const other = yield* redis.subscribe(subscribing(bad))
      const pulling = yield* Effect.forkChild(one.pull(demand(1)))
      const failing = yield* Effect.forkChild(Effect.flip(other.pull(demand(1))))
      yield* Effect.sleep(50)
      yield* run("SET", bad, "x")
      assert.strictEqual((yield* Fiber.join(failing)).reason._tag, "Mismatch")
      yield* run("XADD", good, "*", "body", "x")
      assert.strictEqual((yield* Fiber.join(pulling)).length, 1)
    }))
})
