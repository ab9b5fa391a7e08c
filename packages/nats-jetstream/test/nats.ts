import type * as Settlement from "@millrace/core/Settlement"
import type * as Delivery from "@millrace/core/Transport"
import { Transport } from "@millrace/core/Transport"
import * as Brokers from "@millrace/testing/Brokers"
import * as Proxy from "@millrace/testing/Proxy"
import * as Wait from "@millrace/testing/Wait"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import type * as Scope from "effect/Scope"
import { AckWait } from "../src/internal/settings.ts"
import * as JetStream from "../src/JetStream.ts"

/** The servers of the matrix, or those of `NATS_VERSIONS`. */
export const versions = (process.env["NATS_VERSIONS"] ?? "2.15,2.10").split(",")

/** Whether a version is older than the one that has something: `before(version, 12)` than 2.12. */
export const before = (version: string, minor: number) => Number(version.split(".")[1]) < minor

/** Says what is skipped where servers run in containers: they see neither each other's loopback nor our files. */
export const skipsInContainers = async (what: string): Promise<boolean> => {
  const servers = await Effect.runPromise(Brokers.available)
  const skips = servers.some(({ kind, provider }) => kind === "nats" && provider === "container")
  if (skips) console.warn(`skipped, ${what}: containers see neither each other's loopback nor our files`)
  return skips
}

/** Runs a test on a server of its own, within one layer. */
export const onNats = <A, E>(
  f: (broker: Brokers.Broker) => Effect.Effect<A, E, JetStream.JetStream | Transport | Scope.Scope>,
  options: Brokers.NatsOptions & { readonly layer?: JetStream.CommonOptions } = {}
) =>
  Effect.scoped(Effect.gen(function*() {
    const { layer, ...server } = options
    const broker = yield* Brokers.nats(server)
    return yield* Effect.provide(
      Effect.scoped(f(broker)),
      Layer.fresh(JetStream.layer({ url: broker.url, publishTimeout: "30 seconds", ...layer }))
    )
  }))

/** A subscription with options that a test has no opinion about. */
export const subscribe = (
  topic: string,
  options: Partial<Delivery.SubscribeOptions> & { readonly ackWait?: Duration.Input } = {}
) =>
  Transport.use((transport) =>
    transport.subscribe({
      topic,
      group: "group",
      startFrom: "beginning",
      maxOwned: 100,
      isolateFrom: 2,
      timeout: undefined,
      settings: options.ackWait === undefined
        ? Context.empty()
        : Context.make(AckWait, Duration.fromInputUnsafe(options.ackWait)),
      ...options
    })
  )

const encoder = new TextEncoder()
const decoder = new TextDecoder()

export const text = (delivery: Delivery.Delivery) => decoder.decode(delivery.body)

export const outgoing = (topic: string, body: string, more: Partial<Delivery.Outgoing> = {}): Delivery.Outgoing => ({
  topic,
  body: encoder.encode(body),
  headers: {},
  key: undefined,
  id: undefined,
  delay: undefined,
  ...more
})

/** Publishes bodies, each under its own id, and fails unless all were stored. */
export const publish = (topic: string, bodies: ReadonlyArray<string>) =>
  Transport.use((transport) =>
    Arr.isReadonlyArrayNonEmpty(bodies)
      ? Effect.flatMap(
        transport.publish(Arr.map(bodies, (body) => outgoing(topic, body))),
        (results) => Effect.forEach(results, (result) => Effect.fromResult(result))
      )
      : Effect.succeed([])
  )

/** The demand for a number of messages of any kind, with one isolated suspect at a time. */
export const demand = (total: number, more: Partial<Delivery.Demand> = {}): Delivery.Demand => ({
  total,
  fresh: total,
  suspects: 1,
  bytes: Infinity,
  ...more
})

/** Pulls until there are `count`. */
export const take = Effect.fnUntraced(function*(subscription: Delivery.Subscription, count: number) {
  const taken: Array<Delivery.Delivery> = []
  while (taken.length < count) {
    taken.push(...yield* subscription.pull(demand(count - taken.length, { suspects: count - taken.length })))
  }
  return taken
})

export const settle = (
  subscription: Delivery.Subscription,
  deliveries: ReadonlyArray<Delivery.Delivery>,
  settlement: Settlement.Settlement | Settlement.SettlementRequested
) =>
  Arr.isReadonlyArrayNonEmpty(deliveries)
    ? subscription.settle(Arr.map(deliveries, (delivery) => ({
      delivery,
      settlement: settlement._tag === "SettlementRequested" ? settlement.settlement : settlement
    })))
    : Effect.succeed([])

/** Asks again until the answer is right: see `Wait.eventually`. */
export const until = <A, E, R>(
  effect: Effect.Effect<A, E, R>,
  right: (a: A) => boolean,
  within?: Duration.Input
) => Wait.eventually("the condition", effect, right, within)

/** A way to a broker on which what a network does can be done to it. */
export const proxied = (broker: Brokers.Broker, pass?: Proxy.Options["pass"]) =>
  Effect.map(Proxy.make(broker, { pass }), (proxy) => ({ ...proxy, url: proxy.through(broker.url) }))

/** Runs a test that looks at what is logged, a line each. */
export const logged = <A, E, R>(f: (lines: ReadonlyArray<string>) => Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.suspend(() => {
    const lines: Array<string> = []
    const logger = Logger.make(({ message }) => void lines.push(Arr.ensure(message).map(String).join(" ")))
    return Effect.provide(f(lines), Logger.layer([logger]))
  })
