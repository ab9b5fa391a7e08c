/**
 * @since 0.1.0
 */
export * as JetStream from "./JetStream.ts"
