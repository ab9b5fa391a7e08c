import { assert, describe, it } from "@effect/vitest"
import { spawn } from "node:child_process"

/** Runs the fixture and sends it a signal when its handler has begun; `again` and again, should the first be under way. */
const run = (args: ReadonlyArray<string>, signal: NodeJS.Signals, again = false) =>
  new Promise<{ readonly code: number | null; readonly out: string }>((resolve) => {
    const child = spawn(process.execPath, [new URL("fixtures/drain.ts", import.meta.url).pathname, ...args], {
      stdio: ["ignore", "pipe", "inherit"]
    })
    let out = ""
    let sending: NodeJS.Timeout | undefined
    child.stdout.on("data", (chunk) => {
      const before = out
      out += chunk
      if (before.includes("begun") || !out.includes("begun")) return
      child.kill(signal)
      if (again) sending = setInterval(() => child.kill(signal), 300)
    })
    child.on("close", (code) => {
      clearInterval(sending)
      resolve({ code, out })
    })
  })

describe("signals", () => {
  it("SIGTERM drains: the running handler finishes, exit 130", async () => {
    assert.deepStrictEqual(await run(["1000"], "SIGTERM"), { code: 130, out: "begun\nfinished\n" })
  })

  it("the same under Layer.launch, with the pipeline one Layer among others", async () => {
    assert.deepStrictEqual(await run(["1000", "launch"], "SIGINT"), { code: 130, out: "begun\nfinished\n" })
  })

  it("a second signal exits at once, where that was asked for", async () => {
    assert.deepStrictEqual(await run(["60000"], "SIGTERM", true), { code: 1, out: "begun\n" })
  })
})
