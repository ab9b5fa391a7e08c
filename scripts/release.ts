/**
 * Publishes what npm does not have yet: `pnpm release`, from CI, which gives provenance. `pnpm release --dry-run` does the
 * same against a registry that it starts on this machine, and installs from that one into an empty folder.
 */
import { type ChildProcess, spawn } from "node:child_process"
import { once } from "node:events"
import * as fs from "node:fs"
import { createServer } from "node:net"
import * as os from "node:os"
import * as path from "node:path"
import process from "node:process"
import { pack, repository, root, run } from "./pack.ts"

const isRehearsal = process.argv.includes("--dry-run")

/** `npm` itself: pnpm's environment holds settings of pnpm. */
const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^p?npm_/i.test(name)))
const npm = (cwd: string, ...args: ReadonlyArray<string>): string => run(cwd, "npm", args, environment)

const fail = (problem: string): never => {
  console.error(`release: ${problem}`)
  process.exit(1)
}

if (!isRehearsal && /\bOWNER\b/.test(repository().url)) {
  fail("the repository is not named: write it into package.json, run `pnpm manifests`, and try again")
}
if (!isRehearsal && process.env["CI"] === undefined) fail("npm gives provenance to CI only; rehearse with --dry-run")

const tarballs = Object.entries(pack())
const folder = fs.mkdtempSync(path.join(os.tmpdir(), "millrace-release-"))
const release = path.join(root, ".cache/release")
fs.mkdirSync(release, { recursive: true })

/** The bill of materials of each package, with what a user's installation of it brings. */
const bill = (name: string, file: string): void => {
  const project = path.join(folder, "bill", name.replace(/.*\//, ""))
  fs.mkdirSync(project, { recursive: true })
  const dependencies = Object.fromEntries(tarballs.map(([name, file]) => [name, `file:${file}`]))
  fs.writeFileSync(
    path.join(project, "package.json"),
    JSON.stringify({
      name: "bill",
      version: "0.0.0",
      dependencies: { [name]: `file:${file}` },
      overrides: dependencies
    })
  )
  npm(project, "install", "--package-lock-only", "--ignore-scripts", "--no-audit", "--no-fund")
  const sbom = npm(project, "sbom", "--package-lock-only", "--sbom-format", "cyclonedx")
  fs.writeFileSync(path.join(release, `${path.basename(file, ".tgz")}.cdx.json`), sbom)
}

const freePort = async (): Promise<number> => {
  const server = createServer().listen(0, "127.0.0.1")
  await once(server, "listening")
  const { port } = server.address() as { readonly port: number }
  server.close()
  await once(server, "close")
  return port
}

/** A registry on loopback: our packages are its own, all others come from npm. */
const startRegistry = async (): Promise<{ readonly url: string; readonly server: ChildProcess }> => {
  const port = await freePort()
  const url = `http://127.0.0.1:${port}/`
  const config = {
    storage: path.join(folder, "storage"),
    uplinks: { npm: { url: npm(folder, "config", "get", "registry").trim(), maxage: "60m" } },
    packages: {
      "@millrace/*": { access: "$all", publish: "$all" },
      "**": { access: "$all", proxy: "npm" }
    },
    log: { type: "stdout", format: "json", level: "fatal" },
    web: { enable: false },
    max_body_size: "50mb"
  }
  // YAML reads JSON.
  fs.writeFileSync(path.join(folder, "verdaccio.yaml"), JSON.stringify(config))
  const verdaccio = path.join(root, "stranger/node_modules/verdaccio/bin/verdaccio")
  const server = spawn(process.execPath, [verdaccio, "--config", "verdaccio.yaml", "--listen", `127.0.0.1:${port}`], {
    cwd: folder,
    stdio: ["ignore", "ignore", "inherit"]
  })
  while (!(await fetch(`${url}-/ping`).then(({ ok }) => ok, () => false))) {
    if (server.exitCode !== null) fail(`the registry ended with ${server.exitCode}`)
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  fs.writeFileSync(path.join(folder, ".npmrc"), `registry=${url}\n${url.replace("http:", "")}:_authToken=rehearsal\n`)
  return { url, server }
}

for (const [name, file] of tarballs) bill(name, file)
console.log(`release: ${tarballs.length} bills of materials in ${path.relative(root, release)}`)

if (isRehearsal) {
  const { server, url } = await startRegistry()
  try {
    // Provenance is signed by CI only.
    for (const [, file] of tarballs) npm(folder, "publish", file, "--registry", url, "--provenance=false")
    const project = path.join(folder, "project")
    fs.mkdirSync(project)
    fs.copyFileSync(path.join(folder, ".npmrc"), path.join(project, ".npmrc"))
    fs.copyFileSync(path.join(root, "stranger/programs/memory.test.ts"), path.join(project, "memory.test.ts"))
    fs.writeFileSync(path.join(project, "package.json"), JSON.stringify({ type: "module" }))
    npm(project, "install", "--no-audit", "--no-fund", ...tarballs.map(([name]) => name), "effect")
    run(project, process.execPath, ["--test", "memory.test.ts"], environment)
    console.log(`release: rehearsed: ${tarballs.map(([name]) => name).join(", ")} published and installed`)
  } finally {
    server.kill()
    fs.rmSync(folder, { recursive: true, force: true })
  }
} else {
  for (const [name, file] of tarballs) {
    const version = /-(\d+\.\d+\.\d+.*)\.tgz$/.exec(file)![1]!
    const published = JSON.parse(npm(folder, "view", name, "versions", "--json", "--silent") || "[]") as Array<string>
    if (published.includes(version)) continue
    npm(folder, "publish", file, "--access", "public", "--provenance")
    console.log(`release: ${name} ${version}`)
  }
  run(root, path.join(root, "node_modules/.bin/changeset"), ["tag"])
}
