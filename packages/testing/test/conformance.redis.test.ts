import { conformance } from "./redisConformance.ts"

await conformance("redis", "newest")
if (process.env["MILLRACE_MATRIX"] === "all") {
  await conformance("valkey", "newest")
  await conformance("valkey", "oldest")
}
