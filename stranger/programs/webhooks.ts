// A server takes events and a worker calls a customer's webhook. The customer is down, an operator sends the event again.
import { Millrace, Pipeline, Topic } from "@millrace/core"
import { RedisStreams } from "@millrace/redis-streams"
import { Schedule } from "effect"
import { once } from "node:events"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import { z } from "zod"

const Events = Topic.make("webhooks:events", { schema: z.object({ url: z.url(), type: z.string() }) })
const delivering = Pipeline.from(Events, { group: "delivery" }).pipe(
  Pipeline.tapPromise(async ({ type, url }, { id, signal }) => {
    const response = await fetch(url, { method: "POST", body: type, headers: { "webhook-id": id }, signal })
    if (!response.ok) throw new Error(`the customer answered ${response.status}`)
  }),
  Pipeline.timeout("10 seconds"),
  Pipeline.retry({ times: 2, schedule: Schedule.spaced("20 millis") }),
  Pipeline.deadLetter("webhooks:dead"),
  Pipeline.concurrency(16)
)

let customerIsDown = true
const received: Array<string> = []
const customer = createServer((request, response) => {
  request.on("data", (chunk) => customerIsDown || received.push(String(chunk)))
  request.on("end", () => response.writeHead(customerIsDown ? 503 : 200).end())
}).listen(0, "127.0.0.1")
await once(customer, "listening")
const url = `http://127.0.0.1:${(customer.address() as AddressInfo).port}`

const millrace = await Millrace.run(delivering, { broker: RedisStreams.layer({ url: process.env["REDIS_URL"]! }) })
const api = createServer(async (request, response) => {
  if (request.url === "/health") return response.end((await millrace.health()).state)
  if (request.url === "/redrive") {
    return response.end(String((await millrace.redrive("webhooks:dead", { to: [Events.name] })).redriven))
  }
  await millrace.publish(Events, { url, type: "invoice.paid" })
  response.writeHead(202).end()
}).listen(0, "127.0.0.1")
await once(api, "listening")
process.once("SIGTERM", () => {
  api.close()
  customer.close()
})
const call = async (path: string) =>
  (await fetch(`http://127.0.0.1:${(api.address() as AddressInfo).port}${path}`, { method: "POST" })).text()
const until = async (holds: () => Promise<boolean>) => {
  while (!(await holds())) await new Promise((resolve) => setTimeout(resolve, 10))
}

console.log(await call("/health"))
await call("/events")
await until(async () => (await millrace.counts()).deadLettered === 1)
const [letter] = await millrace.deadLetters("webhooks:dead")
console.log(`dead: ${letter?.record.error.message} after ${letter?.record.attempts} attempts`)
customerIsDown = false
console.log(`redriven: ${await call("/redrive")}`)
await until(async () => (await millrace.counts()).handled === 1)
process.kill(process.pid, "SIGTERM")
await millrace.closed
console.log(`received ${received.join()}`)
