// Entries that another program wrote with XADD, in batches, each user's in order.
import { Codec, Pipeline, Topic } from "@millrace/core"
import { RedisStreams } from "@millrace/redis-streams"
import { Deferred, Effect, Schema } from "effect"
import { createClient } from "redis"

const url = process.env["REDIS_URL"]!
const client = createClient({ url })
await client.connect()
for (let n = 0; n < 30; n++) {
  await client.xAdd("activity", "*", { user: `user${n % 3}`, n: String(n) })
}
await client.close()

const Activity = Topic.make("activity", {
  codec: Codec.fields(Schema.Struct({ user: Schema.String, n: Schema.FiniteFromString })),
  key: ({ user }) => user
})

const program = Effect.gen(function*() {
  const all = yield* Deferred.make<void>()
  const rows: Array<{ readonly user: string; readonly n: number }> = []
  yield* Pipeline.start(
    Pipeline.from(Activity, { group: "warehouse", startFrom: "beginning" }).pipe(
      Pipeline.batch({ size: 10, within: "100 millis" }, (values) =>
        Effect.suspend(() => {
          rows.push(...values)
          return rows.length < 30 ? Effect.void : Deferred.succeed(all, undefined)
        })),
      Pipeline.concurrency({ max: 10, key: ({ value }) => (value as { readonly user: string }).user })
    )
  )
  yield* Deferred.await(all)
  return rows
}).pipe(Effect.scoped, Effect.provide(RedisStreams.layer({ url })))

const rows = await Effect.runPromise(program)
for (const user of ["user0", "user1", "user2"]) {
  const mine = rows.filter((row) => row.user === user).map(({ n }) => n)
  if (mine.some((n, i) => i > 0 && mine[i - 1]! > n)) throw new Error(`${user} is out of order: ${mine.join()}`)
}
console.log(`${rows.length} rows in order`)
