/**
 * Money that is credited once, although its message may be delivered twice: the effect and the id of the message it came
 * from are one transaction.
 */
import { Pipeline, Topic } from "@millrace/core"
import { Context, Effect, Layer, Schema } from "effect"
import { DatabaseSync } from "node:sqlite"

const Payment = Schema.Struct({ account: Schema.String, cents: Schema.Int })
export type Payment = typeof Payment.Type

export const Payments = Topic.make("payments", { schema: Payment })

export class Ledger extends Context.Service<Ledger, {
  /** Gives `false` when the payment had been credited before: then nothing changes. */
  readonly credit: (source: string, payment: Payment) => Effect.Effect<boolean>
  /** Payments that were credited, how often one came again afterwards, and all balances together. */
  readonly totals: Effect.Effect<{ readonly payments: number; readonly again: number; readonly cents: number }>
}>()("@millrace/examples/Ledger") {}

export const layerLedger = (file: string): Layer.Layer<Ledger> =>
  Layer.effect(
    Ledger,
    Effect.gen(function*() {
      const database = yield* Effect.acquireRelease(
        Effect.sync(() => new DatabaseSync(file, { timeout: 5_000 })),
        (database) => Effect.sync(() => database.close())
      )
      database.exec(`
        PRAGMA journal_mode = WAL;
        CREATE TABLE IF NOT EXISTS credited (source TEXT PRIMARY KEY, again INTEGER NOT NULL DEFAULT 0);
        CREATE TABLE IF NOT EXISTS balances (account TEXT PRIMARY KEY, cents INTEGER NOT NULL)`)
      const remember = database.prepare("INSERT INTO credited (source) VALUES (?) ON CONFLICT DO NOTHING")
      const recall = database.prepare("UPDATE credited SET again = again + 1 WHERE source = ?")
      const add = database.prepare(
        "INSERT INTO balances VALUES (?, ?) ON CONFLICT (account) DO UPDATE SET cents = cents + excluded.cents"
      )
      const payments = database.prepare("SELECT count(*) AS payments, coalesce(sum(again), 0) AS again FROM credited")
      const sum = database.prepare("SELECT coalesce(sum(cents), 0) AS cents FROM balances")
      return {
        credit: (source, { account, cents }) =>
          Effect.sync(() => {
            database.exec("BEGIN IMMEDIATE")
            const isNew = remember.run(source).changes === 1
            if (isNew) add.run(account, cents)
            else recall.run(source)
            database.exec("COMMIT")
            return isNew
          }),
        totals: Effect.sync(() => {
          const credited = payments.get()!
          return {
            payments: Number(credited["payments"]),
            again: Number(credited["again"]),
            cents: Number(sum.get()!["cents"])
          }
        })
      }
    })
  )

export const crediting = Pipeline.from(Payments, { group: "ledger", startFrom: "beginning", prefetch: 8 }).pipe(
  Pipeline.tap((payment, message) => Ledger.use(({ credit }) => credit(message.id, payment))),
  // Killed here, a process has credited what the broker will deliver again.
  Pipeline.tap(() => Effect.sleep("5 millis")),
  Pipeline.concurrency(8)
)
