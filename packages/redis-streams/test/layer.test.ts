import { assert, it, layer } from "@effect/vitest"
import { Transport } from "@millrace/core/Transport"
import type { TransportError } from "@millrace/core/TransportError"
import { RedisStreams } from "@millrace/redis-streams"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { createServer } from "node:net"
import { Source } from "../src/internal/source.ts"
import { demand, fresh, Server, serving, subscribing, transport } from "./redis.ts"

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
  ["a consumer name with spaces", { url: "redis://host", consumer: "a b" }, /no spaces/]
])("refuses %s", ([, options, expected]) =>
  Effect.gen(function*() {
    const error = yield* failure(options)
    assert.strictEqual(error.reason._tag, "InvalidOption")
    assert.match(error.message, expected)
    assert.notInclude(error.message, "secret")
  }))

it.live("says that a port refuses, after connectTimeout, without the password", () =>
  Effect.gen(function*() {
    const { close, port } = yield* silent
    close()
    const error = yield* failure({ url: `redis://:secret@127.0.0.1:${port}`, connectTimeout: "300 millis" })
    assert.strictEqual(error.reason._tag, "Unreachable")
    assert.include(error.message, `redis://127.0.0.1:${port}`)
    assert.notInclude(JSON.stringify(error) + error.message, "secret")
  }))

it.live("says that a server accepts and never answers", () =>
  Effect.gen(function*() {
    const { port } = yield* silent
    const error = yield* failure({ url: `redis://127.0.0.1:${port}`, connectTimeout: "300 millis" })
    assert.strictEqual(error.reason._tag, "Unreachable")
  }))

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
