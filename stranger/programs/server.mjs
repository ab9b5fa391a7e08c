// Plain JavaScript, no types, no Effect: an HTTP server that publishes, a worker beside it, and a stop on SIGTERM with exit code 0.
import { Millrace, Pipeline, Topic } from "@millrace/core"
import { RedisStreams } from "@millrace/redis-streams"
import { createServer } from "node:http"
import { once } from "node:events"
import { z } from "zod"

const Tickets = Topic.make("tickets", { schema: z.object({ id: z.string() }), key: (ticket) => ticket.id })
const printing = Pipeline.from(Tickets, { group: "printing" }).pipe(
  Pipeline.filter((ticket) => ticket.id !== "test"),
  Pipeline.tapPromise(async (ticket, { signal }) => {
    await new Promise((resolve) => setTimeout(resolve, 100))
    signal.throwIfAborted()
    console.log("printed", ticket.id)
  }),
  Pipeline.timeout("5 seconds"),
  Pipeline.concurrency({ max: 4, key: (message) => message.key })
)
const millrace = await Millrace.run(printing, {
  broker: RedisStreams.layer({ url: process.env.REDIS_URL, retention: "acknowledged" }),
  signals: false
})
const server = createServer(async (request, response) => {
  if (request.url === "/health") {
    const { state } = await millrace.health()
    return response.writeHead(state === "consuming" ? 200 : 503).end(state)
  }
  try {
    const { id } = await millrace.publish(Tickets, { id: request.url === "/bad" ? 5 : request.url.slice(1) })
    response.writeHead(202).end(id)
  } catch (error) {
    response.writeHead(400).end(error.message)
  }
}).listen(0, "127.0.0.1")
await once(server, "listening")
process.once("SIGTERM", () => server.close(() => millrace.stop()))
const get = async (path) => {
  const response = await fetch(`http://127.0.0.1:${server.address().port}${path}`, { headers: { connection: "close" } })
  return `${response.status} ${await response.text()}`
}
console.log(await get("/health"))
console.log((await get("/bad")).split("\n")[0])
await Promise.all(["/a", "/b", "/test"].map(get))
process.kill(process.pid, "SIGTERM")
await millrace.closed
console.log("closed")
