import { Transport } from "@millrace/core/Transport"
import { RedisStreams } from "@millrace/redis-streams"
import { Brokers, Conformance, Proxy } from "@millrace/testing"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { record } from "./conformanceTable.ts"
import * as Operator from "./operator.ts"

class Server
  extends Context.Service<Server, { readonly broker: Brokers.Broker; readonly proxy: Proxy.Proxy }>()("test/Server")
{}

const open = Server.use(({ proxy }) =>
  RedisStreams.make({
    url: `redis://127.0.0.1:${proxy.port}`,
    claim: { minIdle: "2 seconds" },
    // A server that syncs each write may answer late where others write much.
    answerTimeout: "20 seconds"
  })
)

/** The suite on one server. */
export const conformance = (kind: "redis" | "valkey", version: "newest" | "oldest"): Promise<void> => {
  const name = `${kind} ${version}`
  return Conformance.suite({
    name,
    clock: "live",
    claimAfter: "2 seconds",
    layer: Layer.effectContext(open).pipe(
      Layer.provideMerge(Layer.effect(
        Server,
        Effect.gen(function*() {
          const broker = yield* Brokers[kind]({ version, persistence: "always" })
          return { broker, proxy: yield* Proxy.make(broker) }
        })
      ))
    ),
    connect: Effect.map(open, (context) => Context.get(context, Transport)),
    unreachable: RedisStreams.make({ url: "redis://user:secret@127.0.0.1:1", connectTimeout: "200 millis" }),
    restart: Server.use(({ broker }) => broker.restart),
    cut: Server.use(({ proxy }) => proxy.cut),
    halfOpen: Server.use(({ proxy }) => Effect.andThen(proxy.hang, proxy.heal)),
    shape: (shape) => Server.use(({ proxy }) => proxy.shape(shape)),
    // A full server: what is stored must be deleted before anything is written.
    refuse: Server.use(({ broker }) =>
      Effect.acquireRelease(
        Operator.redis(broker, "CONFIG", "SET", "maxmemory", "1"),
        () => Operator.redis(broker, "CONFIG", "SET", "maxmemory", "0")
      )
    ),
    deleteTopic: (topic) => Server.use(({ broker }) => Operator.redis(broker, "DEL", topic)),
    deleteGroup: (topic, group) =>
      Server.use(({ broker }) => Operator.redis(broker, "XGROUP", "DESTROY", topic, group)),
    deleteConsumers: (topic, group) =>
      Server.use(({ broker }) =>
        Effect.flatMap(
          Operator.redisConsumers(broker, topic, group),
          (names) =>
            Effect.forEach(names, (name) => Operator.redis(broker, "XGROUP", "DELCONSUMER", topic, group, name))
        )
      ),
    onEnd: record(name)
  })
}
