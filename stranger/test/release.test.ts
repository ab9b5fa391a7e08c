import { assert, describe, it } from "@effect/vitest"
import { spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as path from "node:path"

const root = path.join(import.meta.dirname, "..", "..")

const release = (...args: ReadonlyArray<string>) => {
  const { status, stderr, stdout } = spawnSync(process.execPath, ["scripts/release.ts", ...args], {
    cwd: root,
    encoding: "utf8",
    // `npm` runs on the node that is first on PATH. No code is cached for a folder that will be gone.
    env: {
      ...process.env,
      CI: undefined,
      NODE_COMPILE_CACHE: undefined,
      PATH: `${path.dirname(process.execPath)}:${process.env["PATH"]}`
    }
  })
  return { status, output: stdout + stderr }
}

describe("a release", () => {
  it(
    "is rehearsed against a registry on loopback, with a bill of materials for each package",
    { timeout: 300_000 },
    () => {
      const { output, status } = release("--dry-run")
      assert.strictEqual(status, 0, output)
      assert.include(output, "published and installed")
      const bills = fs.globSync(".cache/release/*.cdx.json", { cwd: root })
      const packages = fs.globSync("packages/*/package.json", { cwd: root })
      assert.strictEqual(bills.length, packages.length)
      for (const bill of bills) {
        const { bomFormat, components } = JSON.parse(fs.readFileSync(path.join(root, bill), "utf8")) as {
          readonly bomFormat: string
          readonly components: ReadonlyArray<{ readonly name: string; readonly group?: string }>
        }
        assert.strictEqual(bomFormat, "CycloneDX")
        assert.isTrue(components.some(({ group, name }) => `${group ?? ""}${name}`.includes("millrace")))
      }
    }
  )

  it("is refused outside of CI, and while the repository has no name", () => {
    const { repository } = JSON.parse(fs.readFileSync(path.join(root, "package.json"), "utf8")) as {
      readonly repository: { readonly url: string }
    }
    const { output, status } = release()
    assert.strictEqual(status, 1)
    assert.include(output, repository.url.includes("OWNER") ? "the repository is not named" : "rehearse with --dry-run")
  })
})
