/**
 * @since 0.1.0
 */
export * as Brokers from "./Brokers.ts"
export * as Conformance from "./Conformance.ts"
export * as FakeTransport from "./FakeTransport.ts"
export * as MemoryTransport from "./MemoryTransport.ts"
export * as Proxy from "./Proxy.ts"
export * as Simulation from "./Simulation.ts"
export * as TestHarness from "./TestHarness.ts"
export * as Wait from "./Wait.ts"
