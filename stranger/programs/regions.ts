// One pipeline for the orders of all regions, on NATS, each confirmed by the server.
import { Pipeline, Publisher, Topic } from "@millrace/core"
import { JetStream } from "@millrace/nats-jetstream"
import { Deferred, Effect, Schema } from "effect"

const schema = Schema.Struct({ id: Schema.String })
const Orders = Topic.make("orders", { schema })

const program = Effect.gen(function*() {
  const seen: Array<string> = []
  const both = yield* Deferred.make<void>()
  yield* Pipeline.start(
    JetStream.from(Orders, { group: "ledger", subject: "orders.{region}.created" }).pipe(
      Pipeline.tap((order, message) =>
        Effect.suspend(() => {
          seen.push(`${message.params.region} ${order.id}`)
          return Effect.andThen(
            JetStream.ackSync(message),
            seen.length < 2 ? Effect.void : Deferred.succeed(both, undefined)
          )
        })
      )
    )
  )
  yield* Publisher.publish(Topic.make("orders.eu.created", { schema }), { id: "a" })
  yield* Publisher.publish(Topic.make("orders.us.created", { schema }), { id: "b" })
  yield* Deferred.await(both)
  return seen.sort()
}).pipe(Effect.scoped, Effect.provide(JetStream.layer({ url: process.env["NATS_URL"]! })))

console.log((await Effect.runPromise(program)).join(", "))
