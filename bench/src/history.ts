/**
 * One file a release with its ratios: they say little about a machine, and much about the release.
 */
import * as fs from "node:fs"
import * as path from "node:path"
import { type Row, verdict } from "./row.ts"
import { interval, markdown } from "./table.ts"

const folder = path.join(import.meta.dirname, "../history")
const manifest = path.join(import.meta.dirname, "../../packages/core/package.json")

interface Release {
  readonly version: string
  readonly commit: string
  readonly ratios: Readonly<Record<string, { readonly value: number; readonly low: number; readonly high: number }>>
}

const versionOf = (): string => (JSON.parse(fs.readFileSync(manifest, "utf8")) as { readonly version: string }).version

const numbers = (version: string) => version.split(/\D+/).map(Number)

const byVersion = (a: Release, b: Release): number => {
  const [left, right] = [numbers(a.version), numbers(b.version)]
  const differs = left.findIndex((part, i) => part !== right[i])
  return differs === -1 ? 0 : left[differs]! - (right[differs] ?? 0)
}

const releases = (): ReadonlyArray<Release> =>
  fs.globSync("*.json", { cwd: folder })
    .map((file) => JSON.parse(fs.readFileSync(path.join(folder, file), "utf8")) as Release)
    .sort(byVersion)

const round = (value: number) => Math.round(value * 1000) / 1000

/** Writes the file of the version in the manifest, and compares it with that of the release before. */
export const write = (rows: ReadonlyArray<Row>, commit: string): string => {
  const version = versionOf()
  const measured = rows.flatMap((row) =>
    row.unit === "×" && row.estimate !== undefined ? [{ ...row, estimate: row.estimate }] : []
  )
  const ratios = Object.fromEntries(
    measured.map(({ estimate: { high, low, value }, what }) => [
      what,
      { value: round(value), low: round(low), high: round(high) }
    ])
  )
  const release: Release = { version, commit, ratios }
  const before = releases().findLast((other) => byVersion(other, release) < 0)
  fs.mkdirSync(folder, { recursive: true })
  fs.writeFileSync(path.join(folder, `${version}.json`), `${JSON.stringify(release, undefined, 2)}\n`)
  return markdown(
    ["ratio", version, "", before?.version ?? "no release before"],
    measured.map((row) => [
      row.what,
      interval(row.estimate),
      verdict(row),
      before?.ratios[row.what] === undefined ? "" : interval(before.ratios[row.what]!)
    ])
  )
}
