import * as Effect from "effect/Effect"
import { type Admin, list } from "./admin.ts"

/** The streams of all nodes whose names begin with the prefix, without it. */
export const scan = Effect.fnUntraced(function*(admin: Admin, prefix: string) {
  const pattern = `${prefix.replace(/[\\*?[\]]/g, "\\$&")}*`
  const found = new Set<string>()
  for (const node of admin.nodes) {
    let cursor = "0"
    do {
      const reply = list(yield* node.send(["SCAN", cursor, "MATCH", pattern, "COUNT", "1000", "TYPE", "stream"]))
      cursor = String(reply[0])
      for (const key of list(reply[1])) found.add(String(key).slice(prefix.length))
    } while (cursor !== "0")
  }
  return [...found].sort()
})
