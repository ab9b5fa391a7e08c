import * as fs from "node:fs"
import * as path from "node:path"

const folder = path.join(import.meta.dirname, "../../docs")

/** Replaces what stands between the marks of a section of docs/benchmarks.md. */
export const write = (section: string, text: string): void => {
  const file = path.join(folder, "benchmarks.md")
  const [begin, end] = [`<!-- ${section} -->`, `<!-- end of ${section} -->`]
  const [before, rest] = fs.readFileSync(file, "utf8").split(begin)
  const after = rest?.split(end)[1]
  if (after === undefined) {
    throw new Error(`docs/benchmarks.md has no section ${section}: put ${begin} and ${end} into it`)
  }
  fs.writeFileSync(file, `${before}${begin}\n\n${text}\n\n${end}${after}`)
}

export const writeFile = (name: string, text: string): void => fs.writeFileSync(path.join(folder, name), text)
