import { assert, describe, it } from "@effect/vitest"
import * as fs from "node:fs"
import * as path from "node:path"

const root = path.join(import.meta.dirname, "../../..")
const read = (file: string) => fs.readFileSync(path.join(root, file), "utf8")

const laws = [...read("docs/guarantees.md").matchAll(/^## (\d)\. (.*)\n([^]*?)(?=^## )/gm)]
const suite = fs.globSync("packages/testing/src/internal/conformance/*.ts", { cwd: root })
  .flatMap((file) => [...read(file).matchAll(/\btest\(\s*"(\w+)",\s*"law (\d)"/g)])

describe("docs/guarantees.md", () => {
  it("has the eight laws", () => assert.deepStrictEqual(laws.map(([, law]) => law), [..."12345678"]))

  it.each(laws.map(([, law, title, text]) => ({ law, title, text: text! })))("law $law: $title", ({ law, text }) => {
    const [, listed = ""] = /^Conformance: (.*)\.$/m.exec(text) ?? []
    assert.sameMembers(listed.split(", "), suite.flatMap(([, test, proves]) => proves === law ? [test!] : []))

    const [, runs = ""] = /^Fault runs: ([^]*?)\.$/m.exec(text) ?? []
    for (const [, run] of runs.matchAll(/\*\*(.*?)\*\*/g)) assert.include(read("docs/faults.md"), `\n- **${run}**: `)

    const tests = [...text.matchAll(/^- `(.*?)`: (?:… )?(.*)$/gm)]
    assert.isNotEmpty(tests)
    for (const [, file, name] of tests) {
      const source = read(file!.startsWith("examples/") ? file! : `packages/${file}`)
      assert.isTrue(source.includes(`${name}"`) || source.includes(`${name}\``), `${file} has no test "${name}"`)
    }
  })
})
