/**
 * Checks what would be published: packs each built package, lints the tarballs, installs them into an empty project and
 * compiles and imports every entry there.
 */
import { spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import process from "node:process"

interface Manifest {
  readonly name: string
  readonly dependencies?: Record<string, string>
  readonly peerDependencies?: Record<string, string>
  readonly peerDependenciesMeta?: Record<string, { readonly optional: boolean }>
}

const root = path.dirname(import.meta.dirname)
const bin = path.join(root, "node_modules/.bin")
const rules = path.join(root, "scripts/lint/declarations.oxlintrc.json")
const temporary = fs.mkdtempSync(path.join(os.tmpdir(), "millrace-packages-"))
let failed = 0

const fail = (problem: string) => {
  failed++
  console.log(problem)
}

const run = (cwd: string, command: string, ...args: ReadonlyArray<string>) => {
  const { error, status, stderr, stdout } = spawnSync(command, args, { cwd, encoding: "utf8" })
  if (status !== 0) fail(`$ ${[path.basename(command), ...args].join(" ")}\n${error ?? ""}${stdout}${stderr}`)
}

/** The pnpm that runs this script. */
const pnpm = (cwd: string, ...args: ReadonlyArray<string>) => {
  const self = process.env["npm_execpath"]
  if (self?.endsWith("pnpm")) run(cwd, self, ...args)
  else run(cwd, "npx", "-y", "pnpm@12", ...args)
}

const consumer = path.join(temporary, "consumer")
fs.mkdirSync(consumer)
pnpm(root, "--recursive", "--filter", "./packages/*", "pack", "--pack-destination", temporary)

const packed = fs.globSync("*.tgz", { cwd: temporary }).sort().map((tarball) => {
  const file = path.join(temporary, tarball)
  const unpacked = file.replace(/\.tgz$/, "")
  fs.mkdirSync(unpacked)
  run(temporary, "tar", "xzf", file, "-C", unpacked, "--strip-components=1")
  return {
    file,
    unpacked,
    manifest: JSON.parse(fs.readFileSync(path.join(unpacked, "package.json"), "utf8")) as Manifest
  }
})
const packages = fs.globSync("packages/*/package.json", { cwd: root })
if (packed.length !== packages.length) fail(`${packages.length} packages, ${packed.length} tarballs`)

for (const { file, manifest, unpacked } of packed) {
  for (
    const wanted of ["LICENSE", "README.md", "src/index.ts", "dist/index.js", "dist/index.d.ts", "dist/index.js.map"]
  ) {
    if (!fs.existsSync(path.join(unpacked, wanted))) fail(`${manifest.name}: the tarball lacks ${wanted}`)
  }
  for (const [name, range] of Object.entries({ ...manifest.dependencies, ...manifest.peerDependencies })) {
    if (/^(workspace|catalog|file|link):/.test(range)) fail(`${manifest.name}: depends on ${name} at ${range}`)
  }
  run(temporary, path.join(bin, "publint"), "run", file, "--strict")
  run(temporary, path.join(bin, "attw"), file, "--profile", "esm-only", "--no-color", "--no-emoji")
  const declarations = fs.globSync("dist/*.d.ts", { cwd: unpacked })
  run(unpacked, path.join(bin, "oxlint"), "-f", "unix", "-c", rules, ...declarations)
}

// An empty project: the tarballs, what they cannot do without, and nothing of this workspace.
const tarballs = Object.fromEntries(packed.map(({ file, manifest }) => [manifest.name, `file:${file}`]))
const peers = Object.fromEntries(
  packed.flatMap(({ manifest: { peerDependencies = {}, peerDependenciesMeta = {} } }) =>
    Object.entries(peerDependencies).filter(([name]) => !peerDependenciesMeta[name]?.optional)
  )
)
const types = JSON.parse(fs.readFileSync(path.join(root, "node_modules/@types/node/package.json"), "utf8")) as {
  readonly version: string
}
fs.writeFileSync(
  path.join(consumer, "package.json"),
  JSON.stringify({
    private: true,
    type: "module",
    dependencies: { ...tarballs, ...peers, "@types/node": types.version }
  })
)
fs.writeFileSync(
  path.join(consumer, "pnpm-workspace.yaml"),
  JSON.stringify({ overrides: tarballs, hoist: false, strictPeerDependencies: true, strictDepBuilds: false })
)
pnpm(consumer, "install", "--prefer-offline", "--ignore-scripts")

const entries = packed.flatMap(({ manifest, unpacked }) =>
  fs.globSync("dist/*.js", { cwd: unpacked }).sort().map((file) => {
    const module = path.basename(file, ".js")
    return module === "index" ? manifest.name : `${manifest.name}/${module}`
  })
)
fs.writeFileSync(
  path.join(consumer, "entries.ts"),
  `${entries.map((entry, index) => `import * as e${index} from ${JSON.stringify(entry)}`).join("\n")}
for (const entry of [${entries.map((_, index) => `e${index}`).join(", ")}]) {
  if (Object.keys(entry).length === 0) throw new Error("an entry exports nothing")
}
for (const hidden of ${JSON.stringify(packed.map(({ manifest }) => `${manifest.name}/internal/hidden`))}) {
  const code = await import(hidden).then(() => "imported", (error: { code: string }) => error.code)
  if (code !== "ERR_PACKAGE_PATH_NOT_EXPORTED") throw new Error(\`\${hidden}: \${code}\`)
}
`
)
// The first checks the declarations too: what they import must be among what the packages ask for.
const strict = ["--strict", "--module", "nodenext", "--target", "es2024", "--types", "node", "--noEmit", "entries.ts"]
run(consumer, path.join(bin, "tsc"), ...strict)
run(consumer, path.join(bin, "tsc6"), ...strict, "--skipLibCheck")
run(consumer, process.execPath, "entries.ts")

console.log(`${packed.length} tarballs, ${entries.length} entries`)
fs.rmSync(temporary, { recursive: true })
process.exitCode = failed === 0 ? 0 : 1
