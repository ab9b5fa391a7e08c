/**
 * Writes what the root manifest says of the repository into the manifests of all packages: `pnpm manifests`, after the
 * repository was named or a package was added. `pnpm check packages` fails when they differ.
 */
import * as fs from "node:fs"
import * as path from "node:path"
import { repository, root, run } from "./pack.ts"

const { home, type, url } = repository()
for (const file of fs.globSync("packages/*/package.json", { cwd: root })) {
  const { bugs: _bugs, homepage: _homepage, repository: _repository, ...manifest } = JSON.parse(
    fs.readFileSync(path.join(root, file), "utf8")
  ) as Record<string, unknown>
  const fields = {
    homepage: `${home}#readme`,
    bugs: { url: `${home}/issues` },
    repository: { type, url, directory: path.dirname(file) }
  }
  const entries = Object.entries(manifest)
  entries.splice(entries.findIndex(([name]) => name === "license"), 0, ...Object.entries(fields))
  fs.writeFileSync(path.join(root, file), `${JSON.stringify(Object.fromEntries(entries), null, 2)}\n`)
}
run(root, path.join(root, "node_modules/.bin/dprint"), ["fmt", "packages/*/package.json"])
