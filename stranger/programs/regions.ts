// One worker for the orders of all regions, on NATS. Each service publishes to its own region.
import { Millrace, Pipeline, Topic } from "@millrace/core"
import { JetStream } from "@millrace/nats-jetstream"
import { z } from "zod"

const schema = z.object({ id: z.string() })
const Orders = Topic.make("orders", { schema })
const inRegion = (region: string) => Topic.make(`orders.${region}.created`, { schema })

const seen: Array<string> = []
const ledger = JetStream.from(Orders, { group: "ledger", subject: "orders.{region}.created" }).pipe(
  Pipeline.tapPromise(async (order, message) => {
    seen.push(`${message.params.region} ${order.id}`)
  }),
  JetStream.acknowledge("confirm")
)

const millrace = await Millrace.run(ledger, {
  broker: JetStream.layer({
    url: process.env["NATS_URL"]!,
    stream: { subjects: ["orders", "orders.>"], maxAge: "7 days" }
  })
})
await millrace.publish(inRegion("eu"), { id: "a" })
await millrace.publish(inRegion("us"), { id: "b" })
while ((await millrace.counts()).handled < 2) await new Promise((resolve) => setTimeout(resolve, 10))
await millrace.stop()
console.log(seen.sort().join(", "))
