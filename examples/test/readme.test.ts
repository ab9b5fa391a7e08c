import { assert, describe, it } from "@effect/vitest"
import { readFileSync } from "node:fs"

const read = (file: string) => readFileSync(new URL(`../../${file}`, import.meta.url), "utf8")

describe("README", () => {
  for (const file of ["examples/src/payments.ts", "examples/src/payments.redis.ts"]) {
    it(`shows ${file} to the letter`, () => {
      assert.include(read("README.md"), `\n\`\`\`ts fragment\n${read(file)}\`\`\`\n`)
    })
  }
})
