import { Conformance, MemoryTransport } from "@millrace/testing"
import { record } from "./conformanceTable.ts"

await Conformance.suite({
  name: "memory",
  clock: "test",
  layer: MemoryTransport.layer({ minIdle: "1 second" }),
  claimAfter: "1 second",
  connect: MemoryTransport.MemoryTransport.use(({ connect }) => connect),
  deleteTopic: (topic) => MemoryTransport.MemoryTransport.use((memory) => memory.deleteTopic(topic)),
  deleteGroup: (topic, group) => MemoryTransport.MemoryTransport.use((memory) => memory.deleteGroup(topic, group)),
  onEnd: record("memory")
})
