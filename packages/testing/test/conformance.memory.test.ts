import { Conformance, MemoryTransport } from "@millrace/testing"
import { record } from "./conformanceTable.ts"

await Conformance.suite({
  name: "memory",
  clock: "test",
  layer: MemoryTransport.layer({ minIdle: "1 second" }),
  claimAfter: "1 second",
  connect: MemoryTransport.MemoryTransport.use(({ connect }) => connect),
  onEnd: record("memory")
})
