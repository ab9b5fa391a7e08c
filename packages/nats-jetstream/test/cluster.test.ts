import { assert, describe, it } from "@effect/vitest"
import * as Pipeline from "@millrace/core/Pipeline"
import * as Settlement from "@millrace/core/Settlement"
import * as Topic from "@millrace/core/Topic"
import { Transport } from "@millrace/core/Transport"
import * as Brokers from "@millrace/testing/Brokers"
import { jetstreamManager } from "@nats-io/jetstream"
import { connect } from "@nats-io/transport-node"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as JetStream from "../src/JetStream.ts"
import { outgoing, publish, settle, skipsInContainers, subscribe, take, until, versions } from "./nats.ts"

const Jobs = Topic.make("jobs", { schema: Schema.Struct({ n: Schema.Number }) })

const cluster = Effect.fnUntraced(function*(version: string) {
  const ports = yield* Effect.all([Brokers.freePort, Brokers.freePort, Brokers.freePort])
  const routes = ports.map((port) => `nats-route://127.0.0.1:${port}`).join(", ")
  return yield* Effect.forEach(ports, (port) =>
    Brokers.nats({
      version,
      sync: "always",
      config: `cluster { name: millrace, listen: "127.0.0.1:${port}", routes: [${routes}] }`
    }), { concurrency: "unbounded" })
})

const patiently = Effect.retry(Schedule.spaced("100 millis"))

describe.skipIf(await skipsInContainers("three nodes")).each(versions)("three nodes of nats-server %s", (version) => {
  it.live("each node killed in turn while consuming, three replicas: nothing is lost", () =>
    Effect.gen(function*() {
      const nodes = yield* cluster(version)
      yield* Effect.gen(function*() {
        const seen = new Set<number>()
        // Nodes that have just been started have no peers yet.
        const running = yield* patiently(Pipeline.start(
          JetStream.from(Jobs, { group: "workers", startFrom: "beginning", ackWait: "5 seconds" }).pipe(
            Pipeline.map((job) => seen.add(job.n)),
            Pipeline.discard,
            Pipeline.concurrency(16)
          )
        ))
        const { client } = yield* JetStream.JetStream
        const jsm = yield* Effect.promise(() => jetstreamManager(client, { checkAPI: false }))
        assert.strictEqual((yield* Effect.promise(() => jsm.streams.info("jobs"))).config.num_replicas, 3)
        let published = 0
        let going = true
        const producing = yield* Effect.forkScoped(Effect.whileLoop({
          while: () => going,
          body: () =>
            Effect.gen(function*() {
              const transport = yield* Transport
              const batch = Arr.makeBy(
                50,
                (i) => outgoing("jobs", JSON.stringify({ n: published + i }), { id: `${published + i}` })
              )
              yield* Effect.flatMap(
                transport.publish(batch),
                (results) => Effect.forEach(results, (result) => Effect.fromResult(result))
              ).pipe(patiently)
              yield* Effect.sleep("20 millis")
            }),
          step: () => {
            published += 50
          }
        }))
        // The older server takes long to catch up on two cores: one death shows as much.
        for (const [index, node] of (version === "2.10" ? nodes.slice(0, 1) : nodes).entries()) {
          // A quorum that lacks two is none: the one before has to have caught up.
          if (index > 0) {
            yield* until(
              patiently(Effect.tryPromise(() => jsm.streams.info("jobs"))),
              (info) => info.cluster?.replicas?.every((replica) => replica.current && !replica.offline) === true,
              "2 minutes"
            )
          }
          const before = seen.size
          yield* node.kill
          yield* until(Effect.sync(() => seen.size), (size) => size > before + 100, "1 minute")
          yield* node.start
        }
        // The leader gives way while messages flow.
        yield* patiently(
          Effect.tryPromise(() => client.request("$JS.API.STREAM.LEADER.STEPDOWN.jobs", "", { timeout: 2000 }))
        )
        yield* patiently(
          Effect.tryPromise(() =>
            client.request("$JS.API.CONSUMER.LEADER.STEPDOWN.jobs.workers", "", { timeout: 2000 })
          )
        )
        const before = seen.size
        yield* until(Effect.sync(() => seen.size), (size) => size > before + 100, "1 minute")
        going = false
        yield* until(Effect.sync(() => producing.pollUnsafe()), (exit) => exit !== undefined)
        yield* until(Effect.sync(() => seen.size), (size) => size === published, "1 minute")
        yield* until(patiently(JetStream.consumerInfo(Jobs, "workers")), (info) => info.lag === 0, "1 minute")
        // The last requests may have gone to a leader that gave way.
        yield* until(running.health, ({ state }) => state === "consuming", "1 minute")
      }).pipe(
        Effect.scoped,
        Effect.provide(JetStream.layer({ url: nodes.map(({ url }) => url).join(","), stream: { replicas: 3 } }))
      )
    }), 180_000)

  it.live(
    "the bucket of attempts has the replicas of the stream that it serves; its leader killed, releases come again, soon uncounted",
    () =>
      Effect.gen(function*() {
        const nodes = yield* cluster(version)
        const url = nodes.map(({ url }) => url).join(",")
        yield* Effect.gen(function*() {
          const { client } = yield* JetStream.JetStream
          const jsm = yield* Effect.promise(() => jetstreamManager(client, { checkAPI: false }))
          // Made by operations: the layer says nothing of replicas.
          yield* patiently(
            Effect.tryPromise(() => jsm.streams.add({ name: "jobs", subjects: ["jobs"], num_replicas: 3 }))
          )
          const subscription = yield* patiently(subscribe("jobs", { ackWait: "3 seconds", isolateFrom: Infinity }))
          const bucket = Effect.tryPromise(() => jsm.streams.info("KV_millrace"))
          const { cluster: placed, config } = yield* patiently(bucket)
          assert.strictEqual(config.num_replicas, 3)
          const names = yield* Effect.forEach(nodes, (node) =>
            Effect.map(
              Effect.promise(() => connect({ servers: node.url })),
              (nc) => {
                const name = nc.info?.server_name
                void nc.close()
                return name
              }
            ))
          yield* patiently(publish("jobs", ["a"]))
          const taken = yield* take(subscription, 1)
          yield* nodes[Math.max(0, names.indexOf(placed?.leader))]!.kill
          // Until there are new leaders a release may be lost, and counts; the message comes again all the time.
          let held = taken
          const released = Effect.gen(function*() {
            yield* patiently(Effect.suspend(() => settle(subscription, held, Settlement.release)))
            const before = held[0]!.attempt
            held = yield* take(subscription, 1).pipe(Effect.timeout("20 seconds"))
            return held[0]!.attempt === before
          })
          yield* until(released, (isUncounted) => isUncounted, "2 minutes")
        }).pipe(Effect.scoped, Effect.provide(Layer.fresh(JetStream.layer({ url }))))
      }),
    120_000
  )
})
