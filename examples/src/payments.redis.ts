import { NodeRuntime } from "@effect/platform-node"
import { Pipeline } from "@millrace/core"
import { RedisStreams } from "@millrace/redis-streams"
import { Config, Effect } from "effect"
import { payments } from "./payments.ts"

Pipeline.run(payments).pipe(
  // Redacted: a secret that no log shows
  Effect.provide(RedisStreams.layerConfig({ url: Config.Redacted("REDIS_URL") })),
  NodeRuntime.runMain
)
