/**
 * Compiles every `ts` fence of the guides and of the JSDoc, and runs those marked `ts import.meta.vitest`.
 *
 * `// =>` after an expression that stands on one line asserts its value. A fence marked `ts fragment` is left alone.
 * Each fence becomes a module that keeps its line numbers, inside the project so that imports resolve.
 */
import { spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as path from "node:path"
import process from "node:process"
import { pathToFileURL } from "node:url"

const root = path.dirname(import.meta.dirname)
const out = path.join(root, ".cache/docs")

const fences = (file: string) => {
  // In JSDoc the text stands behind ` * `.
  const lines = fs.readFileSync(path.join(root, file), "utf8").split("\n")
    .map((line) => file.endsWith(".ts") ? line.replace(/^ *\*( |$)/, "") : line)
  const found: Array<{ readonly runs: boolean; readonly start: number; readonly lines: ReadonlyArray<string> }> = []
  for (let start = 0; start < lines.length; start++) {
    const [, ticks, info] = /^(`{3,})(.*)$/.exec(lines[start]!) ?? []
    if (ticks === undefined) continue
    const end = lines.indexOf(ticks, start + 1)
    if (end === -1) throw new Error(`${file}:${start + 1}: the fence is not closed`)
    if (/^ts( |$)/.test(info!) && info !== "ts fragment") {
      found.push({ runs: info === "ts import.meta.vitest", start, lines: lines.slice(start + 1, end) })
    }
    start = end
  }
  return found
}

const asserting = (line: string, at: string) => {
  const [, code, value] = /^(.*?);?\s*\/\/ => (.*)$/.exec(line) ?? []
  if (code === undefined) return line
  const name = /^(?:const|let) (\w+)\b.*[^=>]=[^=>]/.exec(code)?.[1]
  if (name === undefined && /^[\s)}\].]/.test(code)) throw new Error(`${at}: put what // => is about on one line`)
  return name === undefined ? `equal(${code}, ${value})` : `${code}; equal(${name}, ${value})`
}

const equal =
  `const equal: (actual: unknown, expected: unknown) => void = (await import("node:assert")).deepStrictEqual;`

fs.rmSync(out, { recursive: true, force: true })
fs.mkdirSync(out, { recursive: true })
const modules: Array<{ readonly source: string; readonly file: string; readonly runs: boolean }> = []
for (
  const source of fs.globSync(["*.md", "docs/**/*.md", "packages/*/*.md", "packages/*/src/**/*.ts"], { cwd: root })
    .sort()
) {
  for (const fence of fences(source)) {
    const file = path.join(out, `${source.replaceAll("/", "__")}.${fence.start + 1}.ts`)
    const body = fence.lines.map((line, index) => asserting(line, `${source}:${fence.start + index + 2}`))
    fs.writeFileSync(file, `${equal}void equal${"\n".repeat(fence.start + 1)}${body.join("\n")}\nexport {}\n`)
    modules.push({ source, file, runs: fence.runs })
  }
}
fs.writeFileSync(
  path.join(out, "tsconfig.json"),
  JSON.stringify({ extends: "../../tsconfig.json", compilerOptions: { noUnusedLocals: false }, include: ["*.ts"] })
)

const types = spawnSync(path.join(root, "node_modules/.bin/tsc"), ["-p", out, "--pretty", "false"], {
  encoding: "utf8"
})
for (const { file, source } of modules) {
  types.stdout = types.stdout.replaceAll(path.relative(process.cwd(), file), source)
}
process.stdout.write(types.stdout)
let failed = types.status !== 0

const running = modules.filter(({ runs }) => runs)
for (const { file } of running) {
  const watchdog = setTimeout(() => {
    console.log(`${file} does not end`)
    process.exit(1)
  }, 120_000)
  try {
    await import(pathToFileURL(file).href)
  } catch (error) {
    failed = true
    console.log(error)
  }
  clearTimeout(watchdog)
}
console.log(`${modules.length} fences compiled, ${running.length} of them run`)
process.exit(failed ? 1 : 0)
