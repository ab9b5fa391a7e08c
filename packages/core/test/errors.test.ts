import { assert, describe, it } from "@effect/vitest"
import { Pipeline, Telemetry, Topic, TransportError } from "@millrace/core"
import { TestHarness } from "@millrace/testing"
import { Data, Effect, Redacted, Schema } from "effect"
import { inspect } from "node:util"

const Numbers = Topic.make("numbers", { schema: Schema.Number })

/** The error of the dead letter of a pipeline whose handler fails. */
const recorded = <E>(fail: (n: number) => Effect.Effect<never, E>) =>
  Effect.gen(function*() {
    const pipeline = Pipeline.from(Numbers, { group: "g" }).pipe(Pipeline.mapEffect(fail), Pipeline.retry({ times: 0 }))
    const report = yield* TestHarness.run(Numbers, pipeline, [1])
    return report.deadLettered[0]!.record.error
  }).pipe(Effect.provide(TestHarness.layer), Effect.provideService(Telemetry.Logs, false))

const rejected = (reject: () => PromiseLike<never>) =>
  Effect.gen(function*() {
    const pipeline = Pipeline.from(Numbers, { group: "g" }).pipe(
      Pipeline.mapPromise(() => reject()),
      Pipeline.retry({ times: 0 })
    )
    const report = yield* TestHarness.run(Numbers, pipeline, [1])
    return report.deadLettered[0]!.record.error
  }).pipe(Effect.provide(TestHarness.layer), Effect.provideService(Telemetry.Logs, false))

class Declined extends Data.TaggedError("Declined")<{ readonly why: string; readonly code: number }> {}

class BankError extends Error {
  override readonly name = "BankError"
  readonly status = 503
  readonly headers = { authorization: "Bearer s3cr3t", accept: "json", "x-request": 7 }
  readonly apiKey = "s3cr3t"
  readonly connection = new (class Connection {
    readonly password = "s3cr3t"
  })()
  readonly key = Redacted.make("s3cr3t")
}

const revoked = (): object => {
  const { proxy, revoke } = Proxy.revocable({}, {})
  revoke()
  return proxy
}

