/**
 * The tables of `docs/conformance.md`: written by the tests when `MILLRACE_DOCS=1`, compared by them otherwise.
 *
 * Each run writes or compares its own column.
 */
import { Conformance } from "@millrace/testing"
import * as fs from "node:fs"
import { fileURLToPath } from "node:url"
import { assert } from "vitest"
import { mutants } from "./mutants.ts"

const page = fileURLToPath(new URL("../../../docs/conformance.md", import.meta.url))

type Row = ReadonlyArray<string>

/** Columns as wide as their widest cell, as the formatter has them. */
const render = (rows: ReadonlyArray<Row>): string => {
  const widths = rows[0]!.map((_, column) => Math.max(3, ...rows.map((row) => row[column]!.length)))
  const line = (row: Row) => `| ${row.map((cell, column) => cell.padEnd(widths[column]!)).join(" | ")} |`
  const [head, ...body] = rows
  return [line(head!), line(widths.map((width) => "-".repeat(width))), ...body.map(line)].join("\n")
}

const parse = (text: string): ReadonlyArray<Row> =>
  text.trim().split("\n").filter((line) => line.startsWith("|") && !/^[| -]+$/.test(line))
    .map((line) => line.slice(1, -1).split("|").map((cell) => cell.trim()))

/** Replaces, or compares, what stands between the comments of that name. */
const between = (name: string, change: (old: string) => string): void => {
  const text = fs.readFileSync(page, "utf8")
  const [begin, end] = [`<!-- begin ${name} -->\n`, `<!-- end ${name} -->`]
  const from = text.indexOf(begin) + begin.length
  const to = text.indexOf(end)
  const old = text.slice(from, to)
  const renewed = `\n${change(old)}\n\n`
  if (process.env["MILLRACE_DOCS"] === "1") fs.writeFileSync(page, text.slice(0, from) + renewed + text.slice(to))
  else assert.strictEqual(renewed, old, "docs/conformance.md is out of date: run the tests with MILLRACE_DOCS=1")
}

const columns = ["memory", "redis newest", "redis oldest", "valkey newest", "valkey oldest", "nats 2.15", "nats 2.10"]

const shown = ({ result }: Conformance.Outcome): string => result === "passed" ? "✓" : result === "failed" ? "✗" : "–"

/** Keeps what a run found in the column of its name; nothing when only some of the tests were run. One that failed has said so. */
export const record = (name: string) => (outcomes: ReadonlyArray<Conformance.Outcome>): void => {
  if (outcomes.length < Conformance.tests.length) return
  if (process.env["MILLRACE_DOCS"] !== "1" && outcomes.some(({ result }) => result === "failed")) return
  const found = new Map(outcomes.map((outcome) => [outcome.test.id, outcome]))
  between("tests", (old) => {
    const known = new Map(parse(old).map((row) => [row[0]!, row]))
    return render([
      ["test", "proves", "that", ...columns],
      ...Conformance.tests.map(({ id, law, title }) => [
        id,
        law,
        title,
        ...columns.map((column, i) => column === name ? shown(found.get(id)!) : known.get(id)?.[3 + i] ?? "")
      ])
    ])
  })
  between("skips", (old) => {
    const where = new Map(parse(old).slice(1).map(([id, names]) => [id!, names!.split(", ")]))
    const reasons = new Map(parse(old).slice(1).map(([id, , reason]) => [id!, reason!]))
    for (const { result, test: { id } } of outcomes) {
      const others = (where.get(id) ?? []).filter((other) => other !== name)
      where.set(id, typeof result === "object" ? [...others, name] : others)
      if (typeof result === "object") reasons.set(id, result.skipped)
    }
    return render([
      ["test", "is skipped on", "because"],
      ...Conformance.tests.flatMap(({ id }) => {
        const names = columns.filter((column) => where.get(id)?.includes(column) ?? false)
        return names.length === 0 ? [] : [[id, names.join(", "), reasons.get(id)!]]
      })
    ])
  })
}

export const recordMutants = (): void =>
  between("mutants", () =>
    render([
      ["proves", "a transport that", "is caught by"],
      ...mutants.map(({ caughtBy, law, name }) => [law, name, caughtBy.join(", ")])
    ]))
