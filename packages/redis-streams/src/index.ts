/**
 * @since 0.1.0
 */
export * as RedisStreams from "./RedisStreams.ts"
