import type { Transport } from "@millrace/core"
import { JetStream } from "@millrace/nats-jetstream"
import { RedisStreams } from "@millrace/redis-streams"
import type * as Layer from "effect/Layer"

/** A transport on the server at `url`; JetStream in memory, as Redis is. */
export const layerOf = (
  broker: "redis" | "jetstream",
  url: string,
  retention?: "until-acked"
): Layer.Layer<Transport.Transport, unknown> =>
  broker === "redis"
    ? RedisStreams.layer({ url, retention })
    : JetStream.layer({ url, retention, stream: { storage: "memory" } })
