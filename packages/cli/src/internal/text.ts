import truncatedWidth from "fast-string-truncated-width"
import process from "node:process"

/** The most columns that a line takes: those of the terminal, between 60 and 100; 100 where there is none. */
export const width = process.stdout.isTTY === true ? Math.max(60, Math.min(100, process.stdout.columns)) : 100

/** The columns that a terminal gives to a text: two for a Chinese or Japanese character, none for an escape. */
export const columnsOf = (text: string): number => truncatedWidth(text).width

export type Color = "bold" | "dim" | "red" | "yellow" | "green" | "cyan"

const codes: Record<Color, number> = { bold: 1, dim: 2, red: 31, yellow: 33, green: 32, cyan: 36 }

export const paint = (hasColor: boolean) => (color: Color, text: string): string =>
  hasColor ? `\u001b[${codes[color]}m${text}\u001b[0m` : text

/** Text of a message on one line, without what would control the terminal or turn the direction of the text. */
export const clean = (text: string): string =>
  // oxlint-disable-next-line no-control-regex
  text.replace(/[\u0000-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g, (char) => {
    const code = char.charCodeAt(0)
    return char === "\n"
      ? "↵"
      : char === "\t"
      ? " "
      : code > 0xff
      ? `\\u${code.toString(16).padStart(4, "0")}`
      : `\\x${code.toString(16).padStart(2, "0")}`
  })

/** Text of a message over several lines. */
export const cleanLines = (text: string): ReadonlyArray<string> => text.split(/\r?\n/).map(clean)

/** At most so many columns. */
export const cut = (text: string, most: number): string => {
  const { ellipsed, index } = truncatedWidth(text, { limit: most, ellipsis: "…" })
  return index >= text.length ? text : `${text.slice(0, index)}${ellipsed ? "…" : ""}`
}

const pad = (text: string, columns: number): string => " ".repeat(Math.max(0, columns - columnsOf(text)))

/** An argument as a shell takes it, and as it may be shown. */
export const quote = (argument: string): string =>
  /^[\w@%+=:,./-]+$/.test(argument) ? argument : `'${clean(argument).replaceAll("'", "'\\''")}'`

/** `1 message`, `2 messages`. */
export const many = (n: number, what: string, plural = `${what}s`): string => `${count(n)} ${n === 1 ? what : plural}`

export const duration = (millis: number | undefined): string => {
  if (millis === undefined) return "-"
  const seconds = Math.max(0, millis) / 1000
  if (seconds < 1) return `${Math.round(seconds * 1000)}ms`
  if (seconds < 60) return `${Math.floor(seconds)}s`
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m${String(Math.floor(seconds % 60)).padStart(2, "0")}s`
  if (seconds < 86_400) {
    return `${Math.floor(seconds / 3600)}h${String(Math.floor(seconds / 60 % 60)).padStart(2, "0")}m`
  }
  return `${Math.floor(seconds / 86_400)}d${String(Math.floor(seconds / 3600 % 24)).padStart(2, "0")}h`
}

export const count = (n: number | undefined): string => n === undefined ? "unknown" : n.toLocaleString("en-US")

export const bytes = (n: number): string =>
  n < 1024 ? `${n} B` : n < 1024 ** 2 ? `${(n / 1024).toFixed(1)} kB` : n < 1024 ** 3
    ? `${(n / 1024 ** 2).toFixed(1)} MB`
    : `${(n / 1024 ** 3).toFixed(1)} GB`

/** The last instant that a `Date` holds. */
const maxTime = 8.64e15

/** An id or a record may hold a number that is no date. */
export const time = (millis: number): string =>
  Math.abs(millis) <= maxTime ? new Date(millis).toISOString().replace(/\.000Z$/, "Z") : "no date"

/** When, and how long ago. */
export const when = (millis: number, now: number): string =>
  Math.abs(millis) <= maxTime ? `${time(millis)} (${duration(now - millis)} ago)` : time(millis)

export interface Column {
  readonly title: string
  readonly align?: "right" | undefined
  /** Gives way first when the table is too wide. */
  readonly grows?: true | undefined
}

/** A table of at most `width` columns. */
export const table = (
  columns: ReadonlyArray<Column>,
  rows: ReadonlyArray<ReadonlyArray<string>>,
  color?: (row: number, column: number, text: string) => string
): ReadonlyArray<string> => {
  const cells = rows.map((row) => row.map(clean))
  const widths = columns.map(({ title }, i) =>
    cells.reduce((most, row) => Math.max(most, columnsOf(row[i]!)), title.length)
  )
  const total = () => widths.reduce((sum, n) => sum + n, 0) + 2 * (columns.length - 1)
  // The widest of those that may give way gives way.
  for (let excess = total() - width; excess > 0; excess = total() - width) {
    const candidates = columns.flatMap((column, i) => column.grows && widths[i]! > 8 ? [i] : [])
    const widest = candidates.toSorted((a, b) => widths[b]! - widths[a]!)[0]
    if (widest === undefined) break
    const next = candidates.length > 1 ? widths[candidates.toSorted((a, b) => widths[b]! - widths[a]!)[1]!]! : 0
    const most = Math.max(1, widths[widest]! - Math.max(next, 8))
    widths[widest] = widths[widest]! - Math.min(excess, most)
  }
  const line = (row: ReadonlyArray<string>, index: number) =>
    row.map((text, i) => {
      const short = cut(text, widths[i]!)
      const padded = columns[i]!.align === "right"
        ? pad(short, widths[i]!) + short
        : i === row.length - 1
        ? short
        : short + pad(short, widths[i]!)
      return color === undefined ? padded : color(index, i, padded)
    }).join("  ").trimEnd()
  return [line(columns.map(({ title }) => title), -1), ...cells.map(line)]
}

/** Breaks text into lines between words. */
export const wrap = (text: string, indent: number): ReadonlyArray<string> => {
  const all: Array<string> = []
  let current = ""
  for (const word of text.split(" ")) {
    if (current !== "" && indent + columnsOf(current) + 1 + columnsOf(word) > width) {
      all.push(current)
      current = word
    } else current = current === "" ? word : `${current} ${word}`
    // A word that is longer than a line, such as a topic's name, is broken anywhere.
    while (indent + columnsOf(current) > width) {
      const { index } = truncatedWidth(current, { limit: width - indent })
      all.push(current.slice(0, index))
      current = current.slice(index)
    }
  }
  return [...all, current].map((line) => " ".repeat(indent) + line)
}
