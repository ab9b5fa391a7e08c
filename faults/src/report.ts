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
  "longest exit, s"
]

const commit = () => {
  const given = process.env["MILLRACE_COMMIT"]
  if (given !== undefined) return given
  const git = (...args: ReadonlyArray<string>) =>
    execFileSync("git", args, { cwd: import.meta.dirname, encoding: "utf8" }).trim()
  const isChanged = git("status", "--porcelain", "--untracked-files=no", "--", "../../packages", "..") !== ""
  return git("rev-parse", "--short", "HEAD") + (isChanged ? " and changes" : "")
}

export const writeDocs = (rows: ReadonlyArray<Row>, command: string): void => {
  const cells = (cells: ReadonlyArray<string>) => `| ${cells.join(" | ")} |`
  const table = [
    cells(columns),
    cells(columns.map(() => "---")),
    ...rows.map(({ broken, broker, found, name, verdict }) =>
      cells([
        broken.length === 0 ? name : `${name} (did not hold)`,
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
        ])
      ])
    )
  ]
  const failed = rows.filter(({ broken }) => broken.length > 0)
  const machine = `${os.cpus().length} cores, ${
    Math.round(os.totalmem() / 2 ** 30)
  } GB, Linux ${os.release()}, Node ${process.version}`
  const file = path.join(import.meta.dirname, "../../docs/faults.md")
  const [before, rest] = fs.readFileSync(file, "utf8").split("<!-- runs -->")
  const after = rest?.split("<!-- /runs -->")[1]
  if (after === undefined) throw new Error("docs/faults.md needs <!-- runs --> and <!-- /runs -->")
  const done = [...new Map(rows.map(({ does, name }) => [name, does]))].map(([name, does]) => `- **${name}**: ${does}`)
  const verdict = failed.length === 0
    ? `All ${rows.length} runs held.`
    : `${failed.length} of ${rows.length} runs did not hold, see below the table.`
  const complaints = failed.map(({ broken, broker, name }) =>
    `- ${name}, ${broker}: ${broken[0]}${broken.length > 1 ? `, and ${broken.length - 1} more` : ""}`
  )
  const text = [
    `\`${command}\` at ${commit()}, ${new Date().toISOString().slice(0, 10)}; ${machine}. ${verdict}`,
    done.join("\n"),
    table.join("\n"),
    ...(complaints.length === 0 ? [] : [`Did not hold:\n\n${complaints.join("\n")}`])
  ].join("\n\n")
  fs.writeFileSync(file, `${before}<!-- runs -->\n\n${text}\n\n<!-- /runs -->${after}`)
}
