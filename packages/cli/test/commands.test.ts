import { assert, describe, layer } from "@effect/vitest"
import { Pipeline, Publisher, Topic } from "@millrace/core"
import { Effect, Fiber, Schema } from "effect"
import type { Finding } from "../src/internal/findings.ts"
import { Command, json, memory, millrace, nats, redis, started, until } from "./cli.ts"

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
            "millrace: 1 of 1 group is behind: orders/payments"
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
          const absent = yield* millrace("show", "orders", isMemory ? "99" : tail[0].id.replace(/\d+$/, "9999"))
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
          const numberOf = (...filter: ReadonlyArray<string>) =>
            Effect.map(json("dead", "list", "orders.dead", ...filter), ({ letters }) => letters.length)
          assert.strictEqual(yield* numberOf("--older-than", "1h"), 0)
          assert.strictEqual(yield* numberOf("--reason", "exhausted", "--of-group", "payments", "--from", "orders"), 3)
          assert.strictEqual(yield* numberOf("--reason", "crashed"), 0)
          assert.strictEqual(yield* numberOf("--of-group", "others"), 0)
          assert.strictEqual(yield* numberOf("--from", "others"), 0)
          // A letter and a message of another topic may have the same id: both are meant.
          assert.include(
            (yield* json("dead", "list", "orders.dead", "--id", letters[1].id)).letters.map(({ id }: any) => id),
            letters[1].id
          )
          assert.strictEqual(yield* numberOf("--id", "1-1"), 0)

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
          assert.match(
            (yield* millrace("dead", "redrive", "orders.dead", "--limit", "2")).out,
            /^2 would be redriven$/m
          )
          const capped = yield* millrace("dead", "redrive", "orders.dead", "--cap", "0", "--yes")
          assert.deepStrictEqual([capped.code, capped.out], [
            0,
            "0 redriven\n3 stay: redriven 0 times already (--cap)"
          ])
          for (const verb of ["redrive", "discard"]) {
            const absent = yield* millrace("dead", verb, "orders.dead", "--id", "0-1", "--yes")
            assert.deepStrictEqual([absent.code, absent.error], [
              1,
              "millrace: 1 of 1 id: no such dead letter in orders.dead"
            ])
          }
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
        }), 240_000)

      it.effect("what goes on until it is interrupted, and what other options do", () =>
        Effect.gen(function*() {
          const created = yield* millrace("publish", "visits", "no JSON", "--raw", "--create")
          assert.deepStrictEqual([created.code, created.error], [0, ""])
          assert.match((yield* millrace("tail", "visits")).out, /  no JSON$/)
          const twice = yield* Effect.forEach([1, 2], () => millrace("publish", "visits", "{}", "--id", "once"))
          assert.match(twice[1]!.out, /was there already, under this id$/)
          assert.match((yield* millrace("publish", "visits", "{}", "--delay", "1h")).out, /not before \d{4}-/)

          // A message that was redriven is for one group.
          const bodies = (group: string) =>
            Effect.map(
              millrace("tail", "orders", "--json", "--lines", "50", "--group", group),
              ({ out }) => out.split("\n").map((line) => JSON.parse(line).body.id)
            )
          const all = yield* bodies("payments")
          const others = yield* bodies("others")
          assert.deepStrictEqual([all.length - others.length, all.at(-2)], [1, "o5"])

          const looks = yield* started("lag", "orders", "--watch", "--interval", "50ms", "--json")
          yield* until("three looks", Effect.sync(() => looks.length >= 3))
          for (const look of looks) assert.strictEqual(JSON.parse(look).groups[0].group, "payments")
          const followed = yield* started("tail", "visits", "--follow", "--lines", "0", "--json")
          const next = yield* Effect.forkScoped(Effect.forever(
            Effect.andThen(millrace("publish", "visits", "{\"followed\":true}"), Effect.sleep("100 millis"))
          ))
          yield* until("a new message is shown", Effect.sync(() => followed.length > 0))
          yield* Fiber.interrupt(next)
          assert.deepStrictEqual(JSON.parse(followed[0]!).body, { followed: true })
        }), 240_000)

      it.effect("a topic that does not exist is one sentence and exit code 1, whatever the command", () =>
        Effect.gen(function*() {
          for (
            const command of [
              ["inspect", "nope"],
              ["lag", "nope"],
              ["lag", "orders", "nope", "--json"],
              ["tail", "nope"],
              ["show", "nope", "1-0"],
              ["dead", "list", "nope"],
              ["dead", "list", "nope", "--json"],
              ["dead", "show", "nope", "1-0"],
              ["dead", "redrive", "nope", "--yes"],
              ["dead", "discard", "nope", "--yes"],
              ["doctor", "--topic", "nope"]
            ]
          ) {
            assert.deepStrictEqual(
              yield* millrace(...command),
              { code: 1, out: "", error: "millrace: there is no topic nope" },
              command.join(" ")
            )
          }
        }))

      it.effect("the doctor sees that no process of the group runs", () =>
        Effect.gen(function*() {
          const { name } = yield* Command
          if (name === "memory") return
          yield* Publisher.publish(Orders, { id: "o9", total: 1 })
          const { counts, findings } = yield* json("doctor", "--topic", "orders")
          const kind = name === "nats" ? "nats" : "redis"
          const at = findings.filter(({ id }: Finding) => id === `${kind}/no-consumers`).map(({ level }: Finding) =>
            level
          )
          assert.deepStrictEqual(at, ["warning"])
          const bad = findings.filter(({ id, level }: Finding) => /stuck|dead-owner/.test(id) && level !== "ok")
          assert.deepStrictEqual(bad, [])
          assert.strictEqual(counts.error + counts.warning + counts.unknown + counts.ok, findings.length)
        }))

      it.effect("the page shows groups, messages and letters, and redrives one", () =>
        Effect.gen(function*() {
          const out = yield* started("view", "--port", "0", "--allow-redrive")
          yield* until("it listens", Effect.sync(() => out.length > 0))
          const address = out[0]!.split(" ")[0]!
          const ask = (path: string, options?: RequestInit) =>
            Effect.promise(async () => (await fetch(new URL(path, address), options)).json())
          const { groups, topics } = yield* ask("/api/overview")
          assert.includeMembers(topics.map(({ topic }: any) => topic), ["orders", "orders.dead", "visits"])
          assert.include(groups.map(({ group, topic }: any) => `${topic}/${group}`), "orders/payments")
          const { letters, next } = yield* ask("/api/dead?topic=orders.dead&text=funds")
          assert.isUndefined(next)
          assert.deepStrictEqual(letters.map(({ body }: any) => body.id), ["o3"])
          assert.deepInclude(yield* ask("/api/reasons?topic=orders.dead"), { counted: 1, reasons: { exhausted: 1 } })
          const { found } = yield* ask(`/api/find?id=${encodeURIComponent(letters[0].id)}&topic=orders.dead`)
          assert.strictEqual(found[0].record.error.message, "no funds for o3")
          const page = yield* Effect.promise(async () => (await fetch(address)).text())
          const answer = yield* ask("/api/redrive", {
            method: "POST",
            headers: {
              "content-type": "application/json",
              origin: address.replace(/\/$/, ""),
              "x-millrace-token": /name="millrace-token" content="(\w+)"/.exec(page)![1]!
            },
            body: JSON.stringify({ topic: "orders.dead", ids: [letters[0].id] })
          })
          assert.deepStrictEqual(answer, { redriven: 1, capped: 0 })
          assert.deepStrictEqual((yield* json("dead", "list", "orders.dead")).letters, [])
        }))
    })
  })
}
