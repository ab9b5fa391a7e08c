import * as fs from "node:fs"
import * as path from "node:path"

const fetched = path.join(import.meta.dirname, "..", "..", "..", ".cache", "servers", "complete")

/**
 * Runs before the first test. The first servers on a machine come through the network, which takes as long as it takes:
 * that is no test's time. Where there are none, the tests that need one say why.
 */
export default async (): Promise<void> => {
  if (fs.existsSync(fetched)) return
  const { Effect } = await import("effect")
  const { Brokers } = await import("@millrace/testing")
  await Effect.all([Brokers.redis(), Brokers.nats()], { discard: true }).pipe(
    Effect.scoped,
    Effect.ignore,
    Effect.runPromise
  )
}
