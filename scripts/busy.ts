/**
 * Runs the tests again and again beside loops that keep the cores busy: no test may depend on the speed of its machine.
 * `pnpm test:busy` runs all of them three times beside two loops, `pnpm test:busy --runs 10 --loops 4 redis-streams` some
 * of them ten times beside four. The last lines say how each run ended.
 */
import { spawn } from "node:child_process"
import { once } from "node:events"
import * as fs from "node:fs"
import * as path from "node:path"
import process from "node:process"
import { parseArgs } from "node:util"

const root = path.dirname(import.meta.dirname)
const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: { runs: { type: "string", default: "3" }, loops: { type: "string", default: "2" } }
})

// A loop ends with this process, also when this process is killed.
const loop = "const parent = process.ppid; while (process.ppid === parent);"
const loops = Array.from(
  { length: Number(values.loops) },
  () => spawn(process.execPath, ["--eval", loop], { stdio: "ignore" })
)

const results = path.join(root, ".cache", "test.json")

interface Results {
  readonly numPassedTests: number
  readonly numFailedTests: number
  readonly testResults: ReadonlyArray<{
    readonly name: string
    readonly assertionResults: ReadonlyArray<{ readonly fullName: string; readonly status: string }>
  }>
}

const lines: Array<string> = []
let failures = 0
for (let run = 1; run <= Number(values.runs); run++) {
  fs.rmSync(results, { force: true })
  const began = performance.now()
  const tests = spawn(path.join(root, "node_modules", ".bin", "vitest"), ["run", ...positionals], {
    cwd: root,
    stdio: "inherit"
  })
  const [code] = (await once(tests, "exit")) as [number | null]
  if (code !== 0) failures++
  const seconds = Math.round((performance.now() - began) / 1000)
  const head = `run ${run} beside ${values.loops} busy loops, ${seconds} s: `
  if (!fs.existsSync(results)) {
    lines.push(`${head}no results, exit code ${code}`)
    continue
  }
  const { numFailedTests, numPassedTests, testResults } = JSON.parse(fs.readFileSync(results, "utf8")) as Results
  lines.push(`${head}${numPassedTests} passed, ${numFailedTests} failed, exit code ${code}`)
  for (const { assertionResults, name } of testResults) {
    const failed = assertionResults.filter(({ status }) => status === "failed")
    for (const { fullName } of failed) lines.push(`  ${path.relative(root, name)}: ${fullName}`)
  }
}
for (const loop of loops) loop.kill("SIGKILL")
console.log(lines.join("\n"))
process.exit(failures > 0 ? 1 : 0)
