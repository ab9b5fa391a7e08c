import { Parser } from "@asyncapi/parser"
import { assert, describe, it, layer } from "@effect/vitest"
import { Effect, Layer } from "effect"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import { parse } from "yaml"
import { breakingChanges } from "../src/internal/asyncapi/compatibility.ts"
import { Command, millrace } from "./cli.ts"

const shop = fileURLToPath(new URL("fixtures/shop.ts", import.meta.url))

const none = Layer.succeed(Command, { name: "none", flags: [], open: undefined })

const temporary = Effect.acquireRelease(
  Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "millrace-asyncapi-"))),
  (folder) => Effect.sync(() => Fs.rmSync(folder, { recursive: true }))
)

const generated = Effect.map(millrace("asyncapi", shop), ({ code, error, out }) => {
  assert.deepStrictEqual([code, error], [0, ""])
  return JSON.parse(out)
})

layer(none)("asyncapi", (it) => {
  it.effect("the document of a module is valid, and says what is on the wire", () =>
    Effect.gen(function*() {
      const document = yield* generated
      const diagnostics = yield* Effect.promise(() => new Parser().validate(JSON.stringify(document)))
      assert.deepStrictEqual(
        diagnostics.filter(({ severity }) => severity === 0).map(({ message, path }) => [path, message]),
        []
      )

      assert.deepStrictEqual(
        Object.values<any>(document.channels).map(({ address }) => address).toSorted(),
        ["clicks", "files", "lost.files", "orders", "orders.dead", "shop:receipts"]
      )
      assert.deepStrictEqual(Object.keys(document.operations).toSorted(), [
        "receive_clicks_by_count",
        "receive_files_by_store",
        "receive_orders_by_payments",
        "send_lost.files_by_files_store",
        "send_orders.dead_by_orders_payments",
        "send_shop_receipts_by_orders_payments"
      ])
      const { messages, schemas } = document.components
      assert.deepStrictEqual(messages.orders.payload, { $ref: "#/components/schemas/Order" })
      assert.deepStrictEqual(schemas.Order.properties.placedAt, { type: "string" })
      assert.deepStrictEqual(schemas.Order.required, ["id", "total", "placedAt", "status", "address"])
      assert.deepStrictEqual(schemas.Order.properties.address, { $ref: "#/components/schemas/Address" })
      assert.deepStrictEqual(Object.keys(schemas.Address_2.properties), ["zip"])
      assert.deepStrictEqual(messages.shop_receipts.payload.properties.address, {
        $ref: "#/components/schemas/Address_2"
      })
      assert.strictEqual(document.channels.orders.description, "What a customer wants")
      assert.deepStrictEqual(messages.orders.headers.required, ["x-tenant"])
      assert.deepStrictEqual(Object.keys(messages["orders.dead.orders"].headers.properties), [
        "x-tenant",
        "millrace-dead-letter"
      ])
      assert.deepStrictEqual(messages.clicks.payload.properties, { user: { type: "string" }, n: { type: "string" } })
      assert.deepInclude(messages.files, { contentType: "application/octet-stream", payload: {} })
      assert.deepInclude(document.operations.receive_orders_by_payments["x-millrace"], {
        group: "payments",
        deadLetter: "orders.dead",
        key: true,
        retry: { times: 2, schedule: "default", while: false },
        concurrency: { max: 4, limit: "own", key: false }
      })
    }))

  it.effect("YAML holds the same; the server is there without its password", () =>
    Effect.gen(function*() {
      const folder = yield* temporary
      const file = Path.join(folder, "api.yaml")
      const url = "nats://user:secret@broker.example:4222"
      assert.strictEqual(
        (yield* millrace("asyncapi", shop, "--yaml", "--out", file, "--nats", url, "--title", "Shop")).code,
        0
      )
      const text = Fs.readFileSync(file, "utf8")
      assert.notInclude(text, "secret")
      const document = parse(text)
      const diagnostics = yield* Effect.promise(() => new Parser().validate(text))
      assert.deepStrictEqual(diagnostics.filter(({ severity }) => severity === 0), [])
      assert.deepStrictEqual(document.servers.broker, { host: "broker.example:4222", protocol: "nats" })
      assert.deepStrictEqual(document.operations.receive_orders_by_payments.bindings, {
        nats: { queue: "payments", bindingVersion: "0.1.0" }
      })
      assert.deepStrictEqual(document.components, (yield* generated).components)
    }))

  it.effect("--check passes on the same document and fails on a change that breaks", () =>
    Effect.gen(function*() {
      const folder = yield* temporary
      const file = Path.join(folder, "old.json")
      const document = yield* generated
      Fs.writeFileSync(file, JSON.stringify(document))
      assert.deepStrictEqual(yield* millrace("asyncapi", shop, "--check", file), {
        code: 0,
        out: "nothing breaks",
        error: ""
      })
      document.components.schemas.Order.required = ["id"]
      Fs.writeFileSync(file, JSON.stringify(document))
      const { code, error, out } = yield* millrace("asyncapi", shop, "--check", file)
      assert.strictEqual(code, 1)
      assert.include(out, "receive orders: payload.total: required, and may be absent")
      assert.strictEqual(error, "millrace: 4 breaking changes")
    }))

  it.effect("modules that cannot be used are one line", () =>
    Effect.gen(function*() {
      const empty = yield* millrace("asyncapi", fileURLToPath(new URL("cli.ts", import.meta.url)))
      assert.match(empty.error, /^millrace: .*cli\.ts exports no pipeline and no topic$/)
      const folder = yield* temporary
      const broken = Path.join(folder, "broken.mjs")
      Fs.writeFileSync(broken, "throw new Error('no\\nway')")
      const old = Path.join(folder, "old.json")
      for (
        const [text, said] of [
          ["{}", "it is no AsyncAPI document"],
          ["{\"asyncapi\":\"2.6.0\",\"channels\":{}}", "it is of AsyncAPI 2.6.0, and 3 is needed"],
          ["{\"asyncapi\":\"3.0.0\"}", "it has no channels"]
        ] as const
      ) {
        Fs.writeFileSync(old, text)
        const { code, error } = yield* millrace("asyncapi", shop, "--check", old)
        assert.deepStrictEqual([code, error], [2, `millrace: cannot read ${old}: ${said}`])
      }
      assert.match((yield* millrace("asyncapi", broken)).error, /^millrace: cannot load .*broken\.mjs: no way$/)
    }))
})

