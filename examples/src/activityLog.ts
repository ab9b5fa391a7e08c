/**
 * An activity log: many producers append what users do, one group writes it to SQLite in batches.
 */
import { Codec, Pipeline, Topic } from "@millrace/core"
import { Context, Effect, Layer, Schema } from "effect"
import { DatabaseSync } from "node:sqlite"

const Activity = Schema.Struct({ user_id: Schema.Finite, action: Schema.String })
export type Activity = typeof Activity.Type

/** One field each, so that on Redis any producer can take part: `XADD activity '*' user_id 1 action login`. */
export const Activities = Topic.make("activity", { codec: Codec.fields(Activity) })

export interface Row extends Activity {
  readonly id: string
}

/** Where activities are kept. A row has the id of its message: one that is delivered again changes nothing. */
export class ActivityStore extends Context.Service<ActivityStore, {
  /** All rows or none; gives how many of them were there before. */
  readonly append: (rows: ReadonlyArray<Row>) => Effect.Effect<number>
  readonly count: Effect.Effect<number>
}>()("@millrace/examples/ActivityStore") {}

export const layerStore = (file: string): Layer.Layer<ActivityStore> =>
  Layer.effect(
    ActivityStore,
    Effect.gen(function*() {
      const database = yield* Effect.acquireRelease(
        Effect.sync(() => new DatabaseSync(file, { timeout: 5_000 })),
        (database) => Effect.sync(() => database.close())
      )
      database.exec(`
        PRAGMA journal_mode = WAL;
        CREATE TABLE IF NOT EXISTS activity (id TEXT PRIMARY KEY, user_id REAL NOT NULL, action TEXT NOT NULL)`)
      const insert = database.prepare("INSERT INTO activity VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
      const count = database.prepare("SELECT count(*) AS rows FROM activity")
      return {
        append: (rows) =>
          Effect.sync(() => {
            let known = 0
            database.exec("BEGIN IMMEDIATE")
            for (const { action, id, user_id } of rows) {
              if (insert.run(id, user_id, action).changes === 0) known++
            }
            database.exec("COMMIT")
            return known
          }),
        count: Effect.sync(() => Number(count.get()!["rows"]))
      }
    })
  )

export const writer = Pipeline.from(Activities, { group: "writer", startFrom: "beginning" }).pipe(
  Pipeline.batch({ size: 100, within: "10 millis" }, (activities, messages) =>
    Effect.gen(function*() {
      const { append } = yield* ActivityStore
      const known = yield* append(activities.map((activity, i) => ({ ...activity, id: messages[i]!.id })))
      yield* Effect.logDebug(`wrote ${activities.length}, ${known} of them known`)
    }))
)
