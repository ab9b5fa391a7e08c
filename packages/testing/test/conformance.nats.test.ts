import { Transport } from "@millrace/core/Transport"
import { JetStream } from "@millrace/nats-jetstream"
import { Brokers, Conformance } from "@millrace/testing"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { AckWait } from "../../nats-jetstream/src/internal/settings.ts"

class Server extends Context.Service<Server, Brokers.Broker>()("test/Server") {}

/** On JetStream each consumer has a claim time of its own. */
const quick = (transport: Transport["Service"]): Transport["Service"] => ({
  ...transport,
  subscribe: (options) =>
    transport.subscribe({
      ...options,
      settings: Context.add(options.settings, AckWait, Duration.seconds(1)) as Context.Context<never>
    })
})

const connection = Server.use(({ url }) =>
  Effect.map(Layer.build(Layer.fresh(JetStream.layer({ url }))), (context) => quick(Context.get(context, Transport)))
)

const versions = process.env["MILLRACE_MATRIX"] === "all" ? ["2.15", "2.10"] : ["2.15"]

for (const version of versions) {
  await Conformance.suite({
    name: `nats ${version}`,
    clock: "live",
    claimAfter: "1 second",
    layer: Layer.effect(Transport, connection).pipe(
      Layer.provideMerge(Layer.effect(Server, Brokers.nats({ version, sync: "always" })))
    ),
    connect: connection,
    unreachable: Layer.build(
      Layer.fresh(JetStream.layer({ url: "nats://user:secret@127.0.0.1:1", connectTimeout: "200 millis" }))
    ),
    restart: Server.use(({ restart }) => restart)
  })
}
