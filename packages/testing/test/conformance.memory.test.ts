import { Conformance, MemoryTransport } from "@millrace/testing"

await Conformance.suite({
  name: "memory",
  clock: "test",
  layer: MemoryTransport.layer({ minIdle: "1 second" }),
  claimAfter: "1 second",
  connect: MemoryTransport.MemoryTransport.use(({ connect }) => connect)
})
