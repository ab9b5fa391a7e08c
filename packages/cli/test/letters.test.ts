import { assert, describe, it } from "@effect/vitest"
import { DeadLetter, Transport } from "@millrace/core"
import { JetStream } from "@millrace/nats-jetstream"
import { RedisStreams } from "@millrace/redis-streams"
import { Brokers } from "@millrace/testing"
import { Array as Arr, Context, Effect, Fiber, Layer, Option, Result, type Scope, Stream } from "effect"
import { createClient } from "redis"
import { outgoing } from "../../core/src/internal/letters.ts"

const many = 100_000

const letter = (i: number): Transport.Outgoing => {
  const body = new TextEncoder().encode(`{"n":${i}}`)
  return outgoing(
    "orders.dead",
    {
      id: `${i}`,
      origin: "test",
      topic: "orders",
      key: undefined,
      headers: { "content-type": "application/json" },
      body,
      fields: undefined,
      attempt: 1,
      redelivered: false,
      suspect: false,
      publishedAt: 1
    },
    new DeadLetter.Record({
      version: 1,
      sdk: "test",
      topic: "orders",
      id: `${i}`,
      group: "payments",
      pipeline: "orders/payments",
      reason: "exhausted",
      attempts: 1,
      publishedAt: 1,
      failedAt: 1,
      error: { tag: "Declined", message: `no funds ${i}`, causes: [] },
      history: []
    })
  )
}

/** A night's letters, and the group that they are for. */
const fill = Effect.gen(function*() {
  const transport = yield* Transport.Transport
  yield* transport.declare("orders.dead", "deadLetter")
  const subscribed = transport.subscribe({
    topic: "orders",
    group: "payments",
    startFrom: "beginning",
    maxOwned: 1,
    isolateFrom: Infinity,
    timeout: undefined,
    settings: Context.empty()
  })
  yield* Effect.scoped(subscribed)
  for (let i = 0; i < many; i += 1000) {
    const letters = Arr.makeBy(1000, (j) => ({ ...letter(i + j), id: undefined }))
    for (const result of yield* transport.publish(letters)) Result.getOrThrow(result)
  }
})

/** Numbers of the messages that a topic holds. */
const numbersIn = (topic: string) =>
  Effect.flatMap(
    Transport.Transport,
    (transport) =>
      Stream.runFold(transport.browse(topic), () => new Array<number>(), (all, { body }) => {
        all.push(JSON.parse(new TextDecoder().decode(body)).n)
        return all
      })
  )

const brokers: ReadonlyArray<{
  readonly name: string
  readonly open: Effect.Effect<
    {
      readonly layer: Layer.Layer<Transport.Transport, unknown>
      /** Requests that the server has been sent so far; the question itself is not among them. */
      readonly requests: Effect.Effect<number>
    },
    unknown,
    Scope.Scope
  >
}> = [
  ...(["redis", "valkey"] as const).map((kind) => ({
    name: kind,
    open: Effect.gen(function*() {
      const { url } = yield* Brokers[kind]()
      const admin = yield* Effect.acquireRelease(
        Effect.promise(() => createClient({ url, RESP: 2 }).on("error", () => {}).connect()),
        (client) => Effect.sync(() => client.destroy())
      )
      return {
        layer: RedisStreams.layer({ url, deduplicateFor: "10 minutes" }),
        requests: Effect.promise(async () => {
          const stats = String(await admin.sendCommand(["INFO", "commandstats"]))
          return [...stats.matchAll(/^cmdstat_(x\w+|eval\w*):calls=(\d+)/gm)].reduce(
            (sum, [, , calls]) => sum + Number(calls),
            0
          )
        })
      }
    })
  })),
  {
    name: "nats",
    open: Effect.gen(function*() {
      const { url } = yield* Brokers.nats()
      const context = yield* Layer.build(JetStream.layer({ url, stream: { duplicateWindow: "10 minutes" } }))
      const { client } = Context.get(context, JetStream.JetStream)
      return { layer: Layer.succeedContext(context), requests: Effect.sync(() => client.stats().outMsgs) }
    })
  }
]

describe.each(brokers)(`${many} dead letters on $name`, ({ open }) => {
  it.live(
    "a page and a letter cost what they hold; a redrive that is interrupted and continued loses and doubles nothing",
    () =>
      Effect.gen(function*() {
        const { layer, requests } = yield* open
        yield* Effect.gen(function*() {
          yield* fill
          const cost = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
            Effect.gen(function*() {
              const before = yield* requests
              const value = yield* effect
              return { value, cost: (yield* requests) - before }
            })

          const page = yield* cost(Stream.runCollect(DeadLetter.list("orders.dead", { reverse: true, limit: 50 })))
          assert.deepStrictEqual(page.value.map(({ record }) => Number(record.id)), Arr.makeBy(50, (i) => many - 1 - i))
          assert.isAtMost(page.cost, 60)
          const older = yield* cost(
            Stream.runCollect(
              DeadLetter.list("orders.dead", { reverse: true, limit: 50, before: page.value.at(-1)!.id })
            )
          )
          assert.strictEqual(Number(older.value[0]!.record.id), many - 51)
          assert.isAtMost(older.cost, 60)
          const one = yield* cost(DeadLetter.inspect("orders.dead", older.value[49]!.id))
          assert.strictEqual(Option.getOrThrow(one.value).record.error.message, `no funds ${many - 100}`)
          assert.isAtMost(one.cost, 3)

          let progress = 0
          const redrive = DeadLetter.redrive("orders.dead", {
            onProgress: ({ redriven }) => Effect.sync(() => void (progress = redriven))
          })
          const first = yield* Effect.forkChild(redrive)
          while (progress < many / 3) yield* Effect.sleep("20 millis")
          yield* Fiber.interrupt(first)
          const stopped = yield* numbersIn("orders")
          assert.isBelow(stopped.length, many)
          const { redriven } = yield* redrive
          assert.strictEqual(redriven + stopped.length, many)
          const all = yield* numbersIn("orders")
          assert.strictEqual(all.length, many)
          assert.deepStrictEqual(all, Arr.range(0, many - 1))
          assert.deepStrictEqual(yield* numbersIn("orders.dead"), [])
        }).pipe(Effect.provide(layer))
      }),
    400_000
  )
})
