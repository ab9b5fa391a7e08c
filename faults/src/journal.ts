/**
 * The history of a run: one file, to which every process appends what happens to it, a line at a time. The order of the
 * lines is the order of events; what a process wrote survives its being killed.
 */
import type * as Telemetry from "@millrace/core/Telemetry"
import * as fs from "node:fs"
import { pid } from "node:process"

/** What is done to connections, brokers and processes. */
export type Fault =
  | "connections cut"
  | "connections hung"
  | "broker killed"
  | "broker stopped"
  | "broker paused"
  | "consumer paused"

/** What becomes of a message or a process; `of` is a process, or 0 for the broker and the network. */
export type Happening =
  /** The broker confirmed it. */
  | { readonly _tag: "Accepted"; readonly id: string; readonly n: number }
  | {
    readonly _tag: "Begun"
    readonly id: string
    readonly key: string
    readonly attempt: number
    readonly redelivered: boolean
  }
  | {
    readonly _tag: "Ended"
    readonly id: string
    readonly attempt: number
    readonly outcome: Telemetry.Outcome["_tag"]
  }
  /** It consumes. */
  | { readonly _tag: "Up" }
  | { readonly _tag: "Fault" | "Healed"; readonly fault: Fault; readonly of: number }
  /** `killed`: by us or by a message; `after`: milliseconds since it was told to. */
  | {
    readonly _tag: "Gone"
    readonly of: number
    readonly how: "drained" | "killed" | "crashed"
    readonly after: number
  }

export type Line = Happening & { readonly at: number; readonly pid: number }

export interface Journal {
  readonly file: string
  readonly write: (happening: Happening) => void
  /** All lines so far: the same array on every call, grown. */
  readonly lines: () => ReadonlyArray<Line>
}

export const open = (file: string): Journal => {
  const descriptor = fs.openSync(file, "a+")
  const lines: Array<Line> = []
  const chunk = Buffer.alloc(1 << 20)
  let offset = 0
  let rest: Buffer = Buffer.alloc(0)
  return {
    file,
    write: (happening) => {
      const at = performance.timeOrigin + performance.now()
      fs.writeSync(descriptor, `${JSON.stringify({ at, pid, ...happening })}\n`)
    },
    lines: () => {
      for (;;) {
        const size = fs.readSync(descriptor, chunk, 0, chunk.length, offset)
        if (size === 0) return lines
        offset += size
        const data = Buffer.concat([rest, chunk.subarray(0, size)])
        const end = data.lastIndexOf(10) + 1
        rest = data.subarray(end)
        for (const line of data.toString("utf8", 0, end).split("\n")) if (line !== "") lines.push(JSON.parse(line))
      }
    }
  }
}
