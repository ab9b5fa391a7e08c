/** Writes the table of docs/redis-streams.md when run for all servers, and compares it otherwise. */
import { afterAll, assert, layer } from "@effect/vitest"
import * as Settlement from "@millrace/core/Settlement"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { demand, fresh, outgoing, retry, Server, servers, serving, subscribing, textOf, transport } from "./redis.ts"

const docs = Path.join(import.meta.dirname, "..", "..", "..", "docs", "redis-streams.md")

const columns = [
  "server",
  "claim",
  "clean ids whose data is gone",
  "retry, release, extend",
  "delete once acknowledged",
  "publish once by id",
  "delayed publish",
  "`XAUTOCLAIM`",
  "`XREADGROUP … CLAIM`",
  "`XADD … IDMP`",
  "`XACKDEL`",
  "`XNACK`"
]

const rows = new Map<string, ReadonlyArray<string>>()

servers.forEach(({ kind, version }) =>
  layer(serving(kind, { version }), { excludeTestServices: true })(`${kind} ${version}`, (it) => {
    it.effect("its features, and which of them are used", () =>
      Effect.gen(function*() {
        const { broker, run } = yield* Server
        const calls = (command: string) =>
          Effect.map(run("INFO", "commandstats"), (stats) =>
            new RegExp(`cmdstat_${command}:calls=[1-9]`).test(String(stats)))
        const does = (native: string, fallback: string) =>
          Effect.gen(function*() {
            const is = (yield* calls(native)) ? "native" : (yield* calls(fallback)) ? "fallback" : "absent"
            yield* run("CONFIG", "RESETSTAT")
            return is
          })
        const redis = yield* transport({ retention: "until-acked", claim: { minIdle: "100 millis" } })
        const topic = fresh("matrix")
        const subscription = yield* redis.subscribe(subscribing(topic))
        yield* run("CONFIG", "RESETSTAT")

        yield* redis.publish([outgoing(topic, "a")])
        for (const settlement of [retry("1 millis"), Settlement.release]) {
          const [delivery] = yield* subscription.pull(demand(1))
          yield* subscription.settle([{ delivery, settlement }])
        }
        const [claimed] = yield* subscription.pull(demand(1))
        assert.strictEqual(claimed.attempt, 2)
        const settles = yield* does("xnack", "xclaim")

        yield* subscription.settle([{ delivery: claimed, settlement: Settlement.ack }])
        assert.strictEqual(yield* run("XLEN", topic), 0)
        const deletes = yield* does("xackdel", "xdel")

        const outcomes = yield* redis.publish([outgoing(topic, "b", { id: "i" }), outgoing(topic, "b", { id: "i" })])
        assert.deepStrictEqual(
          outcomes.map((outcome) =>
            Result.getOrThrow(outcome).duplicate
          ),
          [false, true]
        )
        const deduplicates = yield* does("xcfgset", "hset")
        yield* subscription.settle([{ delivery: (yield* subscription.pull(demand(1)))[0], settlement: Settlement.ack }])
        yield* redis.publish([outgoing(topic, "c", { delay: Duration.millis(10) })])
        const [late] = yield* subscription.pull(demand(1))
        assert.strictEqual(late.attempt, 1)
        const delays = yield* does("none", "zadd")
        yield* subscription.settle([{ delivery: late, settlement: Settlement.ack }])

        const [gone] = yield* redis.publish([outgoing(topic, "gone"), outgoing(topic, "kept")])
        yield* run("XREADGROUP", "GROUP", "g", "dead", "COUNT", "2", "STREAMS", topic, ">")
        yield* run("XDEL", topic, Result.getOrThrow(gone!).id)
        yield* run("CONFIG", "RESETSTAT")
        const [left] = yield* subscription.pull(demand(1))
        assert.deepStrictEqual([textOf(left), left.attempt], ["kept", 2])
        assert.strictEqual((yield* run("XPENDING", topic, "g"))[0], 1)
        const claims = yield* does("xautoclaim", "xclaim")

        const has = (reply: unknown, otherwise: string) =>
          reply instanceof Error && /unknown command|syntax error|Invalid stream ID/.test(reply.message)
            ? "absent"
            : otherwise
        yield* run("XGROUP", "CREATE", "probe", "g", "0", "MKSTREAM")
        rows.set(`${kind} ${broker.version}`, [
          `${kind === "redis" ? "Redis" : "Valkey"} ${broker.version}`,
          claims,
          claims,
          settles,
          deletes,
          deduplicates,
          delays,
          has(yield* run("XAUTOCLAIM", "probe", "g", "c", "1000", "0"), "unused"),
          has(yield* run("XREADGROUP", "GROUP", "g", "c", "CLAIM", "1000", "STREAMS", "probe", ">"), "unused"),
          has(yield* run("XADD", "probe", "IDMP", "p", "i", "*", "a", "1"), "unused"),
          has(yield* run("XACKDEL", "probe", "g", "ACKED", "IDS", "1", "0-1"), "used"),
          `${has(yield* run("XNACK", "probe", "g", "SILENT", "IDS", "1", "0-1"), "there")}, untested and unused`
        ])
      }))

    it.effect("XAUTOCLAIM and XREADGROUP CLAIM count entries that no handler was given, and are not used", () =>
      Effect.gen(function*() {
        const { run } = yield* Server
        const commands = [
          ["XAUTOCLAIM", "stream", "g", "me", "0", "0"],
          ["XREADGROUP", "GROUP", "g", "me", "CLAIM", "0", "STREAMS", "stream", ">"]
        ]
        for (const command of commands) {
          yield* run("DEL", "stream")
          const ids: Array<string> = []
          for (const value of ["1", "2", "3"]) ids.push(String(yield* run("XADD", "stream", "*", "a", value)))
          yield* run("XGROUP", "CREATE", "stream", "g", "0")
          yield* run("XREADGROUP", "GROUP", "g", "dead", "STREAMS", "stream", ">")
          yield* run("XDEL", "stream", ids[0]!)
          const reply = yield* run(...command)
          if (reply instanceof Error) continue
          const left = (yield* run("XPENDING", "stream", "g", "-", "+", "9")).map(
            ([id, owner, , count]: [string, string, number, number]) => [id, owner, count]
          )
          // All suspects of a crash at once, each with an attempt more; and the second leaves what is gone for ever.
          const [isGone, ...others] = command[0] === "XAUTOCLAIM" ? [undefined, ...left] : left
          assert.deepStrictEqual(others, [[ids[1], "me", 2], [ids[2], "me", 2]])
          if (isGone !== undefined) assert.deepStrictEqual(isGone, [ids[0], "dead", 1])
        }
      }))

    it.effect("why XADD IDMP is not used: its memory is the stream's, and it does not tell a duplicate", () =>
      Effect.gen(function*() {
        const { run } = yield* Server
        const add = (stream: string) => run("XADD", stream, "IDMP", "producer", "id", "*", "a", "1")
        yield* run("DEL", "once")
        const first = yield* add("once")
        if (first instanceof Error) return assert.match(first.message, /Invalid stream ID/)
        assert.deepStrictEqual(yield* add("once"), first, "an id, as for any other")
        // A window other than the server's can be asked for only once the stream is there, and forgets what it knew.
        assert.match(String(yield* run("XCFGSET", "not-there", "IDMP-DURATION", "120")), /no such key/)
        yield* run("XCFGSET", "once", "IDMP-DURATION", "120")
        const again = yield* add("once")
        assert.notDeepEqual(again, first)
        // Deleted and made again it has the server's window, and no way to notice.
        yield* run("DEL", "once")
        yield* add("once")
        assert.strictEqual(yield* run("XLEN", "once"), 1)
        const info: ReadonlyArray<unknown> = yield* run("XINFO", "STREAM", "once")
        assert.strictEqual(info[info.findIndex((name) => String(name) === "idmp-duration") + 1], 100)
      }))
  })
)

afterAll(() => {
  const text = Fs.readFileSync(docs, "utf8")
  const line = (cells: ReadonlyArray<string>) => `| ${cells.join(" | ")} |`
  if (process.env["MILLRACE_MATRIX"] === "all") {
    const table = [line(columns), line(columns.map(() => "---")), ...[...rows.values()].map(line)].join("\n")
    Fs.writeFileSync(
      docs,
      text.replace(/<!-- matrix -->[\s\S]*<!-- \/matrix -->/, `<!-- matrix -->\n\n${table}\n\n<!-- /matrix -->`)
    )
  } else {
    const cells = text.replace(/ +/g, " ")
    for (const row of rows.values()) assert.include(cells, line(row))
  }
})
