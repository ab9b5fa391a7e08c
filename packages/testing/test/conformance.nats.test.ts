import { Transport } from "@millrace/core/Transport"
import { JetStream } from "@millrace/nats-jetstream"
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
  Layer.build(Layer.fresh(JetStream.layer({ url: `nats://127.0.0.1:${proxy.port}`, ackWait: "2 seconds" })))
)

for (const version of process.env["MILLRACE_MATRIX"] === "all" ? ["2.15", "2.10"] : ["2.15"]) {
  const name = `nats ${version}`
  await Conformance.suite({
    name,
    clock: "live",
    claimAfter: "2 seconds",
    layer: Layer.effectContext(open).pipe(
      Layer.provideMerge(Layer.effect(
        Server,
        Effect.gen(function*() {
          const broker = yield* Brokers.nats({ version, sync: "always" })
          return { broker, proxy: yield* Proxy.make(broker) }
        })
      ))
    ),
    connect: Effect.map(open, (context) => Context.get(context, Transport)),
    unreachable: Layer.build(
      Layer.fresh(JetStream.layer({ url: "nats://user:secret@127.0.0.1:1", connectTimeout: "200 millis" }))
    ),
    restart: Server.use(({ broker }) => broker.restart),
    cut: Server.use(({ proxy }) => proxy.cut),
    halfOpen: Server.use(({ proxy }) => Effect.andThen(proxy.hang, proxy.heal)),
    shape: (shape) => Server.use(({ proxy }) => proxy.shape(shape)),
    deleteTopic: (topic) => Server.use(({ broker }) => Operator.jetStream(broker, `STREAM.DELETE.${topic}`)),
    deleteGroup: (topic, group) =>
      Server.use(({ broker }) => Operator.jetStream(broker, `CONSUMER.DELETE.${topic}.${group}`)),
    onEnd: record(name)
  })
}
