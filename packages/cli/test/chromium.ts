import { execFileSync } from "node:child_process"
import * as Fs from "node:fs"
import * as Path from "node:path"
import process from "node:process"
import { fileURLToPath } from "node:url"

/** A browser, and what it needs in its environment. */
export interface Chromium {
  readonly path: string
  readonly env: Record<string, string>
}

const script = fileURLToPath(new URL("get-chromium.sh", import.meta.url))

const onPath = (): string | undefined => {
  const folders = (process.env["PATH"] ?? "").split(Path.delimiter)
  return folders.flatMap((folder) =>
    ["chromium", "chromium-browser", "google-chrome"].map((name) => Path.join(folder, name))
  )
    .find((file) => Fs.existsSync(file))
}

/**
 * The browser on `PATH`, else one from the operating system's packages, unpacked into `.cache` without installing
 * anything. Where there is none, says so and gives `undefined`; in CI that is an error.
 */
export const findChromium = async (): Promise<Chromium | undefined> => {
  const env = Object.fromEntries(
    Object.entries(process.env).filter((entry): entry is [string, string] => entry[1] !== undefined)
  )
  const found = onPath()
  if (found !== undefined) return { path: found, env }
  try {
    const [path, libraries, fonts] = execFileSync(script, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] })
      .trim().split("\n")
    return { path: path!, env: { ...env, LD_LIBRARY_PATH: libraries!, FONTCONFIG_PATH: fonts! } }
  } catch (error) {
    const said = error instanceof Error && "stderr" in error ? String(error.stderr).trim() : String(error)
    if (process.env["CI"]) throw new Error(`no browser for the page's test: ${said}`, { cause: error })
    console.log(`SKIPPED: the page in a browser: ${said}`)
    return undefined
  }
}
