import { assert, describe, it } from "@effect/vitest"
import * as Publisher from "@millrace/core/Publisher"
import * as Topic from "@millrace/core/Topic"
import type { TransportError } from "@millrace/core/TransportError"
import { jetstreamManager } from "@nats-io/jetstream"
import { headers } from "@nats-io/nats-core"
import { connect } from "@nats-io/transport-node"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { toHeaders } from "../src/internal/headers.ts"
import * as JetStream from "../src/JetStream.ts"
import { onNats } from "./nats.ts"

const Orders = Topic.make("shop.orders", { schema: Schema.String })
const Invoices = Topic.make("shop.invoices", { schema: Schema.String })

describe("an id belongs to its topic", () => {
  it.live("one id in two topics of one stream is two messages, and in one topic it is one", () =>
    onNats(({ url }) =>
      Effect.gen(function*() {
        const client = yield* Effect.acquireRelease(
          Effect.promise(() => connect({ servers: url })),
          (client) => Effect.promise(() => client.close())
        )
        const manager = yield* Effect.promise(() => jetstreamManager(client))
        yield* Effect.promise(() => manager.streams.add({ name: "SHOP", subjects: ["shop.>"] }))
        const duplicates = []
        for (const topic of [Orders, Invoices, Orders]) {
          duplicates.push((yield* Publisher.publish(topic, "a", { id: "one" })).duplicate)
        }
        assert.deepStrictEqual(duplicates, [false, false, true])
        const { state } = yield* Effect.promise(() => manager.streams.info("SHOP"))
        assert.strictEqual(state.messages, 2)
      })
    ))

  it.live("`expect.lastMessageId` is the id that the last message was published under", () =>
    onNats(() =>
      Effect.gen(function*() {
        yield* JetStream.publish(Orders, "a", { id: "one" })
        yield* JetStream.publish(Orders, "b", { id: "two", expect: { lastMessageId: "one" } })
        const error = yield* Effect.flip(JetStream.publish(Orders, "c", { expect: { lastMessageId: "one" } }))
        assert.strictEqual(error._tag, "PublishError")
      })
    ))
})

describe("texts from outside", () => {
  it("headers may have any name", () => {
    const given = headers()
    for (const name of ["constructor", "__proto__", "toString"]) given.set(name, "x")
    assert.deepStrictEqual(Object.entries(toHeaders(given)), [["constructor", "x"], ["__proto__", "x"], [
      "tostring",
      "x"
    ]])
    assert.isUndefined(toHeaders(headers())["constructor"])
  })

  it.effect("a % in a URL's password that begins no code is refused, without the password", () =>
    Effect.gen(function*() {
      const layer = JetStream.layer({ url: "nats://app:50%25%off@127.0.0.1:4222" })
      const error = (yield* Effect.flip(Effect.scoped(Layer.build(layer)))) as TransportError
      assert.strictEqual(error.reason._tag, "InvalidOption")
      assert.include(error.message, "write %25")
      assert.notInclude(error.message, "off")
    }))
})
