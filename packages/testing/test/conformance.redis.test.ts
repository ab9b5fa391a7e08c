import { Transport } from "@millrace/core/Transport"
import { RedisStreams } from "@millrace/redis-streams"
import { Brokers, Conformance } from "@millrace/testing"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"

class Server extends Context.Service<Server, Brokers.Broker>()("test/Server") {}

const options = { claim: { minIdle: "1 second" } } as const

const servers: ReadonlyArray<{ readonly kind: "redis" | "valkey"; readonly version: string }> =
  process.env["MILLRACE_MATRIX"] === "all"
    ? (await Effect.runPromise(Brokers.available)).flatMap(({ kind, version }) =>
      kind === "nats" ? [] : [{ kind, version }]
    )
    : [{ kind: "redis", version: "newest" }, { kind: "redis", version: "oldest" }]

for (const { kind, version } of servers) {
  const server = Layer.effect(Server, Brokers[kind]({ version, persistence: "always" }))
  await Conformance.suite({
    name: `${kind} ${version}`,
    clock: "live",
    claimAfter: "1 second",
    layer: Layer.unwrap(Server.use(({ url }) => Effect.succeed(RedisStreams.layer({ url, ...options })))).pipe(
      Layer.provideMerge(server)
    ),
    connect: Server.use(({ url }) =>
      Effect.map(RedisStreams.make({ url, ...options }), (context) => Context.get(context, Transport))
    ),
    unreachable: RedisStreams.make({ url: "redis://user:secret@127.0.0.1:1", connectTimeout: "200 millis" }),
    restart: Server.use(({ restart }) => restart)
  })
}
