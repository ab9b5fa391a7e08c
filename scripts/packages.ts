/**
 * Checks what would be published: packs each built package, lints the tarballs, installs them into an empty project and
 * compiles and imports every entry there.
 */
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import process from "node:process"
import { pack, pnpm, repository, root, run as runOrThrow } from "./pack.ts"

interface Manifest {
  readonly name: string
  readonly bin?: object
  readonly homepage?: string
  readonly bugs?: { readonly url: string }
  readonly repository?: { readonly type?: string; readonly url: string; readonly directory?: string }
  readonly dependencies?: Record<string, string>
  readonly peerDependencies?: Record<string, string>
  readonly peerDependenciesMeta?: Record<string, { readonly optional: boolean }>
}

const bin = path.join(root, "node_modules/.bin")
const rules = path.join(root, "scripts/lint/declarations.oxlintrc.json")
const temporary = fs.mkdtempSync(path.join(os.tmpdir(), "millrace-packages-"))
const bounds = { library: { kilobytes: 400, loading: 2.5 }, program: { kilobytes: 800, loading: 8 } }
let failed = 0

const fail = (problem: string) => {
  failed++
  console.log(problem)
}

const run = (cwd: string, command: string, ...args: ReadonlyArray<string>): string => {
  try {
    return runOrThrow(cwd, command, args)
  } catch (error) {
    fail(error instanceof Error ? error.message : String(error))
    return ""
  }
}

const consumer = path.join(temporary, "consumer")
fs.mkdirSync(consumer)

const packed = Object.values(pack()).map((file) => {
  const unpacked = path.join(temporary, path.basename(file, ".tgz"))
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

// The repository is named in the root manifest; the packages repeat the name for npm.
const { home, ...repositoryField } = repository()
for (const { manifest } of packed) {
  const wanted = {
    homepage: `${home}#readme`,
    bugs: { url: `${home}/issues` },
    repository: { ...repositoryField, directory: `packages/${manifest.name.split("/")[1]}` }
  }
  for (const [field, value] of Object.entries(wanted)) {
    const given = JSON.stringify(manifest[field as keyof typeof wanted])
    if (given !== JSON.stringify(value)) {
      fail(`${manifest.name}: ${field} is ${given}, the root manifest says ${JSON.stringify(value)}`)
    }
  }
}

for (const { file, manifest, unpacked } of packed) {
  for (
    const wanted of [
      "LICENSE",
      "README.md",
      "src/index.ts",
      "dist/index.js",
      "dist/index.d.ts",
      "dist/index.js.map",
      "dist/index.d.ts.map"
    ]
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
try {
  pnpm(consumer, "install", "--prefer-offline", "--ignore-scripts")
} catch (error) {
  fail(String(error))
}

const entries = packed.flatMap(({ manifest, unpacked }) =>
  fs.globSync("dist/*.js", { cwd: unpacked }).sort().flatMap((file) => {
    const module = path.basename(file, ".js")
    // A module of types alone.
    if (/^export \{\};?$/m.test(fs.readFileSync(path.join(unpacked, file), "utf8"))) return []
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

// What a program pays: the size of each tarball, and the processor time to load it, beside what Effect itself takes.
const loading = (module: string): number => {
  const script = `const before = process.cpuUsage(); await import(${JSON.stringify(module)})
    const { user, system } = process.cpuUsage(before); console.log((user + system) / 1000)`
  return Math.min(
    ...Array.from({ length: 5 }, () => Number(run(consumer, process.execPath, "--input-type=module", "-e", script)))
  )
}
const effect = loading("effect")
for (const { file, manifest } of packed) {
  const kilobytes = fs.statSync(file).size / 1024
  const time = loading(manifest.name)
  console.log(
    `${manifest.name}: ${kilobytes.toFixed(0)} kB packed, loads in ${time.toFixed(0)} ms (effect: ${
      effect.toFixed(0)
    } ms)`
  )
  // A program of its own may load what it likes.
  const { kilobytes: maxKilobytes, loading: maxLoading } = manifest.bin === undefined ? bounds.library : bounds.program
  if (kilobytes > maxKilobytes) fail(`${manifest.name}: more than ${maxKilobytes} kB`)
  // A ratio, measured in one run: the machine may be slow.
  if (time > maxLoading * effect) {
    fail(`${manifest.name}: takes more than ${maxLoading} times as long to load as effect`)
  }
}

console.log(`${packed.length} tarballs, ${entries.length} entries`)
fs.rmSync(temporary, { recursive: true })
process.exitCode = failed === 0 ? 0 : 1
