import { assert, describe, layer } from "@effect/vitest"
import { Pipeline, Publisher, Topic } from "@millrace/core"
import { Duration, Effect, Schema } from "effect"
import { Command, json, memory, millrace, nats, redis } from "./cli.ts"

const Order = Schema.Struct({ id: Schema.String, total: Schema.Number })
const Orders = Topic.make("orders", { schema: Order, key: (order) => order.id })

class Declined extends Error {
  readonly _tag = "Declined"
}

const payments = (bank: { open: boolean }, handled: Array<string>) =>
  Pipeline.from(Orders, { group: "payments", startFrom: "beginning" }).pipe(
    Pipeline.mapEffect((order) =>
      order.total > 10 && !bank.open
        ? Effect.fail(new Declined(`no funds for ${order.id}`))
        : Effect.sync(() => void handled.push(order.id))
    ),
    Pipeline.retry({ times: 0 })
  )

const until = Effect.fnUntraced(function*<E, R>(what: string, holds: Effect.Effect<boolean, E, R>) {
  for (let i = 0; i < 400; i++) {
    if (yield* holds) return
    yield* Effect.sleep(Duration.millis(50))
  }
  throw new Error(`not within 20 seconds: ${what}`)
})

/** Six orders, of which the second, fourth and sixth are declined; then two that nobody has handled. */
const prepare = Effect.gen(function*() {
  const bank = { open: false }
  const handled: Array<string> = []
  yield* Effect.scoped(Effect.gen(function*() {
    const running = yield* Pipeline.start(payments(bank, handled))
    for (let i = 0; i < 6; i++) yield* Publisher.publish(Orders, { id: `o${i}`, total: i % 2 === 0 ? 5 : 50 })
    yield* until(
      "three are handled and three are dead",
      Effect.map(running.counts, ({ deadLettered, handled }) => deadLettered === 3 && handled === 3)
    )
  }))
  yield* Publisher.publish(Orders, { id: "o6", total: 1 }, { headers: { "x-tenant": "acme" } })
  yield* Publisher.publish(Orders, { id: "o7\u001b[31m", total: 1 })
  return { bank, handled }
})

