import { createHash } from "node:crypto"
import type { Argument, Command } from "../command.ts"

/** A Lua script: looks at an entry's owner and acts on it in one step of the server. */
export interface Script {
  readonly sha: string
  readonly lua: string
}

const known = new Map<string, Script>()

export const make = (lua: string): Script => {
  const script = { lua, sha: createHash("sha1").update(lua).digest("hex") }
  known.set(script.sha, script)
  return script
}

export const evalsha = (script: Script, keys: ReadonlyArray<string>, args: ReadonlyArray<Argument>): Command => [
  "EVALSHA",
  script.sha,
  String(keys.length),
  ...keys,
  ...args
]

/** The same call for a server that does not have the script. */
export const asEval = (command: Command): Command | undefined => {
  const script = known.get(String(command[1]))
  return script && ["EVAL", script.lua, ...command.slice(2)]
}
