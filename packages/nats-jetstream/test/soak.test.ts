/**
 * Load with faults. `MILLRACE_SOAK` says for how long; the default is what a test run can afford.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Pipeline from "@millrace/core/Pipeline"
import * as Topic from "@millrace/core/Topic"
import { Transport } from "@millrace/core/Transport"
import { jetstreamManager } from "@nats-io/jetstream"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as JetStream from "../src/JetStream.ts"
import { onNats, outgoing, proxied, publish, until } from "./nats.ts"

const seconds = Number(process.env["MILLRACE_SOAK"] ?? 12)
const patience = 180_000 + seconds * 4000

const Job = Schema.Struct({ n: Schema.Number })
const Jobs = Topic.make("jobs", { schema: Job })

const patiently = Effect.retry(Schedule.spaced("50 millis"))

/** Publishes numbers for as long as `going`, each under its own id until it is confirmed; gives how many. */
const publishing = (going: () => boolean, window = 500) =>
  Effect.gen(function*() {
    const transport = yield* Transport
    let next = 0
    while (going()) {
      const batch = Arr.makeBy(window, (i) => outgoing("jobs", JSON.stringify({ n: next + i }), { id: `n${next + i}` }))
      yield* Effect.flatMap(transport.publish(batch), (results) =>
        Effect.forEach(results, (result) => Effect.fromResult(result), { discard: true })).pipe(patiently)
      next += window
    }
    return next
  })

describe("soak", () => {
  it.live(
    "a server killed every few seconds under load loses nothing",
    () =>
      onNats((broker) =>
        Effect.gen(function*() {
          const runs = new Map<number, number>()
          const running = yield* Pipeline.start(
            JetStream.from(Jobs, { group: "workers", startFrom: "beginning", ackWait: "5 seconds" }).pipe(
              Pipeline.map((job) => runs.set(job.n, (runs.get(job.n) ?? 0) + 1)),
              Pipeline.discard,
              Pipeline.concurrency(64)
            )
          )
          let going = true
          const producing = yield* Effect.forkScoped(
            publishing(() => going || runs.size < (seconds < 120 ? seconds * 500 : 100_000))
          )
          const until = performance.now() + seconds * 1000
          let kills = 0
          while (performance.now() < until) {
            yield* Effect.sleep("2500 millis")
            yield* broker.kill
            yield* broker.start
            kills++
          }
          going = false
          const published = yield* Effect.promise(() =>
            new Promise<number>((resolve) =>
              producing.addObserver((exit) => resolve(exit._tag === "Success" ? exit.value : -1))
            )
          )
          assert.isAtLeast(published, 0)
          yield* settled(JetStream.consumerInfo(Jobs, "workers"))
          const duplicates = [...runs.values()].reduce((sum, n) => sum + n - 1, 0)
          console.log(
            `soak: ${kills} kills, ${published} published, ${runs.size} handled, ${duplicates} run again`,
            yield* running.counts
          )
          assert.strictEqual(runs.size, published)
          // What was owned, or acknowledged and not yet written down, when the server died.
          assert.isAtMost(duplicates, kills * 5000)
        }), { sync: "always" }),
    patience
  )

  it.live(
    "64 slow slots and prefetch 512 never own more than 576, through kills, deletions and lost connections",
    () =>
      onNats((broker) =>
        Effect.gen(function*() {
          const { client } = yield* JetStream.JetStream
          // More than can be owned, however slowly this machine publishes.
          yield* publish("jobs", Arr.makeBy(3000, (n) => JSON.stringify({ n })))
          let inHand = 0
          const running = yield* Pipeline.start(
            JetStream.from(Jobs, {
              group: "workers",
              startFrom: "beginning",
              prefetch: 512,
              ackWait: "5 seconds",
              drainTimeout: 0
            }).pipe(
              Pipeline.tap(() =>
                Effect.sync(() => inHand++).pipe(
                  Effect.andThen(Effect.sleep("100 millis")),
                  Effect.ensuring(Effect.sync(() => inHand--))
                )
              ),
              Pipeline.discard,
              Pipeline.concurrency(64)
            )
          )
          let going = true
          yield* Effect.forkScoped(publishing(() => going, 100))
          let most = 0
          yield* Effect.forkScoped(Effect.forever(Effect.delay(
            Effect.map(running.owned, ({ running, waiting }) => {
              most = Math.max(most, running + waiting)
            }),
            "2 millis"
          )))
          yield* until(Effect.sync(() => most), (most) => most >= 500, "2 minutes")
          for (let round = 0; round < Math.max(1, seconds / 6); round++) {
            yield* Effect.sleep("1 second")
            yield* broker.kill
            yield* broker.start
            yield* Effect.sleep("1 second")
            const jsm = yield* Effect.promise(() => jetstreamManager(client, { checkAPI: false }))
            yield* Effect.tryPromise(() => jsm.consumers.delete("jobs", "workers")).pipe(patiently)
            yield* Effect.sleep("1 second")
            yield* Effect.promise(() => client.reconnect())
          }
          yield* Effect.sleep("1 second")
          going = false
          assert.isAtMost(most, 576)
          assert.isAtMost(inHand, 64)
        }), { sync: "always" }),
    patience
  )

  it.live(
    "ackSync over connections that drop: no message is run again after its confirmation was reported",
    () =>
      onNats((broker) =>
        Effect.gen(function*() {
          const { url } = yield* proxied(broker, dropping(0.01))
          const confirmed = new Set<string>()
          const again: Array<string> = []
          let reconnects = 0
          yield* Effect.gen(function*() {
            const { client } = yield* JetStream.JetStream
            void (async () => {
              for await (const status of client.status()) if (status.type === "reconnect") reconnects++
            })()
            const running = yield* Pipeline.start(
              JetStream.from(Jobs, { group: "workers", startFrom: "beginning", ackWait: "2 seconds" }).pipe(
                Pipeline.mapEffect((_, message) => {
                  if (confirmed.has(message.id)) again.push(message.id)
                  return Effect.sleep(message.id.endsWith("50") ? "2500 millis" : "1 millis").pipe(
                    Effect.andThen(JetStream.ackSync(message)),
                    Effect.tap((first) => Effect.sync(() => first && confirmed.add(message.id)))
                  )
                }),
                Pipeline.retry({ times: Infinity, schedule: Schedule.spaced("100 millis") }),
                Pipeline.discard,
                Pipeline.concurrency(64)
              )
            )
            let batches = 0
            yield* publishing(() => batches++ < seconds * 20, 20)
            yield* settled(JetStream.consumerInfo(Jobs, "workers"))
            console.log(
              `ackSync: ${reconnects} reconnects, ${confirmed.size} confirmed, ${again.length} again`,
              yield* running.counts
            )
          }).pipe(Effect.scoped, Effect.provide(Layer.fresh(JetStream.layer({ url }))))
          assert.isAtLeast(reconnects, 3)
          assert.deepStrictEqual(again, [])
          assert.strictEqual((yield* JetStream.consumerInfo(Jobs, "workers")).lag, 0)
        })
      ),
    patience
  )
})

const settled = <E, R>(info: Effect.Effect<JetStream.ConsumerInfo, E, R>) =>
  until(patiently(info), (info) => info.lag === 0, "2 minutes")

/** Each piece, but for the first unlucky one, may be the connection's last. A fixed sequence, so that runs are alike. */
const dropping = (probability: number) => {
  let seed = 1
  let unlucky = 0
  return (piece: Buffer) =>
    (seed = (seed * 48271) % 2147483647) / 2147483647 < probability && unlucky++ > 0 ? undefined : piece
}
