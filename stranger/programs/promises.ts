// A web server that takes orders and a worker that sends mails, in one process, without a word of Effect.
import { Millrace, Pipeline, Topic } from "@millrace/core"
import { RedisStreams } from "@millrace/redis-streams"
import { once } from "node:events"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import { z } from "zod"

const Mails = Topic.make("mails", { schema: z.object({ to: z.string() }) })
const sent: Array<string> = []
const mailing = Pipeline.from(Mails, { group: "mailing" }).pipe(
  Pipeline.tapPromise(async ({ to }) => {
    await new Promise((resolve) => setTimeout(resolve, 50))
    sent.push(to)
  }),
  Pipeline.concurrency(5)
)

const millrace = await Millrace.run(mailing, { broker: RedisStreams.layer({ url: process.env["REDIS_URL"]! }) })

const server = createServer(async (request, response) => {
  if (request.url === "/health") return response.end((await millrace.health()).state)
  await millrace.publish(Mails, { to: "ada@example.com" })
  response.writeHead(202).end()
}).listen(0, "127.0.0.1")
await once(server, "listening")
const { port } = server.address() as AddressInfo
process.once("SIGTERM", () => server.close())

console.log(await (await fetch(`http://127.0.0.1:${port}/health`)).text())
await fetch(`http://127.0.0.1:${port}`, { method: "POST" })
while ((await millrace.counts()).handled < 1) await new Promise((resolve) => setTimeout(resolve, 10))
process.kill(process.pid, "SIGTERM")
await millrace.closed
console.log(`sent to ${sent.join()}`)
