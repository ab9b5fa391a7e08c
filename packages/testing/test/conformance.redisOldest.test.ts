import { conformance } from "./redisConformance.ts"

await conformance("redis", "oldest")
