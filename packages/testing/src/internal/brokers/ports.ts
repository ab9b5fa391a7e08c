import * as Effect from "effect/Effect"
import * as Net from "node:net"
import { BrokersError } from "./BrokersError.ts"

// Below the range from which operating systems take the ports of outgoing connections (32768 and up on Linux, 49152
// elsewhere). In that range a client that re-connects to a stopped broker can be given the broker's own port, and
// then either talks to itself or keeps the broker from coming back.
const lowest = 20_000
const highest = 32_000

const isFree = (port: number): Effect.Effect<boolean> =>
  Effect.callback<boolean>((resume) => {
    const server = Net.createServer()
    server.once("error", () => resume(Effect.succeed(false)))
    server.listen({ host: "127.0.0.1", port, exclusive: true }, () => server.close(() => resume(Effect.succeed(true))))
  })

/** A loopback port that nobody listens on now. Another process may still take it first. */
export const free: Effect.Effect<number, BrokersError> = Effect.gen(function*() {
  for (let i = 0; i < 100; i++) {
    const port = lowest + Math.floor(Math.random() * (highest - lowest))
    if (yield* isFree(port)) return port
  }
  return yield* new BrokersError({
    reason: "start",
    message: `no free port on 127.0.0.1 between ${lowest} and ${highest}: stop servers left over from other runs`
  })
})
