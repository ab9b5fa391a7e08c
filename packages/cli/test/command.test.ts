import { assert, describe, it } from "@effect/vitest"
import { Brokers } from "@millrace/testing"
import { Effect, Layer } from "effect"
import { spawn } from "node:child_process"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import process from "node:process"
import { fileURLToPath } from "node:url"
import { pack } from "../../../scripts/pack.ts"
import manifest from "../package.json" with { type: "json" }
import { clean, columnsOf, quote, table } from "../src/internal/text.ts"
import { version } from "../src/internal/version.ts"
import { Command, millrace } from "./cli.ts"

const main = fileURLToPath(new URL("../src/internal/main.ts", import.meta.url))

const none = Layer.succeed(Command, { name: "none", flags: [], open: undefined })

const folder = Effect.acquireRelease(
  Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "millrace-cli-"))),
  (folder) => Effect.sync(() => Fs.rmSync(folder, { recursive: true, force: true }))
)

interface Ran {
  readonly code: number | null
  readonly output: string
}

/** Nothing of the pnpm and the vitest that run this test. */
const environment = (): Record<string, string | undefined> => ({
  ...Object.fromEntries(
    Object.entries(process.env).filter(([name]) =>
      !/^(npm|pnpm|vitest|NODE_OPTIONS|VITE|NODE_ENV|TEST|MILLRACE)/i.test(name)
    )
  ),
  PATH: `${Path.dirname(process.execPath)}:${process.env["PATH"]}`,
  NO_COLOR: "1"
})

const run = (command: string, args: ReadonlyArray<string>, cwd: string, env: Record<string, string> = {}) =>
  Effect.callback<Ran>((resume) => {
    const child = spawn(command, [...args], {
      cwd,
      env: { ...environment(), ...env },
      stdio: ["ignore", "pipe", "pipe"]
    })
    let output = ""
    child.stdout.on("data", (chunk) => output += chunk)
    child.stderr.on("data", (chunk) => output += chunk)
    child.once("close", (code) => resume(Effect.succeed({ code, output })))
    return Effect.sync(() => child.kill())
  })

