/** A line for each run, and the table of docs/faults.md. */
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import process from "node:process"
import { percentile, type Verdict } from "./oracle.ts"

export interface Row {
  readonly name: string
  readonly does: string
  readonly broker: string
  /** Sentences; none when all held. */
  readonly broken: ReadonlyArray<string>
  /** What the oracle counted, or what a program says of itself. */
  readonly verdict?: Verdict
  readonly found?: string
}

const count = (n: number) => n.toLocaleString("en")

/** Median and maximum. */
const spread = (values: ReadonlyArray<number>) =>
  values.length === 0 ? "" : `${seconds(percentile(values, 0.5))} / ${seconds(Math.max(...values))}`

const seconds = (millis: number) => (millis / 1000).toFixed(2)

const repeats = ({ repeats }: Verdict) => [...repeats].map(([cause, n]) => `${count(n)} ${cause}`).join(", ")

export const line = ({ broken, broker, found, name, verdict }: Row, took: number): string =>
  [
    broken.length === 0 ? "ok    " : "BROKEN",
    name.padEnd(23),
    broker.padEnd(12),
    `${took.toFixed(1).padStart(6)} s`,
    ...(verdict === undefined ? [found] : [
      `${count(verdict.accepted)} accepted, ${
        count(verdict.begun)
      } attempts, ${verdict.deadLetters} dead, ${verdict.lost} lost`,
      `repeats: ${repeats(verdict) || "none"}`,
      `burned ${verdict.burned}`,
      ...(verdict.resumed.length === 0 ? [] : [`resumed ${spread(verdict.resumed)} s`]),
      ...(verdict.takeOver.length === 0 ? [] : [`taken over p99 ${seconds(percentile(verdict.takeOver, 0.99))} s`]),
      ...(verdict.exits.length === 0 ? [] : [`exits at most ${seconds(Math.max(...verdict.exits))} s`])
    ])
  ].join("  ")

export const complaint = (broken: ReadonlyArray<string>, folder: string | undefined): string =>
  [
    ...broken.slice(0, 15),
    ...(broken.length > 15 ? [`and ${broken.length - 15} more`] : []),
    ...(folder === undefined ? [] : [`journal: ${folder}`])
  ]
    .map((sentence) => `       ${sentence}`)
    .join("\n")

const columns = [
  "scenario",
  "broker",
  "faults",
  "accepted",
  "attempts",
  "dead letters",
  "lost",
  "repeated, and why",
  "burned",
  "resumed, s",
  "taken over p99, s",
  "longest exit, s",
  "commit"
]

const commit = () => {
  const given = process.env["MILLRACE_COMMIT"]
  if (given !== undefined) return given
  const git = (...args: ReadonlyArray<string>) =>
    execFileSync("git", args, { cwd: import.meta.dirname, encoding: "utf8" }).trim()
  const isChanged = git("status", "--porcelain", "--untracked-files=no", "--", "../../packages", "..") !== ""
  return git("rev-parse", "--short", "HEAD") + (isChanged ? " and changes" : "")
}

/** What the page has of a run: its line of the table, and what did not hold. */
interface Entry {
  readonly name: string
  readonly does: string
  readonly cells: string
  readonly complaint: string | undefined
}

const failedMark = " (did not hold)"

const cells = (cells: ReadonlyArray<string>) => `| ${cells.join(" | ")} |`

const entry = (commit: string) => ({ broken, broker, does, found, name, verdict }: Row): [string, Entry] => [
  `${name}, ${broker}`,
  {
    name,
    does,
    cells: cells([
      broken.length === 0 ? name : name + failedMark,
      broker,
      ...(verdict === undefined ? ["", "", "", "", "", found ?? "", "", "", "", ""] : [
        count(verdict.faults),
        count(verdict.accepted),
        count(verdict.begun),
        count(verdict.deadLetters),
        count(verdict.lost),
        repeats(verdict),
        count(verdict.burned),
        spread(verdict.resumed),
        verdict.takeOver.length === 0 ? "" : seconds(percentile(verdict.takeOver, 0.99)),
        verdict.exits.length === 0 ? "" : seconds(Math.max(...verdict.exits))
      ]),
      commit
    ]),
    complaint: broken.length === 0
      ? undefined
      : `- ${name}, ${broker}: ${broken[0]}${broken.length > 1 ? `, and ${broken.length - 1} more` : ""}`
  }
]

/** What stands on the page, of runs before. */
const entriesOf = (block: string): ReadonlyArray<[string, Entry]> => {
  const does = new Map([...block.matchAll(/^- \*\*(.*?)\*\*: (.*)$/gm)].map(([, name, does]) => [name, does!]))
  return block.split("\n").filter((line) => line.startsWith("|")).slice(2).map((line) => {
    const columns = line.slice(1, -1).split("|").map((cell) => cell.trim())
    const name = columns[0]!.replace(failedMark, "")
    const key = `${name}, ${columns[1]}`
    const complaint = block.split("\n").find((line) => line.startsWith(`- ${key}: `))
    return [key, { name, does: does.get(name) ?? "", cells: cells(columns), complaint }]
  })
}

/** A run of a part renews its own lines. */
export const writeDocs = (rows: ReadonlyArray<Row>, command: string, isPart: boolean): void => {
  const file = path.join(import.meta.dirname, "../../docs/faults.md")
  const [before, rest] = fs.readFileSync(file, "utf8").split("<!-- runs -->")
  const [block, after] = rest?.split("<!-- /runs -->") ?? []
  if (block === undefined || after === undefined) {
    throw new Error("docs/faults.md needs <!-- runs --> and <!-- /runs -->")
  }
  const entries = [...new Map([...(isPart ? entriesOf(block) : []), ...rows.map(entry(commit()))]).values()]
  const machine = `${os.cpus().length} cores, ${Math.round(os.totalmem() / 2 ** 30)} GB, Linux ${
    os.release().split(".", 2).join(".")
  }, Node ${process.version}`
  const complaints = entries.flatMap(({ complaint }) => complaint ?? [])
  const verdict = complaints.length === 0
    ? `All ${entries.length} runs held.`
    : `${complaints.length} of ${entries.length} runs did not hold, see below the table.`
  const done = [...new Map(entries.map(({ does, name }) => [name, does]))].map(([name, does]) =>
    `- **${name}**: ${does}`
  )
  const text = [
    `\`${command}\`, ${new Date().toISOString().slice(0, 10)}; ${machine}. ${verdict}`,
    done.join("\n"),
    [cells(columns), cells(columns.map(() => "---")), ...entries.map(({ cells }) => cells)].join("\n"),
    ...(complaints.length === 0 ? [] : [`Did not hold:\n\n${complaints.join("\n")}`])
  ].join("\n\n")
  fs.writeFileSync(file, `${before}<!-- runs -->\n\n${text}\n\n<!-- /runs -->${after}`)
}