describe("breaking changes", () => {
  const document = (action: "send" | "receive", payload: object) => ({
    channels: { a: { address: "a", messages: { m: { name: "m", payload } } } },
    operations: {
      one: { action, channel: { $ref: "#/channels/a" }, messages: [{ $ref: "#/channels/a/messages/m" }] }
    }
  })
  const object = (properties: object, required: ReadonlyArray<string> = [], more: object = {}) => ({
    type: "object",
    properties,
    required,
    ...more
  })
  const string = { type: "string" }
  const number = { type: "number" }

  // A receiver must take what was sent; the same change the other way round breaks receivers of what is sent.
  const cases: ReadonlyArray<readonly [what: string, wide: object, narrow: object]> = [
    ["a property that must be there", object({ x: string }), object({ x: string }, ["x"])],
    ["a type", object({ x: { type: ["string", "null"] } }), object({ x: string })],
    ["a whole number", { type: "number" }, { type: "integer" }],
    ["values", { type: "string", enum: ["a", "b"] }, { type: "string", enum: ["a"] }],
    ["any value", string, { type: "string", enum: ["a"] }],
    ["a case of several", { anyOf: [string, number] }, string],
    ["items", { type: "array", items: { anyOf: [string, number] } }, { type: "array", items: string }],
    ["a pattern", string, { type: "string", pattern: "^a" }],
    ["a bound", { type: "number", minimum: 1 }, { type: "number", minimum: 2 }],
    ["a longest", string, { type: "string", maxLength: 5 }],
    ["more properties", object({ x: string, y: string }), object({ x: string }, [], { additionalProperties: false })],
    ["values of a map", { type: "object", additionalProperties: { anyOf: [string, number] } }, {
      type: "object",
      additionalProperties: string
    }],
    ["nothing said", {}, string],
    [
      "a property that is kept, of another type",
      object({ x: { anyOf: [string, number] } }, ["x"]),
      object({ x: number }, [
        "x"
      ])
    ],
    ["a value of an enum of cases", { anyOf: [{ const: "a" }, { const: "b" }] }, { const: "a" }],
    ["values against cases", { anyOf: [{ const: "a" }, { const: "b" }] }, { type: "string", enum: ["a"] }],
    ["a member of a union of objects", {
      anyOf: [object({ kind: { const: "a" } }, ["kind"]), object({ kind: { const: "b" }, n: number }, ["kind", "n"])]
    }, object({ kind: { const: "a" } }, ["kind"])],
    ["a part of allOf", { allOf: [object({ x: string })] }, { allOf: [object({ x: string }), object({}, ["x"])] }],
    ["a bound that is exclusive", { type: "number", minimum: 1 }, { type: "number", exclusiveMinimum: 1 }],
    ["a value out of a bound", { type: "integer", enum: [1, 9] }, { type: "integer", enum: [1, 9], maximum: 5 }],
    ["a multiple", { type: "integer", multipleOf: 5 }, { type: "integer", multipleOf: 10 }],
    ["items that differ", { type: "array", items: string }, { type: "array", items: string, uniqueItems: true }],
    ["a place of a tuple", { type: "array", items: [string, { anyOf: [string, number] }], maxItems: 2 }, {
      type: "array",
      items: [string, string],
      maxItems: 2
    }],
    ["the rest of a tuple", { type: "array", items: [string], additionalItems: { anyOf: [string, number] } }, {
      type: "array",
      items: [string],
      additionalItems: string
    }],
    ["a list and a tuple", { type: "array", items: string }, {
      type: "array",
      items: [string],
      minItems: 1,
      maxItems: 1
    }],
    ["names of a pattern", object({}, [], { patternProperties: { "^x-": { anyOf: [string, number] } } }), {
      type: "object",
      patternProperties: { "^x-": string }
    }],
    ["names of properties", object({}), object({}, [], { propertyNames: { pattern: "^x-" } })],
    [
      "properties that nothing names",
      object({ x: string }),
      object({ x: string }, [], { additionalProperties: false })
    ],
    ["a format", string, { type: "string", format: "uuid" }],
    ["no value", object({ x: string }), object({ x: { not: {} } })],
    ["a value that is excluded", string, { type: "string", not: { const: "" } }]
  ]
  for (const [what, wide, narrow] of cases) {
    it(`a receiver of: ${what}`, () => {
      assert.notDeepEqual(
        breakingChanges(document("receive", wide), document("receive", narrow)),
        [],
        "a receiver that takes less"
      )
      assert.deepStrictEqual(
        breakingChanges(document("receive", narrow), document("receive", wide)),
        [],
        "a receiver that takes more"
      )
      assert.deepStrictEqual(
        breakingChanges(document("send", wide), document("send", narrow)),
        [],
        "a sender that sends less"
      )
      assert.notDeepEqual(
        breakingChanges(document("send", narrow), document("send", wide)),
        [],
        "a sender that sends more"
      )
    })
  }

  it("what only reads differently breaks nothing", () => {
    const alike: ReadonlyArray<readonly [object, object]> = [
      [{ type: ["string", "null"] }, { anyOf: [string, { type: "null" }] }],
      [{ type: "string", enum: ["a", "b"] }, { anyOf: [{ const: "a" }, { const: "b" }] }],
      [{ type: "boolean" }, { enum: [true, false] }],
      [string, { ...string, title: "T", description: "D", examples: ["a"] }],
      [object({ x: string }, ["x"]), { allOf: [object({ x: string }), object({}, ["x"])] }],
      [{ type: "number", minimum: 0 }, { type: "number", minimum: 0, exclusiveMinimum: -1 }]
    ]
    for (const [one, other] of alike) {
      for (const action of ["send", "receive"] as const) {
        assert.deepStrictEqual(breakingChanges(document(action, one), document(action, other)), [])
        assert.deepStrictEqual(breakingChanges(document(action, other), document(action, one)), [])
      }
    }
  })

  it("a new optional property breaks neither side", () => {
    for (const action of ["send", "receive"] as const) {
      const wider = object({ x: string, y: number }, ["x"])
      assert.deepStrictEqual(
        breakingChanges(document(action, object({ x: string }, ["x"])), document(action, wider)),
        []
      )
    }
  })

  it("a topic without operations must hold for those who write it and for those who read it", () => {
    const alone = (payload: object) => ({ ...document("send", payload), operations: {} })
    assert.deepStrictEqual(breakingChanges(alone(object({ x: string })), alone(object({ x: string }, ["x"]))), [
      "topic a, stored messages: payload.x: required, and may be absent"
    ])
    assert.deepStrictEqual(breakingChanges(alone(object({ x: string }, ["x"])), alone(object({}))), [
      "topic a, its receivers: payload.x: required, and may be absent"
    ])
    assert.deepStrictEqual(breakingChanges(alone(object({})), alone(object({ x: string }))), [])
  })

  it("a step of a group that was renamed is compared with what sends there now", () => {
    const renamed = (payload: object) => {
      const { channels, operations } = document("send", payload)
      return { channels, operations: { other: operations.one } }
    }
    assert.deepStrictEqual(breakingChanges(document("send", string), renamed(string)), [])
    assert.deepStrictEqual(breakingChanges(document("send", string), renamed(number)), [
      "send a: payload: number does not fit string"
    ])
  })

  it("headers are compared as payloads are", () => {
    const headed = (required: ReadonlyArray<string>) => {
      const { channels, operations } = document("receive", string)
      const headers = object({ "x-tenant": string }, required)
      return { operations, channels: { a: { address: "a", messages: { m: { ...channels.a.messages.m, headers } } } } }
    }
    assert.deepStrictEqual(breakingChanges(headed([]), headed(["x-tenant"])), [
      "receive a: headers.x-tenant: required, and may be absent"
    ])
    assert.deepStrictEqual(breakingChanges(headed(["x-tenant"]), headed([])), [])
  })

  it("a topic that is renamed, and a group that receives no more", () => {
    const old = document("receive", string)
    const renamed = { ...old, channels: { a: { ...old.channels.a, address: "b" } } }
    assert.deepStrictEqual(breakingChanges(old, renamed), ["topic a is gone"])
    assert.deepStrictEqual(breakingChanges(old, { ...old, operations: {} }), [
      "no pipeline receives from a any more (one)"
    ])
  })

  it("topics and senders that are gone, messages of another type", () => {
    const old = document("send", string)
    assert.deepStrictEqual(breakingChanges(old, { channels: {}, operations: {} }), ["topic a is gone"])
    assert.deepStrictEqual(breakingChanges(old, { ...old, operations: {} }), ["nothing sends to a any more (one)"])
    const typed = (contentType: string) => ({
      ...old,
      channels: { a: { address: "a", messages: { m: { name: "m", contentType } } } }
    })
    assert.deepStrictEqual(breakingChanges(typed("text/plain"), typed("application/json")), [
      "send a: content type application/json, was text/plain"
    ])
  })

  it("schemas that refer to themselves end", () => {
    const tree = {
      ...document("receive", { $ref: "#/components/schemas/Tree" }),
      components: { schemas: { Tree: object({ next: { $ref: "#/components/schemas/Tree" } }) } }
    }
    assert.deepStrictEqual(breakingChanges(tree, tree), [])
    const ref = { $ref: "#/components/schemas/Tree" }
    const nullable = (value: object) => ({
      ...document("receive", ref),
      components: { schemas: { Tree: object({ value, next: { anyOf: [ref, { type: "null" }] } }) } }
    })
    assert.deepStrictEqual(breakingChanges(nullable(string), nullable(string)), [])
    assert.deepStrictEqual(breakingChanges(nullable(string), nullable(number)), [
      "receive a: payload.value: string does not fit number"
    ])
  })
})
