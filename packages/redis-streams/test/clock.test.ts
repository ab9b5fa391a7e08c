/** A publisher whose clock is wrong harms nobody: what is compared with the server's times uses the server's clock. */
import { assert } from "@effect/vitest"
import { Wait } from "@millrace/testing"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import { afterEach, vi } from "vitest"
import { demand, eachServer, fresh, outgoing, retry, Server, subscribing, textOf, transport } from "./redis.ts"

afterEach(() => {
  vi.restoreAllMocks()
})

const hour = 3_600_000

/** The clock of this process, wrong by so much from now on. */
const wrongBy = (millis: number) =>
  Effect.sync(() => {
    vi.restoreAllMocks()
    const right = Date.now
    vi.spyOn(Date, "now").mockImplementation(() => right() + millis)
  })

eachServer((it) => {
  it.effect.each([hour + 60_000, -hour - 60_000])(
    "trims by age as the server tells the time, ours is wrong by %i ms",
    (by) =>
      Effect.gen(function*() {
        const { run } = yield* Server
        const topic = fresh("age")
        const redis = yield* transport({ retention: { maxAge: "1 hour", exact: true } })
        const old = Date.now() - 2 * hour
        yield* run("XADD", topic, `${old}-0`, "body", "old")
        for (let i = 0; i < 50; i++) yield* run("XADD", topic, "*", "body", "unread")
        yield* wrongBy(by)
        for (const more of [{}, { id: "i" }]) {
          const [outcome] = yield* redis.publish([outgoing(topic, "new", more)])
          assert.isTrue(Result.isSuccess(outcome!))
        }
        assert.strictEqual(yield* run("XLEN", topic), 52)
      })
  )

  it.effect("an id is recognised whatever two publishers take the time to be", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("ids")
      const redis = yield* transport({ deduplicateFor: "1 minute" })
      const publish = (by: number) =>
        Effect.andThen(
          wrongBy(by),
          Effect.map(
            redis.publish([outgoing(topic, "x", { id: "i" })]),
            ([outcome]) => Result.getOrThrow(outcome!).duplicate
          )
        )
      assert.isFalse(yield* publish(0))
      for (const by of [300_000, -300_000, hour, -hour, 10_000]) assert.isTrue(yield* publish(by), String(by))
      assert.strictEqual(yield* run("XLEN", topic), 1)
    }))

  it.effect("a retry that waits is extended after our clock is set back by an hour", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("kept")
      const redis = yield* transport({ claim: { minIdle: "1 second" } })
      const subscription = yield* redis.subscribe(subscribing(topic))
      yield* redis.publish([outgoing(topic, "waits")])
      const [delivery] = yield* subscription.pull(demand(1))
      yield* subscription.settle([{ delivery, settlement: retry("1 minute") }])
      yield* wrongBy(-hour)
      const idle = Effect.map(run("XPENDING", topic, "g", "-", "+", "1"), ([[, , millis]]) => Number(millis))
      yield* Wait.until("not extended yet", Effect.map(idle, (millis) => millis > 300))
      yield* Wait.until("extended", Effect.map(idle, (millis) => millis < 300))
    }))

  it.effect("a delay is the server's", () =>
    Effect.gen(function*() {
      const topic = fresh("delay")
      const redis = yield* transport()
      const subscription = yield* redis.subscribe(subscribing(topic))
      yield* wrongBy(hour)
      const since = performance.now()
      yield* redis.publish([outgoing(topic, "late", { delay: Duration.millis(300), id: "i" })])
      const [delivery] = yield* subscription.pull(demand(1))
      assert.strictEqual(textOf(delivery), "late")
      assert.isAtLeast(performance.now() - since, 290)
    }))
})