describe("the command", () => {
  it("has the version of its package", () => assert.strictEqual(version, manifest.version))

  it.live("help fits, has examples for each subcommand, and every mistake is one line", () =>
    Effect.gen(function*() {
      const commands = [
        ["inspect"],
        ["lag"],
        ["show"],
        ["tail"],
        ["publish"],
        ["dead", "list"],
        ["dead", "show"],
        ["dead", "redrive"],
        ["dead", "discard"],
        ["doctor"],
        ["asyncapi"],
        ["view"]
      ]
      for (const command of [[], ...commands]) {
        const { code, out } = yield* millrace(...command, "--help")
        assert.strictEqual(code, 0)
        assert.deepStrictEqual(out.split("\n").filter((line) => line.length > 100), [], command.join(" "))
        if (command.length > 0) {
          assert.match(
            out,
            new RegExp(`EXAMPLES\\n {2}# .+\\n {2}(.+\\| )?millrace ${command.join(" ")}`),
            command.join(" ")
          )
        }
      }
      for (
        const mistake of [
          ["lga"],
          ["lag", "--nope"],
          ["show", "orders"],
          ["lag", "--interval", "soon"],
          ["dead", "list", "x", "--limit", "0"],
          ["view", "--port", "x"],
          ["inspect"],
          ["inspect", "--redis", "redis://a", "--nats", "nats://b"],
          ["inspect", "--redis", "http://secret:word@a"],
          ["inspect", "--redis", "redis://:word@127.0.0.1:1"],
          ["inspect", "--redis", "not a url"],
          ["inspect", "--nats", "nats://a:word@127.0.0.1:1"],
          ["inspect", "--redis", "redis://a", "--domain", "x"],
          ["inspect", "--redis", "redis://a", "--cluster", "--sentinel", "m"],
          ["inspect", "--nats", "nats://a", "--prefix", "x"],
          ["inspect", "--nats", "nats://a", "--creds", "/nonexistent"],
          ["dead", "redrive", "x", "--rate", "0"],
          ["dead", "redrive", "x", "--cap", "-1"],
          ["dead", "list", "x", "--reason", "bored"],
          ["doctor", "--fail-on", "bad"],
          ["doctor", "--monitor", "nonsense"],
          ["tail", "x", "--since", "yesterday"],
          ["asyncapi", "/nonexistent.ts"]
        ]
      ) {
        const { code, error, out } = yield* millrace(...mistake)
        assert.strictEqual(code, 2, mistake.join(" "))
        assert.strictEqual(out, "")
        assert.match(error, /^millrace: [^\n]+$/, mistake.join(" "))
        assert.notMatch(error, /undefined|\[object|Error:/, mistake.join(" "))
        assert.notInclude(error, "word")
      }
      assert.strictEqual((yield* millrace("--version")).out, version)
    }).pipe(Effect.provide(none)), 240_000)

  it.live(
    "no password in what it prints, whatever goes wrong, nor in the list of processes",
    () =>
      Effect.gen(function*() {
        const { host, port } = yield* Brokers.redis({ password: "s3cret word" })
        const secret = "s3cret%20word"
        const url = `redis://:${secret}@${host}:${port}`
        const cwd = yield* folder
        const runs = [
          ["doctor", "--redis", url],
          ["inspect", "--redis", url],
          ["show", "orders", "1-0", "--redis", url],
          ["inspect", "--redis", `redis://:${secret}x@${host}:${port}`],
          ["lag", "--redis", `redis://:${secret}@${host}:1`],
          ["lag", "--nats", `nats://a:${secret}@${host}:1`]
        ]
        const outputs = yield* Effect.forEach(runs, (args) => run(process.execPath, [main, ...args], cwd), {
          concurrency: 2
        })
        for (const { output } of outputs) {
          assert.notMatch(output, /s3cret/)
          assert.notStrictEqual(output, "")
        }
        const child = yield* Effect.acquireRelease(
          Effect.sync(() =>
            spawn(process.execPath, [main, "lag", "--watch", "--redis", url], { stdio: ["ignore", "pipe", "inherit"] })
          ),
          (child) => Effect.sync(() => child.kill("SIGINT"))
        )
        yield* Effect.callback<void>((resume) => void child.stdout.once("data", () => resume(Effect.void)))
        if (process.platform === "linux") {
          const shown = Fs.readFileSync(`/proc/${child.pid}/cmdline`, "latin1")
          assert.match(shown, /^millrace\0*$/)
        }
      }),
    240_000
  )

  it.live("colour and progress are for a terminal, and for nothing else", () =>
    Effect.gen(function*() {
      const { url } = yield* Brokers.redis()
      const cwd = yield* folder
      const colors = (env: Record<string, string>, command: string, args: ReadonlyArray<string>) =>
        Effect.map(run(command, args, cwd, env), ({ code, output }) => {
          assert.strictEqual(code, 0, output)
          // oxlint-disable-next-line no-control-regex
          return /\u001b\[\d+m/.test(output)
        })
      yield* run(process.execPath, [main, "publish", "orders", "{}", "--create", "--redis", url], cwd)
      yield* run(process.execPath, [main, "publish", "orders.dead", "{}", "--create", "--redis", url], cwd)
      const inspect = ["inspect", "--redis", url]
      const terminal = [process.execPath, main, ...inspect].join(" ")
      assert.isTrue(yield* colors({ FORCE_COLOR: "1", NO_COLOR: "" }, process.execPath, [main, ...inspect]))
      assert.isFalse(yield* colors({ NO_COLOR: "" }, process.execPath, [main, ...inspect]))
      if (process.platform === "linux") {
        // `script` gives the command a terminal.
        const env = { NO_COLOR: "", TERM: "xterm" }
        assert.isTrue(yield* colors(env, "script", ["-qec", terminal, "/dev/null"]))
        assert.isFalse(yield* colors({ ...env, NO_COLOR: "1" }, "script", ["-qec", terminal, "/dev/null"]))
        // A narrow terminal cuts long cells.
        yield* run(process.execPath, [main, "publish", "n".repeat(90), "{}", "--create", "--redis", url], cwd)
        const narrow = yield* run("script", ["-qec", `stty cols 80; ${terminal}`, "/dev/null"], cwd, env)
        const shown = narrow.output.split(/\r?\n/).map(columnsOf)
        assert.strictEqual(Math.max(...shown), 80)
        const redrive = [process.execPath, main, "dead", "redrive", "orders.dead", "--redis", url].join(" ")
        const { output } = yield* run("script", ["-qec", redrive, "/dev/null"], cwd, env)
        assert.include(output, "\r\u001b[K")
      }
    }), 240_000)

  it.live("it ends when the reader of its output is gone", () =>
    Effect.gen(function*() {
      const { url } = yield* Brokers.redis()
      const child = spawn(process.execPath, [main, "lag", "--watch", "--interval", "20ms", "--redis", url], {
        stdio: ["ignore", "pipe", "pipe"]
      })
      let error = ""
      child.stderr.on("data", (chunk) => error += chunk)
      yield* Effect.callback<void>((resume) => void child.stdout.once("data", () => resume(Effect.void)))
      const code = yield* Effect.callback<number | null>((resume) => {
        child.once("exit", (code) => resume(Effect.succeed(code)))
        child.stdout.destroy()
      })
      assert.deepStrictEqual([code, error], [141, ""])
    }), 120_000)

  it.live("an interruption ends it quietly", () =>
    Effect.gen(function*() {
      const { url } = yield* Brokers.redis()
      const child = spawn(process.execPath, [main, "lag", "--watch", "--redis", url], {
        stdio: ["ignore", "pipe", "pipe"]
      })
      let error = ""
      child.stderr.on("data", (chunk) => error += chunk)
      yield* Effect.callback<void>((resume) => void child.stdout.once("data", () => resume(Effect.void)))
      const code = yield* Effect.callback<number | null>((resume) => {
        child.once("exit", (code) => resume(Effect.succeed(code)))
        child.kill("SIGINT")
      })
      assert.deepStrictEqual([code, error], [130, ""])
    }), 120_000)

  it.live("npx runs the packed package in an empty folder, against a broker", () =>
    Effect.gen(function*() {
      const { url } = yield* Brokers.redis()
      const cwd = yield* folder
      const tarballs = pack()
      const needed = ["cli", "core", "redis-streams", "nats-jetstream"].flatMap((
        name
      ) => ["--package", tarballs[`@millrace/${name}`]!])
      // One npx for both commands: it installs all packages each time.
      const commands = `millrace inspect --redis ${url} --json > inspected.json && ` +
        `exec millrace view --port 0 --redis ${url}`
      const child = yield* Effect.acquireRelease(
        Effect.sync(() =>
          spawn("npx", ["-y", ...needed, "-c", commands], {
            cwd,
            // The folder that npx installs into is another one for each state of the sources.
            env: { ...environment(), NODE_COMPILE_CACHE: undefined },
            // npx and its children are one process group, which one signal ends.
            detached: true,
            stdio: ["ignore", "pipe", "pipe"]
          })
        ),
        (child) => Effect.sync(() => child.exitCode === null && process.kill(-child.pid!, "SIGKILL"))
      )
      const address = yield* Effect.callback<string>((resume) => {
        let text = ""
        const take = (chunk: Buffer) => {
          text += chunk
          const address = /^http:\S+/m.exec(text)?.[0]
          if (address !== undefined) resume(Effect.succeed(address))
        }
        child.stdout.on("data", take)
        child.stderr.on("data", take)
        child.once("exit", (code) => resume(Effect.die(new Error(`npx ended with ${code}: ${text}`))))
      })
      const inspected = Fs.readFileSync(Path.join(cwd, "inspected.json"), "utf8")
      assert.deepInclude(JSON.parse(inspected), { topics: [] })
      const paths = [
        "",
        "app.js",
        "html.js",
        "charts.js",
        "style.css",
        "lib/preact.js",
        "lib/hooks.js",
        "lib/htm.js",
        "lib/uplot.js",
        "lib/uplot.css"
      ]
      const shown = yield* Effect.promise(() =>
        Promise.all(paths.map(async (path) => (await fetch(new URL(path, address))).status))
      )
      assert.deepStrictEqual(new Set(shown), new Set([200]))
    }), 400_000)
})

describe("text", () => {
  it("tables fit whatever is in them", () => {
    const lines = table(
      [{ title: "A", grows: true }, { title: "B", grows: true }, { title: "N", align: "right" }],
      [["x".repeat(200), "y".repeat(80), "1"], ["short", "\u001b[31mred\n", "22"], ["注文".repeat(40), "キュー", "3"]]
    )
    assert.isTrue(lines.every((line) => columnsOf(line) <= 100), lines.join("\n"))
    assert.notInclude(lines.join(""), "\u001b")
    assert.strictEqual(lines.length, 4)
    // Numbers stand below each other, also beside characters that take two columns.
    assert.strictEqual(new Set(lines.map(columnsOf)).size, 1)
  })

  it("what would control a terminal, or turn a text around, is written out", () => {
    assert.strictEqual(clean("a\u001b[2J\u202eb\nc\td"), "a\\x1b[2J\\u202eb↵c d")
    assert.strictEqual(quote("orders:eu"), "orders:eu")
    assert.strictEqual(quote("it's a topic"), "'it'\\''s a topic'")
  })
})
