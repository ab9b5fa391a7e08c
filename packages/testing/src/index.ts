/**
 * @since 0.1.0
 */
export * as Brokers from "./Brokers.ts"
export * as Conformance from "./Conformance.ts"
export * as MemoryTransport from "./MemoryTransport.ts"
export * as Simulation from "./Simulation.ts"
export * as TestHarness from "./TestHarness.ts"
