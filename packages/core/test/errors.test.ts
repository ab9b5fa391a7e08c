import { assert, describe, it } from "@effect/vitest"
import { Pipeline, Telemetry, Topic, TransportError } from "@millrace/core"
import { TestHarness } from "@millrace/testing"
import { Data, Effect, Redacted, Schema } from "effect"
import { inspect } from "node:util"
import { runInNewContext } from "node:vm"

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

  it.live("has no secret however a text writes it: configurations, headers, options, parameters, keys", () =>
    Effect.gen(function*() {
      const jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxs3cr3t.abc_s3cr3t"
      const texts = [
        "config { password: 's3cr3t', host: 'x' }",
        "password: s3cr3t",
        "password=\"a s3cr3t\"",
        "{\"password\":\"a\\\"s3cr3t\"}",
        JSON.stringify(JSON.stringify({ password: "s3cr3t" })),
        "Map(1) { 'token' => 's3cr3t' }",
        "[['secret', 's3cr3t']]",
        "password=a,s3cr3t",
        "--password s3cr3t",
        "Server=h;Pwd=s3cr3t;",
        "redis://app:a\"s3cr3t@h",
        "redis://app:%zzs3cr3t@h",
        "app:s3cr3t@localhost:6379",
        "https://h/?sig=s3cr3t&x=1",
        "https://h/?X-Amz-Signature=s3cr3t",
        "https://h/cb#code=s3cr3t",
        "x-api-key: s3cr3t",
        "Cookie: session=s3cr3t; b=s3cr3t",
        "authorization: Digest username=\"x\", response=\"s3cr3t\"",
        jwt,
        "-----BEGIN PRIVATE KEY-----\ns3cr3t\n-----END PRIVATE KEY-----",
        // Cut in the middle of an address.
        `password=${"x".repeat(1500)} redis://app:s3cr3t${"y".repeat(600)}@h`
      ]
      for (const text of texts) {
        const error = yield* rejected(() => Promise.reject(Object.assign(new Error(text, { cause: text }), { text })))
        assert.notInclude(JSON.stringify(error), "s3cr3t", text)
      }
      const basic = `Basic ${btoa("app:s3cr3t")}`
      assert.strictEqual((yield* rejected(() => Promise.reject(new Error(basic)))).message, "Basic <redacted>")
      const plain = [
        "a basic configuration is missing",
        "no token: expected string",
        "key=value, 3 of 4",
        "a@b.example"
      ]
      for (const text of plain) {
        assert.strictEqual((yield* rejected(() => Promise.reject(new Error(text)))).message, text)
      }
    }))

  it.live("has no secret in the path of a webhook", () =>
    Effect.gen(function*() {
      const addresses = [
        "https://hooks.slack.com/services/T00/B00/s3cr3t",
        "https://discord.com/api/webhooks/1/s3cr3t",
        "https://api.telegram.org/bot1:s3cr3t/sendMessage"
      ]
      for (const address of addresses) {
        const { message } = yield* rejected(() => Promise.reject(new Error(`POST ${address} failed`)))
        assert.match(message, /^POST https:\/\/[\w./]+<redacted> failed$/)
      }
    }))

  it.live("has no secret in its name, its tag or the names of its fields", () =>
    Effect.gen(function*() {
      const address = "redis://app:s3cr3t@localhost"
      const errors = [
        Object.assign(new Error("no"), { name: `Error at ${address}` }),
        Object.assign(new Error("no"), { _tag: address }),
        Object.assign(new Error("no"), { [address]: 1, nested: { [address]: 2 } })
      ]
      for (const error of errors) {
        const shown = JSON.stringify(yield* rejected(() => Promise.reject(error)))
        assert.notInclude(shown, "s3cr3t")
        assert.include(shown, "redis://<redacted>@localhost")
      }
    }))

  it.live("has no secret in fields that are named like one, nor in raw headers", () =>
    Effect.gen(function*() {
      const names = ["pwd", "auth", "jwt", "sig", "sessionId", "accessKey", "nkey", "seed", "refresh_token"]
      const error = yield* rejected(() =>
        Promise.reject(Object.assign(new Error("x"), {
          ...Object.fromEntries(names.map((name) => [name, "s3cr3t"])),
          headers: [["authorization", "s3cr3t"], ["accept", "json"]]
        }))
      )
      assert.deepStrictEqual(error.fields, {
        ...Object.fromEntries(names.map((name) => [name, "<redacted>"])),
        headers: [["authorization", "<redacted>"], ["accept", "json"]]
      })
    }))

  it.live("of another realm is an error like any other, with the parts of its causes", () =>
    Effect.gen(function*() {
      const foreign = runInNewContext(
        "Object.assign(new TypeError('m', { cause: new AggregateError([new Error('one')], 'sum') }), { data: { n: 1 } })"
      )
      const error = yield* rejected(() => Promise.reject(foreign))
      assert.deepInclude(error, {
        tag: "TypeError",
        message: "m",
        causes: ["AggregateError: sum", "also Error: one"],
        fields: { data: { n: 1 } }
      })
      assert.include(error.stack, "TypeError: m")
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
    const hidden = Object.assign(cause, { client: { password: "s3cr3t" }, cause: new Error("s3cr3t") })
    const error = new TransportError.TransportError({
      transport: "redis",
      reason: new TransportError.Unreachable({ address: "localhost:6379", cause: hidden })
    })
    const shown = [inspect(error, { depth: 9, showHidden: true }), inspect(error.reason), JSON.stringify([error])]
    for (const text of shown) {
      assert.notInclude(text, "s3cr3t")
      assert.include(text, "cannot connect to localhost:6379")
    }
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
