import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { Command, millrace } from "./cli.ts"

const secret = "s3cr3t-p4ss"
const alone = Layer.succeed(Command, { name: "none", flags: [], open: undefined })

/** Addresses that hold the secret, also where it does not belong. */
const addresses = [
  "a:S@H",
  ":S@H",
  "S@H",
  "a:S%zz@H",
  "a:x@S@H",
  "a:S/x@H",
  "a:S#x@H",
  "a:S?x@H",
  "H/S",
  "H?token=S",
  "a:S@",
  "a:S@h:99999",
  "a:S@H,a:S@H"
].map((rest) => rest.replaceAll("S", secret).replaceAll("H", "127.0.0.1:1"))

describe("a password", () => {
  it.live("in an address of any shape is in no error of a command", () =>
    Effect.gen(function*() {
      for (const broker of ["redis", "nats"]) {
        for (const url of [...addresses.map((rest) => `${broker}://${rest}`), `${broker}:${secret}`, secret]) {
          const { code, error, out } = yield* millrace("lag", `--${broker}`, url)
          assert.strictEqual(code, 2, url)
          assert.notInclude(out + error, secret, url)
        }
      }
    }).pipe(Effect.provide(alone)))

  it.live("is in no error about arguments that are wrong", () =>
    Effect.gen(function*() {
      const url = `redis://app:${secret}@127.0.0.1:1`
      const mistakes = [
        [url],
        ["lag", url],
        ["lag", "--redsi", url],
        ["lag", `--redsi=${url}`],
        ["lag", "--cluster", url],
        ["lag", `--cluster=${url}`],
        ["lag", "--redis", url, "--nats", url],
        ["lag", "--nats", `nats://app:${secret}@127.0.0.1:1`, "--cluster"],
        ["lag", "--redis", url, "orders", url],
        ["show", "--redis", url],
        ["dead", url]
      ]
      for (const args of mistakes) {
        const { code, error, out } = yield* millrace(...args)
        assert.strictEqual(code, 2, args.join(" "))
        assert.notInclude(out + error, secret, args.join(" "))
      }
    }).pipe(Effect.provide(alone)))

  it.live("in a file of credentials is in no error", () =>
    Effect.gen(function*() {
      const folder = yield* Effect.acquireRelease(
        Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "millrace-cli-"))),
        (folder) => Effect.sync(() => Fs.rmSync(folder, { recursive: true, force: true }))
      )
      const file = Path.join(folder, "app.creds")
      Fs.writeFileSync(file, `-----BEGIN NATS USER JWT-----\n${secret}\n------END NATS USER JWT------\n`)
      const { code, error, out } = yield* millrace("lag", "--nats", "nats://127.0.0.1:1", "--creds", file)
      assert.strictEqual(code, 2)
      assert.notInclude(out + error, secret)
    }).pipe(Effect.scoped, Effect.provide(alone)))
})
