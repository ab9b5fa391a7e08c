import { execFile } from "node:child_process"
import * as path from "node:path"
import { promisify } from "node:util"
import { assert, describe, it } from "vitest"
import { planted } from "./planted.ts"

const run = promisify(execFile)

/** The laws that are violated, in a process of its own. */
const lawsOf = async (which: string) => {
  const { stdout } = await run(process.execPath, [path.join(import.meta.dirname, "planted.main.ts"), which])
  return stdout.trim().split(",").filter((law) => law !== "")
}

describe("the simulation finds an engine that", () => {
  it.each(planted.map((fault, index) => ({ ...fault, index })))("$name: $law", async ({ index, law }) => {
    assert.include(await lawsOf(String(index)), law)
  })

  it("and nothing wrong with the one that is published", async () => assert.deepStrictEqual(await lawsOf("none"), []))
})