describe("the error of a dead letter", () => {
  it.live("is the error that a promise was rejected with: name, message, stack, causes", () =>
    Effect.gen(function*() {
      const error = yield* rejected(() =>
        Promise.reject(new TypeError("no such account", { cause: new Error("socket", { cause: "closed" }) }))
      )
      assert.deepInclude(error, {
        tag: "TypeError",
        message: "no such account",
        causes: ["Error: socket", "string: closed"]
      })
      assert.match(error.stack!, /^TypeError: no such account\n\s+at .*errors\.test\.ts/)
    }))

  it.live("has the fields of a tagged error, also as its message where it has none", () =>
    Effect.gen(function*() {
      const error = yield* recorded(() => Effect.fail(new Declined({ why: "card expired", code: 54 })))
      assert.deepInclude(error, {
        tag: "Declined",
        message: "{\"why\":\"card expired\",\"code\":54}",
        fields: { why: "card expired", code: 54 }
      })
    }))

  it.live("has plain fields only, and no secret", () =>
    Effect.gen(function*() {
      const error = yield* rejected(() => Promise.reject(new BankError("at https://app:s3cr3t@bank.example/pay")))
      assert.deepStrictEqual(error.fields, {
        status: 503,
        headers: { authorization: "<redacted>", accept: "json", "x-request": 7 },
        apiKey: "<redacted>",
        key: "<redacted>"
      })
      assert.strictEqual(error.message, "at https://<redacted>@bank.example/pay")
      assert.notInclude(JSON.stringify(error), "s3cr3t")
    }))

  it.live("leaves stack and fields out when asked", () =>
    Effect.gen(function*() {
      const error = yield* recorded(() => Effect.fail(new Declined({ why: "card expired", code: 54 })))
      assert.deepStrictEqual(error, { tag: "Declined", message: "", causes: [] })
    }).pipe(Effect.provideService(Telemetry.ErrorDetails, { stack: false, fields: false })))

  it.live("has no secret of a text: behind the name of one, in an address, in a header", () =>
    Effect.gen(function*() {
      const texts = [
        "login password=s3cr3t failed",
        "GET https://bank.example/?api_key=s3cr3t&page=2",
        "{\"token\":\"s3cr3t\",\"page\":2}",
        "{ accessToken: 's3cr3t' } DB_PASSWORD='s3cr3t'".replace("accessToken:", "'accessToken':"),
        "Authorization: Basic s3cr3t=",
        "sent Bearer s3cr3t.s3cr3t-s3cr3t",
        "postgres://app:s3cr3t@bank.example/accounts"
      ]
      for (const text of texts) {
        const error = yield* rejected(() => Promise.reject(new Error(text, { cause: text })))
        assert.notInclude(JSON.stringify(error), "s3cr3t", text)
        assert.include(error.message, "<redacted>")
      }
      const kept = yield* rejected(() => Promise.reject(new SyntaxError("unexpected token: expected string, got 7")))
      assert.strictEqual(kept.message, "unexpected token: expected string, got 7")
    }))

  it.live("has the name of its class, the beginning and the end of a long chain, and the parts of a sum", () =>
    Effect.gen(function*() {
      class HttpError extends Error {}
      let error: Error = new HttpError("the socket was closed")
      for (let level = 1; level <= 100; level++) error = new Error(`level ${level}`, { cause: error })
      const long = yield* rejected(() => Promise.reject(error))
      assert.deepStrictEqual(long.causes, [
        "Error: level 99",
        "Error: level 98",
        "Error: level 97",
        "… 96 more",
        "HttpError: the socket was closed"
      ])
      const circular = new Error("a")
      circular.cause = new Error("b", { cause: circular })
      assert.deepStrictEqual((yield* rejected(() => Promise.reject(circular))).causes, ["Error: b"])
      const sum = yield* rejected(() => Promise.any([Promise.reject(new HttpError("one")), Promise.reject("two")]))
      assert.strictEqual(sum.tag, "AggregateError")
      assert.deepStrictEqual(sum.causes, ["also HttpError: one", "also string: two"])
    }))

  it.live("is bounded", () =>
    Effect.gen(function*() {
      const long = "x".repeat(100_000)
      const deep = { a: { b: { c: { d: 1 } } }, many: Array.from({ length: 1000 }, (_, i) => i) }
      const circular: { self?: unknown } = {}
      circular.self = circular
      const given = Object.assign(
        new Error(long),
        { long, deep, circular },
        Object.fromEntries(
          Array.from({ length: 100 }, (_, i) => [`field${i}`, i])
        )
      )
      const error = yield* rejected(() => Promise.reject(given))
      assert.isBelow(JSON.stringify(error).length, 8000)
      assert.strictEqual(error.message.length, 1000)
    }))

  it.live("is recorded whatever was thrown", () =>
    Effect.gen(function*() {
      const hostile = Object.defineProperties(new Error("hostile"), {
        message: {
          get: () => {
            throw new Error("message")
          }
        },
        _tag: {
          get: () => {
            throw new Error("_tag")
          }
        },
        cause: {
          get: () => {
            throw new Error("cause")
          }
        },
        field: {
          enumerable: true,
          get: () => {
            throw new Error("field")
          }
        }
      })
      const thrown: ReadonlyArray<readonly [unknown, string]> = [
        [revoked(), "object"],
        [hostile, "Error"],
        [undefined, "undefined"],
        [null, "null"],
        ["text", "string"],
        [Symbol("s"), "symbol"],
        [42n, "bigint"],
        [{
          _tag: { nested: true },
          toString: () => {
            throw new Error("no")
          }
        }, "object"],
        [Object.create(null), "object"]
      ]
      for (const [value, tag] of thrown) {
        const failed = yield* recorded(() => Effect.fail(value))
        const died = yield* recorded(() => Effect.die(value))
        // A promise cannot hold an object that cannot be looked at.
        const isUnreadable = value === thrown[0]![0]
        const given = isUnreadable ? [] : [yield* rejected(() => Promise.reject(value))]
        for (const error of [failed, died, ...given]) {
          assert.strictEqual(error.tag, tag)
          assert.isString(error.message)
        }
      }
    }))
})

