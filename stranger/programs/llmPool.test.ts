// A pool of calls to a model that answers 429 for a while, and 500 to one prompt for ever. No Effect but to run the test.
import { Pipeline, Settlement, Topic } from "@millrace/core"
import { TestHarness } from "@millrace/testing"
import { Effect, Schedule } from "effect"
import * as assert from "node:assert/strict"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import { test } from "node:test"
import { z } from "zod"

const Prompts = Topic.make("prompts", { schema: z.object({ text: z.string() }) })
const Answers = Topic.make("answers", { schema: z.object({ text: z.string(), answer: z.string() }) })

const pool = (url: string) =>
  Pipeline.from(Prompts, { group: "model" }).pipe(
    Pipeline.mapPromise(async ({ text }, { signal }) => {
      const response = await fetch(url, { method: "POST", body: text, signal })
      if (response.status === 429) {
        throw Settlement.retry(`${Number(response.headers.get("retry-after"))} seconds`, {
          reason: "the model is overloaded",
          countsAttempt: false,
          pausesPipeline: true
        })
      }
      if (!response.ok) throw new Error(`the model answered ${response.status}`)
      return { text, answer: await response.text() }
    }),
    Pipeline.to(Answers),
    Pipeline.retry({ times: 2, schedule: Schedule.spaced("1 second") }),
    Pipeline.concurrency(4)
  )

test("an overloaded model costs no attempts; a failing prompt is kept with what the model said", async () => {
  let refusals = 6
  const server = createServer((request, response) => {
    let text = ""
    request.on("data", (chunk) => text += chunk).on("end", () => {
      if (text === "bad") return response.writeHead(500).end()
      if (refusals-- > 0) return response.writeHead(429, { "retry-after": "30" }).end()
      response.end(text.toUpperCase())
    })
  })
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  const { port } = server.address() as AddressInfo
  const prompts = ["a", "b", "bad"].map((text) => ({ text }))
  const report = await Effect.runPromise(
    TestHarness.run(Prompts, pool(`http://127.0.0.1:${port}`), prompts).pipe(Effect.provide(TestHarness.layer))
  )
  server.close()
  assert.deepEqual(report.handled.map(({ value }) => value).sort((a: any, b: any) => a.text < b.text ? -1 : 1), [
    { text: "a", answer: "A" },
    { text: "b", answer: "B" }
  ])
  assert.deepEqual(report.deadLettered.map(({ record }) => [record.attempts, record.error.message]), [
    [3, "the model answered 500"]
  ])
})
