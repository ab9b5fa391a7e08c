/** Writes the table of docs/redis-streams.md when run for all servers, and compares it otherwise. */
import { afterAll, assert, layer } from "@effect/vitest"
import * as Settlement from "@millrace/core/Settlement"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { fresh, outgoing, Server, servers, serving, subscribing, transport } from "./redis.ts"

const docs = Path.join(import.meta.dirname, "..", "..", "..", "docs", "redis-streams.md")

const columns = [
  "server",
  "claim, retry, release",
  "delete once acknowledged",
  "deduplication",
  "delayed publish",
  "`XREADGROUP … CLAIM`",
  "`XADD … IDMP`",
  "`XNACK`"
]

const rows = new Map<string, ReadonlyArray<string>>()

servers.forEach(({ kind, version }) =>
  layer(serving(kind, { version }), { excludeTestServices: true })(`${kind} ${version}`, (it) => {
    it.effect("what it has, and what is used of it", () =>
      Effect.gen(function*() {
        const { broker, run } = yield* Server
        const calls = (command: string) =>
          Effect.map(run("INFO", "commandstats"), (stats) =>
            new RegExp(`cmdstat_${command}:calls=[1-9]`).test(String(stats)))
        const redis = yield* transport({ retention: "until-acked", claim: { minIdle: "100 millis" } })
        const topic = fresh("matrix")
        const subscription = yield* redis.subscribe(subscribing(topic))
        yield* run("CONFIG", "RESETSTAT")

        yield* redis.publish([outgoing(topic, "a")])
        for (const settlement of [Settlement.retry("1 millis"), Settlement.release]) {
          const [delivery] = yield* subscription.pull(1)
          yield* subscription.settle([{ delivery, settlement }])
        }
        const [claimed] = yield* subscription.pull(1)
        assert.strictEqual(claimed.attempt, 2)
        const claims = (yield* calls("xclaim")) ? "script" : "absent"

        yield* subscription.settle([{ delivery: claimed, settlement: Settlement.ack }])
        assert.strictEqual(yield* run("XLEN", topic), 0)
        const deletes = (yield* calls("xackdel")) ? "native (`XACKDEL`)" : (yield* calls("xdel")) ? "script" : "absent"

        const outcomes = yield* redis.publish([outgoing(topic, "b", { id: "i" }), outgoing(topic, "b", { id: "i" })])
        const deduplicates = outcomes.map((outcome) =>
          Result.getOrThrow(outcome).duplicate
        ).join() === "false,true"
        yield* subscription.settle([{ delivery: (yield* subscription.pull(1))[0], settlement: Settlement.ack }])
        yield* redis.publish([outgoing(topic, "c", { delay: Duration.millis(10) })])
        const [late] = yield* subscription.pull(1)
        assert.strictEqual(late.attempt, 1)

        const has = (reply: unknown) =>
          reply instanceof Error && /unknown command|syntax error|Invalid stream ID/.test(reply.message)
            ? "absent"
            : "there, not used"
        yield* run("XGROUP", "CREATE", "probe", "g", "0", "MKSTREAM")
        rows.set(`${kind} ${broker.version}`, [
          `${kind === "redis" ? "Redis" : "Valkey"} ${broker.version}`,
          claims,
          deletes,
          deduplicates ? "script" : "absent",
          "script",
          has(yield* run("XREADGROUP", "GROUP", "g", "c", "CLAIM", "1000", "STREAMS", "probe", ">")),
          has(yield* run("XADD", "probe", "IDMP", "p", "i", "*", "a", "1")),
          has(yield* run("XNACK", "probe", "g", "SILENT", "IDS", "1", "0-1")) === "absent"
            ? "absent, untested"
            : "there, untested"
        ])
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