describe("an error of the transport", () => {
  const unreachable = (cause: unknown) =>
    new TransportError.TransportError({
      transport: "redis",
      reason: new TransportError.Unreachable({ address: "localhost:6379", cause })
    }).message
  const code = (code: string, message = "m") => Object.assign(new Error(message), { code })

  it("says why there is no connection", () => {
    const cases: ReadonlyArray<readonly [unknown, RegExp]> = [
      [code("ECONNREFUSED"), /connection refused \(ECONNREFUSED\)$/],
      [new AggregateError([code("ECONNREFUSED"), code("ECONNREFUSED")]), /connection refused/],
      [new Error("failed", { cause: code("ENOTFOUND") }), /unknown host/],
      [code("DEPTH_ZERO_SELF_SIGNED_CERT"), /TLS: .*self-signed/],
      [code("ERR_TLS_CERT_ALTNAME_INVALID"), /TLS: .*another host name/],
      [code("ERR_SSL_WRONG_VERSION_NUMBER"), /TLS: the server does not speak it/],
      [code("CERT_NOT_YET_VALID"), /TLS: .*certificate is not accepted/],
      [new Error("ERR DB index is out of range"), /no such database/],
      [new Error("jetstream is not enabled"), /runs without JetStream/],
      [new Error("ERR This instance has cluster support disabled"), /is no cluster/],
      [new Error("something else"), /something else$/],
      [undefined, /^redis: no broker answers at localhost:6379$/]
    ]
    for (const [cause, text] of cases) assert.match(unreachable(cause), text)
  })

  it("has no secret of its cause in its text, however it is shown", () => {
    const cause = Object.assign(new Error("connect redis://app:s3cr3t@localhost:6379"), { code: "EUNKNOWN" })
    assert.include(unreachable(cause), "redis://<redacted>@localhost:6379")
    const interrupted = new TransportError.OperationFailed({ operation: "reading", cause })
    assert.notInclude(interrupted.message, "s3cr3t")
  })

  it("shows an address without user, password, path and query, or not at all", () => {
    const shown = [
      ["redis://app:s3cr3t@localhost:6379/1?x=s3cr3t", "redis://localhost:6379"],
      ["nats://s3cr3t@127.0.0.1:4222", "nats://127.0.0.1:4222"],
      ["rediss://[::1]:6380", "rediss://[::1]:6380"],
      ["localhost:4222", "localhost:4222"],
      ["nats://a:4222,nats://u:s3cr3t@b:4222", "nats://a:4222,nats://b:4222"]
    ] as const
    for (const [url, text] of shown) assert.strictEqual(TransportError.redactUrl(url), text)
    const refused = [
      "redis://app:48210/s3cr3t@127.0.0.1:6379",
      "redis://s3cr3t/x@127.0.0.1:6379",
      "nats://s3cr3t?abc=@127.0.0.1:4222",
      "redis://s3cr3t#abc@127.0.0.1:6379",
      "redis://app:s3cr3t@x@127.0.0.1:6379",
      "redis://app:12,s3cr3t@127.0.0.1:6379",
      "s3cr3t",
      "app:s3cr3t@127.0.0.1",
      "redis://app:s3cr3t@:6379"
    ]
    for (const url of refused) {
      const text = TransportError.redactUrl(url)
      assert.notInclude(text, "s3cr3t")
      assert.include(text, "the given address", inspect(url))
    }
  })
})