for (
  const [name, broker] of [
    ["memory", memory],
    ["Redis", redis("redis")],
    ["Valkey", redis("valkey")],
    ["NATS", nats()]
  ] as const
) {
  describe(`commands on ${name}`, () => {
    layer(broker, { excludeTestServices: true, timeout: "2 minutes" })((it) => {
      it.effect("commands show, publish, redrive and discard", () =>
        Effect.gen(function*() {
          const { bank, handled } = yield* prepare
          const isMemory = (yield* Command).name === "memory"

          const { topics } = yield* json("inspect")
          assert.deepStrictEqual(topics.map(({ messages, topic }: any) => [topic, messages]), [
            ["orders", 8],
            ["orders.dead", 3]
          ])
          const [group] = topics[0].groups
          assert.deepInclude(group, { group: "payments", lag: 2, pending: 0 })
          assert.isAtMost(Math.abs(group.oldest - Date.now()), 60_000)

          const overview = yield* millrace("inspect")
          assert.match(overview.out, /^orders +8 +payments +2 +0 +\S+ +\S+$/m)
          assert.match(overview.out, /3 dead letters: look with {2}millrace dead list orders.dead/)
          assert.strictEqual((yield* millrace()).out.split("\n").length, overview.out.split("\n").length)
          const one = yield* millrace("inspect", "orders")
          assert.match(one.out, /^orders {3}8 messages/)
          assert.match(one.out, /group payments {3}lag 2, pending 0, oldest /)
          const none = yield* millrace("inspect", "nope")
          assert.deepStrictEqual([none.code, none.error], [1, "millrace: there is no topic nope"])

          const lag = yield* json("lag", "orders")
          assert.deepInclude(lag.groups[0], { topic: "orders", group: "payments", lag: 2 })
          assert.strictEqual((yield* millrace("lag")).code, 0)
          const behind = yield* millrace("lag", "orders", "--max-lag", "1")
          assert.deepStrictEqual([behind.code, behind.error], [
            1,
            "millrace: 1 of 1 groups are behind: orders/payments"
          ])
          assert.strictEqual((yield* millrace("lag", "orders", "--max-lag", "2", "--max-age", "1h")).code, 0)

          const tail = (yield* millrace("tail", "orders", "--lines", "2", "--json")).out.split("\n").map((line) =>
            JSON.parse(line)
          )
          assert.deepStrictEqual(tail.map(({ body }) => body.id), ["o6", "o7\u001b[31m"])
          const plain = yield* millrace("tail", "orders", "--since", "1h")
          assert.strictEqual(plain.out.split("\n").length, 8)
          assert.notInclude(plain.out, "\u001b")
          assert.strictEqual((yield* millrace("tail", "orders", "--since", "0s")).out, "")

          const shown = yield* millrace("show", "orders", tail[0].id)
          assert.match(shown.out, /^orders \S+ {3}published .* ago\)$/m)
          assert.include(shown.out, "x-tenant: acme")
          assert.include(shown.out, "\"id\": \"o6\"")
          assert.deepInclude(yield* json("show", "orders", tail[0].id), {
            topic: "orders",
            key: "o6",
            body: { id: "o6", total: 1 }
          })
          const absent = yield* millrace("show", "orders", isMemory ? "99" : tail[0].id.replace(/\d/, "9"))
          assert.strictEqual(absent.code, 1)

          assert.match((yield* millrace("dead", "list")).out, /^orders.dead +3 /m)
          const { letters } = yield* json("dead", "list", "orders.dead", "--limit", "2")
          assert.deepStrictEqual(letters.map(({ body }: any) => body.id), ["o5", "o3"])
          const list = yield* millrace("dead", "list", "orders.dead", "--oldest-first")
          assert.match(list.out, /^\S+ +\S+ ago +payments +exhausted +1 +Declined: no funds for o1$/m)
          assert.match(list.out, /3 shown, 3 stored in orders.dead/)
          const filtered = yield* json(
            "dead",
            "list",
            "orders.dead",
            "--text",
            "FOR O3",
            "--tag",
            "Declined",
            "--newer-than",
            "1h"
          )
          assert.deepStrictEqual(filtered.letters.map(({ body }: any) => body.id), ["o3"])
          assert.deepStrictEqual((yield* json("dead", "list", "orders.dead", "--older-than", "1h")).letters, [])

          const letter = yield* millrace("dead", "show", "orders.dead", letters[0].id)
          assert.match(letter.out, /^Declined: no funds for o5$/m)
          assert.match(letter.out, /^exhausted after 1 attempt, /m)
          assert.include((yield* millrace("show", "orders.dead", letters[0].id)).out, "Declined: no funds for o5")
          assert.strictEqual((yield* millrace("dead", "show", "orders", tail[0].id)).code, 1)

          const dry = yield* millrace("dead", "redrive", "orders.dead", "--id", letters[0].id)
          assert.deepStrictEqual([dry.code, dry.out], [
            0,
            "1 would be redriven\nThis was a dry run: give --yes to redrive."
          ])
          assert.deepStrictEqual(yield* json("dead", "redrive", "orders.dead", "--text", "o1"), {
            dryRun: true,
            redriven: 1,
            capped: 0
          })
          assert.strictEqual((yield* millrace("dead", "redrive", "orders.dead", "--rate", "0", "--yes")).code, 2)
          const foreign = yield* millrace("dead", "redrive", "orders.dead", "--to", "refunds", "--yes")
          assert.strictEqual(foreign.code, 1)
          assert.match(foreign.out, /3 stay, because they cannot be redriven/)
          assert.match(foreign.error, /3 dead letters were not redriven/)
          const redriven = yield* millrace("dead", "redrive", "orders.dead", "--id", letters[0].id, "--yes")
          assert.strictEqual(redriven.out, "1 redriven")
          assert.match((yield* millrace("dead", "discard", "orders.dead", "--text", "o1")).out, /^1 would be deleted/)
          assert.strictEqual(
            (yield* millrace("dead", "discard", "orders.dead", "--text", "o1", "--yes")).out,
            "1 deleted"
          )
          assert.strictEqual((yield* json("dead", "list", "orders.dead")).letters.length, 1)

          const published = yield* json(
            "publish",
            "orders",
            "{\"id\":\"o8\",\"total\":7}",
            "--key",
            "o8",
            "-H",
            "X-From=shell"
          )
          assert.isFalse(published.duplicate)
          assert.deepInclude(yield* json("show", "orders", published.id), {
            key: "o8",
            headers: { "content-type": "application/json", "millrace-key": "o8", "x-from": "shell" }
          })
          assert.match(
            (yield* millrace("publish", "orders", "{id}")).error,
            /the message is no JSON .*: quote it, or give --raw$/
          )
          assert.match((yield* millrace("publish", "ordesr", "{}")).error, /there is no topic ordesr: give --create/)
          assert.strictEqual((yield* millrace("publish", "orders", "{}", "-H", "millrace-group=x")).code, 2)

          handled.length = 0
          bank.open = true
          yield* Effect.scoped(Effect.andThen(
            Pipeline.start(payments(bank, handled)),
            until("the rest is handled", Effect.sync(() => handled.length === 4))
          ))
          assert.deepStrictEqual(handled.toSorted(), ["o5", "o6", "o7\u001b[31m", "o8"])
          assert.deepInclude((yield* json("lag", "orders")).groups[0], { lag: 0, pending: 0 })
        }), 120_000)
    })
  })
}
