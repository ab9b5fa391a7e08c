import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Effect from "effect/Effect"
import { lines } from "../Output.ts"
import { connected } from "../target.ts"
import { serve } from "../view/server.ts"

const view = Effect.fnUntraced(function*(port: number, mayRedrive: boolean) {
  const address = yield* serve({ port, mayRedrive })
  yield* lines([`${address}   ${mayRedrive ? "may redrive" : "read only"}, until interrupted`])
  return yield* Effect.never
})

export const command = Command.make(
  "view",
  {
    port: Flag.Int("port").pipe(
      Flag.filter((port) => port >= 0 && port < 65_536, () => "a port from 0 to 65535"),
      Flag.withDescription("Listen on this port of 127.0.0.1; 0 takes a free one; default 8686"),
      Flag.withDefault(8686)
    ),
    allowRedrive: Flag.Boolean("allow-redrive").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Allow the page to redrive dead letters; default: it is read only")
    )
  },
  ({ allowRedrive, port }) => connected(Effect.scoped(view(port, allowRedrive)))
).pipe(
  Command.withDescription("Show topics, groups, messages and dead letters as a page on this machine"),
  Command.withExamples([
    { command: "millrace view", description: "At http://127.0.0.1:8686/, read only" },
    { command: "millrace view --allow-redrive", description: "With a button for dead letters" }
  ])
)
