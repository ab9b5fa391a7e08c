/**
 * Builds the documentation site, static files with search, from `docs/` and the comments of all packages into
 * `.cache/site`, and follows every link inside of it: `pnpm site`, or `pnpm run docs` (pnpm has a `docs` of its own).
 */
import * as fs from "node:fs"
import * as path from "node:path"
import process from "node:process"
import { repository, root, run } from "./pack.ts"

const out = path.join(root, ".cache/site")
const config = JSON.parse(fs.readFileSync(path.join(root, "site/typedoc.json"), "utf8")) as object
const options = path.join(root, ".cache/typedoc.json")
fs.mkdirSync(path.dirname(options), { recursive: true })
fs.writeFileSync(
  options,
  JSON.stringify({ ...config, sourceLinkTemplate: `${repository().home}/blob/main/{path}#L{line}` })
)
const log = run(root, process.execPath, ["site/node_modules/typedoc/bin/typedoc", "--options", options])
const problems = log.split("\n").filter((line) => line.includes("[warning]") || line.includes("[error]"))

const files = fs.globSync("**/*.html", { cwd: out })
const ids = new Map(files.map((file) => {
  const html = fs.readFileSync(path.join(out, file), "utf8")
  return [file, { html, ids: new Set(Array.from(html.matchAll(/ id="([^"]+)"/g), ([, id]) => id!)) }] as const
}))
let links = 0
for (const [file, { html }] of ids) {
  for (const [, href] of html.matchAll(/<a [^>]*?href="([^"]+)"/g)) {
    if (/^(https?|mailto):/.test(href!)) continue
    links++
    const [target, anchor] = href!.split("#") as [string, string | undefined]
    const to = target === "" ? file : path.join(path.dirname(file), decodeURIComponent(target))
    const page = ids.get(to)
    if (page === undefined && !fs.existsSync(path.join(out, to))) problems.push(`${file}: ${href} leads nowhere`)
    else if (anchor !== undefined && anchor !== "" && page !== undefined && !page.ids.has(decodeURIComponent(anchor))) {
      problems.push(`${file}: ${href} has no such place`)
    }
  }
}
const search = fs.statSync(path.join(out, "assets/search.js")).size
if (search < 10_000) problems.push("the index of the search is empty")
for (const problem of new Set(problems)) console.log(problem)
console.log(`${files.length} pages in ${path.relative(root, out)}, ${links} links followed`)
process.exitCode = problems.length === 0 ? 0 : 1
