/**
 * Everything that must hold beside the tests: `pnpm check`, or `pnpm check lint docs` for some of it.
 */
import { spawnSync } from "node:child_process"
import * as path from "node:path"
import process from "node:process"

const root = path.dirname(import.meta.dirname)
const bin = path.join(root, "node_modules/.bin")

const steps: Record<string, string> = {
  types: "tsc -p tsconfig.json",
  effect: "effect-tsgo diagnostics --project tsconfig.json --format text --severity error,warning --strict",
  lint: "oxlint -f unix --deny-warnings --report-unused-disable-directives",
  format: "dprint check --list-different",
  // TypeScript 7 has no compiler API that a runner of type tests could use.
  typetest: "TSTYCHE_TYPESCRIPT_MODULE=@typescript/typescript6 tstyche",
  build: "rm -rf packages/*/dist && tsc -b packages/*/tsconfig.build.json",
  packages: "node scripts/packages.ts",
  docs: "node scripts/docs.ts",
  site: "node scripts/site.ts"
}

const asked = process.argv.slice(2)
const unknown = asked.filter((name) => !(name in steps))
if (unknown.length > 0) {
  console.error(`check: no step ${unknown.join(", ")}; there are ${Object.keys(steps).join(", ")}`)
  process.exit(1)
}

let failed = 0
const names = asked.length > 0 ? asked : Object.keys(steps)
for (const name of names) {
  const since = performance.now()
  const { error, status, stderr, stdout } = spawnSync("sh", ["-c", steps[name]!], {
    cwd: root,
    encoding: "utf8",
    env: { ...process.env, NO_COLOR: "1", PATH: `${bin}:${process.env["PATH"]}` },
    maxBuffer: Infinity,
    stdio: ["ignore", "pipe", "pipe"]
  })
  const seconds = ((performance.now() - since) / 1000).toFixed(1)
  console.log(`${status === 0 ? "ok    " : "FAILED"} ${name.padEnd(9)} ${seconds.padStart(5)} s`)
  if (status === 0 && name === "packages") console.log(stdout.trimEnd().replace(/^/gm, "       "))
  if (status !== 0) {
    failed++
    console.log(`$ ${steps[name]}\n${error ?? ""}${stdout}${stderr}`)
  }
}
console.log(`check: ${names.length - failed} passed, ${failed} failed`)
process.exitCode = failed === 0 ? 0 : 1
