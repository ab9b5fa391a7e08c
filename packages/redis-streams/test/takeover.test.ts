/** How soon a peer has what was handed back: `MILLRACE_TAKEOVER=200` measures that often. */
import { assert, layer } from "@effect/vitest"
import * as Settlement from "@millrace/core/Settlement"
import { Wait } from "@millrace/testing"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { demand, fresh, outgoing, Server, serving, subscribing, textOf, transport } from "./redis.ts"

const times = Number(process.env["MILLRACE_TAKEOVER"] ?? 10)

const quantile = (sorted: ReadonlyArray<number>, q: number) => Math.round(sorted[Math.ceil(q * sorted.length) - 1]!)

layer(serving("redis"), { excludeTestServices: true })("what is handed back", (it) => {
  it.effect(
    "is taken by a peer that is idle, without an attempt being counted",
    () =>
      Effect.gen(function*() {
        const { run } = yield* Server
        for (const held of [0, 1_000]) {
          const took = yield* Effect.forEach(
            Array.from({ length: times }),
            () =>
              Effect.gen(function*() {
                const topic = fresh("takeover")
                // Each pair is two processes of its own: what one finds must not be another's luck.
                const [one, other] = [yield* transport(), yield* transport()]
                const subscription = yield* one.subscribe(subscribing(topic))
                const first = yield* Effect.forkChild(subscription.pull(demand(1)), { startImmediately: true })
                yield* Wait.until(
                  "it reads",
                  Effect.map(run("XINFO", "CONSUMERS", topic, "g"), (all) => all.length === 2)
                )
                const peer = yield* other.subscribe(subscribing(topic))
                const pulling = yield* Effect.forkChild(peer.pull(demand(1)), { startImmediately: true })
                yield* Effect.sleep(Math.random() * 1_000)
                yield* one.publish([outgoing(topic, "1")])
                const [delivery] = yield* Fiber.join(first)
                yield* Effect.sleep(held + Math.random() * 1_000)
                const since = performance.now()
                yield* subscription.settle([{ delivery, settlement: Settlement.release }])
                const [taken] = yield* Fiber.join(pulling)
                const ms = performance.now() - since
                assert.deepStrictEqual([textOf(taken), taken.attempt, taken.suspect], ["1", 1, false])
                return ms
              }).pipe(Effect.scoped),
            { concurrency: 10 }
          )
          const sorted = took.sort((a, b) => a - b)
          console.log(
            `held for ${held} to ${held + 1_000} ms, handed back ${times} times: taken over after ` +
              `${quantile(sorted, 0.5)} ms (median), ${quantile(sorted, 0.99)} ms (p99), ${
                Math.round(sorted.at(-1)!)
              } ms (longest)`
          )
        }
      }),
    600_000
  )
})
