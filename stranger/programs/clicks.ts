// Another program writes clicks with XADD. They go into SQLite in batches, each visitor's in order, and a second time is no second row.
import { Codec, Millrace, Pipeline, Topic } from "@millrace/core"
import { RedisStreams } from "@millrace/redis-streams"
import { Schema } from "effect"
import { DatabaseSync } from "node:sqlite"
import { createClient } from "redis"

const url = process.env["REDIS_URL"]!
const client = createClient({ url })
await client.connect()
for (let n = 0; n < 60; n++) await client.xAdd("site:clicks", "*", { visitor: `v${n % 3}`, n: String(n), page: "/" })
await client.close()

const database = new DatabaseSync(":memory:")
database.exec("CREATE TABLE clicks (id TEXT PRIMARY KEY, visitor TEXT, n INTEGER)")
const insert = database.prepare("INSERT INTO clicks VALUES (?, ?, ?) ON CONFLICT DO NOTHING")

const Clicks = Topic.make("site:clicks", {
  codec: Codec.fields(Schema.Struct({ visitor: Schema.String, n: Schema.FiniteFromString })),
  key: (click) => click.visitor
})
const storing = Pipeline.from(Clicks, { group: "warehouse", startFrom: "beginning" }).pipe(
  Pipeline.batchPromise({ size: 20, within: "50 millis" }, async (clicks, messages) => {
    database.exec("BEGIN")
    clicks.forEach(({ n, visitor }, index) => insert.run(messages[index]!.id, visitor, n))
    database.exec("COMMIT")
  }),
  Pipeline.concurrency({ max: 4, key: (message) => message.value.visitor })
)

const millrace = await Millrace.run(storing, { broker: RedisStreams.layer({ url, retention: "acknowledged" }) })
while ((await millrace.counts()).handled < 60) await new Promise((resolve) => setTimeout(resolve, 10))
await millrace.stop()
for (const visitor of ["v0", "v1", "v2"]) {
  const rows = database.prepare("SELECT n FROM clicks WHERE visitor = ? ORDER BY rowid").all(visitor)
  if (rows.some(({ n }, i) => i > 0 && Number(rows[i - 1]!["n"]) > Number(n))) {
    throw new Error(`${visitor} is out of order`)
  }
}
console.log(`${database.prepare("SELECT count(*) AS rows FROM clicks").get()!["rows"]} rows in order`)
